"""The daemon's decisions: `step(state, event) -> (state, commands)`.

    waiting ──BaselineReady──► idle ──Settled──► building ──Rebuilt──► applying ──all clients done──► idle
                                │                    │ failed                                          ▲
                                │                    └───────────────────────────────────────────────►─┤
                                ├──UndoAsked──► undoing ──all clients done────────────────────────────►┤
                                └──Joined─────► applying (no edit: a client catches up) ──────────────►┘

Sources that change while a build runs may or may not have been read by it. So its objects are not sent: the edit is
carried into the next one, and shares its patch and its verdict. That ends after `MAX_CARRIED` edits, or somebody who
never stops saving would never see anything applied.

One thing happens at a time. Files that settle meanwhile are kept and become the next edit, also when the build that
runs fails. A client counts in an edit if it is there when the objects are; whoever comes later gets its own patch
afterwards.
Every edit ends in exactly one verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from hotpatchd.core.client import Applied, Hello, Refused
from hotpatchd.core.events import (
    ClientConnected,
    ClientLost,
    EditSettled,
    EditVerdict,
    Event,
    Functions,
    Note,
    PatchSent,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Timings,
    Verdict,
)
from hotpatchd.core.inputs import BuildInputs, classify
from hotpatchd.core.session import (
    PatchContent,
    Session,
    after_applied,
    after_undo,
    undo_target,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Files changed and are quiet now. `last_write` in Unix seconds; `forced` builds even what seems unchanged."""

    files: tuple[str, ...]
    last_write: float
    settle_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReady:
    """The objects of the program's own source are there; from now on edits can be told."""

    inputs: BuildInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The thin rebuild ended. `failed` names the crates that do not compile."""

    crates: tuple[str, ...]
    failed: frozenset[str]
    diagnostics: tuple[str, ...]
    compile_ms: float
    inputs: BuildInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the edit means for one client: a patch to send, refusals, or nothing (`content` and `refusals` empty).

    `failed` says that the refusals are a tool's failure, not a judgement of the edit.
    """

    client: int
    content: PatchContent | None = None
    kind: Literal["image", "dylib"] = "image"
    bytes: int = 0
    functions: Functions = Functions()
    names: Mapping[int, str] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    failed: bool = False
    select_ms: float = 0.0
    link_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A client was welcomed."""

    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A client's connection ended."""

    client: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A client answered. `now` in Unix seconds; `since_sent_ms` since its patch was handed over."""

    client: int
    answer: Applied | Refused
    now: float
    since_sent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoAsked:
    """Somebody wants the last `count` patches taken back; `request` identifies the asker."""

    count: int
    request: int


StepEvent = Settled | BaselineReady | Rebuilt | Prepared | Joined | Left | Answered | UndoAsked


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Publish an event."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """Compile these crates, and answer with `Rebuilt`."""

    crates: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make this client's patch, and answer with `Prepared`."""

    session: Session
    edit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send the patch that was prepared for this client; it answers with `Answered`."""

    client: int
    patch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendUndo:
    """Tell this client to go back to `to`; it answers with `Answered`."""

    client: int
    to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answer a request for an undo."""

    request: int
    result: Mapping[str, object]
    error: str = ""


