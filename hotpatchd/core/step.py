"""The daemon's decisions: `step(state, event) -> (state, commands)`.

    waiting ──BaselineReady──► idle ──Settled──► building ──Rebuilt──► applying ──all clients done──► idle
       ▲                        │                    │ failed                                          ▲
       │                        │                    └───────────────────────────────────────────────►─┤
       │                        ├──UndoAsked──► undoing ──all clients done────────────────────────────►┤
       │                        ├──Joined─────► applying (no edit: a client catches up) ──────────────►┤
       │                        └──RestartAsked──► restarting ──FullyBuilt──┬─failed──────────────────►┘
       └────────────────────────────────────────────────────────────────────┘ Adopt

Sources that change while a build runs may or may not have been read by it. So its objects are not sent: the edit is
carried into the next one, and shares its patch and its verdict; the build is cancelled, if what it compiles changed.
That ends after `PATIENCE_S`, or somebody who never stops saving would never see anything applied.

One thing happens at a time. An undo that is asked for meanwhile takes back what is newest then, and comes before newer
files. Files that settle meanwhile are kept and become the next edit, also when the build that
runs fails. A client counts in an edit if it is there when the objects are; whoever comes later gets its own patch
afterwards.
Every edit ends in exactly one verdict.

An undo takes edits back for all programs, also for those that connect later: the objects to run are those of the edit
before, until the next edit. A client that had several edits in one patch takes that back, and gets what of it remains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from hotpatchd.core import lifecycle
from hotpatchd.core.client import Hello, Refused
from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import (
    ClientConnected,
    EditSettled,
    EditsUndone,
    EditVerdict,
    Functions,
    Note,
    PatchSent,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Timings,
    Verdict,
)
from hotpatchd.core.inputs import classify
from hotpatchd.core.messages import (
    Answered,
    BackgroundDue,
    BaselineReady,
    CancelRebuild,
    Emit,
    FullyBuilt,
    Joined,
    Left,
    Panicked,
    Prepare,
    Prepared,
    ProgramEnded,
    ProgramStarted,
    Rebuild,
    Rebuilt,
    Reply,
    RestartAsked,
    Send,
    SendUndo,
    Settled,
    StepEvent,
    UndoAsked,
)
from hotpatchd.core.session import (
    PatchContent,
    Session,
    after_applied,
    after_nothing,
    after_undo,
    is_newer,
    undo_target,
)
from hotpatchd.core.state import Outcome, Restart, Result, SentEdit, State, Undo, then

NEW_PROCESS_REASONS = frozenset({"region_full"})
"""Refusals of what this process has no room for, and a new one takes."""

NO_CLIENT = Refusal(
    symbol=None,
    reason="no_client",
    detail="no program is connected; the change is kept for the next one that connects",
)
CLIENT_LOST = Refusal(
    symbol=None, reason="client_lost", detail="the program ended or its connection broke before it answered"
)

PROGRAM_ENDED = Refusal(
    symbol=None, reason="program_ended", detail="the program has ended: it is started anew with this change"
)

T = TypeVar("T")
PATIENCE_S = 2.0
"""How long the builds of somebody who never stops saving are given up for newer files."""


def step(state: State, event: StepEvent) -> Result:
    """Take in one event.

    Returns:
        the new state, and what is to be done, in order.
    """
    state, commands = _take_in(state, event)
    while (following := _next(state)) is not None:
        state, more = following
        commands = (*commands, *more)
    return state, commands


def _take_in(state: State, event: StepEvent) -> Result:
    match event:
        case Settled():
            return _settled(state, event)
        case BaselineReady():
            return lifecycle.baseline_ready(state, event)
        case Rebuilt():
            return _rebuilt(state, event)
        case Prepared():
            return _prepared(state, event)
        case Answered():
            return _answered(state, event)
        case Joined():
            return _joined(state, event)
        case Left():
            return _left(state, event)
        case UndoAsked():
            return _undo_asked(state, event)
        case RestartAsked():
            return lifecycle.restart_asked(state, event)
        case FullyBuilt():
            return lifecycle.fully_built(state, event)
        case ProgramStarted():
            return lifecycle.program_started(state, event)
        case ProgramEnded():
            return lifecycle.program_ended(state, event)
        case Panicked():
            return lifecycle.panicked(state, event)
        case BackgroundDue():
            return lifecycle.background_due(state, event)


def _next(state: State) -> Result | None:
    """Start what is next, if nothing is in hand; None where there is nothing to start."""
    if state.phase != "idle":
        return None
    if state.wish:
        return lifecycle.start_restart(state)
    if state.undos:
        return _start_undo(state)
    if state.pending:
        return _start_edit(state)
    if state.late:
        undone = frozenset(client for client in state.late if _has_undone(state.sessions[client], state.target))
        if undone:
            return _take_back(replace(state, late=state.late - undone), undone)
        known = replace(state, late=frozenset())
        behind = frozenset(client for client in state.late if state.target not in state.sessions[client].edits)
        if behind:
            return _prepare(replace(known, phase="applying", outcome=Outcome(edit=0)), behind)
        return known, ()
    return lifecycle.schedule_background(state)


def _settled(state: State, event: Settled) -> Result:
    state = replace(state, pending=(*state.pending, event))
    if state.phase != "building" or state.cancelling or not _is_outdated(state, state.building):
        return state, ()
    return replace(state, cancelling=True), (CancelRebuild(),)


def _start_edit(state: State) -> Result:
    batches, state = state.pending, replace(state, pending=())
    # What the newest batch says of a file counts.
    harmless: dict[str, str] = {}
    for batch in batches:
        harmless = {file: why for file, why in harmless.items() if file not in batch.files} | dict(batch.harmless)
    files = {file for batch in batches for file in batch.files}
    edit_class = classify(files, state.inputs, state.dirty, harmless)
    if not edit_class.files and not edit_class.harmless:
        return state, ()
    cancelled = lifecycle.cancel_background(state)
    number = state.edit + 1
    outcome = Outcome(
        edit=number,
        last_write=max(batch.last_write for batch in batches),
        settle_ms=max(batch.settle_ms for batch in batches),
        notes=tuple(
            Note(symbol=file, note="no_difference", detail=why) for file, why in sorted(edit_class.harmless.items())
        ),
    )
    still_due = {file: kind for file, kind in state.due.items() if file not in edit_class.harmless}
    state = replace(cancelled[0], edit=number, outcome=outcome, due=still_due)
    classes = {**edit_class.harmless, **edit_class.classes}
    told = EditSettled(edit=number, files=tuple(sorted(classes)), classes=dict(sorted(classes.items())))
    settled = then(cancelled, (state, (Emit(event=told),)))
    if edit_class.full_build:
        refusals = tuple(
            Refusal(symbol=file, reason="full_build", detail=f"this {kind} was edited: build again and restart")
            for file, kind in sorted(edit_class.full_build.items())
        )
        dirty = replace(state, dirty=state.dirty | edit_class.crates, due={**state.due, **edit_class.full_build})
        return then(settled, _conclude(dirty, "restart", refusals))
    if not edit_class.crates:
        return then(settled, _conclude(state, "unchanged", ()))
    crates = edit_class.crates | state.dirty
    building = replace(state, phase="building", building=crates, cancelling=False)
    return then(settled, (building, (Rebuild(crates=crates),)))


def _rebuilt(state: State, event: Rebuilt) -> Result:
    outcome = replace(state.outcome, compile_ms=event.compile_ms)
    state = replace(state, dirty=event.failed, inputs=event.inputs, outcome=outcome)
    # What failed may have read a file that was being written, and was empty for a moment.
    if event.cancelled or (event.failed and _has_newer_source(state, frozenset(event.crates))):
        return _carry(state)
    report = RebuildFailed if event.failed else RebuildFinished
    told: Result = (
        state,
        (Emit(event=report(edit=state.edit, crates=event.crates, diagnostics=event.diagnostics)),),
    )
    if event.failed:
        return then(told, _conclude(state, "failed", ()))
    if _is_outdated(state, frozenset(event.crates)):
        return then(told, _carry(state))
    state = replace(state, previous=state.target, target=state.edit, target_differs=True)
    if state.sessions:
        connected = {session.hello.build_id for session in state.sessions.values()}
        missing = tuple(sorted(name for build_id, name in event.programs.items() if build_id not in connected))
        applying = replace(state, phase="applying", late=frozenset(), outcome=replace(outcome, not_connected=missing))
        return then(told, _prepare(applying, frozenset(state.sessions)))
    if state.crashed and state.policy.auto_restart:
        return then(told, _conclude(state, "restart", (PROGRAM_ENDED,)))
    return then(told, _conclude(state, "refused", (NO_CLIENT,)))


def _is_outdated(state: State, built: frozenset[str]) -> bool:
    """Whether the source of what was built changed meanwhile, and there is still patience to build it again."""
    if not _has_newer_source(state, built):
        return False
    return not state.carried or state.pending[-1].last_write - state.carried_since < PATIENCE_S


def _has_newer_source(state: State, built: frozenset[str]) -> bool:
    newer = classify({file for batch in state.pending for file in batch.files}, state.inputs)
    return not newer.crates.isdisjoint(built) and not newer.full_build


def _carry(state: State) -> Result:
    """Build again with what changed meanwhile; the edit in hand shares the next one's verdict."""
    since = state.carried_since if state.carried else state.outcome.last_write
    return _start_edit(replace(state, carried=(*state.carried, state.edit), carried_since=since))


