"""Types of the objects of builds, and of the code that each program runs."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from hotpatchd.core.closures import closure_of_function, closure_of_state, closures_in, owner_of_closure
from hotpatchd.core.demangle import demangle
from hotpatchd.core.forks import Bodies, OldValues, find_old_values, find_renumbered
from hotpatchd.core.layout import (
    FunctionTypes,
    Judgement,
    KeptCode,
    Layout,
    UnitTypes,
    Uses,
    find_changed,
    judge_layouts,
)
from hotpatchd.core.renames import (
    find_changed_tables,
    find_dropped_otherwise,
    find_renamed,
    may_be_renamed,
    method_name,
)
from hotpatchd.core.session import Session
from hotpatchd.core.unit import Host
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.objects import BuildObjects, KeptObjects, ObjectFile, open_once
from hotpatchd.objfile.units import ObjectUnit
from hotpatchd.objfile.vtables import find_table_shapes, read_tables

FilesByName = Mapping[str, ObjectFile]
"""The objects of a build that the program was not made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The objects in which the code that a program runs differs from the newest.

    Args:
        names: of these objects.
        before: those of the code that it runs.
        now: the newest.
        alike: of `before` and `now`, those all whose code is on the other side as well, but for lines and columns, and
            that are not optimised. A type that is laid out in another way shows in the others: in whatever reads or
            writes it.
    """

    names: tuple[str, ...]
    before: tuple[ObjectUnit, ...]
    now: tuple[ObjectUnit, ...]
    alike: frozenset[ObjectUnit] = frozenset()

    def types(self, units: Iterable[ObjectUnit]) -> list[UnitTypes]:
        """The types of some of these objects; of those that are alike without layouts, which take time to read."""
        return [_WithoutLayouts(unit.types) if unit in self.alike else unit.types for unit in units]

    def uses_before(self, closures: Iterable[str]) -> tuple[Uses, ...]:
        """What holds which types in the code that runs, in the objects that mention some closures."""
        return _uses_in(self.before, _owners(closures))

    def uses(self, owners: Iterable[str]) -> tuple[Uses, ...]:
        """The same of both sides, for closures of functions with these names."""
        return _uses_in((*self.before, *self.now), owners)


@dataclass(frozen=True, kw_only=True)
class Everywhere:
    """All code that a program may run, old and new.

    Args:
        baseline: the objects of the source that the host was built from.
        objects: the newest.
        compared: where what it runs differs from the newest.
    """

    baseline: BuildObjects
    objects: BuildObjects
    compared: Comparison

    @cached_property
    def _units(self) -> tuple[CodeUnit, ...]:
        of_builds = (build.unit(name) for build in (self.baseline, self.objects) for name in build.files)
        # What a build did not compile anew is the same unit as in the other.
        units = dict.fromkeys((*self.compared.before, *of_builds))
        return tuple(unit for unit in units if isinstance(unit, CodeUnit))

    def is_pointed(self, symbol: str) -> bool:
        """Whether there may be pointers to a function."""
        return any(symbol in unit.pointed for unit in self._units)

    def callers(self, symbol: str) -> Iterator[str]:
        """The functions that refer to one."""
        return (caller for unit in self._units for caller in unit.calls.get(symbol, ()))


@dataclass(frozen=True, slots=True)
class _WithoutLayouts:
    """The types of an object whose layouts do not count."""

    types: UnitTypes

    @property
    def layouts(self) -> Mapping[str, frozenset[Layout]]:
        return {}

    @property
    def uses(self) -> Uses:
        return self.types.uses


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfFunctions(_WithoutLayouts):
    """Of these, the types of some functions.

    What is defined anew since, `newer`, may have been defined otherwise when no value of it was alive.
    """

    names: frozenset[str]
    newer: Callable[[], Container[str]]

    @property
    def uses(self) -> Uses:
        all_, newer = self.types.uses, self.newer()
        functions = {name: types for name, types in all_.functions.items() if name in self.names}
        return Uses(parts={path: parts for path, parts in all_.parts.items() if path not in newer}, functions=functions)


class LayoutJudge:
    """Compares the layouts of what clients run with those of the newest objects.

    Args:
        baseline: the objects of the source that the host was built from.
        of_patches: keeps the objects of patches.
    """

    def __init__(self, baseline: BuildObjects, of_patches: KeptObjects) -> None:
        self._baseline = baseline
        self._of_patches = of_patches
        self._gone_in: dict[str, frozenset[str]] = {}

    def files(self, objects: BuildObjects) -> FilesByName:
        """The objects of a build that the program was not made from."""
        return objects.changed_files(self._baseline)

    def remember(self, patch: str, files: FilesByName, objects: BuildObjects) -> None:
        """Keep the objects of a patch, by its identity.

        Args:
            patch: its identity.
            files: those of its objects that the program was not made from.
            objects: all of them.

        Raises:
            OSError: the disk is full.
        """
        self._of_patches.keep(patch, files)
        self._gone_in[patch] = self._gone(objects)

    def _gone(self, objects: BuildObjects) -> frozenset[str]:
        """The host's own units that a build has not: how rustc cuts a large crate depends on all that is in it."""
        return frozenset(self._baseline.files.keys() - objects.files.keys())

    def compare(self, session: Session, files: FilesByName, objects: BuildObjects) -> Comparison:
        """What differs between the code that one program runs and the newest.

        Args:
            session: the program.
            files: those of the newest objects that the host was not made from.
            objects: all of them.

        Raises:
            ObjectError: what the program runs is not kept any more, or cannot be read.
        """
        patch = session.history[-1].patch if session.history else None
        running = self._of_patches.get(patch) if patch else {}
        was_gone, is_gone = self._gone_in.get(patch or "", frozenset()), self._gone(objects)
        names: list[str] = []
        before: list[ObjectUnit] = []
        now: list[ObjectUnit] = []
        for name in sorted({*running, *files, *was_gone, *is_gone}):
            old = None if name in was_gone else self._unit(name, running)
            new = None if name in is_gone else self._unit(name, files)
            if old is not new:
                names.append(name)
                before += [old] if old else []
                now += [new] if new else []
        alike = frozenset((*_within(before, now), *_within(now, before)))
        return Comparison(names=tuple(names), before=tuple(before), now=tuple(now), alike=alike)

    def judge(
        self,
        session: Session,
        compared: Comparison,
        objects: BuildObjects,
        live: Host,
        crate_names: Container[str],
        apart: OldValues | None = None,
        kept: Container[str] = (),
    ) -> Judgement:
        """What the types of the newest objects mean for the values in one program.

        Args:
            session: the program.
            compared: what differs.
            objects: the newest objects.
            live: the program's symbols.
            crate_names: names of the developer's crates.
            apart: values that are left to the old code.
            kept: functions that the program has and keeps beside the new ones.

        Raises:
            ObjectError: an object's debug information cannot be read.
        """
        has_detours = session.hello.kind == "image" and session.redirect == "detours"
        earlier = session.gone | {name for patch in session.history for name in patch.forked_before}
        earlier -= set(session.aliases.values())

        def callers(symbol: str) -> Iterator[str]:
            for name in compared.names:
                for build in (self._baseline, objects):
                    if name in build.files:
                        yield from build.unit(name).calls.get(symbol, ())

        everywhere = Everywhere(baseline=self._baseline, objects=objects, compared=compared)
        tables = compare_tables(compared, crate_names, apart or OldValues())
        # A table shows in the objects that make trait objects, and not in those that only hold them.
        holding = [
            unit.types
            for unit in _units_with(objects, compared, [f"dyn {trait}".removesuffix(">") for trait in tables])
        ]
        return judge_layouts(
            [*compared.types(compared.before), *holding, *self._earlier_types(earlier, compared)],
            [*compared.types(compared.now), *holding],
            is_live=lambda symbol: live.find(symbol) is not None,
            callers=callers,
            can_wait=has_detours,
            is_apart=(apart or OldValues()).are_in,
            tables=tables,
            kept=KeptCode(
                is_kept=lambda symbol: symbol in kept or symbol in earlier,
                is_pointed=everywhere.is_pointed,
                callers=everywhere.callers,
            )
            if has_detours
            else None,
        )

    def _earlier_types(self, names: frozenset[str], compared: Comparison) -> Iterator[UnitTypes]:
        """The types of functions of the host that earlier patches left as they are."""

        @cache
        def newer() -> frozenset[str]:
            return frozenset(path for unit in compared.now for path in unit.types.uses.parts)

        units = {unit.name: unit for name in names if (unit := self._baseline.get(name))}
        for unit in units.values():
            yield _OfFunctions(unit.types, names=names, newer=newer)

    def _unit(self, name: str, files: FilesByName) -> ObjectUnit | None:
        """One of these, or else of the host's own; None where neither has such a unit."""
        if name in files:
            return open_once(name, files[name])
        return self._baseline.unit(name) if name in self._baseline.files else None


