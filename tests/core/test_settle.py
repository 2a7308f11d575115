"""A burst of changes becomes one batch once it is quiet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.settle import (
    SettleTimes,
    Settling,
    Tick,
    Touched,
    deadline_ms,
    is_editor_temporary,
    step,
)

TIMES = SettleTimes(quiet_ms=20, ceiling_ms=500, hollow_ms=200)


def touched(*paths: str, hollow: tuple[str, ...] = ()) -> Touched:
    """A change of all these files."""
    return Touched(paths=frozenset(paths + hollow), hollow=frozenset(hollow))


def play(*events: tuple[float, Touched], until_ms: float) -> list[tuple[float, set[str]]]:
    """Feed events at their times and ticks when due; returns batches with the time each one settled."""
    state: Settling | None = None
    batches: list[tuple[float, set[str]]] = []

    def tick_until(limit_ms: float) -> None:
        nonlocal state
        while state is not None and (due_ms := deadline_ms(state, TIMES)) < limit_ms:
            state, settled = step(state, Tick(), due_ms, TIMES)
            batches.append((due_ms, set(settled)))

    for now_ms, event in events:
        tick_until(now_ms)
        state, settled = step(state, event, now_ms, TIMES)
        if settled:
            batches.append((now_ms, set(settled)))
    tick_until(until_ms)
    return batches


def test_one_write_settles_after_the_quiet_time() -> None:
    """A single change is a batch exactly one quiet time later."""
    assert play((0, touched("a")), until_ms=1000) == [(20, {"a"})]


def test_tick_before_the_deadline_changes_nothing() -> None:
    """A tick that comes early leaves the batch open."""
    state, _ = step(None, touched("a"), 0, TIMES)
    assert step(state, Tick(), 19.9, TIMES) == (state, frozenset())


def test_tick_with_nothing_pending_is_harmless() -> None:
    """Without a change there is never a batch."""
    assert step(None, Tick(), 0, TIMES) == (None, frozenset())


def test_changes_in_quick_succession_are_one_batch() -> None:
    """Each further change starts the quiet time again."""
    events = [(t, touched(f"f{t}")) for t in range(0, 100, 15)]
    assert play(*events, until_ms=1000) == [(110, {f"f{t}" for t in range(0, 100, 15)})]


def test_changes_far_apart_are_two_batches() -> None:
    """A change after the quiet time belongs to the next batch."""
    assert play((0, touched("a")), (30, touched("b")), until_ms=1000) == [(20, {"a"}), (50, {"b"})]


def test_unending_burst_is_cut_at_the_ceiling() -> None:
    """Changes that never pause are handed out when the ceiling is reached."""
    events = [(t, touched("log")) for t in range(0, 600, 10)]
    assert play(*events, until_ms=1000)[0] == (500, {"log"})


def test_truncated_file_waits_for_its_content() -> None:
    """A file that is empty for a moment holds the batch until it is written."""
    assert play((0, touched(hollow=("a",))), (90, touched("a")), until_ms=1000) == [(110, {"a"})]


def test_file_that_stays_empty_is_an_edit() -> None:
    """After the hollow time, emptiness is what the developer wanted."""
    assert play((0, touched(hollow=("a",))), until_ms=1000) == [(200, {"a"})]


def test_hollow_file_holds_other_files_back() -> None:
    """The batch is complete only when every file of it is."""
    assert play((0, touched("b", hollow=("a",))), (50, touched("a")), until_ms=1000) == [(70, {"a", "b"})]


def test_later_events_of_a_hollow_file_do_not_prolong_its_wait() -> None:
    """The hollow time counts from when the file became hollow."""
    assert play((0, touched(hollow=("a",))), (150, touched(hollow=("a",))), until_ms=1000) == [(200, {"a"})]


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30))
def test_no_change_is_lost_and_none_waits_past_the_ceiling(changes: list[tuple[float, str, bool]]) -> None:
    """Whatever happens, every change is in a batch at most one ceiling later."""
    now_ms, events = 0.0, []
    for pause_ms, path, hollow in changes:
        now_ms += pause_ms
        events.append((now_ms, touched(path, hollow=(path,) if hollow else ())))
    batches = play(*events, until_ms=now_ms + 1000)
    for at_ms, event in events:
        assert any(at_ms <= end_ms <= at_ms + 500 and event.paths <= paths for end_ms, paths in batches)


@pytest.mark.parametrize(
    "name",
    "main.rs~ .#main.rs #main.rs# .main.rs.swp .main.rs.swx 4913 .main.rs.kate-swp "
    "main.rs___jb_tmp___ main.rs___jb_old___".split(),
)
def test_editors_temporary_files_are_recognised(name: str) -> None:
    """What editors leave beside a file is not an edit."""
    assert is_editor_temporary(name)


@pytest.mark.parametrize("name", ["main.rs", "49130", "a#b", ".env", "swp.rs", "#1.md", "x.swift"])
def test_ordinary_names_are_not_temporary(name: str) -> None:
    """Names that merely look similar are watched."""
    assert not is_editor_temporary(name)
