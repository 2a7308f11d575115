"""Whether the values that a program holds suit the code that an edit brings.

Code that depends on a type's layout differs when the layout does, so a patch replaces all of it. What is left to ask
is whether a value of the old layout is still there when the new code runs. Values live in statics, behind trait
objects and in the state of tasks, where they stay, and in what belongs to a running function, where they end with it.
docs/guarantees.md has the rule and its limits.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Refusal

_TASK_STATES = ("{async_fn_env#", "{async_block_env#", "{async_closure_env#", "{gen_")
"""What rustc's debug information names the state of async functions, blocks and closures, and of generators.

Source: `rustc_codegen_ssa::debuginfo::type_names`.
"""

_BORROWED_TRAITS = ("core::fmt::",)
"""Traits whose objects are made for the length of one call (`{:?}` makes `&dyn Debug`), unless something holds one."""

_BORROWING = ("&", "*", "[", "dyn ", "core::fmt::")
"""How types begin that lend a trait object for one call."""

_ERASED_PARTS = ("*const ()", "*mut ()", "*const core::ffi::c_void", "*mut core::ffi::c_void")
"""Parameters through which a library hands back a value whose type it does not know."""

_LIBRARIES = ("core::", "alloc::", "std::")
"""How paths of functions begin that the developer did not write."""

_CATCHING = re.compile(r"std::panicking::\w+::do_(call|catch)\b")
"""The functions that `catch_unwind` hands to the compiler's intrinsic. Source: std/src/panicking.rs."""

_NAMED = 4
"""How many functions a refusal names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a type: its offset in bytes, and the path of its type."""

    name: str
    offset: int
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A variant of an enum: the tag that marks it (None: whichever no other has), and its fields."""

    name: str
    tag: int | None
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the compiler laid out a struct, union, enum, closure or task state; sizes in bytes."""

    size: int
    align: int
    fields: tuple[Field, ...] = ()
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTypes:
    """The types that a function has to do with.

    Args:
        path: its path; closures and the code of async functions have their number in it.
        signature: of its parameters and its result.
        parameters: of its parameters that have a name, in their order, then of its result (empty: none).
        generic: for which it was instantiated; all that is told of glue that the compiler makes.
        all: these, and those of everything that it names.
    """

    path: str = ""
    signature: frozenset[str]
    parameters: tuple[str, ...] = ()
    generic: frozenset[str]
    all: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitObject:
    """A virtual table: the type of the value, and the path of the trait."""

    type: str
    trait: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTable:
    """What a trait object leads to.

    Args:
        methods: the symbols of the methods in the table's order; empty where a slot leads to no function.
        drops: whether the value is dropped through it.
    """

    methods: tuple[str, ...]
    drops: bool = False


@dataclass(frozen=True, kw_only=True)
class Uses:
    """What holds which types, in one object.

    Args:
        parts: path → the types that a value of it contains or leads to.
        functions: symbol → its types.
        statics: symbol → its type.
        trait_objects: what is made a trait object.
        made_for: path → those of its `parts` that are parameters of it, and that no field of it leads to.
    """

    parts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    functions: Mapping[str, FunctionTypes] = field(default_factory=dict)
    statics: Mapping[str, str] = field(default_factory=dict)
    trait_objects: frozenset[TraitObject] = frozenset()
    made_for: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def holders(self) -> Mapping[str, frozenset[str]]:
        """Path → the types that contain it or lead to it directly."""
        return _inverse(self.parts)

    @cached_property
    def holders_by_field(self) -> Mapping[str, frozenset[str]]:
        """The same without those that are only made for it."""
        nothing = frozenset[str]()
        return _inverse({path: parts - self.made_for.get(path, nothing) for path, parts in self.parts.items()})


