"""Panics in patched code unwind, are caught, run drops, and say where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import FindSession
from tests.e2e.harness import Session
from tests.e2e.program import Project, assert_continuous, wait_for

MAIN = "src/main.rs"
PANICS = "src/panics.rs"
PLAIN = 'String::from("plain")'
ONCE = "static ONCE: std::sync::Once = std::sync::Once::new();"


def place(told: dict[str, Any]) -> tuple[str, str, int, int]:
    """Function, file, line and edit of a `program.panicked` event."""
    return told["function"], told["file"], told["line"], told["edit"]


def test_panic_in_patched_code_is_caught_and_drops_run(stateful: Session) -> None:
    """Each round of the patched function is caught once, and drops its guard once."""
    stateful.apply(PANICS, "1000 + number", "2000 + number")
    first = stateful.daemon.wait_value("panic_message", "2007")
    last = stateful.daemon.wait_next_lines(5)
    rounds = int(last["tick"]) - int(first["tick"])
    assert int(last["caught"]) == int(first["caught"]) + rounds
    assert int(last["drops"]) == int(first["drops"]) + rounds


def test_panic_in_patched_code_tells_its_line(stateful: Session) -> None:
    """The location of a panic is that of the newest source."""
    stateful.apply(PANICS, "    if number > 0 {\n", "    // One line more.\n    if number > 1 {\n")
    line = stateful.project.line_of(PANICS, "panic!(")
    stateful.daemon.wait_value("panic_line", str(line))


def test_catch_unwind_in_patched_code(stateful: Session) -> None:
    """An edit that adds a `catch_unwind` of its own catches what a new function throws."""
    start = len(stateful.daemon.app_lines())
    stateful.apply(
        "src/main.rs",
        '    String::from("plain")\n}\n',
        "    let caught = std::panic::catch_unwind(|| thrower(3)).unwrap_err();\n"
        '    format!("caught:{}", caught.downcast_ref::<&str>().unwrap())\n}\n\n'
        'fn thrower(number: u64) -> u64 {\n    if number > 2 {\n        panic!("much");\n    }\n    number\n}\n',
    )
    stateful.daemon.wait_value("extra", "caught:much")
    assert_continuous(stateful.daemon.app_lines()[start:])


def test_backtrace_names_patched_function_and_place(stateful: Session) -> None:
    """A backtrace, in a program that took others before, names a patched function with file and line."""
    before = stateful.daemon.wait_line("before the edit")
    assert "take_trace@traces.rs:" in before["frame"]
    stateful.apply(
        "src/traces.rs",
        "    Backtrace::force_capture().to_string()",
        '    let trace = Backtrace::force_capture();\n\n    format!("{trace}")',
    )
    line = stateful.project.line_of("src/traces.rs", "let trace = Backtrace")
    stateful.daemon.wait_line("the new place", lambda shown: shown["frame"].endswith(f"take_trace@traces.rs:{line}"))


@pytest.mark.parametrize("variable", ["1", "full"])
def test_uncaught_panic_prints_patched_frames(single: Project, variable: str) -> None:
    """A panic that ends the program prints the patched function and its place, and the daemon ends too."""
    with Session(single, env={"RUST_BACKTRACE": variable}) as session:
        session.wait_started()
        saved = session.edit("src/main.rs", "    left + right", '    panic!("the end of {left} and {right}")')
        session.wait_verdict(saved)
        session.daemon.wait_text("the end of 20 and 3")
        line = single.line_of("src/main.rs", "the end of")
        session.daemon.wait_text(f"src/main.rs:{line}")
        session.daemon.wait_text("single::private_sum")
        session.daemon.wait_exit()


def test_a_panic_that_ends_a_thread_is_told(single: Project) -> None:
    """With function, line, edit and the thread's name; the program goes on, and so does the daemon."""
    thread = 'std::thread::Builder::new().name("worker".into()).spawn(|| panic!("in a thread")).unwrap().join()'
    with Session(single, options=["--auto-restart"]) as session:
        session.wait_started()
        session.apply(MAIN, "left + right", "right + left")
        session.apply(MAIN, PLAIN, f"{ONCE} ONCE.call_once(|| assert!({thread}.is_err())); {PLAIN}")
        told = session.wait_event("program.panicked")
        line = single.line_of(MAIN, "in a thread")
        assert place(told) == ("single::extra::{{closure}}::{{closure}}", MAIN, line, 2)
        assert (told["thread"], told["count"]) == ("worker", 1)
        session.apply(MAIN, 'from("first")', 'from("second")')
        session.daemon.wait_value("public", "second")
        assert [row["panics"] for row in session.cli_json("log")] == [0, 1, 0]
        assert_continuous(session.daemon.app_lines())


def test_panics_in_a_storm_are_all_counted_and_told_together(single: Project) -> None:
    """The program's own hook hears of each; nobody is flooded."""
    storm = (
        "std::panic::set_hook(Box::new(|_| { TICKS.fetch_add(0, Ordering::Relaxed); }));"
        " for n in 0..20_000u64 { let _ = std::panic::catch_unwind(|| thrower(n)); }"
    )
    with Session(single) as session:
        session.wait_started()
        text = single.replaced(MAIN, PLAIN, f'{ONCE} ONCE.call_once(|| {{ {storm} }}); String::from("calm")')
        text += '\nfn thrower(n: u64) -> u64 {\n    if n < 20_000 { panic!("{n}") }\n    n\n}\n'
        assert session.wait_verdict(session.save(MAIN, text)).verdict == "applied"
        session.daemon.wait_value("extra", "calm")

        def told() -> list[dict[str, Any]]:
            return [event for event in session.events() if event["event"] == "program.panicked"]

        wait_for(
            "all panics to be told",
            lambda: sum(event["count"] for event in told()) == 20_000,
            within_s=60,
            diagnose=session.diagnosis,
        )
        assert len(told()) < 10
        assert {place(event) for event in told()} == {
            ("single::thrower", MAIN, single.line_of(MAIN, 'panic!("{n}")'), 1)
        }
        assert {event["thread"] for event in told()} == {"main"}


def test_a_panic_that_old_code_catches_is_not_that_of_its_patched_caller(tmp_path: Path) -> None:
    """The program panics in each round, below the patched function; what is told at last is another edit's."""
    with Session(Project("stateful", tmp_path / "stateful")) as session:
        session.wait_started()
        session.apply(MAIN, "panics::round();", "panics::round();\n    std::hint::black_box(1);")
        before = session.daemon.wait_next_lines(1)
        after = session.daemon.wait_next_lines(30)
        assert int(after["caught"]) > int(before["caught"]) + 20
        session.apply(PANICS, "1000 + number", "2000 + number")
        told = session.wait_event("program.panicked")
        assert (told["function"], told["edit"]) == ("stateful::panics::risky", 2)


def test_a_panic_of_a_task_is_told(shared: FindSession) -> None:
    """The runtime catches it, and goes on with the other tasks."""
    with shared("popular").borrow() as session:
        task = 'tokio::spawn(async { panic!("in a task") });'
        session.apply(MAIN, PLAIN, f"{ONCE} ONCE.call_once(|| {{ {task} }}); {PLAIN}")
        told = session.wait_event("program.panicked")
        function, *where = place(told)
        assert function.startswith("popular::extra::{{closure}}")
        assert where[:2] == [MAIN, session.project.line_of(MAIN, "in a task")]
        assert (told["thread"], told["count"]) == ("tokio-rt-worker", 1)