def _prepare(state: State, clients: frozenset[int]) -> Result:
    state = replace(state, awaited=dict.fromkeys(sorted(clients)))
    return state, tuple(
        Prepare(session=state.sessions[client], edit=state.target, objects=state.target, before=state.previous)
        for client in sorted(clients)
    )


def _prepared(state: State, event: Prepared) -> Result:
    if event.client not in state.awaited:
        return state, ()
    outcome = replace(
        state.outcome,
        select_ms=max(state.outcome.select_ms, event.select_ms),
        judge_ms=max(state.outcome.judge_ms, event.judge_ms),
        link_ms=max(state.outcome.link_ms, event.link_ms),
        notes=_union(state.outcome.notes, event.notes),
    )
    if event.content is None:
        outcome = replace(
            outcome,
            failed=outcome.failed or event.failed,
            refusals=_union(outcome.refusals, event.refusals),
            functions=_merge(outcome.functions, Functions(moved=event.functions.moved)),
        )
        sessions = state.sessions
        if not event.refusals:
            sessions = {**sessions, event.client: after_nothing(sessions[event.client], state.target)}
        return _done_with(replace(state, outcome=outcome, sessions=sessions), event.client)
    state = replace(state, outcome=outcome, awaited={**state.awaited, event.client: event})
    made = _made(state, event)
    if state.target_differs and made.edit > max(made.before, state.sent.edit if state.sent else 0):
        state = replace(state, sent=made)
    sent = PatchSent(edit=event.content.edit, client=event.client, kind=event.kind, bytes=event.bytes)
    return state, (Send(client=event.client, patch=event.content.patch), Emit(event=sent))


