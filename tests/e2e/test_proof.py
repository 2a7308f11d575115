"""Whether the new code of an edit has run, and when."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project

MAIN = "src/main.rs"
TERMINAL = Path(__file__).with_name("terminal.py")
SUM = "    left + right"
PRODUCT = "    left * right"


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The program `single`, which calls all its functions fifty times a second, but `main`."""
    with Session(Project("single", tmp_path_factory.mktemp("proof") / "single"), options=["--proof"]) as session:
        yield session.wait_started()


def row_of(session: Session, edit: int) -> dict[str, Any]:
    """An edit as `hotpatchd log` has it."""
    (row,) = [row for row in session.cli_json("log") if row["edit"] == edit]
    found: dict[str, Any] = row
    return found


def test_first_execution_has_its_time_since_the_save(proven: Session) -> None:
    """The event names the function, and a time between the patch and the event; the log repeats it."""
    verdict = proven.apply(MAIN, SUM, PRODUCT)
    ran = proven.wait_event("patch.ran", lambda event: event["edit"] == verdict.edit)
    assert (ran["functions"], ran["waiting"]) == (list(verdict.patched), [])
    since_arrival_ms = (ran["ts"] - os.stat(proven.project.root / MAIN).st_mtime) * 1000
    assert verdict.timings_ms["total"] - 5 <= ran["since_save_ms"] <= since_arrival_ms + 5
    row = row_of(proven, verdict.edit)
    assert row["ran"] == {verdict.patched[0]: ran["since_save_ms"]}
    assert f"ran {ran['since_save_ms']:.0f} ms after the save" in proven.cli("log").stdout
    proven.apply(MAIN, PRODUCT, SUM)


def test_code_that_is_never_called_has_not_run(proven: Session) -> None:
    """Of a `main` that does not return nothing is told, and log and status say so, whatever else runs."""
    verdict = proven.apply(MAIN, "from_secs(600)", "from_secs(601)")
    (name,) = verdict.patched
    assert "; not run yet" in proven.cli("status").stdout
    later = proven.apply(MAIN, SUM, PRODUCT)
    proven.wait_event("patch.ran", lambda event: event["edit"] == later.edit)
    assert [event for event in proven.events() if event["event"] == "patch.ran" and event["edit"] == verdict.edit] == []
    row = row_of(proven, verdict.edit)
    assert (row["ran"], row["waiting"]) == ({}, [name])
    proven.apply(MAIN, PRODUCT, SUM)


def test_nothing_is_awaited_of_an_edit_that_was_taken_back(proven: Session) -> None:
    """After an undo the log says nothing of first executions, and the next edit is told of as ever."""
    undone = proven.apply(MAIN, "side * self.side", "side * self.side * 2")
    proven.wait_event("patch.ran", lambda event: event["edit"] == undone.edit)
    assert proven.cli("undo").returncode == 0
    row = row_of(proven, undone.edit)
    assert (row["undone"], row["ran"], row["waiting"]) == (True, None, None)
    again = proven.apply(MAIN, "side * self.side * 2", "side * self.side * 3")
    proven.wait_event("patch.ran", lambda event: event["edit"] == again.edit)


def test_each_program_proves_its_own_patch(single: Project) -> None:
    """A program that came after the edit runs its code as well; how long after the save is not asked of that one."""
    with Session(single, "serve", options=["--proof"]) as serving:
        serving.wait_event("daemon.ready", within_s=180)
        program = single.target / "debug" / "single"
        serving.attach(program)
        verdict = serving.apply(MAIN, SUM, PRODUCT)
        first = serving.wait_event("patch.ran")
        serving.attach(program)
        second = serving.wait_event("patch.ran", lambda event: event["client"] != first["client"])
        assert (second["edit"], second["functions"], second["since_save_ms"]) == (
            verdict.edit,
            list(verdict.patched),
            None,
        )
        assert row_of(serving, verdict.edit)["ran"] == {verdict.patched[0]: first["since_save_ms"]}


def test_terminal_says_when_it_ran(single: Project, tmp_path: Path) -> None:
    """On a terminal first executions are told without asking for it."""
    os.mkfifo(keyboard := tmp_path / "keyboard")
    with Session(single, prefix=[sys.executable, str(TERMINAL), str(keyboard)]) as session:
        session.wait_started()
        session.apply(MAIN, SUM, PRODUCT)
        line = session.daemon.wait_text("ms after the save")
        assert "private_sum" in line
        keyboard.write_text("\x03")
        assert session.daemon.wait_exit() == 0
