"""Transcripts of the daemon's decisions: what happens on the left, what is commanded on the right."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from hotpatchd.core.client import Applied, OnStack, Refused
from hotpatchd.core.events import (
    BuildFinished,
    BuildStarted,
    ClientConnected,
    ClientLost,
    EditSettled,
    EditsUndone,
    EditVerdict,
    Event,
    Functions,
    PatchSent,
    ProgramEnded,
    ProgramStarted,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Verdict,
)
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.messages import (
    Adopt,
    Answered,
    BaselineReady,
    BuildFully,
    CancelBuild,
    CancelRebuild,
    Command,
    Emit,
    End,
    Joined,
    OfferRestart,
    Prepare,
    Prepared,
    Rebuild,
    Rebuilt,
    Reply,
    ScheduleBackground,
    Send,
    SendUndo,
    Settled,
    StartAgain,
    StepEvent,
    UndoAsked,
)
from hotpatchd.core.state import State
from hotpatchd.core.step import step
from tests.core.fakes import content, fingerprint, session

INPUTS = BuildInputs(
    crates_of={"lib.rs": ("lib",), "main.rs": ("app",)},
    full_build={"Cargo.toml": "manifest"},
    source_dirs={"lib": "/lib"},
)


def settled(*files: str, at: float = 100.0) -> Settled:
    """These files changed."""
    return Settled(files=files, last_write=at, settle_ms=20.0)


def rebuilt(
    *crates: str,
    failed: tuple[str, ...] = (),
    inputs: BuildInputs = INPUTS,
    programs: Mapping[str, str] = MappingProxyType({}),
) -> Rebuilt:
    """A thin rebuild ended."""
    return Rebuilt(
        crates=crates,
        failed=frozenset(failed),
        diagnostics=(),
        compile_ms=300.0,
        inputs=inputs,
        programs=programs,
    )


def cancelled(*crates: str) -> Rebuilt:
    """A thin rebuild was told to end, and did."""
    return replace(rebuilt(*crates, failed=crates), cancelled=True)


def patch(client: int, name: str, *patched: str, edit: int = 1) -> Prepared:
    """There is something to send to this client, for one function of the edit's own if none is named."""
    functions = Functions(patched=patched or (f"f{edit}",))
    found = content(name, {f"f{edit}": fingerprint(name)}, edit=edit)
    return Prepared(client=client, content=found, bytes=9, functions=functions, select_ms=5.0, link_ms=80.0)


def no_patch(client: int, *reasons: str, failed: bool = False) -> Prepared:
    """There is nothing to send to this client, for these reasons or for none."""
    return Prepared(
        client=client,
        refusals=tuple(Refusal(symbol="f", reason=r, detail="") for r in reasons),
        failed=failed,
    )


def applied(client: int, *, on_stack: tuple[OnStack, ...] = ()) -> Answered:
    """A client did what it was told, half a second after the file was written."""
    answer = Applied(next=0x20000, threads=1, timings_us={"total": 2000.0}, on_stack=on_stack)
    return Answered(client=client, answer=answer, now=100.5, since_sent_ms=3.0)


def refused(client: int, reason: str = "park", from_addr: int | None = None) -> Answered:
    """A client turned down what it was told."""
    answer = Refused(
        reason=reason,  # type: ignore[arg-type]
        detail=f"{reason} it is",
        symbol=None,
        from_addr=from_addr,
    )
    return Answered(client=client, answer=answer, now=100.5, since_sent_ms=3.0)


def joined(client: int) -> Joined:
    """A new client."""
    return Joined(session=session(client))


def undo(count: int = 1, request: int = 1) -> UndoAsked:
    """Somebody wants patches taken back."""
    return UndoAsked(count=count, request=request)


READY = BaselineReady(inputs=INPUTS)


def shown_event(event: Event) -> str:
    """An event in a few words."""
    match event:
        case EditSettled():
            return f"edit {event.edit}: {' '.join(event.files)}"
        case RebuildFinished():
            return f"compiled {' '.join(event.crates)}"
        case RebuildFailed():
            return f"not compiled {' '.join(event.crates)}"
        case PatchSent():
            return f"sent edit {event.edit} to {event.client}"
        case ClientConnected():
            return f"connected {event.client}"
        case ClientLost():
            return f"lost {event.client}"
        case EditVerdict():
            return " ".join([event.verdict.verdict, str(event.edit), *(r.reason for r in event.verdict.refusals)])
        case EditsUndone():
            return f"undone {' '.join(map(str, event.edits))}, back to {event.edit}"
        case BuildStarted():
            return f"building for {event.reason}"
        case BuildFinished():
            return f"built for {event.reason}" + (f": {event.problem}" if event.problem else "")
        case ProgramStarted():
            return f"program {event.pid} runs"
        case ProgramEnded():
            of = f", after edit {event.edit}: {' '.join(event.functions)}" if event.edit else ""
            return f"program {event.pid} ended by {event.signal or event.status}{of}"
        case _:
            raise AssertionError(event)


def shown(command: Command) -> str:
    """A command in a few words."""
    match command:
        case Emit():
            return shown_event(command.event)
        case Rebuild():
            return f"rebuild {' '.join(sorted(command.crates))}"
        case Prepare():
            return f"prepare {command.session.client} edit {command.edit}"
        case Send():
            return f"send {command.patch} to {command.client}"
        case SendUndo():
            return f"take {command.client} back to {command.to}"
        case CancelRebuild():
            return "cancel"
        case BuildFully():
            return f"build for {command.reason}"
        case CancelBuild():
            return "cancel full build"
        case Adopt():
            return "adopt"
        case StartAgain():
            return "start again"
        case ScheduleBackground():
            return f"look later whether edit {command.edit} is the newest"
        case OfferRestart():
            return "offer restart" + (f" without edit {command.leaves_out}" if command.leaves_out else "")
        case End():
            return f"end {command.status}"
        case Reply():
            return f"reply {command.request} {command.error}".rstrip()


def play(*rows: tuple[StepEvent, str], start: State | None = None) -> State:
    """Feed events and compare the commands with a transcript; returns the state in the end."""
    state = start or State()
    for number, (event, expected) in enumerate(rows):
        state, commands = step(state, event)
        assert "; ".join(map(shown, commands)) == expected, f"row {number}: {event}"
    return state


def verdict_of(state: State, *events: StepEvent) -> Verdict:
    """Feed events and return the verdict of the last one."""
    for event in events:
        state, commands = step(state, event)
    last = [
        command.event.verdict
        for command in commands
        if isinstance(command, Emit) and isinstance(command.event, EditVerdict)
    ]
    assert len(last) == 1
    return last[0]


ONE_CLIENT = play((READY, ""), (joined(1), "connected 1"))
TWO_CLIENTS = play((joined(2), "connected 2"), start=ONE_CLIENT)
BUILDING = play((settled("lib.rs"), "edit 1: lib.rs; rebuild lib"), start=ONE_CLIENT)
PREPARING = play((rebuilt("lib"), "compiled lib; prepare 1 edit 1"), start=BUILDING)
PREPARING_TWO = play(
    (settled("lib.rs"), "edit 1: lib.rs; rebuild lib"),
    (rebuilt("lib"), "compiled lib; prepare 1 edit 1; prepare 2 edit 1"),
    start=TWO_CLIENTS,
)
SENT = play((patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"), start=PREPARING)
APPLIED = play((applied(1), "applied 1"), start=SENT)
