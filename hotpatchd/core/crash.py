"""The fault that ended a program: what its client noted, and which edit brought the code that failed.

Addresses are run-time addresses.
"""

import signal
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PANIC = -1
"""What a note has in place of a signal's number, where a panic of the first thread may have ended the program."""

_MAGIC = b"hpcrash1"
_HEADER = struct.Struct("=8sIIiiiIQQ16s")
"""Magic, process, thread, signal, code, last signal, number of frames, fault address, stack pointer, thread name."""
_FRAME = struct.Struct("=QQ")

_BELOW_STACK = 4096
"""How far below the stack pointer a program touches its stack, in bytes: by pushing, and by probing page after page."""
_FRAME_SIZE = 65536
"""Bytes above the stack pointer that may be a function's own and not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedFrame:
    """One call of a backtrace.

    Args:
        addr: inside the instruction that failed, or that made the call.
        function: where the function around it begins; 0 where the client could not tell.
    """

    addr: int
    function: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashNote:
    """A client's note of a fault, innermost frame first.

    Args:
        signal: number of the signal that the fault raised, or `PANIC`.
        last_signal: of the newest one: another where the program's own handler ended it by `abort`.
        fault_addr: the address that could not be accessed, where the signal is about one.
        stack_pointer: of the thread, when it failed.
        thread: its name; the first one is called main.
        frames: the calls that led there.
    """

    signal: int
    last_signal: int
    fault_addr: int
    stack_pointer: int
    thread: str
    frames: tuple[NotedFrame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPatch:
    """Where a program has a patch: the bytes from `start` up to `end`, and the linked file with its symbols."""

    edit: int
    start: int
    end: int
    elf: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePlace:
    """What is known of an address in code; None is unknown."""

    function: str | None = None
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashFrame:
    """One call of a backtrace; `edit` is None for code that no patch brought."""

    function: str | None
    file: str | None
    line: int | None
    edit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The fault, or the panic, that ended a program.

    Args:
        signal: the name of the signal that it raised; `panic` for a panic.
        ended_by: of the one that ended the program: another where the program's own handler called `abort`.
        stack_overflow: whether the thread's stack was used up.
        thread: the name of the thread; the first one is called main.
        frames: the calls that led there, innermost first.
    """

    signal: str
    ended_by: str
    stack_overflow: bool
    thread: str
    frames: tuple[CrashFrame, ...]

    @property
    def patched(self) -> CrashFrame | None:
        """The innermost frame of code that an edit brought; of the developer's own, if there is such.

        An edit brings instances of library functions along. Files of the workspace are named from its root.
        """
        brought = [frame for frame in self.frames if frame.edit is not None]
        own = (frame for frame in brought if frame.file and not frame.file.startswith("/"))
        return next(own, brought[0] if brought else None)


def parse_note(content: bytes) -> CrashNote | None:
    """Read the file that a client leaves; None where it notes neither fault nor panic.

    Source: `docs/wire.md`, "Crashes".
    """
    if len(content) < _HEADER.size:
        return None
    magic, pid, tid, number, _, last, count, fault_addr, stack_pointer, name = _HEADER.unpack_from(content)
    frames = content[_HEADER.size : _HEADER.size + count * _FRAME.size]
    if magic != _MAGIC or not {number, last} <= {PANIC, *signal.valid_signals()} or len(frames) < count * _FRAME.size:
        return None
    return CrashNote(
        signal=number,
        last_signal=last,
        fault_addr=fault_addr,
        stack_pointer=stack_pointer,
        thread="main" if tid == pid else name.partition(b"\0")[0].decode(errors="replace"),
        frames=tuple(NotedFrame(addr=addr, function=function) for addr, function in _FRAME.iter_unpack(frames)),
    )


def attribute(
    note: CrashNote,
    patches: Iterable[PlacedPatch],
    place_of: Callable[[NotedFrame, PlacedPatch | None], CodePlace],
) -> Crash:
    """Tell of each frame which edit brought its code.

    Args:
        note: the client's.
        patches: those that were sent to it, also if they were taken back: threads may still run them.
        place_of: looks up a frame, in the patch that it lies in.
    """
    placed = tuple(patches)
    frames = []
    for frame in note.frames:
        patch = next((patch for patch in placed if patch.start <= frame.addr < patch.end), None)
        place = place_of(frame, patch)
        frames.append(
            CrashFrame(function=place.function, file=place.file, line=place.line, edit=patch.edit if patch else None)
        )
    return Crash(
        signal=_name(note.signal),
        ended_by=_name(note.last_signal),
        stack_overflow=note.signal == signal.SIGSEGV
        and -_BELOW_STACK <= note.fault_addr - note.stack_pointer < _FRAME_SIZE,
        thread=note.thread,
        frames=tuple(frames),
    )


def _name(number: int) -> str:
    return "panic" if number == PANIC else signal.Signals(number).name
