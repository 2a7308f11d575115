"""A hundred edits of a function that eight threads call without pause."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project, assert_continuous

EDITS = 100


def yield_processors(pid: int) -> None:
    """Lets compilers go before the program's threads, which would otherwise take what processors there are."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 15)


@pytest.mark.timeout(600)
def test_a_hundred_edits_under_eight_busy_threads(tmp_path: Path) -> None:
    """The program lives, every answer is some version's, and every thread goes on asking."""
    with Session(Project("busy", tmp_path / "busy")) as session:
        session.wait_started()
        yield_processors(session.wait_event("client.connected")["pid"])
        for number in range(1, EDITS + 1):
            session.apply("src/main.rs", f"let version = {number - 1};", f"let version = {number};")
            session.daemon.wait_value("version", str(number))
        before = session.daemon.wait_line("after the last edit")
        session.daemon.wait_line(
            "every thread is still asking", lambda line: int(line["slowest"]) > int(before["slowest"])
        )
        assert "WRONG" not in session.daemon.output
        assert_continuous(session.daemon.app_lines())
