"""Which ends of a program the note of its client is believed to tell of, and which panics are told when."""

import asyncio
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.client import Patch, Segment
from hotpatchd.core.crash import Panic, PanicSite
from hotpatchd.daemon import crash_report
from hotpatchd.daemon.crash_report import CrashReports
from hotpatchd.objfile.host_index import read_host
from tests.core.fakes import session
from tests.core.panic_notes import notes

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


def leave_note(root: Path, number: int, last: int, *panics: PanicSite) -> None:
    """The client's note of a fault, of which no frame is known, or of the panic that is counted at site 1."""
    header = struct.pack("=8sIIiiiIQQ16s", b"hpcrash1", PID, PID, number, 1, last, 0, 16, 4096, b"program")
    (root / "patches" / "instance1" / "crash").write_bytes(notes(*panics, pid=PID, header=header))


def site(count: int, *, number: int = 1, frame: int = 0x10004) -> PanicSite:
    """Panics in the patch."""
    return PanicSite(number=number, count=count, thread="worker", frames=(frame,))


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
    crash = crashes.take(PID, status).crash
    assert (crash.signal if crash else None) == told


def test_a_crash_is_told_once(crashes: CrashReports, tmp_path: Path) -> None:
    """The next process of that number is another one."""
    leave_note(tmp_path, 11, 11)
    assert crashes.take(PID, -11).crash is not None
    assert crashes.take(PID, -11).crash is None


async def test_panics_are_told_at_once_and_then_more_rarely(
    crashes: CrashReports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted once, also one at another site of the same place; what nothing is told of yet is not lost."""
    monkeypatch.setattr(crash_report, "GATHERING_S", 0.01)
    monkeypatch.setattr(crash_report, "FIRST_PAUSE_S", 0.2)
    loop = asyncio.get_running_loop()
    told: list[tuple[float, Panic]] = []

    def tell(panic: Panic) -> None:
        told.append((loop.time(), panic))
        if panic.count > 1:
            leave_note(tmp_path, 0, 0, site(4), site(3, number=2))
            again.append(loop.create_task(crashes.tell_panics(PID, tell)))

    again: list[asyncio.Task[None]] = []
    leave_note(tmp_path, 0, 0, site(3), site(1, number=2))
    await crashes.tell_panics(PID, tell)
    await asyncio.gather(*again)
    assert [panic.count for _, panic in told] == [4, 3]
    assert told[1][0] - told[0][0] >= 0.2
    assert crashes.take(PID, 0).panics == ()


async def test_panics_at_other_places_do_not_wait(crashes: CrashReports, tmp_path: Path) -> None:
    """Only of those that go the same way less is told."""
    told: list[Panic] = []
    leave_note(tmp_path, 0, 0, site(1))
    await crashes.tell_panics(PID, told.append)
    leave_note(tmp_path, 0, 0, site(1), site(1, number=2, frame=0x10008))
    async with asyncio.timeout(crash_report.FIRST_PAUSE_S - 0.2):
        await crashes.tell_panics(PID, told.append)
    assert [panic.count for panic in told] == [1, 1]


def test_panics_before_the_end_are_told_with_it(crashes: CrashReports, tmp_path: Path) -> None:
    """The one that ended the program is told by that, and not once more."""
    leave_note(tmp_path, -1, -1, site(3), site(2, number=2, frame=0x10008))
    ending = crashes.take(PID, 101)
    assert ending.crash is not None
    assert [panic.count for panic in ending.panics] == [2, 2]


def test_a_panic_that_did_not_end_the_program_is_counted(crashes: CrashReports, tmp_path: Path) -> None:
    """It was noted because it could have."""
    leave_note(tmp_path, -1, -1, site(1))
    ending = crashes.take(PID, 0)
    assert ending.crash is None
    assert [(panic.count, panic.patched.edit) for panic in ending.panics] == [(1, 1)]


async def test_a_client_that_counts_anew_is_believed(crashes: CrashReports, tmp_path: Path) -> None:
    """It has a new file where the former one is not there any more."""
    told: list[Panic] = []
    leave_note(tmp_path, 0, 0, site(5))
    await crashes.tell_panics(PID, told.append)
    leave_note(tmp_path, 0, 0, site(2))
    assert [panic.count for panic in (*told, *crashes.take(PID, 0).panics)] == [5, 2]


async def test_a_panic_that_was_told_and_ends_the_program_is_not_told_again(
    crashes: CrashReports, tmp_path: Path
) -> None:
    """The program took its time to end."""
    told: list[Panic] = []
    leave_note(tmp_path, -1, -1, site(5))
    await crashes.tell_panics(PID, told.append)
    assert crashes.take(PID, 101).panics == ()
