"""Transcripts of decisions about the program as a whole: full builds, restarts, crashes."""

from dataclasses import replace

import pytest

from hotpatchd.core import events, messages
from hotpatchd.core.crash import Crash, CrashFrame, Panic
from hotpatchd.core.events import BuildReason
from hotpatchd.core.lifecycle import PANICKED
from hotpatchd.core.messages import BackgroundDue, FullyBuilt, RestartAsked
from hotpatchd.core.state import Policy, State
from hotpatchd.core.step import step
from tests.core.transcripts import (
    ONE_CLIENT,
    READY,
    applied,
    cancelled,
    joined,
    patch,
    play,
    rebuilt,
    settled,
    undo,
)

ABORTED, FAULTED = -6, -11


def asked(request: int | None = 1, *, without_last: bool = False) -> RestartAsked:
    """Somebody wants the program started anew."""
    return RestartAsked(request=request, without_last=without_last)


def built(reason: BuildReason = "restart", problem: str = "") -> FullyBuilt:
    """Cargo is done."""
    return FullyBuilt(reason=reason, seconds=9.0, problem=problem)


def started(pid: int) -> messages.ProgramStarted:
    """The daemon started the program."""
    return messages.ProgramStarted(pid=pid)


def ended(pid: int, status: int, crash: Crash | None = None) -> messages.ProgramEnded:
    """The program ended by itself."""
    return messages.ProgramEnded(pid=pid, status=status, crash=crash)


def running(policy: Policy) -> State:
    """A program that runs and has one edit applied."""
    return play(
        (started(7), "program 7 runs"),
        (settled("lib.rs"), "edit 1: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 1"),
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (applied(1), "applied 1" + ("; look later whether edit 1 is the newest" if policy.background else "")),
        start=replace(ONE_CLIENT, policy=policy),
    )


PLAIN = running(Policy())
STAYS = running(Policy(stays=True))
AUTO = running(Policy(stays=True, auto_restart=True))
BACKGROUND = running(Policy(background=True))
RESTARTING = play((asked(), "building for restart; build for restart"), start=PLAIN)


def test_a_crash_is_told_with_the_edit_whose_code_failed() -> None:
    """It need not be the last one that was sent."""
    frame = CrashFrame(function="app::old", file="src/main.rs", line=3, edit=1)
    crash = Crash(signal="SIGSEGV", ended_by="SIGSEGV", stack_overflow=False, thread="main", frames=(frame,))
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (applied(1), "applied 2"),
        (ended(7, -11, crash), "program 7 ended by SIGSEGV, after edit 1: app::old; end 139"),
        start=PLAIN,
    )


def crash_in(*frames: tuple[str, int]) -> Crash:
    """A fault in these functions of the developer's, innermost first, each in the patch of an edit."""
    return Crash(
        signal="SIGSEGV",
        ended_by="SIGSEGV",
        stack_overflow=False,
        thread="main",
        frames=tuple(CrashFrame(function=name, file="src/main.rs", line=3, edit=edit) for name, edit in frames),
    )


def with_three_edits(policy: Policy) -> State:
    """A program with edits 1 to 3 applied, each of a function of its own."""
    state = running(policy)
    for edit in (2, 3):
        state = play(
            (settled("lib.rs"), f"edit {edit}: lib.rs; rebuild lib"),
            (rebuilt("lib"), f"compiled lib; prepare 1 edit {edit}"),
            (patch(1, f"p{edit}", edit=edit), f"send p{edit} to 1; sent edit {edit} to 1"),
            (applied(1), f"applied {edit}"),
            start=state,
        )
    return state


