"""Decisions about the program as a whole: full builds, restarts, its end.

A restart builds fully while the old program goes on. Only a build that worked replaces it; what settled meanwhile is
looked at afterwards, against the new program's objects. A restart without the last edit needs no build: a new process
of the same build is brought to what ran before that edit. After a crash, the edit whose code failed counts as the last
one: those that came after it are left out as well.
"""

import signal
from dataclasses import replace

from hotpatchd.core import events
from hotpatchd.core.crash import CrashFrame
from hotpatchd.core.messages import (
    Adopt,
    BackgroundDue,
    BaselineReady,
    BuildFully,
    CancelBuild,
    Emit,
    End,
    FullyBuilt,
    OfferRestart,
    Panicked,
    ProgramEnded,
    ProgramStarted,
    Reply,
    RestartAsked,
    ScheduleBackground,
    StartAgain,
)
from hotpatchd.core.session import Session
from hotpatchd.core.state import Restart, Result, SentEdit, State, then

PANICKED = 101
"""Exit status of a program whose `main` panicked. Source: std's `rt.rs`."""


def restart_asked(state: State, event: RestartAsked) -> Result:
    """Remember the wish; it comes true as soon as nothing else is in hand. A restart that is in hand serves all."""
    requests = () if event.request is None else (event.request,)
    error = _unanswerable(state) if event.without_last else ""
    if error:
        return state, tuple(Reply(request=request, result={}, error=error) for request in requests)
    if state.restart and not event.without_last:
        return replace(state, restart=replace(state.restart, requests=(*state.restart.requests, *requests))), ()
    waiting = state.wish.requests if state.wish else ()
    wish = Restart(requests=(*waiting, *requests), without_last=event.without_last)
    return replace(state, wish=wish), ()


def _unanswerable(state: State) -> str:
    """Why the program cannot be started without the last edit, if it cannot."""
    if not state.policy.starts:
        return "the daemon did not start the program, and cannot start it again; `hotpatchd undo` takes the edit back"
    if state.sent is None:
        return "no edit was sent to the program since it started, so there is none to leave out"
    return ""


def start_restart(state: State) -> Result:
    """Begin what is wished for."""
    wish = state.wish
    assert wish is not None
    cancelled = cancel_background(replace(state, wish=None))
    state = cancelled[0]
    if wish.without_last and state.sent is not None:
        before = state.sent.before
        left = tuple(edit for edit in state.in_force if edit.edit <= before)
        again = replace(
            state,
            target=before,
            previous=before,
            sent=left[-1] if left else None,
            in_force=left,
            undone=(*state.undone, *(edit for edit in _in_program(state) if edit.edit > before)),
            crashed=False,
        )
        replies = tuple(Reply(request=request, result={"edit": before, "started": True}) for request in wish.requests)
        return then(cancelled, (_without_clients(again), (*_lost_clients(state), StartAgain(), *replies)))
    started = Emit(event=events.BuildStarted(reason="restart"))
    restarting = replace(state, phase="restarting", restart=replace(wish, without_last=False))
    return then(cancelled, (restarting, (started, BuildFully(reason="restart"))))


def _without_clients(state: State) -> State:
    """The program is replaced: what still runs of it is not asked any more."""
    return replace(state, sessions={}, late=frozenset())


def lost_client(session: Session) -> Emit:
    """Tell that a client is not there any more."""
    hello = session.hello
    return Emit(event=events.ClientLost(client=session.client, pid=hello.pid, target=hello.target))


def _lost_clients(state: State) -> tuple[Emit, ...]:
    return tuple(map(lost_client, state.sessions.values()))


def fully_built(state: State, event: FullyBuilt) -> Result:
    """A full build ended: the program is replaced, or goes on."""
    told = Emit(event=events.BuildFinished(reason=event.reason, seconds=event.seconds, problem=event.problem))
    if event.reason == "background":
        # What failed to build in the background is tried again after the next edit only.
        return replace(state, background="none", outdated=False), (told,)
    if event.problem:
        requests = state.restart.requests if state.restart else ()
        replies = tuple(Reply(request=request, result={}, error=event.problem) for request in requests)
        return replace(state, phase="idle", restart=None), (told, *replies)
    adopted = replace(
        _without_clients(state),
        phase="waiting",
        pending=(),
        target=0,
        previous=0,
        due={},
        dirty=frozenset(),
        sent=None,
        in_force=(),
        undone=(),
        crashed=False,
        outdated=False,
    )
    return adopted, (told, *_lost_clients(state), Adopt())