def _inverse(parts: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for holder, held in parts.items():
        for part in held:
            found.setdefault(part, set()).add(holder)
    return {part: frozenset(holders) for part, holders in found.items()}


class UnitTypes(Protocol):
    """The types of one object."""

    @property
    def layouts(self) -> Mapping[str, frozenset[Layout]]:
        """Path → layout; several where types share a path."""

    @property
    def uses(self) -> Uses:
        """What holds which types. Asked for only when a layout changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a change of layouts means.

    Args:
        refusals: types of which an old value may be alive for good.
        idle: functions that may hold an old value while they run → the refusal, should a thread be inside one when
            the new code comes.
    """

    refusals: tuple[Refusal, ...] = ()
    idle: Mapping[str, Refusal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCode:
    """Code that the program has and that an edit leaves as it is, since it has no name in the new code, or another.

    Whoever has its address goes on with it: the holder of a closure or a function pointer, and old code that runs.

    Args:
        is_kept: whether a function is such.
        is_pointed: whether its address is taken otherwise than for a call.
        callers: the functions that refer to one.
    """

    is_kept: Callable[[str], bool]
    is_pointed: Callable[[str], bool]
    callers: Callable[[str], Iterable[str]]


def judge_layouts(
    before: Iterable[UnitTypes],
    now: Iterable[UnitTypes],
    *,
    is_live: Callable[[str], bool],
    callers: Callable[[str], Iterable[str]],
    can_wait: bool = True,
    is_apart: Callable[[str], bool] = lambda _: False,
    tables: Mapping[str, str] | None = None,
    kept: KeptCode | None = None,
) -> Judgement:
    """Compare the types of the code that runs with those of the code that is to run.

    Args:
        before: those objects of the code that runs that the new build has others of.
        now: these others.
        is_live: whether the program has a function or static.
        callers: the functions that refer to one in the code that runs.
        can_wait: whether the program's client finds out that no thread is inside a function; what would be `idle` is
            refused where it does not.
        is_apart: whether the old values of a type are left to the old code, so that its new layout is that of another
            type.
        tables: traits whose virtual tables are others than before → what changed.
        kept: functions that stay as they are beside the code that is to run; None where that is not asked.
    """
    running = tuple(before)
    old, new = _layouts(running), _layouts(now)
    traits = {f"dyn {trait}": text for trait, text in (tables or {}).items()}
    changed = {
        path: difference
        for path in old.keys() & new.keys()
        if (difference := _difference(old[path], new[path]))
        and not is_apart(path)
        and not any(_is_about(path, trait) for trait in traits)
    }
    if not changed and not traits:
        return Judgement()
    uses = tuple(unit.uses for unit in running)
    empty = {path for path in old.keys() & new.keys() if not any(one.size for one in old[path] | new[path])}
    causes = [(path, difference, _reaching([path], uses)) for path, difference in _causes(changed, uses)]
    for trait, text in traits.items():
        if _is_borrowed(trait.removeprefix("dyn "), uses):
            continue
        about = {path for unit in uses for path in (*unit.parts, *unit.holders) if _is_about(path, trait)}
        causes.append((trait, _Difference(text=text, follows=False), _reaching(about, uses)))
    refusals: list[Refusal] = []
    idle: dict[str, Refusal] = {}
    for path, difference, reach in causes:
        using = {
            name: types
            for unit in uses
            for name, types in unit.functions.items()
            if not types.all.isdisjoint(reach) and is_live(name)
        }
        place = next(_lasting_places(path, reach, uses, using, is_live, empty), None)
        if place is not None:
            crate = path.removeprefix("dyn ").partition("::")[0]
            names = sorted({demangle(name) for name in using}, key=lambda name: (not name.startswith(crate), name))
            used = f"; used by {', '.join(names[:_NAMED])}" if names else ""
            refusals.append(_refusal(path, difference, f"{place}{used}"))
            continue
        if kept is not None:
            staying, entering = _staying(filter(kept.is_kept, using), kept, is_live)
            pointed = {name for name in staying if not _is_lent(name) and kept.is_pointed(name)}
            if pointed:
                # A closure is pointed to by way of the library's shim for it.
                named = min((_is_of_library(name), name not in pointed, demangle(name)) for name in staying)[-1]
                place = f"{named} goes on with its old code for whoever has a pointer to it"
                refusals.append(_refusal(path, difference, place))
                continue
            for name in sorted(entering):
                idle[name] = _refusal(path, difference, f"{demangle(name)} is running, which leads to old code")
        handing = {name for name, types in using.items() if not (types.signature | types.generic).isdisjoint(reach)}
        if handing:
            calling = {caller for name in handing for caller in callers(name) if is_live(caller)}
            if not can_wait:
                place = f"{demangle(min(handing))} hands values of it around, which may be alive in functions that run"
                refusals.append(_refusal(path, difference, place))
                continue
            for name in sorted({*using, *calling}):
                idle[name] = _refusal(path, difference, f"{demangle(name)} is running, which may hold values of it")
    return Judgement(refusals=tuple(refusals), idle=idle)


def _staying(names: Iterable[str], kept: KeptCode, is_live: Callable[[str], bool]) -> tuple[set[str], set[str]]:
    """Functions that keep their old code, and that which leads to them; and the running code from which one enters."""
    staying = set(names)
    entering = set(staying)
    waiting = list(staying)
    while waiting:
        callers = set(filter(is_live, kept.callers(waiting.pop())))
        entering |= callers
        new = {name for name in callers if kept.is_kept(name)} - staying
        staying |= new
        waiting += new
    return staying, entering


def _is_of_library(symbol: str) -> bool:
    return demangle(symbol).lstrip("<").startswith(_LIBRARIES)


def _is_lent(symbol: str) -> bool:
    """Whether a function is one of those whose address `format_args!` or `catch_unwind` takes for one call."""
    path = demangle(symbol)
    return _CATCHING.match(path) is not None or any(f" as {trait}" in path for trait in _BORROWED_TRAITS)


def find_changed(before: Iterable[UnitTypes], now: Iterable[UnitTypes], is_wanted: Callable[[str], bool]) -> set[str]:
    """Paths of types with a layout that they did not have, another name of a field included.

    Args:
        before: objects of the code that runs that the new build has others of.
        now: these others.
        is_wanted: whether a type is asked about.
    """
    old, new = _layouts(before), _layouts(now)
    return {path for path in filter(is_wanted, old.keys() & new.keys()) if not new[path] <= old[path]}


def _is_about(path: str, trait: str) -> bool:
    """Whether a type is `dyn Trait`, a pointer to that, or an instance for either; associated types may be added."""
    start = trait.removesuffix(">")
    rest = path.partition(start)[2] if start in path else ":"
    return not (rest[:1].isalnum() or rest.startswith(("_", ":")))


def _refusal(path: str, difference: "_Difference", place: str) -> Refusal:
    return Refusal(symbol=path, reason="layout", detail=f"its layout changed ({difference.text}), and {place}; restart")


def _layouts(units: Iterable[UnitTypes]) -> dict[str, frozenset[Layout]]:
    found: dict[str, frozenset[Layout]] = {}
    for unit in units:
        for path, layouts in unit.layouts.items():
            found[path] = found.get(path, frozenset()) | layouts
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """What distinguishes two layouts; `follows` where another type's change of size explains it."""

    text: str
    follows: bool


def _difference(old: frozenset[Layout], new: frozenset[Layout]) -> _Difference | None:
    """What distinguishes a new layout from the old ones; None where all new ones were there before."""
    for layout in sorted(new - old, key=repr):
        differences = [_compare(earlier, layout) for earlier in sorted(old - new or old, key=repr)]
        if None not in differences:
            return differences[0]
    return None


def _compare(old: Layout, new: Layout) -> _Difference | None:
    own = [*_compare_fields(old.fields, new.fields, "field"), *_compare_variants(old.variants, new.variants)]
    following = [
        *_moved_fields(old.fields, new.fields),
        *_moved_tags(old.variants, new.variants),
        *([f"size {old.size} → {new.size}"] if old.size != new.size else []),
        *([f"alignment {old.align} → {new.align}"] if old.align != new.align else []),
    ]
    text = ", ".join(own or following)
    return _Difference(text=text, follows=not own) if text else None


def _causes(changed: Mapping[str, _Difference], units: Iterable[Uses]) -> Iterator[tuple[str, _Difference]]:
    """The changed types, less those that only hold another one, sorted."""
    following = {
        holder
        for path in changed
        for holder in _reaching([path], units) - {path}
        if holder in changed and changed[holder].follows
    }
    kept = {path: difference for path, difference in changed.items() if path not in following}
    yield from sorted((kept or changed).items())


def _compare_fields(old: tuple[Field, ...], new: tuple[Field, ...], what: str) -> Iterator[str]:
    """The differences between fields. One that was only renamed is where it was, with the type that it had."""
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    removed = {(before[name].offset, before[name].type): name for name in before.keys() - after.keys()}
    for name, one in after.items():
        earlier = before.get(name)
        if earlier is None:
            if removed.pop((one.offset, one.type), None) is None:
                yield f"{what} {name} added"
        elif one.type != earlier.type:
            yield f"{what} {name}: {earlier.type} → {one.type}"
    for name in sorted(removed.values()):
        yield f"{what} {name} removed"


def _moved_fields(old: tuple[Field, ...], new: tuple[Field, ...]) -> Iterator[str]:
    before = {one.name: one for one in old}
    for one in new:
        earlier = before.get(one.name)
        if earlier is not None and earlier.type == one.type and earlier.offset != one.offset:
            yield f"field {one.name} moved from byte {earlier.offset} to {one.offset}"


def _compare_variants(old: tuple[Variant, ...], new: tuple[Variant, ...]) -> Iterator[str]:
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    for name, variant in after.items():
        earlier = before.get(name)
        if earlier is None:
            yield f"variant {name} added"
            continue
        yield from _compare_fields(earlier.fields, variant.fields, f"variant {name}: field")
    for name in sorted(before.keys() - after.keys()):
        yield f"variant {name} removed"


def _moved_tags(old: tuple[Variant, ...], new: tuple[Variant, ...]) -> Iterator[str]:
    before = {one.name: one for one in old}
    for one in new:
        earlier = before.get(one.name)
        if earlier is not None and earlier.tag != one.tag:
            yield f"tag of variant {one.name}: {_tag(earlier)} → {_tag(one)}"


def _tag(variant: Variant) -> str:
    return "none" if variant.tag is None else str(variant.tag)


def _reaching(paths: Iterable[str], units: Iterable[Uses]) -> set[str]:
    """These types themselves, and all types that contain one of them or lead to it."""
    found = set(paths)
    waiting = list(found)
    while waiting:
        part = waiting.pop()
        for unit in units:
            new = unit.holders.get(part, frozenset()) - found
            found |= new
            waiting += new
    return found


def _lasting_places(
    path: str,
    reach: set[str],
    units: tuple[Uses, ...],
    using: Mapping[str, FunctionTypes],
    is_live: Callable[[str], bool],
    empty: set[str],
) -> Iterator[str]:
    """Where values of a type may be that no running function owns.

    What takes no bytes, and will not, holds none of the types that it names, as serde's visitors do.
    """
    for unit in units:
        for name, type_ in unit.statics.items():
            if type_ in reach and is_live(name):
                yield f"the static {demangle(name)} may hold values of it"
    if any(state in held for held in reach for state in _TASK_STATES):
        state = (
            "it is the state of a task"
            if any(state in path for state in _TASK_STATES)
            else "tasks may hold values of it"
        )
        yield f"{state}, which may be waiting"
    for unit in units:
        for made in unit.trait_objects:
            if made.type in reach - empty and not _is_borrowed(made.trait, units):
                yield f"a trait object (dyn {made.trait}) may hold a value of it"
    for name, types in using.items():
        if types.signature.isdisjoint(reach) and not types.signature.isdisjoint(_ERASED_PARTS):
            yield f"{demangle(name)} gets it through an untyped pointer, so others may keep values of it"


def _is_borrowed(trait: str, units: tuple[Uses, ...]) -> bool:
    if not trait.startswith(_BORROWED_TRAITS):
        return False
    objects = {part for unit in units for part in unit.holders if part.startswith(f"dyn {trait}")}
    return all(holder.startswith(_BORROWING) for made in objects for holder in _reaching([made], units))
