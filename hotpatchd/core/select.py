"""Which sections of which objects make up a patch.

The roots are the functions whose code differs from what the program runs. From there every relocation is followed:

1. a symbol that the program has is the program's: state and functions stay where they are. That goes for the roots too:
   whoever calls one goes to its first address, where the newest jump is, so that no patch is bound to another's code.
   In a program without such jumps the patch's own calls go to the roots' new code;
2. a reference to a section of the same object without a name stays inside the patch;
3. a symbol that another object of this build defines comes along, being new to the program;
4. so does one that an archive of the captured link line defines;
5. a thread-local that nobody has yet gets a place in the reserve that the client keeps in every thread;
6. the rest is an import, found by the client with `dlsym`, unless its name is Rust's: then nothing can define it.
   What is only referred to weakly may be missing there, and no archive is asked for it.

Object-local functions and constants of this build always come along: the optimiser may have given the program's own
copy of such a function another signature. Object-local *state* never does when the program has it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hotpatchd.core.events import Refusal
from hotpatchd.core.session import Redirect
from hotpatchd.core.unit import Archives, Definers, Definition, Host, NewThreadLocal, Reference, Unit, is_rust_name


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptUnit:
    """What a patch takes of one object.

    Args:
        unit: the object.
        sections: indices of the sections taken.
        host_sections: indices of sections whose object-local state is the program's, by the name that it has there.
    """

    unit: Unit
    sections: frozenset[int]
    host_sections: Mapping[int, Definition]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The content of a patch.

    Args:
        units: the objects it takes from, by name.
        host_names: symbols that it takes from the program.
        imports: symbols that the client finds with `dlsym`.
        weak_imports: those of them that need not exist.
        replaced: functions of the program that it replaces (the roots), sorted.
        added: functions of the edited crates that are new to the program, sorted.
        new_state: statics that are new to the program, sorted.
        thread_locals: thread-locals that are new to the program; they count among `host_names`, since the patch
            only refers to them.
        refusals: why it must not be applied; empty when it may.
    """

    units: tuple[KeptUnit, ...]
    host_names: frozenset[str]
    imports: frozenset[str]
    weak_imports: frozenset[str]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    new_state: tuple[str, ...]
    thread_locals: tuple[NewThreadLocal, ...]
    refusals: tuple[Refusal, ...]


@dataclass(slots=True)
class _Kept:
    unit: Unit
    sections: set[int] = field(default_factory=set)
    host_sections: dict[int, Definition] = field(default_factory=dict)


