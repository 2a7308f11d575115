"""A burst of changes becomes one batch once it is quiet."""

from itertools import accumulate

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


def fresh(*paths: str) -> Touched:
    """These files came into being."""
    return Touched(paths=frozenset(paths), fresh=frozenset(paths))


def play(*events: tuple[float, Touched], until_ms: float = 100_000) -> list[tuple[float, set[str]]]:
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
    assert play((0, touched("a"))) == [(20, {"a"})]


def test_tick_before_the_deadline_changes_nothing() -> None:
    """A tick that comes early leaves the batch open."""
    state, _ = step(None, touched("a"), 0, TIMES)
    assert step(state, Tick(), 19.9, TIMES) == (state, frozenset())


def test_tick_with_nothing_pending_is_harmless() -> None:
    """Without a change there is never a batch."""
    assert step(None, Tick(), 0, TIMES) == (None, frozenset())


def test_changes_in_quick_succession_are_one_batch() -> None:
    """Each further change starts the quiet time again."""
    events = [(t, touched("a")) for t in range(0, 100, 15)]
    assert play(*events) == [(110, {"a"})]


@pytest.mark.parametrize(("count", "quiet_ms"), [(1, 20), (2, 40), (4, 40), (5, 100), (49, 100), (50, 200), (500, 200)])
def test_quiet_time_grows_with_the_burst(count: int, quiet_ms: float) -> None:
    """Who writes many files pauses between them; who saved one file waits for it."""
    names = tuple(map(str, range(count)))
    assert play((0, touched(*names))) == [(quiet_ms, set(names))]


def test_generator_with_pauses_is_one_batch() -> None:
    """A hundred new files over one and a half seconds settle together, after the last."""
    events = [(15 * number, fresh(f"f{number}")) for number in range(100)]
    assert play(*events) == [(15 * 99 + 200, {f"f{number}" for number in range(100)})]


def test_new_file_waits_for_more_of_them() -> None:
    """A file that nothing can name yet has time, unless it was there for a moment only."""
    assert play((0, fresh("a"))) == [(100, {"a"})]
    assert play((0, fresh("a")), (10, touched("a"))) == [(30, {"a"})]


def test_what_changed_under_a_lock_waits_for_its_end() -> None:
    """While version control holds its lock the batch stays open; afterwards it might take the lock again soon."""
    held = Touched(paths=frozenset({"a"}), bulk=True, locked=True)
    left = Touched(paths=frozenset())
    assert play((0, held), (700, left)) == [(900, {"a"})]
    assert play((0, held), (100, left), (250, held), (300, left)) == [(500, {"a"})]


def test_lock_taken_after_a_save_delays_nothing() -> None:
    """A status query right after a save takes the same lock and changes no file."""
    assert play((0, touched("a")), (5, Touched(paths=frozenset(), locked=True))) == [(20, {"a"})]


def test_lock_alone_is_no_burst() -> None:
    """Without a changed file there is no batch."""
    assert step(None, Touched(paths=frozenset(), locked=True), 0, TIMES) == (None, frozenset())


def test_lock_that_is_never_left_is_given_up() -> None:
    """A lock that version control left behind holds a batch back for twenty ceilings."""
    held = Touched(paths=frozenset({"a"}), bulk=True, locked=True)
    assert play((0, held)) == [(20 * 500, {"a"})]


def test_changes_far_apart_are_two_batches() -> None:
    """A change after the quiet time belongs to the next batch."""
    assert play((0, touched("a")), (30, touched("b"))) == [(20, {"a"}), (50, {"b"})]


def test_unending_burst_is_cut_at_the_ceiling() -> None:
    """Changes that never pause are handed out when the ceiling is reached."""
    events = [(t, touched("log")) for t in range(0, 600, 10)]
    assert play(*events)[0] == (500, {"log"})


def test_truncated_file_waits_for_its_content() -> None:
    """A file that is empty for a moment holds the batch until it is written."""
    assert play((0, touched(hollow=("a",))), (90, touched("a"))) == [(110, {"a"})]


def test_file_that_stays_empty_is_an_edit() -> None:
    """After the hollow time, emptiness is what the developer wanted."""
    assert play((0, touched(hollow=("a",)))) == [(200, {"a"})]


def test_hollow_file_holds_other_files_back() -> None:
    """The batch is complete only when every file of it is."""
    assert play((0, touched("b", hollow=("a",))), (50, touched("a"))) == [(90, {"a", "b"})]


def test_later_events_of_a_hollow_file_do_not_prolong_its_wait() -> None:
    """The hollow time counts from when the file became hollow."""
    assert play((0, touched(hollow=("a",))), (150, touched(hollow=("a",)))) == [(200, {"a"})]


CHANGES = st.builds(
    lambda names, hollow, new, **flags: Touched(
        paths=frozenset(names), hollow=frozenset(names[:hollow]), fresh=frozenset(names[-new:] if new else ()), **flags
    ),
    names=st.lists(st.integers(0, 99).map(str), max_size=60),
    hollow=st.integers(0, 3),
    new=st.integers(0, 3),
    bulk=st.booleans(),
    locked=st.booleans(),
)


@given(st.lists(st.tuples(st.floats(0, 400), CHANGES), min_size=1, max_size=30))
def test_no_change_is_lost_and_none_waits_past_the_ceiling(changes: list[tuple[float, Touched]]) -> None:
    """Whatever happens, every change is in a batch at most the longest ceiling later."""
    times = accumulate(pause_ms for pause_ms, _ in changes)
    events = list(zip(times, (event for _, event in changes), strict=True))
    batches = play(*events)
    for at_ms, event in events:
        missing = set(event.paths).difference(
            *(paths for end_ms, paths in batches if at_ms <= end_ms <= at_ms + 20 * 500)
        )
        assert not missing


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 99)), min_size=100, max_size=400))
def test_constant_saving_starves_nobody(saves: list[tuple[float, int]]) -> None:
    """Without version control, what was saved settles within three seconds, however many files are saved on and on."""
    times = accumulate(pause_ms for pause_ms, _ in saves)
    events = [(at_ms, touched(str(name))) for at_ms, (_, name) in zip(times, saves, strict=True)]
    batches = play(*events)
    for at_ms, event in events:
        assert any(at_ms <= end_ms <= at_ms + 3000 and event.paths <= paths for end_ms, paths in batches)


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
