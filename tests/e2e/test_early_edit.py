"""Edits that come before the daemon has the objects to compare with."""

from pathlib import Path

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project, assert_continuous

MAIN = "src/main.rs"


@pytest.fixture
def gate(single: Project) -> tuple[Path, Path]:
    """A compiler that holds thin rebuilds back until a file is there: the compiler, and that file."""
    rustc, opened = single.root / "rustc.sh", single.root / "opened"
    rustc.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *codegen-units=256*) until [ -e {opened} ]; do sleep 0.02; done ;; esac\n'
        'exec rustc "$@"\n'
    )
    rustc.chmod(0o755)
    return rustc, opened


def test_edit_before_the_first_objects_are_ready_applies(single: Project, gate: tuple[Path, Path]) -> None:
    """The program's own source is compiled from a copy then, so that the edit can be told from it."""
    rustc, opened = gate
    with Session(single, env={"RUSTC": str(rustc)}) as session:
        session.daemon.wait_line("before the edit")
        saved = session.edit(MAIN, "    left + right", "    left * right")
        opened.touch()
        verdict = session.wait_verdict(saved)
        assert verdict.verdict == "applied", verdict
        assert verdict.patched == ("single::private_sum",)
        session.daemon.wait_value("private", "60")
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        assert session.daemon.wait_value("public", "second")["private"] == "60"
        assert_continuous(session.daemon.app_lines())