class _Walk:
    """The state of one walk over the graph of sections."""

    def __init__(
        self,
        definitions: Definers,
        host: Host,
        archives: Archives,
        roots: frozenset[str],
        baseline_state: frozenset[str],
        redirect: Redirect,
        shares_constants: bool,
    ) -> None:
        self.definitions = definitions
        self.host = host
        self.archives = archives
        self.roots = roots
        self.bound_to_new = roots if redirect == "jump_table" else frozenset()
        self.baseline_state = baseline_state
        self.shares_constants = shares_constants
        self.kept: dict[str, _Kept] = {}
        self.queue: deque[tuple[Unit, int]] = deque()
        self.resolved: set[str] = set()
        self.host_names: set[str] = set()
        self.imports: set[str] = set()
        self.weak: set[str] = set()
        self.thread_locals: dict[str, NewThreadLocal] = {}
        self.refusals: dict[str, Refusal] = {}

    def refuse(self, symbol: str, reason: str, detail: str) -> None:
        self.refusals.setdefault(symbol, Refusal(symbol=symbol, reason=reason, detail=detail))

    def keep(self, unit: Unit, section: int) -> None:
        kept = self.kept.get(unit.name)
        if kept is None:
            kept = self.kept[unit.name] = _Kept(unit)
            for reference in unit.frame_references():
                self.follow(unit, reference)
        if section not in kept.sections:
            kept.sections.add(section)
            self.queue.append((unit, section))

    def run(self) -> None:
        for name in sorted(self.roots):
            unit = self.definitions.get(name)
            if unit is not None:
                if name not in self.bound_to_new:
                    self.host_names.add(name)
                self.keep(unit, unit.exports[name].section)
        while self.queue:
            unit, section = self.queue.popleft()
            for reference in unit.references(section):
                self.follow(unit, reference)

    def follow(self, unit: Unit, reference: Reference) -> None:
        if reference.local:
            if reference.section > 0:
                self.local(unit, reference.section)
            return
        if reference.weak and not (self.host.find(reference.name) or self.definitions.get(reference.name)):
            self.weak.add(reference.name)
        elif reference.name not in self.resolved:
            self.resolved.add(reference.name)
            self.resolve(unit, reference.name)
        own = unit.exports.get(reference.name)
        if own and own.local:
            # Relocations lead to such a function by its place, not by its name.
            if reference.name in self.host_names:
                self.kept_of(unit).host_sections[own.section] = own
            else:
                self.keep(unit, own.section)

    def local(self, unit: Unit, section: int) -> None:
        """A section reached without a name that other objects could know."""
        kind = unit.kind(section)
        if kind == "other":
            return
        if kind in ("data", "tls"):
            named = unit.definitions_in(section)
            owner = named[0] if named else None
            if owner and not owner.local:
                self.follow(unit, Reference(owner.name, section, local=False))
                if owner.name in self.host_names:
                    self.kept_of(unit).host_sections[section] = owner
                return
            if owner and self.host.find(owner.name):
                self.local_state_of_host(unit, owner)
                return
            self.new_state(unit, section, named)
            if kind == "tls":
                if owner:
                    self.kept_of(unit).host_sections[section] = owner
                return
        elif kind == "constant" and unit.from_archive and self.shares_constants:
            constant = self.constant_of_host(unit, section)
            if constant:
                self.host_names.add(constant.name)
                self.kept_of(unit).host_sections[section] = constant
                return
        self.keep(unit, section)

    def constant_of_host(self, unit: Unit, section: int) -> Definition | None:
        """A library's constant that the program has: its address may count, as that of std's mark on its panics."""
        named = unit.definitions_in(section)
        found = self.host.find(named[0].name) if len(named) == 1 and is_rust_name(named[0].name) else None
        is_same = found is not None and (found.size, found.kind, found.homonyms) == (named[0].size, "data", 1)
        return named[0] if is_same else None

    def kept_of(self, unit: Unit) -> _Kept:
        return self.kept.setdefault(unit.name, _Kept(unit))

    def local_state_of_host(self, unit: Unit, definition: Definition) -> None:
        found = self.host.find(definition.name)
        assert found is not None
        if found.homonyms > 1 or not definition.name.startswith(_UNIQUE_PREFIXES):
            self.refuse(
                definition.name,
                "ambiguous_static",
                "several statics of the running program have this name; which one is meant cannot be told",
            )
        elif self.is_same(definition, found.size, found.kind):
            self.host_names.add(definition.name)
            self.kept_of(unit).host_sections[definition.section] = definition

    def is_same(self, definition: Definition, size: int, kind: str) -> bool:
        wanted = definition.kind if definition.kind in ("function", "tls") else "data"
        # An assembler's function may have neither a type nor a size.
        if kind != wanted and (size or wanted != "function"):
            self.refuse(definition.name, "static_changed", f"it was {_KIND[kind]} and is {_KIND[wanted]} now")
            return False
        if wanted != "function" and definition.size and size and definition.size != size:
            self.refuse(
                definition.name,
                "static_changed",
                f"its size in the running program is {size} bytes and {definition.size} bytes now",
            )
            return False
        return True

    def resolve(self, unit: Unit, name: str) -> None:
        own = unit.exports.get(name)
        definer = unit if own else self.definitions.get(name)
        definition = own or (definer.exports[name] if definer else None)
        found = None if name in self.bound_to_new else self.host.find(name)
        if found:
            if definition is None or self.is_same(definition, found.size, found.kind):
                self.host_names.add(name)
            return
        if definer is None:
            definer = self.archives.member_defining(name)
            definition = definer.exports.get(name) if definer else None
        if definer is None or definition is None:
            if is_rust_name(name):
                self.refuse(name, "unresolved", "neither the program nor any crate that it is linked from defines it")
            else:
                self.imports.add(name)
            return
        if definition.kind in ("data", "tls"):
            self.new_state(definer, definition.section, (definition,))
        if definition.kind != "tls":
            self.keep(definer, definition.section)

    def new_state(self, unit: Unit, section: int, named: tuple[Definition, ...]) -> None:
        """State that the program does not have: refuse it where it might be a second instance."""
        name = next((d.name for d in named), f"a static of {unit.name}")
        if name in self.baseline_state:
            self.refuse(
                name,
                "static_lost",
                "the optimiser left no symbol for it in the running program, so its value cannot be kept",
            )
        elif (
            unit.from_archive
            and not any(d.name.startswith(_UNIQUE_PREFIXES) for d in named)
            and any(self.host.find(export) for export in unit.exports)
        ):
            self.refuse(
                name,
                "second_instance",
                f"{unit.name} is linked into the running program already and has state without a name",
            )
        elif unit.kind(section) == "tls":
            layout = unit.thread_local(named[0]) if named and is_rust_name(name) else None
            if layout is None:
                self.refuse(name, "new_thread_local", "it cannot be given a place in threads that run already")
            else:
                self.thread_locals[name] = layout
                self.host_names.add(name)


