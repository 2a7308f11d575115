"""Statics and thread-locals of the program that an edit calls by another symbol, or gives another type.

The hash at the end of a legacy symbol covers the definition of the item's type, so a static has another symbol as soon
as a field of its type gets another name. In v0 names, and in those of `#[no_mangle]`, no type occurs: there a static
keeps its symbol whatever becomes of its type. In both cases the value is the program's as long as it still is one of
the type, and lost, or read as something else, where it is not.

Source: rustc_symbol_mangling, `legacy::get_symbol_hash`, which hashes the item's type; RFC 2603 for v0.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Note, Refusal

_TYPE_REDEFINED = "the definition of its type changed, and so its symbol: its value would be lost; restart"
"""Why state is lost where no more is known of its type."""

_LEGACY = re.compile(r"_ZN.*17h[0-9a-f]{16}E")

_OF_MACRO = re.compile(r"(?:::\{[^}]*\}(?:\})?)*::__RUST_STD_INTERNAL_VAL$")
"""What `thread_local!` puts behind the name that it was given. Source: `std::sys::thread_local`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Successors:
    """State that has another symbol than in the program.

    Args:
        kept: new symbol → the one that the program has the value by.
        lost: new symbols of state whose value does not suit them any more → why.
    """

    kept: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)


def names_its_type(symbol: str) -> bool:
    """Whether a static's symbol would be another one if its type were another."""
    return _LEGACY.match(symbol) is not None


def item_name(symbol: str) -> str:
    """The path of a static, as in the source; that of a thread-local is the one given to `thread_local!`."""
    return _OF_MACRO.sub("", demangle(symbol))


def find_successors(
    new: Iterable[str],
    gone: Iterable[str],
    types: Mapping[str, str],
    earlier_types: Mapping[str, str],
    *,
    constants: Container[str] = (),
) -> Successors:
    """Find out which statics are those that the program has by another symbol.

    Args:
        new: symbols of statics and thread-locals that the program does not have.
        gone: those of state that the program has and the newest objects have not.
        types: symbol → type, as the newest objects say.
        earlier_types: likewise, of the code that runs.
        constants: those of the new ones that cannot be written to, so that no value is theirs.
    """
    by_path: dict[str, list[str]] = {}
    for name in sorted(gone):
        by_path.setdefault(demangle(name), []).append(name)
    paths: dict[str, list[str]] = {}
    for name in sorted(new):
        if demangle(name) in by_path:
            paths.setdefault(demangle(name), []).append(name)
    kept, lost = {}, {}
    for path, names in paths.items():
        before = by_path[path]
        for name in names:
            type_ = None if name in constants else types.get(name)
            same = [other for other in before if type_ is not None and earlier_types.get(other) == type_]
            if len(same) == 1 and sum(types.get(other) == type_ for other in names) == 1:
                kept[name] = same[0]
            elif same:
                lost[name] = "several statics have this name, and which one's value it has cannot be told; restart"
            else:
                lost[name] = _other_type(earlier_types.get(before[0]), types.get(name))
    return Successors(kept=kept, lost=lost)


def refuse_other_types(
    names: Iterable[str], types: Mapping[str, str], earlier_types: Mapping[str, str]
) -> Iterator[Refusal]:
    """Refuse state that has the symbol that it had, and another type.

    Args:
        names: symbols of the program's state that a patch refers to.
        types: symbol → type, as the newest objects say.
        earlier_types: likewise, of the code that runs.
    """
    told = set()
    for name in sorted(names):
        before, now = earlier_types.get(name), types.get(name)
        # `thread_local!` makes two of one: whether the type needs dropping decides which is used.
        if before is not None and now is not None and before != now and item_name(name) not in told:
            told.add(item_name(name))
            yield Refusal(symbol=name, reason="static_changed", detail=_other_type(before, now))


def refuse_other_places(names: Iterable[str], constants: Container[str]) -> Iterator[Refusal]:
    """Refuse statics that have the symbol and type that they had, and can be written to in one of the two only.

    Args:
        names: their symbols.
        constants: those that nobody can write to any more.
    """
    for name in sorted(names):
        if name in constants:
            detail = "it could be written to, and cannot any more: its value would be lost; restart"
        else:
            detail = "it can be written to now, and lies where the program cannot write; restart"
        yield Refusal(symbol=name, reason="static_changed", detail=detail)


def _other_type(before: str | None, now: str | None) -> str:
    if before is None or now is None or before == now:
        return _TYPE_REDEFINED
    return f"its type was {before} and is {now} now: its value would be lost; restart"


def note_fresh(new: Iterable[str], removed: Iterable[str]) -> list[Note]:
    """Notes for new statics that may be meant to be ones that the same edit takes away: renamed, or moved.

    Args:
        new: symbols of statics and thread-locals that a patch brings.
        removed: those that the edit takes away.
    """
    gone = sorted({item_name(name) for name in removed})
    notes = []
    for name in sorted({item_name(symbol) for symbol in new}.difference(gone)):
        module, _, own = name.rpartition("::")
        alike = [other for other in gone if other.rpartition("::")[0] == module or other.rpartition("::")[2] == own]
        if alike:
            detail = f"it is new, and begins with its initialiser; {alike[0]}, which is gone, was another static"
            notes.append(Note(symbol=name, note="begins_anew", detail=detail))
    return notes
