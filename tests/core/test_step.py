"""Transcripts of the daemon's decisions, and random ones that must keep its promises."""

from dataclasses import replace

import pytest

from hotpatchd.core.client import OnStack
from hotpatchd.core.events import (
    EditsUndone,
    EditVerdict,
    Functions,
    Note,
    Refusal,
    Timings,
)
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.messages import (
    Emit,
    Joined,
    Left,
    Prepare,
    Prepared,
    Rebuilt,
    Reply,
    Settled,
)
from hotpatchd.core.state import Restart, SentEdit
from hotpatchd.core.step import PATIENCE_S, step
from tests.core.fakes import content, fingerprint
from tests.core.transcripts import (
    APPLIED,
    BUILDING,
    INPUTS,
    ONE_CLIENT,
    PREPARING,
    PREPARING_TWO,
    READY,
    SENT,
    applied,
    cancelled,
    joined,
    no_patch,
    patch,
    play,
    rebuilt,
    refused,
    settled,
    undo,
    verdict_of,
)


def test_an_edit_is_built_sent_and_applied() -> None:
    """The ordinary way of an edit ends idle, with the client's new code known."""
    assert APPLIED.phase == "idle"
    known = APPLIED.sessions[1]
    assert known.running == {"f1": fingerprint("p1")}
    assert known.next_addr == 0x20000
    assert [patch.patch for patch in known.history] == ["p1"]


def test_a_verdict_gives_the_time_of_every_stage() -> None:
    """Timings come from the events; the whole runs from the last write to the acknowledgement."""
    verdict = verdict_of(SENT, applied(1))
    assert verdict.functions == Functions(patched=("f1",))
    assert verdict.timings_ms == Timings(
        settle=20.0, compile=300.0, select=5.0, judge=0.0, link=80.0, send=1.0, apply=2.0, total=500.0
    )


def test_a_function_that_still_runs_is_noted_by_name() -> None:
    """The client reports addresses, and the verdict names functions."""
    prepared = Prepared(client=1, content=content("p1"), names={0x40: "app::run"})
    stacks = (OnStack(from_addr=0x40, threads=("main", "w1")), OnStack(from_addr=0x50, threads=("w1",)))
    notes = verdict_of(PREPARING, prepared, applied(1, on_stack=stacks)).notes
    assert [(note.symbol, note.note) for note in notes] == [("app::run", "on_stack"), ("0x50", "on_stack")]
    assert "main, w1" in notes[0].detail


def test_a_function_that_is_in_the_way_is_refused_by_name() -> None:
    """The client knows only its address."""
    prepared = Prepared(client=1, content=content("p1"), names={0x40: "app::run"})
    for addr, name in ((0x40, "app::run"), (0x50, "0x50")):
        (refusal,) = verdict_of(PREPARING, prepared, refused(1, from_addr=addr)).refusals
        assert (refusal.symbol, refusal.reason) == (name, "park")


def test_a_source_that_does_not_compile_fails_and_the_fix_builds_the_same_crate() -> None:
    """A crate whose source is newer than its objects is built with the next edit, wherever that one is."""
    play(
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 1"),
        (settled("main.rs"), "edit 2: main.rs; rebuild app lib"),
        (rebuilt("lib", "app"), "compiled lib app; prepare 1 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (applied(1), "applied 2"),
        (settled("main.rs"), "edit 3: main.rs; rebuild app"),
        start=BUILDING,
    )


def test_a_new_file_may_be_what_a_crate_lacked() -> None:
    """After a failure, a file that no crate reads yet is an edit if it lies in the failed crate's package."""
    play(
        (settled("/lib/new.rs"), ""),
        start=play((rebuilt("lib"), "compiled lib; prepare 1 edit 1"), (no_patch(1), "unchanged 1"), start=BUILDING),
    )
    play(
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 1"),
        (settled("/lib/new.rs"), "edit 2: /lib/new.rs; rebuild lib"),
        start=BUILDING,
    )


def test_files_read_for_the_first_time_are_inputs_afterwards() -> None:
    """Each rebuild says anew which files it read; one that changed meanwhile makes it build again."""
    more = BuildInputs(crates_of={**INPUTS.crates_of, "new.rs": ("lib",)}, full_build={})
    play(
        (settled("new.rs"), ""),
        (rebuilt("lib", inputs=more), "compiled lib; edit 2: new.rs; rebuild lib"),
        start=BUILDING,
    )


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (rebuilt("lib"), "compiled lib; edit 2: lib.rs main.rs; rebuild app lib"),
        (cancelled("lib"), "edit 2: lib.rs main.rs; rebuild app lib"),
        (rebuilt("lib", failed=("lib",)), "edit 2: lib.rs main.rs; rebuild app lib"),
    ],
)
def test_edits_during_a_build_become_one_edit_after_it(end: Rebuilt, said: str) -> None:
    """They wait until the build has ended, however it ended."""
    play((settled("main.rs"), ""), (settled("lib.rs"), "cancel"), (end, said), start=BUILDING)


