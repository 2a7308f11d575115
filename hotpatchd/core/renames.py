"""Methods that an edit calls by another symbol though they are what they were.

rustc counts the `impl` blocks of a module, and the number is part of the symbols of what is in them, in the legacy
mangling by way of the hash. So a block that is inserted, or moved, renames the methods of those below it; and where a
type gets its own form of a method that its trait had for it, that form has another symbol. Trait objects that the
program has lead to the method by its place, and have to find the newest code there, whatever it is called.

Source: rustc_symbol_mangling: `legacy::get_symbol_hash` (the hash of the path), `v0::print_impl_path`.
"""

import re
from collections.abc import Container, Mapping

from hotpatchd.core.demangle import demangle, of_shim
from hotpatchd.core.layout import FunctionTypes, TraitObject, VirtualTable

_BLOCK_NUMBER = re.compile(r"\{impl#\d+\}")
_ELSEWHERE = re.compile(r"^(?:\w+::)+<impl (?P<type>[^ ]+(?: for [^ ]+)?)>::")
"""How a legacy name begins for a block in another module than its type's."""

_INSTANCE = re.compile(r"::<.*>$", re.DOTALL)

_CRATE = re.compile(r"(?<![\w:])(\w+)::")

_Identity = tuple[str, tuple[str, ...], tuple[str, ...]]


def method_name(symbol: str) -> str:
    """The last part of a function's path, without generic arguments."""
    return _INSTANCE.sub("", of_shim(symbol) or demangle(symbol)).rpartition("::")[2]


def may_be_renamed(symbol: str, crate_names: Container[str]) -> bool:
    """Whether a function may be a method of a type or trait of the developer's crates. Closures are not."""
    text = demangle(symbol)
    return "{closure" not in text and any(crate in crate_names for crate in _CRATE.findall(text))


def find_renamed(gone: Mapping[str, FunctionTypes], come: Mapping[str, FunctionTypes]) -> dict[str, str]:
    """Find functions that have another symbol than before.

    Args:
        gone: functions that run and that the newest objects do not define.
        come: those that they define and that did not run.

    Returns:
        New symbol → old symbol, of those that have one path, one signature, and are made for the same types.
    """
    before, now = _by_identity(gone), _by_identity(come)
    return {
        now[identity][0]: before[identity][0]
        for identity in before.keys() & now.keys()
        if len(before[identity]) == len(now[identity]) == 1
    }


def _by_identity(functions: Mapping[str, FunctionTypes]) -> dict[_Identity, list[str]]:
    found: dict[_Identity, list[str]] = {}
    for symbol, types in functions.items():
        found.setdefault(_identity(symbol, types), []).append(symbol)
    return found


def _identity(symbol: str, types: FunctionTypes) -> _Identity:
    """What tells a function from others whichever block it is in."""
    text = _ELSEWHERE.sub(_in_its_module, demangle(symbol))
    generic: tuple[str, ...] = ()
    if symbol.startswith("_ZN"):
        generic = tuple(sorted(map(_unnumbered, types.generic)))
        if len(generic) == 1 and "<" not in text:
            # A method as its trait has it, made for one type: the form of the type's own would be called like this.
            trait, _, method = text.rpartition("::")
            text, generic = f"<{generic[0]} as {trait}>::{method}", ()
    return text, generic, tuple(map(_unnumbered, types.parameters))


def _in_its_module(block: re.Match[str]) -> str:
    trait, separator, type_ = block["type"].partition(" for ")
    return f"<{type_} as {trait}>::" if separator else f"{trait}::"


def _unnumbered(type_path: str) -> str:
    return _BLOCK_NUMBER.sub("{impl}", type_path)


Tables = Mapping[TraitObject, VirtualTable]


def find_dropped_otherwise(before: Tables, now: Tables) -> dict[str, str]:
    """Find traits with objects whose virtual table leads to drop glue in one of the two only.

    An old object is dropped as its table says: without the code of a new destructor, or with that of one that is gone.

    Args:
        before: the tables of the code that runs.
        now: those of the code that is to run.

    Returns:
        Path of the trait → what changed.
    """
    return {
        made.trait: f"destructor of {made.type} {'added' if now[made].drops else 'removed'}"
        for made in before.keys() & now.keys()
        if before[made].drops != now[made].drops
    }


def find_changed_tables(
    before: Tables, now: Tables, functions: Mapping[str, FunctionTypes], functions_now: Mapping[str, FunctionTypes]
) -> dict[str, str]:
    """Find traits with other methods, or with methods at other places of their virtual tables, where code calls them.

    Args:
        before: the tables of the code that runs.
        now: those of the code that is to run.
        functions: types of the functions that run.
        functions_now: types of those that are to run.

    Returns:
        Path of the trait → what changed.
    """
    found = {}
    for made, old in before.items():
        new = now.get(made)
        if new is None:
            # Another type shows how the trait's tables are now.
            new = next(
                (table for other, table in now.items() if other.trait == made.trait and other not in before), old
            )
        text = _difference(old.methods, new.methods, functions, functions_now)
        if text:
            found[made.trait] = text
    return found


def _difference(
    old: tuple[str, ...],
    new: tuple[str, ...],
    functions: Mapping[str, FunctionTypes],
    functions_now: Mapping[str, FunctionTypes],
) -> str:
    """What distinguishes two virtual tables; empty where nothing does."""
    were, are = list(map(method_name, old)), list(map(method_name, new))
    if were != are:
        changes = [f"method {name} added" for name in are if name not in were]
        changes += [f"method {name} removed" for name in were if name not in are]
        moved = (f"method {name} moved" for name in are if name in were and are.index(name) != were.index(name))
        return ", ".join(changes or moved)
    for name, symbol, symbol_now in zip(were, old, new, strict=True):
        if of_shim(symbol_now) and not of_shim(symbol):
            return f"method {name}: told its caller"
        types, types_now = functions.get(symbol), functions_now.get(symbol_now)
        is_told_by_name = symbol == symbol_now and symbol.startswith("_ZN")
        if types and types_now and not is_told_by_name:
            was, is_ = (tuple(map(_unnumbered, one.parameters[1:])) for one in (types, types_now))
            if was != is_:
                return f"method {name}: {_signature(was)} → {_signature(is_)}"
    return ""


def _signature(parameters: tuple[str, ...]) -> str:
    *taken, result = parameters or ("",)
    return f"fn({', '.join(taken)})" + (f" -> {result}" if result else "")
