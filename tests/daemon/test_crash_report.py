"""Which ends of a program the note of its client is believed to tell of."""

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.client import Patch, Segment
from hotpatchd.daemon.crash_report import CrashReports
from hotpatchd.objfile.host_index import read_host
from tests.core.fakes import session

PATCH = Patch(
    patch="p1",
    edit=1,
    build_id="b1",
    size=1,
    segments=(Segment(addr=0x10000, mem_size=16, offset=0, file_size=1, prot="rx"),),
    imports=(),
    eh_frame=None,
    detours=(),
    thread_locals=(),
    elf=None,
)
PID = 1001


@pytest.fixture
def crashes(tmp_path: Path) -> CrashReports:
    """The reports of a workspace with one program, which has a patch."""
    program = tmp_path / "program"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program], input=b"int main(void) { return 0; }", check=True)
    (tmp_path / "patches" / "instance1").mkdir(parents=True)
    found = CrashReports(tmp_path / "patches", tmp_path)
    hello = replace(session(1).hello, pid=PID)
    found.sent(hello, read_host(program), PATCH)
    return found


def leave_note(root: Path, number: int, last: int) -> None:
    """The client's note of a fault, of which no frame is known."""
    header = struct.pack("=8sIIiiiIQQ16s", b"hpcrash1", PID, PID, number, 1, last, 0, 16, 4096, b"program")
    (root / "patches" / "instance1" / "crash").write_bytes(header)


@pytest.mark.parametrize(
    ("noted", "last", "status", "told"),
    [
        (11, 11, -11, "SIGSEGV"),
        (11, 6, -6, "SIGSEGV"),
        (11, 11, None, "SIGSEGV"),
        (11, 11, 9, "SIGSEGV"),
        (11, 11, 0, None),
        (11, 11, -15, None),
        (-1, -1, 101, "panic"),
        (-1, -1, 1, None),
        (-1, -1, None, None),
        (0, 0, -11, None),
    ],
    ids=[
        "by the fault",
        "by abort in the handler",
        "nobody knows how",
        "by the handler, with a status",
        "long after the fault",
        "by another signal",
        "by the panic",
        "long after the panic",
        "perhaps by a panic",
        "without a fault",
    ],
)
def test_a_note_is_believed_if_it_explains_the_end(
    crashes: CrashReports, tmp_path: Path, noted: int, last: int, status: int | None, told: str | None
) -> None:
    """A program may go on after a fault or a panic that it deals with."""
    leave_note(tmp_path, noted, last)
    crash = crashes.take(PID, status)
    assert (crash.signal if crash else None) == told


def test_a_crash_is_told_once(crashes: CrashReports, tmp_path: Path) -> None:
    """The next process of that number is another one."""
    leave_note(tmp_path, 11, 11)
    assert crashes.take(PID, -11) is not None
    assert crashes.take(PID, -11) is None
