"""A daemon beside programs that others start: either order, several at once, late, and returning."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Program, Project, assert_continuous

MAIN = "src/main.rs"


@pytest.fixture
def serving(single: Project) -> Iterator[Session]:
    """`hotpatchd serve` on a built project."""
    with Session(single, "serve") as session:
        session.wait_event("daemon.ready", within_s=180)
        yield session


def start(session: Session) -> Program:
    """The project's program, attached."""
    return session.attach(session.project.target / "debug" / "single")


def test_program_started_after_the_daemon(serving: Session) -> None:
    """`serve`, then `exec`: edits apply as with `run`."""
    program = start(serving)
    program.wait_line("the first")
    serving.apply(MAIN, "    left + right", "    left * right")
    program.wait_value("private", "60")
    assert_continuous(program.app_lines())


def test_program_started_before_the_daemon(single: Project) -> None:
    """`exec`, then `serve`: the program runs by itself at first, and is found later."""
    with Session(single, "build") as session:
        assert session.daemon.wait_exit(within_s=180) == 0
        program = session.attach(single.target / "debug" / "single", wait=False)
        program.wait_next_lines(3)
        session.start_daemon("serve")
        session.wait_event("client.connected", within_s=60)
        session.wait_event("daemon.ready", within_s=60)
        session.apply(MAIN, "    left + right", "    left * right")
        program.wait_value("private", "60")
        assert_continuous(program.app_lines())


def test_two_programs_at_once(serving: Session) -> None:
    """One edit reaches both, each at its own addresses, compiled once."""
    first, second = start(serving), start(serving)
    saved = serving.edit(MAIN, "    left + right", "    left * right")
    assert serving.wait_verdict(saved).verdict == "applied"
    assert first.wait_value("private", "60")["instance"] != second.wait_value("private", "60")["instance"]
    events = serving.events()[saved.mark :]
    assert len({event["client"] for event in events if event["event"] == "patch.sent"}) == 2
    assert len([event for event in events if event["event"] == "rebuild.finished"]) == 1
    for program in (first, second):
        assert_continuous(program.app_lines())


def test_late_program_gets_what_it_missed(serving: Session) -> None:
    """A program started after edits catches up with all of them."""
    first = start(serving)
    serving.apply(MAIN, "    left + right", "    left * right")
    serving.apply(MAIN, 'String::from("first")', 'String::from("second")')
    first.wait_value("public", "second")
    late = start(serving)
    line = late.wait_value("public", "second")
    assert line["private"] == "60"
    assert_continuous(late.app_lines())


def test_one_program_ends_and_the_other_goes_on(serving: Session) -> None:
    """A program that is killed is reported lost, and edits still reach the other."""
    first, second = start(serving), start(serving)
    mark = len(serving.events())
    first.signal_group(signal.SIGKILL)
    serving.wait_event("client.lost", after=mark)
    serving.apply(MAIN, "    left + right", "    left * right")
    second.wait_value("private", "60")


def test_program_outlives_the_daemon(serving: Session) -> None:
    """When the daemon ends, programs run on with the patches they have."""
    program = start(serving)
    serving.apply(MAIN, "    left + right", "    left * right")
    program.wait_value("private", "60")
    serving.daemon.process.send_signal(signal.SIGTERM)
    assert serving.daemon.wait_exit() == 0
    assert program.wait_next_lines(3)["private"] == "60"
    assert_continuous(program.app_lines())


def test_term_ends_serve(serving: Session) -> None:
    """SIGTERM is a clean end: status 0, and the address file is gone."""
    assert (serving.project.state / "daemon.json").exists()
    serving.daemon.process.send_signal(signal.SIGTERM)
    assert serving.daemon.wait_exit() == 0
    assert not (serving.project.state / "daemon.json").exists()
