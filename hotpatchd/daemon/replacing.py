"""Which functions of one program an edit means: those that get new code, and those brought beside the program's own."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

from hotpatchd.core.demangle import demangle
from hotpatchd.core.forks import Forks, OldValues, find_forks, is_new_again
from hotpatchd.core.inlining import find_stale_callers
from hotpatchd.core.session import LiveSymbols, Session
from hotpatchd.core.unit import Fingerprint, is_rust_name
from hotpatchd.daemon.layout_judge import (
    Comparison,
    Everywhere,
    FilesByName,
    FunctionsOf,
    compare_closures,
    compare_names,
)
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, HostIndex
from hotpatchd.objfile.machines import MACHINES, Machine
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.padding import Padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A host binary, and what it was made from.

    Args:
        host: its symbols, without those that only its own optimised code can use.
        archives: the archives of its link line.
        crate_names: names of the crates that the daemon compiles; functions of theirs are named in verdicts.
        baseline: the objects of the source that it was built from.
        baseline_state: their statics, where optimisation may have taken the symbols away.
        host_code: its machine code, where it was built with optimisation and so has functions inlined into others; None
            where it was not.
        short_ways: address of a place in an optimised one → those of functions that may be nothing but a jump there.
        padding: what lies between its functions.
        lto: `fat` or `thin`, where its crates were optimised together.
    """

    host: HostIndex
    archives: ArchiveSet
    crate_names: frozenset[str]
    baseline: BuildObjects
    baseline_state: frozenset[str]
    host_code: HostCode | None
    short_ways: Mapping[int, frozenset[int]]
    padding: Padding
    lto: str | None

    @classmethod
    def of(
        cls,
        host: HostIndex,
        *,
        archives: ArchiveSet,
        crate_names: frozenset[str],
        baseline: BuildObjects,
        host_code: HostCode | None,
        padding: Padding,
        lto: str | None = None,
    ) -> Self:
        """What is known of a host binary from its symbols."""
        return cls(
            host=host.without_private(host_code.addresses_taken()) if host_code else host,
            archives=archives,
            crate_names=crate_names,
            baseline=baseline,
            baseline_state=baseline.state_names() if host_code else frozenset(),
            host_code=host_code,
            short_ways=host_code.short_ways(host) if host_code else {},
            padding=padding,
            lto=lto,
        )

    @property
    def machine(self) -> Machine:
        """Its processor."""
        return MACHINES[self.host.header.machine]

    def places(self, session: Session, name: str) -> tuple[tuple[int, int], ...]:
        """Where a program has a function: (link-time address, size), several for one that it has several times."""
        known = session.aliases.get(name, name)
        added = session.symbols.get(known)
        # A function of an assembler may have no size; it is taken to reach to the next.
        own = ((addr, size or self.host.room_at(addr)) for addr, size in self.host.functions(known))
        return ((added.addr, added.size),) if added else tuple(own)

    def room(self, addr: int, size: int) -> int:
        """Bytes from the start of one of the host's functions that nothing else has."""
        return max(size, self.host.room_at(addr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """The newest objects, and one program that is to run what they say.

    Args:
        origin: its host binary.
        session: the program; its aliases are from the names in the newest objects.
        objects: the newest objects.
        compared: where what it runs differs from them.
        old: values in the program that are left to its old code.
        types: what functions take and return.
    """

    origin: Origin
    session: Session
    objects: BuildObjects
    compared: Comparison
    old: OldValues
    types: FunctionsOf

    @classmethod
    def of(cls, origin: Origin, session: Session, objects: BuildObjects, compared: Comparison) -> Self:
        """Find out which functions and values of a program the newest objects mean.

        Raises:
            ObjectError: an object's debug information cannot be read.
        """
        old = OldValues()
        if session.redirect == "detours":
            everywhere = Everywhere(baseline=origin.baseline, objects=objects, compared=compared)
            old = compare_closures(compared, origin.crate_names, everywhere.is_pointed)
            session = replace(session, aliases=_aliases(origin, session, compared, old, objects))
        types = FunctionsOf(compared, objects)
        return cls(origin=origin, session=session, objects=objects, compared=compared, old=old, types=types)

    def running(self, name: str) -> Fingerprint | None:
        """The code that the program runs as a function; None where it has none."""
        known = self.session.aliases.get(name, name)
        return self.session.running.get(known) or self.origin.baseline.fingerprint(known)

    def places(self, name: str) -> tuple[tuple[int, int], ...]:
        """Where the program has a function, as `Origin.places`."""
        return self.origin.places(self.session, name)

    def forks(self, changed: Iterable[str]) -> Forks:
        """What to replace, and what to bring beside the program's own.

        Args:
            changed: functions and constants whose code or content the program does not have.
        """
        gone = self.session.gone - self.session.aliases.keys()
        objects = self.objects

        @cache
        def is_forked(name: str) -> bool:
            if objects.kind(name) == "constant":
                return True
            if self.session.redirect == "jump_table":
                return False
            if is_rust_name(name) and self.types.has_other_signature(name):
                return True
            if not self.old.closures and name not in gone:
                return False
            return any(self.old.reach(found) or is_new_again(name, found, gone) for found in self.types.of(name))

        def users(name: str) -> Iterator[str]:
            yield from objects.users(name)
            yield from (holder for holder in objects.holders(name) if objects.kind(holder) == "constant")

        return find_forks(
            changed,
            is_forked=is_forked,
            users=users,
            is_live=lambda name: objects.kind(name) == "constant" or bool(self.places(name)),
            stale=self._stale_callers,
        )

    def _stale_callers(self, changed: Iterable[str]) -> tuple[str, ...]:
        """Functions of an optimised program that may hold old code of changed ones."""
        host, code, aliases, objects = self.origin.host, self.origin.host_code, self.session.aliases, self.objects
        if code is None:
            return ()

        def references(caller: str, callee: str) -> int | None:
            places = host.functions(aliases.get(caller, caller))
            if not places or objects.get(caller) is not objects.get(callee):
                return None
            targets = [addr for addr, _ in host.functions(aliases.get(callee, callee))]
            return min(sum(code.count_references(addr, size, to) for to in targets) for addr, size in places)

        def is_replaced(caller: str) -> bool:
            is_running = aliases.get(caller, caller) in self.session.running
            return is_running and demangle(caller) not in self.session.lingering

        def may_be_copied(caller: str) -> bool:
            known = aliases.get(caller, caller)
            return not host.functions(known) and self.origin.baseline.get(known) is not None

        newest_names = {known: name for name, known in aliases.items()}

        def ways_to(callee: str) -> Iterator[str]:
            for addr, _ in host.functions(aliases.get(callee, callee)):
                for way in self.origin.short_ways.get(addr, ()):
                    yield from (newest_names.get(known, known) for known in host.function_names_at(way))

        def callers(callee: str) -> Iterator[tuple[str, int]]:
            direct = dict(objects.callers(callee))
            yield from direct.items()
            # The optimiser may have put what a constant, virtual table or static leads to in the place of a use of it.
            yield from ((name, 1) for name in {*objects.users(callee), *objects.holders(callee)} - direct.keys())
            # It may have made a function that was equal to the callee a jump there: more references than there are now.
            yield from ((name, 2) for name in ways_to(callee) if name not in direct)

        stale = find_stale_callers(
            changed,
            callers=callers,
            references_in_program=references,
            is_replaced=is_replaced,
            may_be_copied=may_be_copied,
        )
        return tuple(name for name in stale if objects.kind(name) == "function")

    def led_to(self, name: str, forked: frozenset[str]) -> Iterator[str]:
        """Other functions that the program has in the same place as one, and that its new code refers to."""
        unit = self.objects.get(name)
        if unit is None or self.origin.host_code is None or self.session.redirect != "detours":
            return
        own = {addr for addr, _ in self.places(name)}
        for other in {reference.name for reference in unit.references(unit.exports[name].section)} - forked - {name}:
            if self.objects.kind(other) == "function" and any(addr in own for addr, _ in self.places(other)):
                yield other

    def gone(self, files: FilesByName) -> frozenset[str]:
        """Functions that the program has and the newest source does not define.

        Args:
            files: the newest objects that the program was not made from.
        """
        baseline = self.origin.baseline
        edited = (files.keys() | (baseline.files.keys() - self.objects.files.keys())) & baseline.files.keys()
        known = {name for name, found in self.session.symbols.items() if found.kind == "function"}
        for unit in map(baseline.unit, edited):
            known |= {name for name, found in unit.exports.items() if found.kind == "function"}
        return frozenset(name for name in known if self.objects.get(name) is None)


def _aliases(
    origin: Origin, session: Session, compared: Comparison, old: OldValues, objects: BuildObjects
) -> dict[str, str]:
    """Functions, as the newest objects call them → as the program knows them."""
    live = LiveSymbols(origin.host, session.symbols, aliases=session.aliases)

    def was(name: str) -> bool:
        return name in session.aliases or (live.find(name) is not None and name not in session.gone)

    renamed = compare_names(compared, old, objects, origin.crate_names, was)
    kept = {name: known for name, known in session.aliases.items() if objects.get(name)}
    return kept | {name: session.aliases.get(earlier, earlier) for name, earlier in renamed.items()}