def test_after_a_crash_the_edit_to_blame_is_left_out_and_what_came_later() -> None:
    """The program comes back on the last edit before it, by whichever way it is started again."""
    fault = ended(7, FAULTED, crash_in(("f2", 2), ("f3", 3)))
    told = "program 7 ended by SIGSEGV, after edit 2: f2; "
    state = play((fault, told + "lost 1; start again"), start=with_three_edits(Policy(stays=True, auto_restart=True)))
    assert (state.target, [edit.edit for edit in state.in_force]) == (1, [1])
    assert [edit.edit for edit in state.undone] == [2, 3]
    state = play(
        (fault, told + "offer restart without edit 2"),
        (asked(without_last=True), "lost 1; start again; reply 1"),
        start=with_three_edits(Policy(stays=True)),
    )
    assert state.target == 1


def test_a_program_whose_own_handler_ends_it_after_a_fault_has_crashed() -> None:
    """Its status is its own then, and says nothing."""
    fault = ended(7, 9, crash_in(("f1", 1)))
    play((fault, "program 7 ended by 9, after edit 1: f1; lost 1; start again"), start=AUTO)


def test_crash_after_crash_leaves_out_one_edit_more() -> None:
    """Where nobody knows which one is to blame, until the program's own code is to blame."""
    state = with_three_edits(Policy(stays=True, auto_restart=True))
    for pid, edit in ((7, 3), (8, 2), (9, 1)):
        said = (
            f"program {pid} ended by SIGSEGV, after edit {edit}: f{edit}; {'lost 1; ' if pid == 7 else ''}start again"
        )
        state = play((ended(pid, FAULTED), said), (started(pid + 1), f"program {pid + 1} runs"), start=state)
        assert state.target == edit - 1
    play((ended(10, FAULTED), "program 10 ended by SIGSEGV; offer restart"), start=state)


def test_a_patch_that_brings_several_edits_is_not_taken_for_the_last_one() -> None:
    """A frame belongs to the newest edit that changed its function; of others, the patch's own edit is all there is."""
    fault = ended(7, FAULTED, crash_in(("f2", 3), ("glue", 3)))
    play(
        (fault, "program 7 ended by SIGSEGV, after edit 2: f2; end 139"),
        start=with_three_edits(Policy()),
    )
    (told, *_), _ = step(with_three_edits(Policy()), fault)[::-1]
    assert isinstance(told, messages.Emit)
    assert isinstance(told.event, events.ProgramEnded)
    assert told.event.crash is not None
    assert [frame.edit for frame in told.event.crash.frames] == [2, 3]


def test_a_late_client_of_an_edit_that_is_in_force_is_sent_no_new_one() -> None:
    """What a restart leaves out stays the edit, with its own functions alone."""
    state = play(
        (joined(2), "connected 2; prepare 2 edit 3"),
        (patch(2, "q3", "f1", "f2", "f3", edit=3), "send q3 to 2; sent edit 3 to 2"),
        (applied(2), ""),
        start=with_three_edits(Policy()),
    )
    assert state.sent is not None
    assert (state.sent.edit, state.sent.functions) == (3, ("f3",))


def test_a_crash_of_a_program_that_others_started_is_told() -> None:
    """The daemon goes on, and so does its own program; any other end of such a program says nothing."""
    crash = Crash(signal="SIGILL", ended_by="SIGILL", stack_overflow=False, thread="main", frames=())
    play(
        (ended(99, -4, crash), "program 99 ended by SIGILL, after edit 1: f1"),
        (ended(98, -4), ""),
        (ended(7, 0), "program 7 ended by 0, after edit 1: f1; end 0"),
        start=PLAIN,
    )


def test_the_first_build_is_adopted() -> None:
    """Edits can be told once its objects are there."""
    play((built("start"), "built for start; adopt"), (joined(1), "connected 1"), (READY, ""))


def test_a_restart_replaces_the_program_once_it_is_built() -> None:
    """Who asked is answered when edits can be told again; what the old program ran is forgotten."""
    state = play(
        (built(), "built for restart; lost 1; adopt"),
        (started(8), "program 8 runs"),
        (joined(2), "connected 2"),
        (READY, "reply 1"),
        start=RESTARTING,
    )
    assert (state.target, state.sent, state.dirty) == (0, None, frozenset())


