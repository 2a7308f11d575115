"""Which of a program's statics the objects of an edit mean, where symbols alone do not say it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Note, Refusal
from hotpatchd.core.select import Selection
from hotpatchd.core.session import Session
from hotpatchd.core.statics import (
    Successors,
    find_successors,
    names_its_type,
    note_fresh,
    refuse_other_places,
    refuse_other_types,
)
from hotpatchd.core.unit import Definition, Host, HostSymbol
from hotpatchd.daemon.layout_judge import Comparison
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.units import ObjectUnit

_NO_SYMBOL = "the optimiser left no symbol for it in the running program, so its value cannot be kept"
_BACK = "the program has its value from before an edit took it away, and of which type that is, is not known; restart"
_OF_LIBRARY = "it is a thread-local of a shared library, and has another symbol, since its type changed; restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statics:
    """The statics and thread-locals of edited objects, as one program has them.

    Args:
        own: symbol → where the newest objects define it.
        before: the same of the objects that the program runs.
        renamed: symbols that the program does not have → where it has the value.
        successors: how these came about.
        back: those that the program has, though the code that it runs does not use them: the source was without them.
        types_back: symbol → type of those that the host binary has, where a symbol that came back does not tell it.
    """

    own: Mapping[str, Definition]
    before: Mapping[str, Definition]
    renamed: Mapping[str, HostSymbol] = field(default_factory=dict)
    successors: Successors = field(default_factory=Successors)
    back: frozenset[str] = frozenset()
    types_back: Mapping[str, str] = field(default_factory=dict)


def match_statics(
    session: Session,
    compared: Comparison,
    objects: BuildObjects,
    baseline: BuildObjects,
    live: Host,
    *,
    is_optimised: bool,
) -> Statics:
    """Find the statics that have another symbol than in a program.

    Args:
        session: the program.
        compared: where what it runs differs from the newest objects.
        objects: the newest objects.
        baseline: the objects of the source that the host binary was built from.
        live: the program's symbols.
        is_optimised: whether the program was compiled with optimisation, and so may have lost symbols.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    own = _statics(compared.now)
    before = _statics(compared.before)
    new = [name for name in own if live.find(name) is None]
    back = frozenset(name for name in own.keys() - before.keys() - set(new) if own[name].kind != "constant")
    # Only debug information tells types that symbols do not, and reading it takes time.
    is_told = all(map(names_its_type, back))
    first = [] if is_told else [baseline.unit(name) for name in compared.names if name in baseline.files]
    known = before.keys() | {name for name, found in session.symbols.items() if found.kind != "function"}
    known -= {name for name, static in before.items() if static.kind == "constant"}
    # What an unoptimised program has no symbol for, nothing in it used.
    lasting = (name for name in known - own.keys() if is_optimised or live.find(name))
    gone = [name for name in lasting if objects.get(name) is None]
    # One that comes back has a value; but if one of that path was there until now, that is the one that is meant.
    left = {demangle(name) for name in before.keys() & set(gone)} if back else set()
    new += [name for name in back if demangle(name) in left]
    types_back = {name: type_ for name, type_ in _types(first).items() if name not in session.symbols}
    statics = Statics(own=own, before=before, back=back, types_back=types_back)
    if not {demangle(name) for name in new} & {demangle(name) for name in gone}:
        return statics
    constants = {name for name in new if own[name].kind == "constant"}
    found = find_successors(new, gone, _types(compared.now), _types(compared.before), constants=constants)
    renamed, kept, lost = {}, {}, dict(found.lost)
    for name, earlier in found.kept.items():
        place = live.find(earlier)
        if place is None:
            lost[name] = _NO_SYMBOL
        elif place.kind == "tls" and session.hello.library is not None:
            lost[name] = _OF_LIBRARY
        else:
            renamed[name], kept[name] = place, earlier
    return replace(statics, renamed=renamed, successors=Successors(kept=kept, lost=lost))


def refuse_statics(statics: Statics, selection: Selection, compared: Comparison) -> Iterator[Refusal]:
    """Refuse what a patch would do to statics whose value does not suit their type any more.

    Args:
        statics: of the edited objects.
        selection: the patch's content.
        compared: where what the program runs differs from the newest objects.

    Raises:
        ObjectError: an object's debug information cannot be read.
    """
    own, earlier = statics.own, statics.before
    used = selection.host_names | {
        definition.name
        for kept in selection.units
        for section in kept.sections
        for definition in kept.unit.definitions_in(section)
    }
    for name, detail in statics.successors.lost.items():
        if name in used:
            yield Refusal(symbol=name, reason="static_changed", detail=detail)
    constants = {name for name, static in own.items() if static.kind == "constant"}
    moved = {
        name
        for name in (selection.host_names | (used & constants)) & own.keys() & earlier.keys()
        if (earlier[name].kind == "constant") != (name in constants)
    }
    state = moved | (selection.host_names & own.keys() - constants)
    # What reaches a thread-local is a function whose code is the same for all types, and so in no patch.
    added = {thread_local.name for thread_local in selection.thread_locals}
    state |= {name for name, static in own.items() if static.kind == "tls"} - added
    retyped: set[str] = set()
    if not all(map(names_its_type, state)):
        earlier_types = {**statics.types_back, **_types(compared.before)}
        unknown = {name for name in state & statics.back if not names_its_type(name)} - earlier_types.keys()
        for name in sorted(unknown):
            yield Refusal(symbol=name, reason="static_changed", detail=_BACK)
        for refusal in refuse_other_types(state, _types(compared.now), earlier_types):
            retyped.add(refusal.symbol or "")
            yield refusal
    yield from refuse_other_places(moved - retyped, constants)


def fresh_notes(selection: Selection, objects: BuildObjects, before: BuildObjects) -> list[Note]:
    """Notes for new statics that an edit may have renamed or moved.

    Args:
        selection: the patch's content.
        objects: the newest objects.
        before: those of the build before.
    """
    new = {*selection.new_state, *(thread_local.name for thread_local in selection.thread_locals)}
    if not new:
        return []
    own = _statics(objects.changed_since(before))
    earlier = _statics(before.changed_since(objects))
    removed = [
        name
        for name, static in earlier.items()
        if static.kind != "constant" and name not in own and objects.get(name) is None
    ]
    return note_fresh(new & own.keys(), removed)


def _statics(units: Iterable[ObjectUnit]) -> dict[str, Definition]:
    return {name: static for unit in units for name, static in unit.statics.items()}


def _types(units: Iterable[ObjectUnit]) -> dict[str, str]:
    """Symbol → type, of all statics of some objects."""
    return {name: type_ for unit in units for name, type_ in unit.types.uses.statics.items()}
