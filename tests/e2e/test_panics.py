"""Panics in patched code unwind, are caught, run drops, and say where they came from."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project, assert_continuous

PANICS = "src/panics.rs"


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