def test_only_what_the_daemon_starts_is_started_without_the_last_edit() -> None:
    """Programs that others started are brought back by an undo; whoever asks is told."""
    told = (
        "reply 1 the daemon did not start the program, and cannot start it again; `hotpatchd undo` takes the edit back"
    )
    play((asked(without_last=True), told), start=replace(PLAIN, policy=Policy(starts=False)))


def test_a_restart_that_does_not_build_changes_nothing() -> None:
    """Edits that settled meanwhile are built as ever."""
    play(
        (settled("main.rs"), ""),
        (built(problem="no"), "built for restart: no; reply 1 no; edit 2: main.rs; rebuild app"),
        start=RESTARTING,
    )


def test_what_settled_before_the_build_ended_is_part_of_it() -> None:
    """It is no edit of the new program."""
    play((settled("main.rs"), ""), (built(), "built for restart; lost 1; adopt"), (READY, "reply 1"), start=RESTARTING)


def test_what_settles_before_the_objects_are_there_is_the_next_edit() -> None:
    """The build did not read it."""
    play(
        (built(), "built for restart; lost 1; adopt"),
        (settled("main.rs"), ""),
        (READY, "reply 1; edit 2: main.rs; rebuild app"),
        start=RESTARTING,
    )


def test_one_restart_serves_all_who_ask_while_it_goes_on() -> None:
    """The build takes in what changed until it ends."""
    play(
        (asked(2), ""),
        (asked(None), ""),
        (built(), "built for restart; lost 1; adopt"),
        (asked(3), ""),
        (READY, "reply 1; reply 2; reply 3"),
        start=RESTARTING,
    )


def test_a_restart_waits_for_the_edit_in_hand() -> None:
    """And comes before the next one, which it makes needless."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (asked(), ""),
        (settled("main.rs"), ""),
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 2; building for restart; build for restart"),
        start=PLAIN,
    )


def test_without_the_last_edit_nothing_is_built() -> None:
    """The new process is brought to what ran before; there is nothing more to leave out then."""
    play(
        (asked(without_last=True), "lost 1; start again; reply 1"),
        (started(8), "program 8 runs"),
        (joined(2), "connected 2"),
        (
            asked(2, without_last=True),
            "reply 2 no edit was sent to the program since it started, so there is none to leave out",
        ),
        start=PLAIN,
    )


def test_an_edit_that_a_new_process_was_started_without_is_not_undone_again() -> None:
    """The edit before it is the next one to be taken back."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (applied(1), "applied 2"),
        (asked(without_last=True), "lost 1; start again; reply 1"),
        (joined(2), "connected 2; prepare 2 edit 1"),
        (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
        (applied(2), ""),
        (undo(request=2), "take 2 back to None"),
        (applied(2), "undone 1, back to 0; reply 2"),
        start=PLAIN,
    )


def test_the_client_of_a_process_without_the_last_edit_gets_the_objects_before_it() -> None:
    """And those of the next edit afterwards."""
    state = play((asked(without_last=True), "lost 1; start again; reply 1"), start=PLAIN)
    assert state.target == 0
    state = play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; refused 2 no_client"),
        start=state,
    )
    assert (state.previous, state.target) == (0, 2)


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        (PLAIN, 0, "program 7 ended by 0, after edit 1: f1; end 0"),
        (PLAIN, 3, "program 7 ended by 3, after edit 1: f1; end 3"),
        (PLAIN, ABORTED, "program 7 ended by SIGABRT, after edit 1: f1; end 134"),
        (STAYS, 3, "program 7 ended by 3, after edit 1: f1; end 3"),
        (STAYS, FAULTED, "program 7 ended by SIGSEGV, after edit 1: f1; offer restart without edit 1"),
        (AUTO, 0, "program 7 ended by 0, after edit 1: f1; end 0"),
        (PLAIN, PANICKED, "program 7 ended by 101, after edit 1: f1; end 101"),
        (AUTO, PANICKED, "program 7 ended by 101, after edit 1: f1; lost 1; start again"),
        (AUTO, FAULTED, "program 7 ended by SIGSEGV, after edit 1: f1; lost 1; start again"),
        (replace(AUTO, sent=None), FAULTED, "program 7 ended by SIGSEGV; offer restart"),
    ],
)
def test_the_end_of_the_program(state: State, status: int, said: str) -> None:
    """It is the daemon's, unless it is a crash after which somebody can go on."""
    play((ended(7, status), said), start=state)


