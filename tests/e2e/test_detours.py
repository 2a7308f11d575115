"""Functions that have no room for a jump to their new code where a thread is."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project

WORKERS = """
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
static STEPS: AtomicU64 = AtomicU64::new(0);
static NEW: AtomicU64 = AtomicU64::new(0);
fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(5));
}
fn main() {
    for tick in 0_u64.. {
        start();
        std::thread::sleep(Duration::from_millis(100));
        println!("tick={tick} steps={} new={}", STEPS.load(Ordering::Relaxed), NEW.load(Ordering::Relaxed));
    }
}
"""
NEW_LOOP = """
        NEW.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(3600));
    """


def wait_above(session: Session, key: str, limit: int) -> None:
    """Wait until the program prints more than `limit`."""
    session.daemon.wait_line(f"{key} above {limit}", lambda line: int(line[key]) > limit)


FUNCTION = """
fn before() {}
fn worker() {
    loop {
        step();
    }
}
fn after() {}
fn start() {
    before();
    after();
    std::thread::spawn(worker);
}
"""
"""A function of one byte is followed by fifteen of padding, so some is near wherever the linker puts the loop."""
CLOSURE = """
fn start() {
    let (before, after);
    before = || {};
    std::thread::spawn(|| loop {
        step();
    });
    after = || {};
    before();
    after();
}
"""


@pytest.mark.parametrize(
    ("source", "symbol"),
    [
        pytest.param(FUNCTION, "single::worker", id="function"),
        pytest.param(CLOSURE, "single::start::{{closure}}", id="closure"),
    ],
)
def test_a_loop_that_begins_in_the_first_bytes_is_edited_while_threads_are_in_it(
    single: Project, source: str, symbol: str
) -> None:
    """Threads in the loop go on in its old code and call what is new, others run the new one until it is taken back."""
    (single.root / "src/main.rs").write_text(WORKERS + source)
    with Session(single).wait_started() as session:
        verdict = session.apply("src/main.rs", "\n        step();\n    ", NEW_LOOP)
        assert (verdict.patched, verdict.noted("on_stack")) == ((symbol,), [symbol])
        wait_above(session, "new", 3)
        session.apply("src/main.rs", "STEPS.fetch_add(1, ", "STEPS.fetch_add(1_000_000, ")
        wait_above(session, "steps", 3_000_000)
        assert session.cli("undo", "2").returncode == 0
        undone = int(session.daemon.wait_line("after the undo")["tick"])
        settled = session.daemon.wait_line("all threads have begun", lambda line: int(line["tick"]) > undone + 5)
        later = session.daemon.wait_line("more threads", lambda line: int(line["tick"]) > undone + 10)
        assert later["new"] == settled["new"]