def baseline_ready(state: State, event: BaselineReady) -> Result:
    """Edits can be told from now on; whoever waited for a restart has it."""
    requests = state.restart.requests if state.restart else ()
    result = {"edit": state.edit, "started": state.policy.starts}
    replies = tuple(Reply(request=request, result=result) for request in requests)
    return replace(state, phase="idle", inputs=event.inputs, restart=None), replies


def program_started(state: State, event: ProgramStarted) -> Result:
    """The program runs."""
    started = replace(state, program=event.pid, crashed=False)
    return started, (Emit(event=events.ProgramStarted(pid=event.pid)),)


def program_ended(state: State, event: ProgramEnded) -> Result:
    """The program ended by itself: so does the daemon, unless it crashed and somebody can have it started again.

    Of programs that others started, only crashes are told.
    """
    sent = state.sent
    crashed = event.status < 0 or event.status == PANICKED or event.crash is not None
    made = _in_program(state)
    crash = replace(event.crash, frames=_with_edits(event.crash.frames, made)) if event.crash else None
    failed = crash.patched if crash else None
    edit, functions = (sent.edit, sent.functions) if sent else (None, ())
    if failed:
        edit, functions = failed.edit, (failed.function,) if failed.function else functions
    told = Emit(
        event=events.ProgramEnded(
            pid=event.pid,
            status=event.status,
            signal=signal.Signals(-event.status).name if event.status < 0 else None,
            edit=edit,
            functions=functions,
            crash=crash,
        )
    )
    if event.pid != state.program:
        return state, (told,) if crash else ()
    blamed = next((one for one in made if failed and one.edit == failed.edit), sent)
    state = replace(state, program=0, crashed=crashed, sent=blamed)
    is_replaced = state.wish is not None or state.restart is not None
    if is_replaced:
        return state, (told,)
    if crashed and state.policy.auto_restart and blamed:
        return replace(state, wish=Restart(without_last=True)), (told,)
    if crashed and state.policy.stays:
        return state, (told, OfferRestart(leaves_out=blamed.edit if blamed else None))
    return state, (told, End(status=128 - event.status if event.status < 0 else event.status))


def _in_program(state: State) -> tuple[SentEdit, ...]:
    """The edits that may be in the program, oldest first."""
    return tuple({edit.edit: edit for edit in (*state.in_force, *((state.sent,) if state.sent else ()))}.values())


def panicked(state: State, event: Panicked) -> Result:
    """Panics went through patched code: that is told, and nothing follows from it."""
    panic = replace(event.panic, frames=_with_edits(event.panic.frames, _in_program(state)))
    patched = panic.patched
    assert patched.edit is not None
    told = events.ProgramPanicked(
        pid=event.pid,
        edit=patched.edit,
        function=patched.function,
        file=patched.file,
        line=patched.line,
        thread=panic.thread,
        count=panic.count,
        frames=panic.frames,
    )
    return state, (Emit(event=told),)


def _with_edits(frames: tuple[CrashFrame, ...], made: tuple[SentEdit, ...]) -> tuple[CrashFrame, ...]:
    """Tell each frame's edit by its function: one patch may bring several edits to a program that came after them."""

    def edit_of(frame: CrashFrame) -> int | None:
        newest = frame.edit
        if newest is None:
            return None
        return max((one.edit for one in made if one.edit <= newest and frame.function in one.functions), default=newest)

    return tuple(replace(frame, edit=edit_of(frame)) for frame in frames)


def schedule_background(state: State) -> Result | None:
    """Have the program's file brought up to date if nothing happens for a while; None where that is not due."""
    if state.policy.background and state.outdated and state.background == "none" and not state.dirty:
        return replace(state, background="scheduled"), (ScheduleBackground(edit=state.edit),)
    return None


def background_due(state: State, event: BackgroundDue) -> Result:
    """Nothing happened for a while."""
    if state.background != "scheduled":
        return state, ()
    if state.phase != "idle" or state.edit != event.edit or not state.outdated:
        return replace(state, background="none"), ()
    started = Emit(event=events.BuildStarted(reason="background"))
    return replace(state, background="running"), (started, BuildFully(reason="background"))


def cancel_background(state: State) -> Result:
    """Something else is to be done: the build in the background gives way, and is tried again later."""
    if state.background != "running":
        return state, ()
    return replace(state, background="none"), (CancelBuild(),)
