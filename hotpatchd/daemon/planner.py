"""From the objects of a build to what a patch for one client has to hold: compare, select, judge."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hotpatchd.core.callers import find_leading
from hotpatchd.core.compare import find_changed_constants, find_differences
from hotpatchd.core.events import Note, Refusal
from hotpatchd.core.forks import find_kept, note_old_code, note_stays
from hotpatchd.core.inlining import find_merged, in_order_of_jumps
from hotpatchd.core.layout import Judgement
from hotpatchd.core.select import Selection, select
from hotpatchd.core.session import LiveSymbols, Session
from hotpatchd.core.unit import Fingerprint, Host, HostSymbol, NewThreadLocal, Unit, is_rust_name
from hotpatchd.daemon.layout_judge import FilesByName, LayoutJudge, find_reached
from hotpatchd.daemon.refusing import (
    circular,
    explained,
    folded,
    no_room_in_threads,
    other_signatures,
    too_short,
    unreachable,
)
from hotpatchd.daemon.replacing import Edit, Origin
from hotpatchd.daemon.statics import fresh_notes, match_statics, refuse_statics
from hotpatchd.daemon.telling import absence_notes, edit_notes, hot_call_notes, is_own
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.stub import ModuleThreadLocals


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One patch between selecting and linking.

    Args:
        selection: what it holds, and the refusals, with all that were found later.
        jumps: functions whose old place leads to new code, in the order in which the jumps are written.
        edited: functions with other code, as the verdict names them.
        definers: replaced functions → the object that has the new code.
        functions: functions and constants that it defines, by the names that the program has for them.
        moved: functions that only changed place in their source.
        notes: for the verdict.
        thread_locals: new thread-locals → offset from the thread pointer.
        thread_locals_end: bytes of the reserve for thread-locals that are then in use.
        of_library: thread-locals that are reached through the dynamic loader.
        files: the newest objects that the program was not made from.
        renamed: statics that have another symbol in the program → their place.
        forked: functions that it brings beside the program's own of that name.
        gone: functions that the program has and the newest source does not define.
        aliases: functions, as the newest objects call them → as the program knows them.
        idle: functions that no thread may be in while it is applied → what is said if one stays.
        left: functions of which the program holds closures or tasks with older code from then on.
        judge_ms: what judging types and statics took.
    """

    selection: Selection
    jumps: tuple[str, ...]
    edited: tuple[str, ...]
    definers: Mapping[str, Unit]
    functions: Mapping[str, Fingerprint]
    moved: tuple[str, ...]
    notes: tuple[Note, ...]
    thread_locals: Mapping[str, tuple[int, NewThreadLocal]]
    thread_locals_end: int
    of_library: ModuleThreadLocals | None
    files: FilesByName
    renamed: Mapping[str, HostSymbol]
    forked: frozenset[str]
    gone: frozenset[str]
    aliases: Mapping[str, str]
    idle: Mapping[str, Refusal]
    left: Mapping[str, bool]
    judge_ms: float


class _Watch:
    """Adds up what several passages take."""

    def __init__(self) -> None:
        self.ms = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.ms += (time.perf_counter() - start) * 1000