def _within(units: Iterable[ObjectUnit], others: Iterable[ObjectUnit]) -> Iterator[ObjectUnit]:
    """Those all of whose code others have as well; never optimised ones, which need not mention the types of it."""
    code = {one for unit in others if isinstance(unit, CodeUnit) for one in unit.content}
    for unit in units:
        if isinstance(unit, CodeUnit) and unit.shares_locals and unit.content <= code:
            yield unit


def compare_closures(compared: Comparison, crate_names: Container[str], is_pointed: Callable[[str], bool]) -> OldValues:
    """The closures and task states of which a program may hold values that new code must not take for its own.

    Args:
        compared: what differs.
        crate_names: names of the developer's crates.
        is_pointed: whether there may be pointers to a function.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    states = find_changed(
        compared.types(compared.before),
        compared.types(compared.now),
        is_wanted=lambda path: (closure_of_state(path) or "").partition("::")[0] in crate_names,
    )
    before, now = _closures(compared.before), _closures(compared.now)
    # Only debug information has the numbers of all closures, and reading it takes time.
    doubtful = [owner for owner in before.keys() & now.keys() if _may_be_renumbered(before[owner], now[owner])]
    old, new = _bodies(before, doubtful), _bodies(now, doubtful)
    renumbered = find_renumbered(old, new) | _of_moved_blocks(old, new)
    found = frozenset(closure for path in states for closure in closures_in(path)) | renumbered
    owners: frozenset[str] = frozenset()
    old_values = OldValues()
    # What holds one of them may be a closure itself, which other objects mention.
    while not (now_owners := _owners(found)) <= owners:
        owners |= now_owners
        old_values = find_old_values(renumbered, states, compared.uses(owners), is_pointed)
        found = old_values.closures
    return old_values


def _owners(closures: Iterable[str]) -> frozenset[str]:
    """The names, without their modules, of the functions around closures."""
    return frozenset(_owner(closure).rpartition("::")[2] for closure in closures)


def _owner(closure: str) -> str:
    return closure.partition("::{#")[0]


def _uses_in(units: Iterable[ObjectUnit], owners: Iterable[str]) -> tuple[Uses, ...]:
    """What holds which types, in the objects that mention closures of functions with these names."""
    return tuple(unit.types.uses for unit in units if unit.types.mention(owners))


_Closures = Mapping[str, ObjectUnit]
"""Symbol of a closure's code → the object that defines it."""


