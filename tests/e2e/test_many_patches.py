"""Patch upon patch, and all of them taken back, in one process whose threads never rest."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from hotpatchd.daemon.control import call
from tests.e2e.harness import Session, Verdict
from tests.e2e.program import Project, assert_continuous
from tests.e2e.test_busy import yield_processors

PATCHES = int(os.environ.get("HOTPATCHD_TEST_PATCHES", "90"))
WARM_UP = PATCHES // 3
"""After that many, what grows only once, such as heaps and caches, has grown."""
PROGRAM_EXTRA = 16 * 1024
"""What each patch may take beyond its size in the program: whole pages of image, unwind tables, names, list entries."""
DAEMON_EXTRA = 24 * 1024
"""The same in the daemon, which knows what each edit replaced, and has the objects on disk."""
ARENAS = 3 << 20
"""What the daemon takes once for a while whatever the count: Python has memory from the system in arenas of 1 MiB."""
DISK_EXTRA = 96 * 1024
"""The same on disk: the edited object and the linked patch with its debug information."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What the program, the daemon and the daemon's files take, in bytes."""

    program: int
    daemon: int
    disk: int

    @classmethod
    def now(cls, program: int, daemon: int, state_dir: Path) -> Self:
        """Two processes by their ids, and a directory."""
        files = {entry.stat().st_ino: entry.stat().st_blocks * 512 for entry in state_dir.rglob("*") if entry.is_file()}
        return cls(program=private_bytes(program), daemon=private_bytes(daemon), disk=sum(files.values()))


def private_bytes(pid: int) -> int:
    """The memory that a process has for itself and has written to; what it reads of files comes and goes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_Dirty"))


def sent_bytes(session: Session) -> list[int]:
    """The sizes of all patches so far."""
    return [event["bytes"] for event in session.events() if event["event"] == "patch.sent"]


USED = "u64::from(unsafe { *std::ptr::addr_of!(ROOM).cast::<u8>().add(question as usize & 1) })"


def room(kibibytes: int) -> str:
    """A static that takes address space, and no memory; code has it with `USED`."""
    return f"static mut ROOM: [u8; {kibibytes} << 10] = [0; {kibibytes} << 10];\n"


@pytest.mark.timeout(3600)
def test_memory_grows_by_what_patches_bring(tmp_path: Path) -> None:
    """Each patch costs its own size and a little; taking one back after the other costs nothing, and harms nothing."""
    with Session(Project("busy", tmp_path / "busy")) as session:
        session.wait_started()
        program = session.wait_event("client.connected")["pid"]
        daemon = session.wait_event("daemon.ready")["pid"]
        state_dir = session.project.root / "target" / "hotpatchd"
        yield_processors(program)

        def edit_up_to(last: int, first: int) -> Use:
            for number in range(first, last + 1):
                session.apply("src/main.rs", f"let version = {number - 1};", f"let version = {number};")
            session.daemon.wait_value("version", str(last))
            return Use.now(program, daemon, state_dir)

        warm = edit_up_to(WARM_UP, first=1)
        full = edit_up_to(PATCHES, first=WARM_UP + 1)
        for number in reversed(range(PATCHES)):
            asyncio.run(call(state_dir, "undo", count=1))
            if number % 50 == 0:
                session.daemon.wait_value("version", str(number))
        back = Use.now(program, daemon, state_dir)

        count = PATCHES - WARM_UP
        sent = sum(sent_bytes(session)[WARM_UP:])
        assert full.program - warm.program <= sent + count * PROGRAM_EXTRA
        assert full.daemon - warm.daemon <= sent + count * DAEMON_EXTRA + ARENAS
        assert full.disk - warm.disk <= sent + count * DISK_EXTRA
        assert back.program - full.program <= count * 4096
        assert "WRONG" not in session.daemon.output
        assert_continuous(session.daemon.app_lines())


def test_address_space_is_used_up_to_its_end(tmp_path: Path) -> None:
    """Edits apply until no patch fits; then each asks for a restart, and what was applied can be taken back."""
    with Session(Project("busy", tmp_path / "busy")) as session:
        session.wait_started()
        function = "fn answer(question: u64) -> Answer {"
        session.save(
            "src/main.rs", session.project.replaced("src/main.rs", function, room((127 << 10) + 640) + function)
        )

        def edit(version: int) -> Verdict:
            line = f"let version = {version} + {USED};"
            text = (session.project.root / "src/main.rs").read_text()
            edited = re.sub("let version = .*;", line, text)
            return session.wait_verdict(session.save("src/main.rs", edited))

        applied = 0
        while (verdict := edit(applied + 1)).verdict == "applied":
            applied += 1
        assert applied > 1
        assert (verdict.verdict, [refusal["reason"] for refusal in verdict.refusals]) == ("restart", ["region_full"])
        assert edit(applied + 2).verdict == "restart"
        session.daemon.wait_value("version", str(applied))
        assert session.cli("undo").returncode == 0
        session.daemon.wait_value("version", str(applied - 1))
        assert session.cli("restart", within_s=180).returncode == 0
        session.daemon.wait_value("version", str(applied + 2))
        assert edit(applied + 3).verdict == "applied"
        session.daemon.wait_value("version", str(applied + 3))
        assert "WRONG" not in session.daemon.output


def test_used_up_address_space_takes_a_restart(tmp_path: Path) -> None:
    """A patch that does not fit into what is kept for patches asks for a restart; smaller ones still apply."""
    with Session(Project("busy", tmp_path / "busy")) as session:
        session.wait_started()
        function = "fn answer(question: u64) -> Answer {"
        large = session.project.replaced("src/main.rs", function, room(136 << 10) + function).replace(
            "let version = 0;", f"let version = 7 + {USED};"
        )
        original = (session.project.root / "src/main.rs").read_text()
        verdict = session.wait_verdict(session.save("src/main.rs", large))
        assert (verdict.verdict, [refusal["reason"] for refusal in verdict.refusals]) == ("restart", ["region_full"])
        smaller = original.replace("let version = 0;", "let version = 8;")
        assert session.wait_verdict(session.save("src/main.rs", smaller)).verdict == "applied"
        session.daemon.wait_value("version", "8")
        assert session.wait_verdict(session.save("src/main.rs", large)).verdict == "restart"
        assert session.cli("restart", within_s=180).returncode == 0
        session.daemon.wait_value("version", "7")