def test_an_edit_whose_source_changed_during_its_build_shares_the_next_verdict() -> None:
    """Which text the compiler read cannot be told, so nothing is sent for it alone."""
    play(
        (settled("lib.rs"), "cancel"),
        (rebuilt("lib"), "compiled lib; edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        (no_patch(1), "unchanged 1; unchanged 2"),
        start=BUILDING,
    )


def test_an_edit_of_a_crate_that_is_not_being_built_waits() -> None:
    """What is built is not concerned."""
    play(
        (settled("main.rs"), ""),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 1"),
        (no_patch(1), "unchanged 1; edit 2: main.rs; rebuild app"),
        start=BUILDING,
    )


def test_a_build_is_cancelled_once() -> None:
    """It takes a moment to end, in which more files may settle."""
    play(
        (settled("lib.rs"), "cancel"),
        (settled("lib.rs"), ""),
        (cancelled("lib"), "edit 2: lib.rs; rebuild lib"),
        (settled("lib.rs"), "cancel"),
        start=BUILDING,
    )


def test_a_build_goes_on_where_the_newer_edit_needs_a_full_build() -> None:
    """Nothing would be built again in its place."""
    play((settled("lib.rs", "Cargo.toml"), ""), (rebuilt("lib"), "compiled lib; prepare 1 edit 1"), start=BUILDING)


def test_somebody_who_never_stops_saving_sees_something_applied() -> None:
    """After `PATIENCE_S` a build is not given up for newer files any more, and its objects are sent."""
    play(
        (settled("lib.rs", at=100.0 + PATIENCE_S / 2), "cancel"),
        (cancelled("lib"), "edit 2: lib.rs; rebuild lib"),
        (settled("lib.rs", at=100.0 + PATIENCE_S), ""),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        start=BUILDING,
    )


def test_a_failure_is_not_told_of_source_that_was_being_written() -> None:
    """However long that goes on: an editor empties a file before it writes it."""
    play(
        (settled("lib.rs", at=101.0), "cancel"),
        (cancelled("lib"), "edit 2: lib.rs; rebuild lib"),
        (settled("lib.rs", at=102.5), ""),
        (rebuilt("lib", failed=("lib",)), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 1; failed 2; failed 3"),
        start=BUILDING,
    )


def test_an_edit_that_makes_no_difference_to_the_build_is_unchanged() -> None:
    """It is told with the reason, and nothing is built."""
    harmless = {"Cargo.toml": "only the description"}
    verdict = verdict_of(ONE_CLIENT, replace(settled("Cargo.toml"), harmless=harmless))
    assert verdict.verdict == "unchanged"
    assert verdict.notes == (Note(symbol="Cargo.toml", note="no_difference", detail="manifest: only the description"),)


def test_a_restart_is_due_until_the_file_is_as_it_was_built() -> None:
    """Whatever else is edited meanwhile."""
    state = play((settled("Cargo.toml"), "edit 1: Cargo.toml; restart 1 full_build"), start=ONE_CLIENT)
    state = play((settled("lib.rs"), "edit 2: lib.rs; rebuild lib"), start=state)
    assert state.due == {"Cargo.toml": "manifest"}
    restored = replace(settled("Cargo.toml"), harmless={"Cargo.toml": "as it was"})
    done = "not compiled lib; failed 2; edit 3: Cargo.toml; unchanged 3"
    state = play((restored, ""), (rebuilt("lib", failed=("lib",)), done), start=state)
    assert state.due == {}


def test_the_newest_text_of_a_manifest_decides_whether_it_makes_a_difference() -> None:
    """An edit of several batches has a file's last state."""
    harmless = replace(settled("Cargo.toml"), harmless={"Cargo.toml": "only the description"})
    said = "reply 1; edit 1: Cargo.toml; restart 1 full_build"
    undoing = replace(ONE_CLIENT, phase="waiting", restart=Restart(requests=(1,)))
    play((harmless, ""), (settled("Cargo.toml"), ""), (READY, said), start=undoing)


def test_an_edit_of_several_batches_counts_from_the_last_write() -> None:
    """The newest write and the longest wait are those of the edit."""
    state = play(
        (settled("main.rs", at=200.0), ""),
        (Settled(files=("lib.rs",), last_write=150.0, settle_ms=90.0), "cancel"),
        (rebuilt("lib", failed=("lib",)), "edit 2: lib.rs main.rs; rebuild app lib"),
        start=BUILDING,
    )
    assert (state.outcome.last_write, state.outcome.settle_ms) == (200.0, 90.0)


def test_edits_before_the_baseline_wait_for_it() -> None:
    """Nothing is known of files until then."""
    play(
        (settled("lib.rs", "notes.txt"), ""),
        (joined(1), "connected 1"),
        (READY, "edit 1: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 1"),
    )


def test_files_that_nothing_reads_are_no_edit() -> None:
    """They do not even get a number."""
    play((settled("notes.txt"), ""), (settled("lib.rs"), "edit 1: lib.rs; rebuild lib"), start=ONE_CLIENT)


def test_an_edit_of_a_program_that_is_not_connected_is_refused() -> None:
    """It makes no difference to the program that is, and "unchanged" would be wrong."""
    play(
        (settled("main.rs"), "edit 1: main.rs; rebuild app"),
        (rebuilt("app", programs={"b2": "worker"}), "compiled app; prepare 1 edit 1"),
        (no_patch(1), "refused 1 no_client"),
        start=ONE_CLIENT,
    )


def test_an_edit_of_all_programs_is_applied_where_it_can_be() -> None:
    """One of them is connected, and has it now."""
    play(
        (settled("lib.rs"), "edit 1: lib.rs; rebuild lib"),
        (rebuilt("lib", programs={"b1": "app", "b2": "worker"}), "compiled lib; prepare 1 edit 1"),
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (applied(1), "applied 1"),
        start=ONE_CLIENT,
    )


def test_an_edit_without_a_client_is_refused_and_kept() -> None:
    """The program that connects next is brought up to date, without a verdict of its own."""
    play(
        (READY, ""),
        (settled("lib.rs"), "edit 1: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; refused 1 no_client"),
        (joined(1), "connected 1; prepare 1 edit 1"),
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (applied(1), ""),
    )


def test_a_client_that_comes_late_catches_up_after_the_edit_in_hand() -> None:
    """Its patch is made when the others have answered."""
    state = play(
        (joined(2), "connected 2"),
        (applied(1), "applied 1; prepare 2 edit 1"),
        (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
        (settled("main.rs"), ""),
        (applied(2), "edit 2: main.rs; rebuild app"),
        start=SENT,
    )
    assert [patch.patch for patch in state.sessions[2].history] == ["q1"]


def test_a_refusal_while_catching_up_is_no_verdict() -> None:
    """There is no edit that it could belong to."""
    play((joined(2), "connected 2; prepare 2 edit 1"), (no_patch(2, "static_changed"), ""), start=APPLIED)


def test_a_client_that_joins_during_the_build_takes_part() -> None:
    """It need not catch up afterwards."""
    play(
        (joined(2), "connected 2"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 1; prepare 2 edit 1"),
        (no_patch(1), ""),
        (no_patch(2), "unchanged 1"),
        start=BUILDING,
    )


def test_a_client_that_joins_during_a_build_that_fails_is_looked_at() -> None:
    """It lacks an earlier edit."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (joined(2), "connected 2"),
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 2; prepare 2 edit 1"),
        (no_patch(2), ""),
        start=APPLIED,
    )


def test_clients_that_come_before_the_first_edit_lack_nothing() -> None:
    """No patch is made for them."""
    play((joined(1), "connected 1"), (READY, ""), (joined(2), "connected 2"))


def test_a_client_lost_before_it_answers_makes_the_edit_refused() -> None:
    """Whether it applied the patch cannot be known."""
    play((Left(client=1), "lost 1; refused 1 client_lost"), (applied(1), ""), start=SENT)


def test_a_client_lost_while_its_patch_is_made_makes_the_edit_refused() -> None:
    """The patch that is ready too late is not sent."""
    play((Left(client=1), "lost 1; refused 1 client_lost"), (patch(1, "p1"), ""), start=PREPARING)


def test_a_client_lost_during_the_build_does_not_count() -> None:
    """Without others there is then nobody to patch."""
    play((Left(client=1), "lost 1"), (rebuilt("lib"), "compiled lib; refused 1 no_client"), start=BUILDING)


def test_a_client_lost_while_idle_is_only_reported() -> None:
    """A number that nobody has is not even that."""
    play((Left(client=1), "lost 1"), (Left(client=1), ""), start=APPLIED)


def test_a_client_lost_while_another_applied_is_in_the_verdict() -> None:
    """One program is not what the sources say: that is what the developer must see."""
    state = play(
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
        (applied(1), ""),
        start=PREPARING_TWO,
    )
    verdict = verdict_of(state, Left(client=2))
    assert (verdict.verdict, verdict.functions.patched) == ("refused", ("f1",))


def test_two_clients_one_of_which_refuses() -> None:
    """The verdict is a refusal, and each client's code is what it answered."""
    state = play(
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
        (refused(2), ""),
        (applied(1), "refused 1 park"),
        start=PREPARING_TWO,
    )
    assert (len(state.sessions[1].history), len(state.sessions[2].history)) == (1, 0)


def test_the_same_refusal_by_two_clients_is_shown_once() -> None:
    """Refusals are about the edit, not about the client."""
    play(
        (no_patch(1, "static_changed"), ""),
        (no_patch(2, "static_changed"), "refused 1 static_changed"),
        start=PREPARING_TWO,
    )


def test_what_only_a_new_process_has_room_for_takes_a_restart() -> None:
    """Where one program's room is used up, so says the verdict, whatever is the matter with others."""
    play(
        (no_patch(1, "region_full"), ""),
        (no_patch(2, "static_changed"), "restart 1 region_full static_changed"),
        start=PREPARING_TWO,
    )


def test_a_tool_that_fails_makes_the_edit_failed() -> None:
    """That is no judgement of the edit."""
    play((no_patch(1, "link", failed=True), "failed 1 link"), start=PREPARING)


def test_what_keeps_the_edit_from_each_client_is_told() -> None:
    """A tool's failure for one client is not hidden by a refusal for the other."""
    state = play((no_patch(1, "link", failed=True), ""), start=PREPARING_TWO)
    play((no_patch(2, "static_changed"), "failed 1 link static_changed"), start=state)


def test_an_edit_that_makes_no_difference_is_unchanged() -> None:
    """What merely moved, and notes, are told nevertheless."""
    moved, note = Functions(moved=("f",)), Note(symbol="S", note="initialiser_kept", detail="")
    verdict = verdict_of(PREPARING, Prepared(client=1, functions=moved, notes=(note,)))
    assert (verdict.verdict, verdict.functions, verdict.notes) == ("unchanged", moved, (note,))
    assert verdict.timings_ms.total is None


def test_functions_of_a_patch_that_is_not_sent_are_not_claimed() -> None:
    """A refused edit patched nothing."""
    prepared = Prepared(
        client=1,
        functions=Functions(patched=("f",), added=("g",)),
        refusals=(Refusal(symbol="f", reason="r", detail=""),),
    )
    assert verdict_of(PREPARING, prepared).functions == Functions()
    assert verdict_of(SENT, refused(1)).functions == Functions()


def test_a_manifest_needs_a_full_build() -> None:
    """Nothing is compiled now; code that changed with it is compiled with the next edit of code."""
    play(
        (settled("Cargo.toml", "lib.rs"), "edit 1: Cargo.toml lib.rs; restart 1 full_build"),
        (settled("main.rs"), "edit 2: main.rs; rebuild app lib"),
        start=ONE_CLIENT,
    )


def test_a_manifest_does_not_make_a_broken_crate_forgotten() -> None:
    """What did not compile before is still built with the next edit of code."""
    play(
        (rebuilt("lib", failed=("lib",)), "not compiled lib; failed 1"),
        (settled("Cargo.toml"), "edit 2: Cargo.toml; restart 2 full_build"),
        (settled("main.rs"), "edit 3: main.rs; rebuild app lib"),
        start=BUILDING,
    )


def test_stages_that_an_edit_did_not_reach_have_no_time() -> None:
    """An edit that does not compile was never compared; one of a manifest was not even compiled."""
    broken = verdict_of(BUILDING, rebuilt("lib", failed=("lib",))).timings_ms
    assert broken == Timings(settle=20.0, compile=300.0)
    assert verdict_of(ONE_CLIENT, settled("Cargo.toml")).timings_ms == Timings(settle=20.0)


def test_undo_takes_the_newest_patch_back() -> None:
    """The asker is answered when the client has done it, and the client's code is what it was."""
    state = play((undo(), "take 1 back to None"), (applied(1), "undone 1, back to 0; reply 1"), start=APPLIED)
    assert state.phase == "idle"
    assert (state.sessions[1].running, state.sessions[1].history) == ({}, ())


def test_undo_names_the_patch_to_go_back_to() -> None:
    """One of two patches is taken back."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (applied(1), "applied 2"),
        (undo(), "take 1 back to p1"),
        start=APPLIED,
    )


TWO_PATCHED = play(
    (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
    (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
    (applied(1), ""),
    (applied(2), "applied 1"),
    start=PREPARING_TWO,
)


def test_undo_reaches_every_client() -> None:
    """The asker is answered once, after the last, and told where each client is now."""
    state = play((undo(), "take 1 back to None; take 2 back to None"), (applied(2), ""), start=TWO_PATCHED)
    _, commands = step(state, applied(1))
    assert commands == (
        Emit(event=EditsUndone(edits=(1,), edit=0)),
        Reply(request=1, result={"edits": (1,), "edit": 0, "clients": {"1": None, "2": None}}),
    )


def test_undo_leaves_clients_without_patches_alone() -> None:
    """They have nothing that could be taken back."""
    play(
        (joined(2), "connected 2; prepare 2 edit 1"),
        (no_patch(2), ""),
        (undo(), "take 1 back to None"),
        start=APPLIED,
    )


def test_a_program_with_a_jump_table_cannot_undo() -> None:
    """Its protocol has no words for it; nobody is told to take anything back."""
    by_table = replace(TWO_PATCHED.sessions[2], redirect="jump_table")
    state = replace(TWO_PATCHED, sessions={**TWO_PATCHED.sessions, 2: by_table})
    after, (reply,) = step(state, undo())
    assert after == state
    assert isinstance(reply, Reply)
    assert "revert the edit" in reply.error


def test_a_refused_undo_is_an_error_and_changes_nothing() -> None:
    """Of two clients, the one that refused keeps its patch."""
    state = play(
        (undo(), "take 1 back to None; take 2 back to None"),
        (refused(2), ""),
        (applied(1), "undone 1, back to 0; reply 1 park it is"),
        start=TWO_PATCHED,
    )
    assert (state.sessions[1].history, len(state.sessions[2].history)) == ((), 1)


def test_an_undo_does_not_repeat_the_refusals_of_an_edit() -> None:
    """What one client refused before has nothing to do with what the other takes back."""
    play(
        (patch(1, "p1"), "send p1 to 1; sent edit 1 to 1"),
        (no_patch(2, "static_changed"), ""),
        (applied(1), "refused 1 static_changed"),
        (undo(), "take 1 back to None"),
        (applied(1), "undone 1, back to 0; reply 1"),
        start=PREPARING_TWO,
    )


def test_a_client_lost_during_an_undo_does_not_hold_it_up() -> None:
    """The asker learns of it."""
    play(
        (undo(), "take 1 back to None"),
        (
            Left(client=1),
            "lost 1; undone 1, back to 0; reply 1 the program ended or its connection broke before it answered",
        ),
        start=APPLIED,
    )


def test_an_undo_waits_for_the_edit_in_hand_and_takes_it_back() -> None:
    """It is the newest then; files that settled meanwhile come after it."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (undo(), ""),
        (settled("main.rs"), ""),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (applied(1), "applied 2; take 1 back to p1"),
        (applied(1), "undone 2, back to 1; reply 1; edit 3: main.rs; rebuild app"),
        start=APPLIED,
    )


def test_undos_come_one_after_the_other() -> None:
    """One that is asked for while another is in hand takes back what is left then."""
    play(
        (undo(request=1), "take 1 back to p1"),
        (undo(request=2), ""),
        (applied(1), "undone 2, back to 1; reply 1; take 1 back to None"),
        (applied(1), "undone 1, back to 0; reply 2"),
        start=TWO_EDITS,
    )


def test_undo_without_patches_is_an_error() -> None:
    """It says that there are none."""
    play((undo(), "reply 1 no patch is in force, so there is nothing to undo"), start=ONE_CLIENT)


TWO_EDITS = play(
    (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
    (rebuilt("lib"), "compiled lib; prepare 1 edit 2"),
    (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
    (applied(1), "applied 2"),
    start=APPLIED,
)
LATE_AFTER_TWO_EDITS = play(
    (joined(2), "connected 2; prepare 2 edit 2"),
    (patch(2, "q2", edit=2), "send q2 to 2; sent edit 2 to 2"),
    (applied(2), ""),
    start=TWO_EDITS,
)


def test_a_client_that_joins_after_an_undo_gets_what_the_others_run() -> None:
    """The objects are those of the edit gone back to, not the newest."""
    state = play((undo(), "take 1 back to p1"), (applied(1), "undone 2, back to 1; reply 1"), start=TWO_EDITS)
    _, (_, prepare) = step(state, joined(2))
    assert isinstance(prepare, Prepare)
    assert (prepare.edit, prepare.objects, prepare.before) == (1, 1, 1)


def test_a_client_that_joins_after_everything_was_undone_is_left_alone() -> None:
    """Its own code is what the others run."""
    play(
        (undo(9), "take 1 back to None"),
        (applied(1), "undone 2 1, back to 0; reply 1"),
        (joined(2), "connected 2"),
        start=TWO_EDITS,
    )


def test_a_client_that_has_both_edits_in_one_patch_gets_the_first_of_them_again() -> None:
    """It takes back the patch of both, and is brought to the edit that the others went back to."""
    state = play(
        (undo(), "take 1 back to p1; take 2 back to None"),
        (applied(1), ""),
        (applied(2), "undone 2, back to 1; reply 1; prepare 2 edit 1"),
        (patch(2, "q1"), "send q1 to 2; sent edit 1 to 2"),
        (applied(2), ""),
        start=LATE_AFTER_TWO_EDITS,
    )
    assert {session.edits for session in state.sessions.values()} == {(1,)}


def test_a_client_that_returns_after_an_undo_takes_back_what_it_missed() -> None:
    """Its connection was broken when the others did."""
    away = LATE_AFTER_TWO_EDITS.sessions[1]
    play(
        (Left(client=1), "lost 1"),
        (undo(), "take 2 back to None"),
        (applied(2), "undone 2, back to 1; reply 1; prepare 2 edit 1"),
        (no_patch(2), ""),
        (Joined(session=replace(away, client=3)), "connected 3; take 3 back to p1"),
        (applied(3), ""),
        start=LATE_AFTER_TWO_EDITS,
    )


def test_a_client_that_returns_and_takes_nothing_back_is_not_asked_for_ever() -> None:
    """It has its say once."""
    away = TWO_EDITS.sessions[1]
    play(
        (Left(client=1), "lost 1"),
        (undo(), "undone 2, back to 1; reply 1"),
        (Joined(session=replace(away, client=3)), "connected 3; take 3 back to p1"),
        (refused(3), ""),
        start=TWO_EDITS,
    )


def test_an_undo_without_clients_holds_for_those_to_come() -> None:
    """A program that an edit made unable to run is started again without it."""
    play(
        (Left(client=1), "lost 1"),
        (undo(), "undone 2, back to 1; reply 1"),
        (joined(2), "connected 2; prepare 2 edit 1"),
        start=TWO_EDITS,
    )


def test_an_undo_that_every_client_refuses_can_be_asked_for_again() -> None:
    """The same edit is the one to be taken back."""
    play(
        (undo(), "take 1 back to p1"),
        (refused(1), "reply 1 park it is"),
        (undo(request=2), "take 1 back to p1"),
        start=TWO_EDITS,
    )


def test_an_edit_after_an_undo_reaches_those_that_come_later() -> None:
    """The objects of the newest source are what is to run again."""
    play(
        (undo(), "take 1 back to p1"),
        (applied(1), "undone 2, back to 1; reply 1"),
        (settled("lib.rs"), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 3"),
        (patch(1, "p3", edit=3), "send p3 to 1; sent edit 3 to 1"),
        (applied(1), "applied 3"),
        (joined(2), "connected 2; prepare 2 edit 3"),
        start=TWO_EDITS,
    )


def test_an_edit_that_brings_a_client_nothing_is_undone_without_it() -> None:
    """Of two programs, one has no code of the crate that was edited."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2; prepare 2 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (no_patch(2), ""),
        (applied(1), "applied 2"),
        (undo(), "take 1 back to p1"),
        (applied(1), "undone 2, back to 1; reply 1"),
        (undo(), "take 1 back to None; take 2 back to None"),
        start=TWO_PATCHED,
    )


def test_a_patch_after_an_edit_that_brought_nothing_is_the_only_one_taken_back() -> None:
    """What the program ran before that patch was the code of both edits before it."""
    play(
        (settled("lib.rs"), "edit 2: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 2; prepare 2 edit 2"),
        (patch(1, "p2", edit=2), "send p2 to 1; sent edit 2 to 1"),
        (no_patch(2), ""),
        (applied(1), "applied 2"),
        (settled("lib.rs"), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 3; prepare 2 edit 3"),
        (no_patch(1), ""),
        (patch(2, "q3", edit=3), "send q3 to 2; sent edit 3 to 2"),
        (applied(2), "applied 3"),
        (undo(), "take 2 back to q1"),
        (applied(2), "undone 3, back to 2; reply 1"),
        start=TWO_PATCHED,
    )


def test_a_client_that_came_when_two_edits_cancelled_out_gets_the_first_after_an_undo() -> None:
    """It has nothing to take back, and yet does not run what the others run."""
    play(
        (joined(2), "connected 2; prepare 2 edit 2"),
        (no_patch(2), ""),
        (undo(), "take 1 back to p1"),
        (applied(1), "undone 2, back to 1; reply 1; prepare 2 edit 1"),
        start=TWO_EDITS,
    )


def test_a_crash_after_an_undo_is_not_the_undone_edits() -> None:
    """The newest edit that is left is what the program ran."""
    state = play((undo(), "take 1 back to p1"), (applied(1), "undone 2, back to 1; reply 1"), start=TWO_EDITS)
    assert state.sent == SentEdit(edit=1, before=0, functions=("f1",), code={"f1": fingerprint("p1")})


def test_an_edit_that_made_no_difference_is_not_taken_back_in_place_of_one_that_did() -> None:
    """Also where a program came after it, and got the code of both under the newer one's number."""
    play(
        (settled("lib.rs"), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 3"),
        (no_patch(1), "unchanged 3"),
        (joined(2), "connected 2; prepare 2 edit 3"),
        (patch(2, "q3", edit=3), "send q3 to 2; sent edit 3 to 2"),
        (applied(2), ""),
        (undo(), "take 1 back to p1; take 2 back to None"),
        (applied(1), ""),
        (applied(2), "undone 2, back to 1; reply 1; prepare 2 edit 1"),
        start=TWO_EDITS,
    )


@pytest.mark.parametrize(("now", "noted"), [("p2", [("f2", "still_in_source")]), ("other", [])])
def test_code_that_was_taken_back_is_noted_when_the_next_edit_brings_it_again(
    now: str, noted: list[tuple[str, str]]
) -> None:
    """The source still has it; a function with other code is what the developer made of it."""
    start = play((undo(), "take 1 back to p1"), (applied(1), "undone 2, back to 1; reply 1"), start=TWO_EDITS)
    prepared = patch(1, "p3", "f2", "f3", edit=3)
    assert prepared.content is not None
    functions = {"f2": fingerprint(now), "f3": fingerprint("p3")}
    start = play(
        (settled("lib.rs"), "edit 3: lib.rs; rebuild lib"),
        (rebuilt("lib"), "compiled lib; prepare 1 edit 3"),
        (replace(prepared, content=replace(prepared.content, functions=functions)), "send p3 to 1; sent edit 3 to 1"),
        start=start,
    )
    state, (verdict, *_) = step(start, applied(1))
    assert isinstance(verdict, Emit)
    assert isinstance(verdict.event, EditVerdict)
    assert [(note.symbol, note.note) for note in verdict.event.verdict.notes] == noted
    assert state.undone == ()


def test_an_edit_during_an_undo_comes_after_it() -> None:
    """The undo is answered first."""
    play(
        (undo(), "take 1 back to None"),
        (settled("lib.rs"), ""),
        (applied(1), "undone 1, back to 0; reply 1; edit 2: lib.rs; rebuild lib"),
        start=APPLIED,
    )


def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    """It is neither of an edit nor of an undo."""
    assert play((applied(1), ""), (patch(1, "p1"), ""), start=APPLIED) == APPLIED
    assert play((applied(1), ""), start=PREPARING) == PREPARING
