"""A client's note is read, and its frames are given to the edits that brought them."""

from __future__ import annotations

import signal
import struct
from dataclasses import replace

import pytest

from hotpatchd.core.crash import (
    CodePlace,
    Crash,
    CrashFrame,
    CrashNote,
    NotedFrame,
    Panic,
    PanicSite,
    PlacedPatch,
    attribute,
    attribute_panic,
    parse_note,
    parse_panics,
)
from tests.core.panic_notes import notes

PATCHES = (
    PlacedPatch(edit=1, start=0x1000, end=0x2000, elf="one"),
    PlacedPatch(edit=2, start=0x2000, end=0x3000, elf="two"),
)


def content(*frames: tuple[int, int], number: int = 11, count: int | None = None, tid: int = 8) -> bytes:
    """The file that a client leaves."""
    header = struct.pack("=8sIIiiiIQQ16s", b"hpcrash1", 7, tid, number, 1, 6, count or len(frames), 16, 4096, b"worker")
    return header + b"".join(struct.pack("=QQ", *frame) for frame in frames) + bytes(16)


def note(*addrs: int, fault_addr: int = 0, number: int = signal.SIGSEGV) -> CrashNote:
    """A note of a fault with these addresses on the stack."""
    frames = tuple(NotedFrame(addr=addr, function=0) for addr in addrs)
    return CrashNote(
        signal=number, last_signal=number, fault_addr=fault_addr, stack_pointer=0x8000, thread="main", frames=frames
    )


def place_of(frame: NotedFrame, patch: PlacedPatch | None) -> CodePlace:
    """Names that tell what they were asked for."""
    return CodePlace(function=f"{patch.elf if patch else 'host'}:{frame.addr:x}")


def test_a_note_is_read() -> None:
    """Signals, addresses, the thread's name, and as many frames as it has."""
    assert parse_note(content((0x1005, 0x1000), (0x2005, 0x2000))) == CrashNote(
        signal=11,
        last_signal=6,
        fault_addr=16,
        stack_pointer=4096,
        thread="worker",
        frames=(NotedFrame(addr=0x1005, function=0x1000), NotedFrame(addr=0x2005, function=0x2000)),
    )


def test_the_first_thread_is_called_main() -> None:
    """The kernel has the program's name for it."""
    found = parse_note(content(tid=7))
    assert found is not None
    assert found.thread == "main"


def test_a_panic_is_noted_like_a_fault() -> None:
    """It has no signal, and is called what it is."""
    noted = parse_note(
        content((0x1005, 0x1000), number=-1, tid=7).replace(struct.pack("=i", 6), struct.pack("=i", -1), 1)
    )
    assert noted is not None
    crash = attribute(noted, PATCHES, place_of)
    assert (crash.signal, crash.ended_by, crash.stack_overflow) == ("panic", "panic", False)
    assert crash.patched is not None
    assert crash.patched.edit == 1


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        content(number=0),
        content(number=999),
        content((1, 1), count=9),
        content().replace(b"hpcrash1", b"hpcrash2"),
    ],
    ids=["empty", "no fault", "no signal", "cut short", "another version"],
)
def test_what_is_no_note_is_none(wrong: bytes) -> None:
    """A file without a fault, or one that is damaged, says nothing."""
    assert parse_note(wrong) is None


def test_frames_belong_to_the_edits_that_brought_their_code() -> None:
    """The innermost of them is where the program failed; code of the host has no edit."""
    crash = attribute(note(0x9000, 0x2FFF, 0x1000, 0x3000), PATCHES, place_of)
    assert [(frame.function, frame.edit) for frame in crash.frames] == [
        ("host:9000", None),
        ("two:2fff", 2),
        ("one:1000", 1),
        ("host:3000", None),
    ]
    assert crash.patched == crash.frames[1]


def test_the_developers_own_code_is_told_first() -> None:
    """An edit brings instances of library functions along, which fail for what they are given."""
    frames = [
        CrashFrame(function=function, file=file, line=1, edit=edit)
        for function, file, edit in (
            ("core::ptr::read", "/rustc/library/core/src/ptr/mod.rs", 2),
            ("__rust_try", None, 2),
            ("app::own", "src/main.rs", None),
            ("app::patched", "src/main.rs", 2),
        )
    ]
    crash = Crash(signal="SIGSEGV", ended_by="SIGSEGV", stack_overflow=False, thread="main", frames=tuple(frames))
    assert crash.patched == frames[3]
    assert replace(crash, frames=tuple(frames[:3])).patched == frames[0]


def test_a_crash_outside_patches_belongs_to_no_edit() -> None:
    """There is nothing that could be told of it."""
    assert attribute(note(0x9000), PATCHES, place_of).patched is None


@pytest.mark.parametrize(
    ("fault_addr", "number", "overflow"),
    [
        (0x8000 - 8, signal.SIGSEGV, True),
        (0x8000 + 0x800, signal.SIGSEGV, True),
        (16, signal.SIGSEGV, False),
        (0x8000 + 0x80000, signal.SIGSEGV, False),
        (0x8000 - 8, signal.SIGILL, False),
    ],
)
def test_a_stack_overflow_is_told_by_its_address(fault_addr: int, number: int, overflow: bool) -> None:
    """It is an access close to the stack pointer that fails."""
    assert attribute(note(0x9000, fault_addr=fault_addr, number=number), PATCHES, place_of).stack_overflow == overflow


def test_panics_are_read() -> None:
    """Those that began last come at the end, whatever their place; the first thread is called main."""
    newer = PanicSite(number=65, count=2, thread="main", frames=(0x1005,))
    older = PanicSite(number=2, count=1_234, thread="worker", frames=(0x1005, 0x2005))
    assert parse_panics(notes(newer, older)) == (older, newer)


@pytest.mark.parametrize("content", [b"", notes()[:-1], b"another!" + notes()[8:]])
def test_panics_of_a_file_that_is_no_note_are_none(content: bytes) -> None:
    """It is empty, too short, or something else."""
    assert parse_panics(content) == ()


def test_a_panic_is_told_with_the_innermost_own_code_that_it_went_through() -> None:
    """Library functions that a patch brought along come before it; what lies in no patch is left out."""
    places = {0x1005: CodePlace(function="core::unwrap", file="/rust/option.rs"), 0x2005: CodePlace(file="src/main.rs")}
    site = PanicSite(number=1, count=9, thread="worker", frames=(0x1005, 0x9000, 0x2005))
    panic = attribute_panic(site, 3, PATCHES, lambda frame, _: places.get(frame.addr, CodePlace()))
    unwrap = CrashFrame(function="core::unwrap", file="/rust/option.rs", line=None, edit=1)
    own = CrashFrame(function=None, file="src/main.rs", line=None, edit=2)
    assert panic == Panic(count=3, thread="worker", frames=(unwrap, own))
    assert panic.patched == own


def test_a_panic_in_no_patch_is_nobodys() -> None:
    """Its patch was another program's."""
    site = PanicSite(number=1, count=1, thread="main", frames=(0x9000,))
    assert attribute_panic(site, 1, PATCHES, place_of) is None