def _closures(units: Iterable[ObjectUnit]) -> dict[str, dict[str, ObjectUnit]]:
    """The closures of each function."""
    found: dict[str, dict[str, ObjectUnit]] = {}
    for unit in units:
        for symbol in unit.exports:
            owner = owner_of_closure(symbol)
            if owner is not None:
                found.setdefault(owner, {})[symbol] = unit
    return found


def _code(symbol: str, unit: ObjectUnit) -> bytes:
    return unit.fingerprint(unit.exports[symbol].section).blind


def _may_be_renumbered(before: _Closures, now: _Closures) -> bool:
    common = before.keys() & now.keys()
    changed = sum(_code(symbol, before[symbol]) != _code(symbol, now[symbol]) for symbol in common)
    return changed > 1 or (before.keys() != now.keys() and (changed > 0 or common != before.keys()))


def _bodies(closures: Mapping[str, _Closures], owners: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """Closure, by its number → symbol of its code → digest, of some functions' closures and of those inside them."""
    wanted = tuple(owners)
    found: dict[str, dict[str, bytes]] = {}
    for owner, symbols in closures.items():
        if owner.startswith(wanted):
            for symbol, unit in symbols.items():
                types = unit.types.uses.functions.get(symbol)
                closure = closure_of_function(types.path) if types else None
                if closure is not None:
                    found.setdefault(closure, {})[symbol] = _code(symbol, unit)
    return found


def compare_names(
    compared: Comparison, old: OldValues, objects: BuildObjects, crate_names: Container[str], was: Callable[[str], bool]
) -> dict[str, str]:
    """Functions that have another symbol than in the code that a program runs: new symbol → old symbol.

    Args:
        compared: what differs.
        old: values that are left to the old code; a function that is given these takes no other's place.
        objects: the newest objects.
        crate_names: names of the developer's crates.
        was: whether the code that runs has a function.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    before, now = _functions(compared.before), _functions(compared.now)
    gone = {
        symbol: before[symbol]
        for symbol in before.keys() - now.keys()
        if may_be_renamed(symbol, crate_names) and objects.get(symbol) is None and was(symbol)
    }
    come = {
        symbol: now[symbol]
        for symbol in now.keys() - before.keys()
        if may_be_renamed(symbol, crate_names) and not was(symbol)
    }
    names = {method_name(symbol) for symbol in gone} & {method_name(symbol) for symbol in come}
    types = [
        {
            symbol: found
            for symbol, unit in functions.items()
            if method_name(symbol) in names
            and (found := unit.types.uses.functions.get(symbol))
            and not old.reach(found)
        }
        for functions in (gone, come)
    ]
    return find_renamed(*types)


def _functions(units: Iterable[ObjectUnit]) -> dict[str, ObjectUnit]:
    return {symbol: unit for unit in units for symbol, found in unit.exports.items() if found.kind == "function"}


def compare_tables(compared: Comparison, crate_names: Container[str], apart: OldValues) -> dict[str, str]:
    """Traits whose virtual tables have other methods than before, at other places, or other drop glue → what changed.

    Args:
        compared: what differs.
        crate_names: names of the developer's crates.
        apart: values that are left to the old code.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    before = [unit for unit in compared.before if isinstance(unit, CodeUnit)]
    now = [unit for unit in compared.now if isinstance(unit, CodeUnit)]
    old, new = ({shape for unit in units for shape in find_table_shapes(unit)} for units in (before, now))
    silent = {symbol for shape in old & new for symbol in shape.methods if symbol.startswith("_R")}
    # Reading debug information takes time, and most edits leave all tables as they are.
    if old <= new and not (silent and _edited(silent, before, now)):
        return {}
    tables, functions = [], []
    for units in (before, now):
        tables.append({made: table for unit in units for made, table in read_tables(unit).items()})
        functions.append({name: types for unit in units for name, types in unit.types.uses.functions.items()})
    kept = {made: table for made, table in tables[0].items() if not apart.are_in(made.type)}
    return find_dropped_otherwise(kept, tables[1]) | find_changed_tables(
        {made: table for made, table in tables[0].items() if made.trait.partition("::")[0] in crate_names},
        tables[1],
        functions[0],
        functions[1],
    )


def _units_with(objects: BuildObjects, compared: Comparison, texts: Iterable[str]) -> Iterator[ObjectUnit]:
    """Objects in which nothing changed and that contain one of these texts."""
    wanted = [text.encode() for text in texts]
    for name in objects.files if wanted else ():
        unit = objects.unit(name)
        if name in compared.names or not isinstance(unit, CodeUnit):
            continue
        if any(unit.obj.data.find(text) >= 0 for text in wanted):
            yield unit


def _edited(functions: Iterable[str], before: Iterable[ObjectUnit], now: Iterable[ObjectUnit]) -> bool:
    """Whether any of these has other code than before."""
    old, new = _functions(before), _functions(now)
    both = old.keys() & new.keys() & set(functions)
    return any(_code(name, old[name]) != _code(name, new[name]) for name in both)


def _of_moved_blocks(old: Bodies, new: Bodies) -> frozenset[str]:
    """Closures of methods whose `impl` block has another number, which is part of the closures' paths."""
    before, now = ({owner_of_closure(min(bodies[path])): path for path in bodies} for bodies in (old, new))
    moved = {owner for owner in before.keys() & now.keys() if _block(before[owner]) != _block(now[owner])}
    return frozenset(path for path, symbols in old.items() if owner_of_closure(min(symbols)) in moved)


def _block(path: str) -> str:
    return path.partition("{impl#")[2].partition("}")[0]


def find_reached(old: OldValues, objects: BuildObjects) -> set[str]:
    """Functions of the newest objects that values which are not those of the new code would be given.

    Args:
        old: these values.
        objects: the newest objects.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    texts = [f"{_owner(closure)}::{{".encode() for closure in old.closures]
    names = _owners(old.closures)
    found: set[str] = set()
    for name in objects.files if names else ():
        unit = objects.unit(name)
        if not isinstance(unit, CodeUnit):
            continue
        # Instances for a closure have its path in their names, and closures have symbols of their own.
        around = {own for symbol in unit.exports for own in (owner_of_closure(symbol) or "").split("::")}
        if not around.isdisjoint(names) or any(unit.obj.data.find(text) >= 0 for text in texts):
            functions = unit.types.uses.functions
            found |= {symbol for symbol in functions.keys() & unit.exports.keys() if old.reach(functions[symbol])}
    return found


class FunctionsOf:
    """The types of functions, before an edit and after it.

    Args:
        compared: what differs.
        objects: the newest objects.
    """

    def __init__(self, compared: Comparison, objects: BuildObjects) -> None:
        self._compared = compared
        self._objects = objects

    def of(self, symbol: str) -> tuple[FunctionTypes, ...]:
        """The types of one function, first those that it had where they may be others."""
        units = [unit for unit in self._compared.before if symbol in unit.exports]
        newest = self._objects.get(symbol)
        found = (unit.types.uses.functions.get(symbol) for unit in (*units, *([newest] if newest else ())))
        return tuple(types for types in found if types is not None)

    def has_other_signature(self, symbol: str) -> bool:
        """Whether a function takes or returns something else than before, and its symbol does not tell."""
        if not symbol.startswith("_ZN") and len({types.parameters for types in self.of(symbol)}) > 1:
            return True
        return demangle(symbol) in self._now_told

    @cached_property
    def _now_told(self) -> frozenset[str]:
        """Paths of functions that get the place of their call, and did not before."""
        before, now = (
            {path for unit in units if isinstance(unit, CodeUnit) for path in unit.told_callers}
            for units in (self._compared.before, self._compared.now)
        )
        found = now - before
        for name in self._objects.files.keys() - set(self._compared.names) if found else ():
            unit = self._objects.unit(name)
            found -= unit.told_callers if isinstance(unit, CodeUnit) else set()
        return frozenset(found)