Command = Emit | Rebuild | Prepare | Send | SendUndo | Reply
Phase = Literal["waiting", "idle", "building", "applying", "undoing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known so far of the edit in hand. `edit` 0 stands for "no edit": a client catches up."""

    edit: int
    last_write: float = 0.0
    compile_ms: float | None = None
    settle_ms: float | None = None
    select_ms: float = 0.0
    link_ms: float = 0.0
    send_ms: float = 0.0
    apply_ms: float = 0.0
    total_ms: float = 0.0
    applied: int = 0
    failed: bool = False
    functions: Functions = Functions()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The daemon's whole state.

    Args:
        phase: see the module's picture.
        edit: number of the newest edit.
        inputs: what the program is made from.
        sessions: clients, by number.
        late: clients to be looked at once the phase is idle.
        pending: files that settled while the daemon was busy → the batch they came in.
        dirty: crates whose source is newer than their objects (they did not compile).
        awaited: clients whose preparation or answer is outstanding, with what was prepared.
        outcome: of the edit in hand.
        carried: edits that share the verdict of the one in hand.
        undo: request number of the undo in hand, and the patches it takes back per client.
    """

    phase: Phase = "waiting"
    edit: int = 0
    inputs: BuildInputs = BuildInputs(crates_of={}, full_build={})
    sessions: Mapping[int, Session] = field(default_factory=dict)
    late: frozenset[int] = frozenset()
    pending: tuple[Settled, ...] = ()
    dirty: frozenset[str] = frozenset()
    awaited: Mapping[int, Prepared | None] = field(default_factory=dict)
    outcome: Outcome = Outcome(edit=0)
    carried: tuple[int, ...] = ()
    undo: tuple[int, Mapping[int, str | None]] = (0, {})


NO_CLIENT = Refusal(
    symbol=None,
    reason="no_client",
    detail="no program is connected; the change is kept for the next one that connects",
)
CLIENT_LOST = Refusal(
    symbol=None, reason="client_lost", detail="the program ended or its connection broke before it answered"
)

T = TypeVar("T")
MAX_CARRIED = 5
Result = tuple[State, tuple[Command, ...]]


def step(state: State, event: StepEvent) -> Result:
    """Take in one event.

    Returns:
        the new state, and what is to be done, in order.
    """
    match event:
        case Settled():
            return _advance(replace(state, pending=(*state.pending, event)))
        case BaselineReady():
            return _advance(replace(state, phase="idle", inputs=event.inputs))
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


def _then(first: Result, after: Result) -> Result:
    return after[0], (*first[1], *after[1])


def _advance(state: State) -> Result:
    """Start what is next, if nothing is in hand."""
    if state.phase != "idle":
        return state, ()
    if state.pending:
        return _start_edit(state)
    if state.late and state.edit:
        caught_up = replace(state, late=frozenset(), phase="applying", outcome=Outcome(edit=0))
        return _prepare(caught_up, state.late)
    return replace(state, late=frozenset()), ()


def _start_edit(state: State) -> Result:
    batches, state = state.pending, replace(state, pending=())
    files = {file for batch in batches for file in batch.files}
    edit_class = classify(files, state.inputs, state.dirty)
    if not edit_class.files:
        return _advance(state)
    number = state.edit + 1
    outcome = Outcome(
        edit=number,
        last_write=max(batch.last_write for batch in batches),
        settle_ms=max(batch.settle_ms for batch in batches),
    )
    state = replace(state, edit=number, outcome=outcome)
    settled: Result = state, (Emit(event=EditSettled(edit=number, files=edit_class.files)),)
    if edit_class.full_build:
        refusals = tuple(
            Refusal(symbol=file, reason="full_build", detail=f"this {kind} was edited: build again and restart")
            for file, kind in sorted(edit_class.full_build.items())
        )
        dirty = replace(state, dirty=state.dirty | edit_class.crates)
        return _then(settled, _conclude(dirty, "restart", refusals))
    crates = edit_class.crates | state.dirty
    return _then(settled, (replace(state, phase="building"), (Rebuild(crates=crates),)))


def _rebuilt(state: State, event: Rebuilt) -> Result:
    outcome = replace(state.outcome, compile_ms=event.compile_ms)
    state = replace(state, dirty=event.failed, inputs=event.inputs, outcome=outcome)
    report = RebuildFailed if event.failed else RebuildFinished
    told: Result = (
        state,
        (Emit(event=report(edit=state.edit, crates=event.crates, diagnostics=event.diagnostics)),),
    )
    if event.failed:
        return _then(told, _conclude(state, "failed", ()))
    if _is_outdated(state, event.crates):
        return _then(told, _start_edit(replace(state, carried=(*state.carried, state.edit))))
    if not state.sessions:
        return _then(told, _conclude(state, "refused", (NO_CLIENT,)))
    applying = replace(state, phase="applying", late=frozenset())
    return _then(told, _prepare(applying, frozenset(state.sessions)))


def _is_outdated(state: State, built: tuple[str, ...]) -> bool:
    """Whether the source of what was built changed meanwhile, and can be built again."""
    newer = classify({file for batch in state.pending for file in batch.files}, state.inputs)
    return not newer.crates.isdisjoint(built) and not newer.full_build and len(state.carried) < MAX_CARRIED


def _prepare(state: State, clients: frozenset[int]) -> Result:
    state = replace(state, awaited=dict.fromkeys(sorted(clients)))
    edit = state.outcome.edit or state.edit
    return state, tuple(Prepare(session=state.sessions[client], edit=edit) for client in sorted(clients))


def _prepared(state: State, event: Prepared) -> Result:
    if event.client not in state.awaited:
        return state, ()
    outcome = replace(
        state.outcome,
        select_ms=max(state.outcome.select_ms, event.select_ms),
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
        return _done_with(replace(state, outcome=outcome), event.client)
    state = replace(state, outcome=outcome, awaited={**state.awaited, event.client: event})
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
        refusal = Refusal(symbol=event.answer.symbol, reason=event.answer.reason, detail=event.answer.detail)
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
            notes=_union(outcome.notes, on_stack),
            apply_ms=max(outcome.apply_ms, apply_ms),
            send_ms=max(outcome.send_ms, event.since_sent_ms - apply_ms),
            total_ms=max(outcome.total_ms, (event.now - outcome.last_write) * 1000),
        )
        session = after_applied(session, prepared.content, event.answer.next)
    sessions = {**state.sessions, event.client: session}
    return _done_with(replace(state, outcome=outcome, sessions=sessions), event.client)


def _done_with(state: State, client: int) -> Result:
    """A client has had its part of what is in hand."""
    awaited = {number: prepared for number, prepared in state.awaited.items() if number != client}
    state = replace(state, awaited=awaited)
    if awaited:
        return state, ()
    if state.phase == "undoing":
        request, taken_back = state.undo
        result = {"clients": {str(number): to for number, to in taken_back.items()}}
        refused = "; ".join(refusal.detail for refusal in state.outcome.refusals)
        reply = Reply(request=request, result=result, error=refused)
        return _then((state, (reply,)), _advance(replace(state, phase="idle")))
    if state.outcome.failed:
        return _conclude(state, "failed", ())
    if state.outcome.refusals:
        return _conclude(state, "refused", ())
    return _conclude(state, "applied" if state.outcome.applied else "unchanged", ())


def _conclude(
    state: State,
    verdict: Literal["applied", "refused", "failed", "unchanged", "restart"],
    refusals: tuple[Refusal, ...],
) -> Result:
    """End what is in hand; an edit with its verdict."""
    outcome = state.outcome
    idle = replace(state, phase="idle", awaited={}, carried=())
    if not outcome.edit:
        return _advance(idle)
    is_applied = outcome.applied > 0
    reached = outcome.compile_ms is not None and verdict != "failed"
    timings = Timings(
        settle=outcome.settle_ms,
        compile=outcome.compile_ms,
        select=outcome.select_ms if reached else None,
        judge=0.0 if reached else None,
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
    return _then((idle, ended), _advance(idle))


def _joined(state: State, event: Joined) -> Result:
    session = event.session
    sessions = {**state.sessions, session.client: session}
    state = replace(state, sessions=sessions, late=state.late | {session.client})
    hello: Hello = session.hello
    told = Emit(event=ClientConnected(client=session.client, pid=hello.pid, target=hello.target))
    return _then((state, (told,)), _advance(state))


def _left(state: State, event: Left) -> Result:
    session = state.sessions.get(event.client)
    if session is None:
        return state, ()
    sessions = {number: kept for number, kept in state.sessions.items() if number != event.client}
    state = replace(state, sessions=sessions, late=state.late - {event.client})
    hello = session.hello
    told: Result = (
        state,
        (Emit(event=ClientLost(client=event.client, pid=hello.pid, target=hello.target)),),
    )
    if event.client not in state.awaited:
        return told
    refusals = _union(state.outcome.refusals, (CLIENT_LOST,))
    state = replace(state, outcome=replace(state.outcome, refusals=refusals))
    return _then(told, _done_with(state, event.client))


def _undo_asked(state: State, event: UndoAsked) -> Result:
    if state.phase != "idle":
        busy = Reply(request=event.request, result={}, error="an edit is being applied; try again when it is done")
        return state, (busy,)
    targets = {
        number: undo_target(session, event.count) for number, session in state.sessions.items() if session.history
    }
    if not targets:
        nothing = Reply(request=event.request, result={}, error="no patch is in force, so there is nothing to undo")
        return state, (nothing,)
    sessions = [state.sessions[number] for number in targets]
    if any(session.redirect == "jump_table" and session.hello.kind == "image" for session in sessions):
        error = "a program that is patched by its own subsecond crate cannot take patches back; revert the edit instead"
        return state, (Reply(request=event.request, result={}, error=error),)
    state = replace(
        state,
        phase="undoing",
        undo=(event.request, targets),
        awaited=dict.fromkeys(targets),
        outcome=Outcome(edit=0),
    )
    return state, tuple(SendUndo(client=number, to=to) for number, to in targets.items())


def _undone(state: State, session: Session, event: Answered) -> Result:
    if isinstance(event.answer, Refused):
        refusal = Refusal(symbol=None, reason=event.answer.reason, detail=event.answer.detail)
        outcome = replace(state.outcome, refusals=_union(state.outcome.refusals, (refusal,)))
        return _done_with(replace(state, outcome=outcome), event.client)
    undone = after_undo(session, state.undo[1][event.client])
    sessions = {**state.sessions, event.client: undone}
    return _done_with(replace(state, sessions=sessions), event.client)


def _union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _merge(first: Functions, second: Functions) -> Functions:
    return Functions(
        patched=_union(first.patched, second.patched),
        added=_union(first.added, second.added),
        moved=_union(first.moved, second.moved),
    )
