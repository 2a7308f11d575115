"""What clients tell of first executions becomes events, and rows of the log."""

from hotpatchd.core.client import Applied, Ran
from hotpatchd.core.events import EditsUndone
from hotpatchd.daemon.proof import Proofs

DRAW, DRAW_AGAIN, PEN = 0x1000, 0x2000, 0x3000
NAMES = {DRAW: "app::draw", DRAW_AGAIN: "app::draw", PEN: "app::pen"}
SAVED = 1000.0


def ran(patch: str, *addrs: int, after_us: int = 500) -> Ran:
    """What a client tells."""
    return Ran(patch=patch, from_addrs=addrs, after_us=after_us, within_us=100)


def answer(*, proof: bool = True) -> Applied:
    """What a client answers to a patch."""
    return Applied(next=0, threads=1, timings_us={}, on_stack=(), proof=proof)


def apply(proofs: Proofs, patch: str, edit: int, *, instance: str = "a", saved: float | None = SAVED) -> None:
    """A patch that its program has 80 ms after the save."""
    proofs.sent(instance, patch, edit, NAMES, saved)
    proofs.applied(instance, patch, answer(), SAVED + 0.08)


def test_time_runs_from_the_save() -> None:
    """It is the time until the program had the patch, and what the client measured from there."""
    proofs = Proofs()
    apply(proofs, "p", 7)
    event = proofs.ran(3, "a", ran("p", PEN, after_us=1500))
    assert event is not None
    assert (event.edit, event.client, event.functions, event.waiting) == (7, 3, ("app::pen",), ("app::draw",))
    assert event.since_save_ms is not None
    assert abs(event.since_save_ms - 81.5) < 1e-6
    assert event.within_ms == 0.1
    assert proofs.row(7) == {"ran": {"app::pen": event.since_save_ms}, "waiting": ["app::draw"]}


def test_function_counts_once() -> None:
    """A function that the program has twice has run when one of them has; what is told again is no news."""
    proofs = Proofs()
    apply(proofs, "p", 7)
    event = proofs.ran(1, "a", ran("p", DRAW_AGAIN))
    assert event is not None
    assert (event.functions, event.waiting) == (("app::draw",), ("app::pen",))
    assert proofs.ran(1, "a", ran("p", DRAW)) is None
    assert proofs.ran(1, "a", ran("p", DRAW_AGAIN)) is None


def test_client_that_cannot_tell_is_not_waited_for() -> None:
    """Nothing is known of an edit whose programs tell of no first executions, nor of one that was never sent."""
    proofs = Proofs()
    proofs.sent("a", "p", 7, NAMES, SAVED)
    proofs.applied("a", "p", answer(proof=False), SAVED)
    assert proofs.ran(1, "a", ran("p", DRAW)) is None
    assert proofs.row(7) == proofs.row(8) == {"ran": None, "waiting": None}


def test_replaced_function_is_not_waited_for() -> None:
    """What a later patch of the same program replaced is not waited for, until that one is taken back."""
    proofs = Proofs()
    apply(proofs, "p", 7)
    proofs.sent("a", "q", 8, {PEN: "app::pen"}, SAVED)
    proofs.applied("a", "q", answer(), SAVED)
    assert proofs.row(7)["waiting"] == ["app::draw"]
    proofs.take(EditsUndone(edits=(8,), edit=7))
    assert proofs.row(7)["waiting"] == ["app::draw", "app::pen"]
    assert proofs.row(8) == {"ran": None, "waiting": None}


def test_earliest_program_counts() -> None:
    """Of several programs the first one's time is shown; one that came late has none."""
    proofs = Proofs()
    for instance, saved in (("a", SAVED), ("b", SAVED), ("c", None)):
        apply(proofs, "p", 7, instance=instance, saved=saved)
    late = proofs.ran(3, "c", ran("p", DRAW, PEN))
    assert late is not None
    assert late.since_save_ms is None
    assert proofs.row(7) == {"ran": {"app::draw": None, "app::pen": None}, "waiting": []}
    proofs.ran(1, "a", ran("p", DRAW, after_us=9000))
    first = proofs.ran(2, "b", ran("p", DRAW, after_us=2000))
    assert first is not None
    assert proofs.row(7)["ran"] == {"app::draw": first.since_save_ms, "app::pen": None}
