"""A daemon that is killed leaves nothing behind, in whatever stage it was; the next one works as if nothing had been.

A compiler and a linker stand in the way of the real ones: they stop where a test wants the daemon to be killed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.daemon.holding import holding_build_lock, let_go
from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Project, wait_for

MAIN = "src/main.rs"
GATED = """#!/bin/sh
# Stops where the arguments contain the text of the gate, once there is one.
if read -r text < {gate}; then
    case "$*" in *"$text"*) echo $$ >> {reached}; sleep 600;; esac
fi 2> /dev/null
exec {tool} "$@"
"""


class Gates:
    """The compiler and the linker of a project, which stop at a word of their arguments.

    Args:
        project: gets the linker by its cargo configuration.
    """

    def __init__(self, project: Project) -> None:
        self._dir = project.root.with_name("gates")
        self._dir.mkdir()
        self.reached = self._dir / "reached"
        for tool in ("rustc", "cc"):
            script = self._dir / tool
            script.write_text(GATED.format(gate=self._dir / f"{tool}.gate", reached=self.reached, tool=tool))
            script.chmod(0o755)
        (project.root / ".cargo").mkdir()
        (project.root / ".cargo/config.toml").write_text(
            f'[build]\nrustc = "{self._dir}/rustc"\n[target.\'cfg(unix)\']\nlinker = "{self._dir}/cc"\n'
        )

    def close(self, tool: str, text: str) -> None:
        """From now on the tool stops where its arguments contain the text."""
        (self._dir / f"{tool}.gate").write_text(f"{text}\n")

    def open(self) -> None:
        """Nothing stops any more."""
        for gate in self._dir.glob("*.gate"):
            gate.unlink()

    def wait_reached(self, session: Session) -> None:
        """Waits until a tool stands at a gate."""
        wait_for("a gate", self.reached.exists, within_s=START_WITHIN_S, diagnose=session.diagnosis)


@pytest.fixture
def gates(single: Project) -> Gates:
    """The gates of the program `single`, all open."""
    return Gates(single)


def kill(session: Session) -> None:
    """Kills the daemon alone; all that it started must end by itself."""
    session.daemon.process.kill()
    session.daemon.process.wait()
    session.wait_no_process()
    groups = Path("/sys/fs/cgroup").rglob(f"hotpatchd-{session.daemon.process.pid}-*")
    assert not list(groups)


def start_again(session: Session) -> None:
    """The next daemon starts as if there had been none before, and applies an edit."""
    mark = len(session.events())
    session.start_daemon("run")
    session.wait_event("client.connected", after=mark, within_s=START_WITHIN_S)
    session.wait_event("daemon.ready", after=mark, within_s=START_WITHIN_S)
    session.daemon.wait_line("the first")
    name = f"after{mark}"
    session.apply(MAIN, '    String::from("plain")', f'    String::from("{name}")')
    session.daemon.wait_value("extra", name)


@pytest.mark.parametrize(
    ("tool", "text"),
    [("rustc", "--crate-name single"), ("cc", "single-"), ("rustc", "link-dead-code")],
    ids=["compiling", "linking", "baseline"],
)
def test_killed_before_it_was_ready(single: Project, gates: Gates, tool: str, text: str) -> None:
    """In the fat build, when rustc or the linker runs, and in the baseline, when the program runs already."""
    gates.close(tool, text)
    with Session(single) as session:
        gates.wait_reached(session)
        kill(session)
        gates.open()
        start_again(session)


@pytest.mark.parametrize(("tool", "text"), [("rustc", "link-dead-code"), ("cc", "patch")], ids=["compiling", "linking"])
def test_killed_while_it_built_a_patch(single: Project, gates: Gates, tool: str, text: str) -> None:
    """The edit that it was at is part of the next start; the program ended with the daemon."""
    with Session(single) as session:
        session.wait_started()
        gates.close(tool, text)
        session.edit(MAIN, 'String::from("first")', 'String::from("second")')
        gates.wait_reached(session)
        kill(session)
        gates.open()
        start_again(session)
        session.daemon.wait_value("public", "second")


def test_killed_while_idle(single: Project) -> None:
    """The program is told to end."""
    with Session(single) as session:
        session.wait_started()
        kill(session)
        start_again(session)


def test_killed_while_it_waited_for_another_build(single: Project) -> None:
    """Nobody waits in its place, and the other build still has its lock."""
    with holding_build_lock(single.state, single.root) as holder, Session(single) as session:
        session.daemon.wait_text(f"process {holder.pid} ", within_s=START_WITHIN_S)
        kill(session)
        assert holder.poll() is None
        let_go(holder)
        start_again(session)


def test_killed_again_and_again(single: Project) -> None:
    """At moments that are spread over a start, each start being that after a kill."""
    with Session(single) as session:
        for step in range(1, 9):
            wait_for("so much of its life", lambda: lived_ms(session) >= 300 * step, within_s=20)  # noqa: B023
            kill(session)
            session.start_daemon("run")
        kill(session)
        start_again(session)


def lived_ms(session: Session) -> float:
    """How long the daemon has been running."""
    fields = Path(f"/proc/{session.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    up = float(Path("/proc/uptime").read_text().split()[0])
    return (up - int(fields[19]) / ticks) * 1000