_UNIQUE_PREFIXES = ("_R", "_ZN", "_rust_extern_with_linkage_")
"""Names that rustc makes, with a hash in them. A C compiler's local names say nothing across objects."""

_KIND = {"function": "a function", "data": "a static", "tls": "a thread-local"}


def select(
    *,
    roots: Iterable[str],
    definitions: Definers,
    host: Host,
    archives: Archives,
    baseline_state: frozenset[str] = frozenset(),
    redirect: Redirect = "detours",
    shares_constants: bool = False,
) -> Selection:
    """Choose the content of a patch.

    Args:
        roots: functions that the program has and that this build defines with other code.
        definitions: symbol name → the object of this build that exports it.
        host: the program's symbols.
        archives: the archives of the captured link line.
        baseline_state: statics that the program's own source had, where the optimiser may have taken their names;
            empty for hosts that were built without optimisation.
        redirect: how the program enters the roots' new code.
        shares_constants: whether the patch can read what the program has in the same way as what it brings.

    Returns:
        The selection; with `refusals` where it must not be applied.
    """
    wanted = frozenset(roots)
    walk = _Walk(definitions, host, archives, wanted, baseline_state, redirect, shares_constants)
    walk.run()
    weak = frozenset(walk.weak - walk.resolved)
    added: set[str] = set()
    new_state: set[str] = set()
    for kept in walk.kept.values():
        for section in kept.sections:
            for definition in kept.unit.definitions_in(section):
                if definition.name not in kept.unit.exports or host.find(definition.name):
                    continue
                if definition.kind == "function" and not kept.unit.from_archive:
                    added.add(definition.name)
                if definition.kind == "data":
                    new_state.add(definition.name)
    return Selection(
        units=tuple(
            KeptUnit(
                unit=kept.unit,
                sections=frozenset(kept.sections),
                host_sections=dict(kept.host_sections),
            )
            for kept in walk.kept.values()
            if kept.sections
        ),
        host_names=frozenset(walk.host_names),
        imports=frozenset(walk.imports) | weak,
        weak_imports=weak,
        replaced=tuple(sorted(wanted)),
        added=tuple(sorted(added)),
        new_state=tuple(sorted(new_state)),
        thread_locals=tuple(walk.thread_locals[name] for name in sorted(walk.thread_locals)),
        refusals=tuple(walk.refusals.values()),
    )