def _answered(state: State, event: Answered) -> Result:
    session = state.sessions.get(event.client)
    if session is None or event.client not in state.awaited:
        return state, ()
    if state.phase == "undoing":
        return _undone(state, session, event)
    prepared = state.awaited[event.client]
    if prepared is None or prepared.content is None:
        return state, ()
    outcome = state.outcome
    if isinstance(event.answer, Refused):
        symbol = event.answer.symbol
        if event.answer.from_addr is not None:
            symbol = prepared.names.get(event.answer.from_addr, hex(event.answer.from_addr))
        refusal = Refusal(symbol=symbol, reason=event.answer.reason, detail=event.answer.detail)
        outcome = replace(outcome, refusals=_union(outcome.refusals, (refusal,)))
    else:
        apply_ms = event.answer.timings_us.get("total", 0.0) / 1000
        on_stack = tuple(
            Note(
                symbol=prepared.names.get(entry.from_addr, hex(entry.from_addr)),
                note="on_stack",
                detail=f"its old code runs on in {', '.join(entry.threads)} until it returns",
            )
            for entry in event.answer.on_stack
        )
        outcome = replace(
            outcome,
            applied=outcome.applied + 1,
            functions=_merge(outcome.functions, prepared.functions),
            notes=_union(outcome.notes, (*on_stack, *_still_in_source(state.undone, prepared.content))),
            apply_ms=max(outcome.apply_ms, apply_ms),
            send_ms=max(outcome.send_ms, event.since_sent_ms - apply_ms),
            total_ms=max(outcome.total_ms, (event.now - outcome.last_write) * 1000),
        )
        left = frozenset(note.symbol for note in on_stack)
        session = after_applied(session, prepared.content, event.answer.next, left)
        made = _made(state, prepared)
        if state.target_differs and made.edit > made.before:
            state = replace(state, in_force=(*state.in_force, made))
    sessions = {**state.sessions, event.client: session}
    return _done_with(replace(state, outcome=outcome, sessions=sessions), event.client)


