"""A fault in patched code is told with its edit, function and line, and the program ends as it would have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Project

MAIN = "src/main.rs"
PLAIN = 'String::from("plain")'
HARMLESS = ('String::from("first")', 'String::from("second")')


def crash(session: Session, code: str) -> dict[str, Any]:
    """Has the code run in place of `PLAIN`; the event that tells of the program's end."""
    session.edit(MAIN, PLAIN, code)
    return session.wait_event("program.ended")


def patched_frames(ended: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    """Function, file, line and edit of the frames in patched code, innermost first."""
    keys = ("function", "file", "line", "edit")
    return [tuple(frame[key] for key in keys) for frame in ended["crash"]["frames"] if frame["edit"]]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("unsafe { *(16 as *mut u64) = TICKS.load(Ordering::Relaxed) }; String::new()", "SIGSEGV"),
        ("std::process::abort()", "SIGABRT"),
        ('unsafe { std::arch::asm!("ud2") }; String::new()', "SIGILL"),
    ],
)
def test_a_fault_is_told_with_function_line_and_edit(single: Project, code: str, name: str) -> None:
    """The backtrace leads from there through the program's own code; the daemon ends as the program did."""
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, *HARMLESS)
        ended = crash(session, code)
        line = single.line_of(MAIN, code)
        assert patched_frames(ended)[0] == ("single::extra", MAIN, line, 2)
        assert (ended["signal"], ended["edit"], ended["functions"]) == (name, 2, ["single::extra"])
        assert (ended["crash"]["signal"], ended["crash"]["thread"]) == (name, "main")
        assert not ended["crash"]["stack_overflow"]
        functions = [frame["function"] for frame in ended["crash"]["frames"]]
        assert functions.index("single::line") < functions.index("single::main")
        assert session.daemon.wait_exit() == 128 - ended["status"]


def test_the_edit_that_brought_the_code_is_told(single: Project) -> None:
    """It need not be the last one: the code of an earlier edit fails once the program gets there."""
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, PLAIN, "if LIMIT.load(Ordering::Relaxed) > 100 { std::process::abort() }; String::new()")
        session.edit(MAIN, *HARMLESS)
        session.wait_verdict_of(2)
        session.edit(MAIN, 'format!("limit', 'LIMIT.store(200, Ordering::Relaxed);\n    format!("limit')
        ended = session.wait_event("program.ended")
        assert (ended["edit"], ended["functions"]) == (1, ["single::extra"])


def test_a_panic_of_main_is_told_with_the_edit_that_brought_it(single: Project) -> None:
    """Not with the last one, nor with one whose panic was caught before; the program ends with its own status."""
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, PLAIN, 'if LIMIT.load(Ordering::Relaxed) > 100 { panic!("too much") }; String::from("x")')
        session.apply(
            MAIN, "    left + right", '    std::panic::catch_unwind(|| panic!("caught")).map_or(7, |()| left)'
        )
        line = single.line_of(MAIN, "too much")
        session.edit(MAIN, 'format!("limit', 'LIMIT.store(200, Ordering::Relaxed);\n    format!("limit')
        ended = session.wait_event("program.ended")
        assert (ended["status"], ended["signal"], ended["edit"]) == (101, None, 1)
        assert (ended["functions"], ended["crash"]["signal"]) == (["single::extra"], "panic")
        assert patched_frames(ended)[-1] == ("single::extra", MAIN, line, 1)
        assert session.daemon.wait_exit() == 101


def test_an_end_with_the_status_of_a_panic_is_none(single: Project) -> None:
    """The panic was another thread's, and was dealt with."""
    with Session(single) as session:
        session.wait_started()
        thread = (
            'let thread = std::thread::spawn(|| panic!("elsewhere")); let _ = thread.join(); std::process::exit(101)'
        )
        session.edit(MAIN, PLAIN, thread)
        ended = session.wait_event("program.ended")
        assert (ended["status"], ended["crash"]) == (101, None)


def test_a_stack_overflow_is_told(single: Project) -> None:
    """Rust's own message is printed first, by its handler, which ends the program by `SIGABRT`."""
    with Session(single) as session:
        session.wait_started()
        code = "deeper(TICKS.load(Ordering::Relaxed)).to_string()"
        text = single.replaced(MAIN, PLAIN, code)
        text += "\nfn deeper(n: u64) -> u64 {\n    deeper(n + 1) + 1\n}\n"
        session.save(MAIN, text)
        ended = session.wait_event("program.ended")
        session.daemon.wait_text("has overflowed its stack")
        assert (ended["signal"], ended["crash"]["signal"]) == ("SIGABRT", "SIGSEGV")
        assert ended["crash"]["stack_overflow"]
        assert patched_frames(ended)[1] == ("single::deeper", MAIN, single.line_of(MAIN, "deeper(n + 1)"), 1)


def test_a_crash_of_a_program_that_others_started_is_told(single: Project) -> None:
    """Beside `serve`, the daemon goes on with the other programs."""
    with Session(single, "serve") as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        program = session.attach(single.target / "debug" / "single")
        session.edit(MAIN, PLAIN, "std::process::abort()")
        ended = session.wait_event("program.ended")
        assert (ended["signal"], ended["edit"], ended["functions"]) == ("SIGABRT", 1, ["single::extra"])
        program.wait_exit()
        session.edit(MAIN, "std::process::abort()", PLAIN)
        session.wait_verdict_of(2)
        session.attach(single.target / "debug" / "single").wait_value("extra", "plain")