def test_the_end_of_a_program_that_was_replaced_is_of_no_account() -> None:
    """Another one runs by then."""
    play((started(8), "program 8 runs"), (ended(7, FAULTED), ""), start=STAYS)


def test_a_program_that_ends_during_a_restart_is_started_all_the_same() -> None:
    """Whoever asked for it wants it to run."""
    play(
        (ended(7, 0), "program 7 ended by 0, after edit 1: f1"),
        (built(), "built for restart; lost 1; adopt"),
        start=RESTARTING,
    )


def test_an_edit_after_a_crash_starts_the_program_where_that_is_wanted() -> None:
    """There is no process that could be patched."""
    play(
        (messages.Left(client=1), "lost 1"),
        (ended(7, FAULTED), "program 7 ended by SIGSEGV; offer restart"),
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; restart 2 program_ended; building for restart; build for restart"),
        start=replace(AUTO, sent=None),
    )


def test_an_edit_that_needs_a_full_build_restarts_where_that_is_wanted() -> None:
    """The verdict is told first."""
    play(
        (settled("Cargo.toml"), "edit 2: Cargo.toml; restart 2 full_build; building for restart; build for restart"),
        start=AUTO,
    )


def test_the_programs_file_is_built_when_nothing_happened_for_a_while() -> None:
    """Once: then it is up to date."""
    play(
        (BackgroundDue(edit=1), "building for background; build for background"),
        (built("background"), "built for background"),
        (BackgroundDue(edit=1), ""),
        start=BACKGROUND,
    )


def test_the_pause_begins_anew_with_each_edit() -> None:
    """What is being edited is not built yet."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (BackgroundDue(edit=1), ""),
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 2"),
        start=BACKGROUND,
    )


def test_an_edit_ends_a_build_in_the_background() -> None:
    """The processors are needed; the build is tried again after it."""
    play(
        (BackgroundDue(edit=1), "building for background; build for background"),
        (settled("lib.rs"), "cancel full build; edit 2: lib.rs; rebuild lib"),
        (settled("lib.rs"), "cancel"),
        (cancelled("lib"), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 3"),
        (patch(1, "p3", edit=3), "send p3 to 1; sent edit 3 to 1"),
        (applied(1), "applied 2; applied 3; look later whether edit 3 is the newest"),
        start=BACKGROUND,
    )


def test_a_restart_ends_a_build_in_the_background() -> None:
    """It is the same build, for somebody who waits."""
    play(
        (BackgroundDue(edit=1), "building for background; build for background"),
        (asked(), "cancel full build; building for restart; build for restart"),
        start=BACKGROUND,
    )


def test_a_panic_is_told_with_its_edit_and_changes_nothing() -> None:
    """The edit is that of the function: a patch may bring several. The program goes on, and is not restarted."""
    before = running(Policy(starts=True, auto_restart=True, stays=True, background=False))
    function = before.in_force[0].functions[0]
    frame = CrashFrame(function=function, file="src/lib.rs", line=3, edit=9)
    panic = Panic(count=2, thread="worker", frames=(frame,))
    after, commands = step(before, messages.Panicked(pid=7, panic=panic))
    assert after == before
    assert commands == (
        messages.Emit(
            event=events.ProgramPanicked(
                pid=7,
                edit=1,
                function=function,
                file="src/lib.rs",
                line=3,
                thread="worker",
                count=2,
                frames=(replace(frame, edit=1),),
            )
        ),
    )