def plan_patch(
    origin: Origin,
    judge: LayoutJudge,
    session: Session,
    objects: BuildObjects,
    before: BuildObjects,
) -> Plan:
    """What brings one client up to date.

    Args:
        origin: the client's host binary.
        judge: compares types.
        session: the client.
        objects: the newest objects.
        before: those of the build before.

    Raises:
        ObjectError: an object cannot be read.
    """
    judging = _Watch()
    with judging.running():
        files = judge.files(objects)
        edit = Edit.of(origin, session, objects, judge.compare(session, files, objects))
    session = edit.session
    live = LiveSymbols(origin.host, session.symbols, aliases=session.aliases)
    candidates = {unit.name: unit for unit in objects.changed_since(origin.baseline)}
    candidates |= {unit.name: unit for unit in objects.units_defining({*session.running, *session.aliases})}
    differences = find_differences(candidates.values(), edit.running, live)
    constants = find_changed_constants(candidates.values(), edit.running)
    with judging.running():
        statics = match_statics(
            session, edit.compared, objects, origin.baseline, live, is_optimised=origin.host_code is not None
        )
    symbols = {**session.symbols, **statics.renamed}
    live = LiveSymbols(origin.host, symbols, aliases=session.aliases)
    # While the source did not have a function, what it refers to may have been forked.
    again = {name for name in session.gone - session.aliases.keys() if objects.get(name)}
    forks = edit.forks(
        {*differences.changed, *differences.absent, *constants, *again, *find_reached(edit.old, objects)}
    )
    merged = find_merged(forks.replaced, lambda name: edit.led_to(name, forks.forked))
    edited = tuple(merged)
    roots = edited
    if session.redirect == "jump_table":
        roots = with_leading(edited, differences.absent, objects, live)
    selection = select(
        roots=roots,
        definitions=objects,
        host=LiveSymbols(origin.host, symbols, forks.forked, session.aliases),
        archives=origin.archives,
        baseline_state=origin.baseline_state,
        redirect=session.redirect,
        shares_constants=True,
    )
    thread_locals, thread_locals_end = _place_thread_locals(session, selection.thread_locals)
    of_library = _of_library(origin, session, selection)
    gone = edit.gone(files)
    judgement = Judgement()
    with judging.running():
        if selection.replaced:
            replaced = {known for name, known in session.aliases.items() if name not in forks.forked}
            kept = {session.aliases.get(name, name) for name in forks.forked} | (gone - replaced)
            judgement = judge.judge(session, edit.compared, objects, live, origin.crate_names, edit.old, kept)
        static_refusals = tuple(refuse_statics(statics, selection, edit.compared))
    refusals = (
        *judgement.refusals,
        *(explained(refusal, origin.lto) for refusal in selection.refusals),
        *too_short(edit, roots),
        *folded(edit, (name for name in differences.changed if name not in forks.forked)),
        *circular(merged),
        *unreachable(selection, of_library),
        *other_signatures(edit, differences.changed),
        *static_refusals,
        *no_room_in_threads(edit, selection, thread_locals_end),
    )
    functions = defined_functions(selection)
    brought = functions | defined_constants(selection)
    forked = frozenset(brought.keys() & forks.forked)
    notes = edit_notes(objects, before, live, statics.successors.kept, forked)
    notes += fresh_notes(selection, objects, before)
    # In an optimised program, a function without a symbol may be part of one that is replaced.
    if origin.host_code is None or not edited:
        own = (name for name in differences.absent if is_own(name, origin.crate_names))
        notes += absence_notes(own, objects, before)
    if session.redirect == "jump_table":
        notes += hot_call_notes(edited, roots)
    left_behind: dict[str, bool] = {}
    if edit.old.closures and not refusals:
        # Who makes a trait object of a closure need not differ itself: the closures only changed places.
        makers = objects.units_defining(user for name in forked for user in objects.users(name))
        of_makers = (unit.types.uses for unit in makers)
        left_behind = find_kept(edit.old, (*edit.compared.uses_before(edit.old.closures), *of_makers))
    changed = tuple(sorted({*edited, *(forked & functions.keys() & set(differences.changed))}))
    notes += note_old_code(left_behind)
    notes += note_stays({name: stays for name, stays in session.left.items() if name not in left_behind}, changed)
    return Plan(
        selection=replace(selection, refusals=refusals),
        jumps=() if refusals else in_order_of_jumps(merged),
        edited=changed,
        definers={name: definer for name in roots if (definer := objects.get(name))},
        functions={name if name in forked else session.aliases.get(name, name): code for name, code in brought.items()},
        moved=differences.moved,
        notes=tuple(notes),
        thread_locals=thread_locals,
        thread_locals_end=thread_locals_end,
        of_library=of_library,
        files=files,
        renamed={name: place for name, place in statics.renamed.items() if name in selection.host_names},
        forked=forked,
        # Code that the optimiser put into its callers only has no place of its own.
        gone=gone | (forks.forked - forked),
        aliases={name: known for name, known in session.aliases.items() if name not in forks.forked and known != name},
        idle=judgement.idle,
        left={**session.left, **{name: stays or session.left.get(name, False) for name, stays in left_behind.items()}},
        judge_ms=judging.ms,
    )


def _of_library(origin: Origin, session: Session, selection: Selection) -> ModuleThreadLocals | None:
    """Those of the program's thread-locals that are reached through the dynamic loader."""
    block, library = origin.host.header.tls, session.hello.library
    if block is None or library is None:
        return None
    new = {*session.symbols, *(thread_local.name for thread_local in selection.thread_locals)}
    found = {name: origin.host.find(name) for name in selection.host_names - new}
    offsets = {name: place.addr - block.offset(0) for name, place in found.items() if place and place.kind == "tls"}
    return ModuleThreadLocals(module=library.tls_module, offsets=offsets)


def _place_thread_locals(
    session: Session, new: Iterable[NewThreadLocal]
) -> tuple[dict[str, tuple[int, NewThreadLocal]], int]:
    """Offsets from the thread pointer for new thread-locals, and the bytes of the reserve then in use."""
    reserve, used = session.hello.thread_locals, session.thread_locals
    places = {}
    for thread_local in new:
        used += -(reserve.offset + used) % thread_local.align
        places[thread_local.name] = (reserve.offset + used, thread_local)
        used += thread_local.size
    return places, used


def defined_functions(selection: Selection) -> dict[str, Fingerprint]:
    """The functions of the developer's own objects that a patch defines, by exported name."""
    return {
        definition.name: kept.unit.fingerprint(section)
        for kept in selection.units
        if not kept.unit.from_archive
        for section in kept.sections
        for definition in kept.unit.definitions_in(section)
        if definition.kind == "function"
        and definition.name in kept.unit.exports
        and (definition.name not in selection.host_names or definition.name in selection.replaced)
    }


def defined_constants(selection: Selection) -> dict[str, Fingerprint]:
    """The statics of the developer's own objects that a patch defines and nobody can write to, by exported name."""
    return {
        name: kept.unit.fingerprint(static.section)
        for kept in selection.units
        if not kept.unit.from_archive
        for name, static in kept.unit.statics.items()
        if static.kind == "constant" and not static.local and static.section in kept.sections
    }


def with_leading(roots: Iterable[str], absent: Iterable[str], objects: BuildObjects, host: Host) -> tuple[str, ...]:
    """What is to be replaced in a program that looks up what it calls: the roots, and what leads to them.

    Args:
        roots: changed functions that the program has.
        absent: those that it does not have.
        objects: the newest objects.
        host: the program's symbols.
    """
    leading = find_leading(
        {*roots, *absent},
        users=objects.users,
        is_replaceable=lambda name: is_rust_name(name) and host.find(name) is not None,
    )
    return tuple(sorted({*roots, *leading}))