def _done_with(state: State, client: int) -> Result:
    """A client has had its part of what is in hand."""
    awaited = {number: prepared for number, prepared in state.awaited.items() if number != client}
    state = replace(state, awaited=awaited)
    if awaited:
        return state, ()
    if state.phase == "undoing":
        return _end_undo(replace(state, phase="idle"))
    if state.outcome.failed:
        return _conclude(state, "failed", ())
    if refusals := state.outcome.refusals:
        is_full = any(refusal.reason in NEW_PROCESS_REASONS for refusal in refusals)
        return _conclude(state, "restart" if is_full else "refused", ())
    if state.outcome.applied:
        return _conclude(state, "applied", ())
    if missing := state.outcome.not_connected:
        return _conclude(state, "refused", (_not_connected(missing),))
    return _conclude(state, "unchanged", ())


def _not_connected(programs: Sequence[str]) -> Refusal:
    """The refusal of an edit that makes no difference to the programs that are connected, only to others."""
    return replace(NO_CLIENT, detail=f"{', '.join(programs)} is not connected; the change is kept until it is")


def _conclude(
    state: State,
    verdict: Literal["applied", "refused", "failed", "unchanged", "restart"],
    refusals: tuple[Refusal, ...],
) -> Result:
    """End what is in hand; an edit with its verdict."""
    outcome = state.outcome
    idle = replace(state, phase="idle", awaited={}, carried=())
    if not outcome.edit:
        return idle, ()
    is_applied = outcome.applied > 0
    idle = replace(idle, outdated=state.outdated or is_applied)
    if outcome.compile_ms is not None and verdict in ("applied", "unchanged"):
        # What was taken back is in these objects, or not in the source any more.
        idle = replace(idle, undone=(), target_differs=is_applied)
    if verdict == "restart" and state.policy.auto_restart:
        idle = replace(idle, wish=idle.wish or Restart())
    reached = outcome.compile_ms is not None and verdict != "failed"
    timings = Timings(
        settle=outcome.settle_ms,
        compile=outcome.compile_ms,
        select=outcome.select_ms if reached else None,
        judge=outcome.judge_ms if reached else None,
        link=outcome.link_ms if reached else None,
        send=outcome.send_ms if is_applied else None,
        apply=outcome.apply_ms if is_applied else None,
        total=outcome.total_ms if is_applied else None,
    )
    shared = Verdict(
        verdict=verdict,
        functions=outcome.functions,
        refusals=(*outcome.refusals, *refusals),
        notes=outcome.notes,
        timings_ms=timings,
    )
    ended = tuple(Emit(event=EditVerdict(edit=edit, verdict=shared)) for edit in (*state.carried, outcome.edit))
    return idle, ended


def _joined(state: State, event: Joined) -> Result:
    session = event.session
    sessions = {**state.sessions, session.client: session}
    state = replace(state, sessions=sessions, late=state.late | {session.client})
    hello: Hello = session.hello
    told = Emit(event=ClientConnected(client=session.client, pid=hello.pid, target=hello.target))
    return state, (told,)


def _left(state: State, event: Left) -> Result:
    session = state.sessions.get(event.client)
    if session is None:
        return state, ()
    sessions = {number: kept for number, kept in state.sessions.items() if number != event.client}
    state = replace(state, sessions=sessions, late=state.late - {event.client})
    told: Result = state, (lifecycle.lost_client(session),)
    if event.client not in state.awaited:
        return told
    refusals = _union(state.outcome.refusals, (CLIENT_LOST,))
    state = replace(state, outcome=replace(state.outcome, refusals=refusals))
    return then(told, _done_with(state, event.client))


def _undo_asked(state: State, event: UndoAsked) -> Result:
    return replace(state, undos=(*state.undos, event)), ()


def _start_undo(state: State) -> Result:
    event, state = state.undos[0], replace(state, undos=state.undos[1:])
    if not state.in_force:
        nothing = Reply(request=event.request, result={}, error="no patch is in force, so there is nothing to undo")
        return state, (nothing,)
    left = state.in_force[: -event.count]
    target = left[-1].edit if left else 0
    newer = {number: session for number, session in state.sessions.items() if is_newer(session, target)}
    if not all(_takes_back(session) for session in newer.values()):
        error = "a program that is patched by its own subsecond crate cannot take patches back; revert the edit instead"
        return state, (Reply(request=event.request, result={}, error=error),)
    undo = Undo(
        request=event.request,
        edits=tuple(edit.edit for edit in reversed(state.in_force[len(left) :])),
        target=target,
        clients={number: undo_target(session, target) for number, session in newer.items()},
    )
    state = replace(state, undo=undo)
    if not newer:
        return _end_undo(replace(state, outcome=Outcome(edit=0)))
    return _take_back(state, frozenset(newer))


def _takes_back(session: Session) -> bool:
    return session.redirect == "detours" or session.hello.kind != "image"


def _has_undone(session: Session, target: int) -> bool:
    return is_newer(session, target) and _takes_back(session)


def _take_back(state: State, clients: frozenset[int]) -> Result:
    """Have clients take back what is newer than the code that is to run."""
    target = _goal(state)
    undoing = replace(state, phase="undoing", awaited=dict.fromkeys(sorted(clients)), outcome=Outcome(edit=0))
    return undoing, tuple(
        SendUndo(client=client, to=undo_target(state.sessions[client], target)) for client in sorted(clients)
    )


def _goal(state: State) -> int:
    return state.undo.target if state.undo else state.target


def _undone(state: State, session: Session, event: Answered) -> Result:
    outcome = state.outcome
    if isinstance(event.answer, Refused):
        refusal = Refusal(symbol=None, reason=event.answer.reason, detail=event.answer.detail)
        outcome = replace(outcome, refusals=_union(outcome.refusals, (refusal,)))
        return _done_with(replace(state, outcome=outcome), event.client)
    target = _goal(state)
    undone = after_undo(session, undo_target(session, target))
    state = replace(
        state,
        sessions={**state.sessions, event.client: undone},
        late=state.late if target in undone.edits else state.late | {event.client},
        outcome=replace(outcome, applied=outcome.applied + 1),
    )
    return _done_with(state, event.client)


def _end_undo(state: State) -> Result:
    """All clients have answered; unless all refused, what was taken back counts as never made."""
    undo, outcome = state.undo, state.outcome
    if undo is None:
        return state, ()
    state = replace(state, undo=None)
    refused = "; ".join(refusal.detail for refusal in outcome.refusals)
    result = {
        "edits": undo.edits,
        "edit": undo.target,
        "clients": {str(number): to for number, to in undo.clients.items()},
    }
    reply = Reply(request=undo.request, result=result, error=refused)
    if not outcome.applied and any(refusal != CLIENT_LOST for refusal in outcome.refusals):
        return state, (reply,)
    left = state.in_force[: -len(undo.edits)]
    # Those to which the undone edits brought nothing, though the one gone back to may.
    unchanged = frozenset(
        number
        for number, session in state.sessions.items()
        if undo.target not in session.edits
        and not set(undo.edits).isdisjoint(session.edits)
        and not is_newer(session, undo.target)
    )
    state = replace(
        state,
        target=undo.target,
        previous=undo.target,
        late=state.late | unchanged,
        in_force=left,
        undone=(*state.undone, *state.in_force[len(left) :]),
        sent=left[-1] if left else None,
    )
    return state, (Emit(event=EditsUndone(edits=undo.edits, edit=undo.target)), reply)


def _made(state: State, prepared: Prepared) -> SentEdit:
    """The edit whose objects are to run, as one program gets it."""
    functions = (*prepared.functions.patched, *prepared.functions.added)
    content = prepared.content
    return SentEdit(
        edit=state.target,
        before=state.in_force[-1].edit if state.in_force else 0,
        functions=functions,
        code={name: code for name, code in content.functions.items() if demangle(name) in functions} if content else {},
    )


def _still_in_source(undone: tuple[SentEdit, ...], content: PatchContent) -> Iterator[Note]:
    """Notes for functions that run again as an edit had them that was taken back."""
    told: set[str] = set()
    for edit in reversed(undone):
        for name, code in edit.code.items():
            again = content.functions.get(name)
            if again is not None and again.blind == code.blind and name not in told:
                told.add(name)
                detail = f"the source still had edit {edit.edit}, which was taken back: this is its code again"
                yield Note(symbol=demangle(name), note="still_in_source", detail=detail)


def _union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _merge(first: Functions, second: Functions) -> Functions:
    return Functions(
        patched=_union(first.patched, second.patched),
        added=_union(first.added, second.added),
        moved=_union(first.moved, second.moved),
    )
