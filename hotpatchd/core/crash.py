"""Faults that end a program, and panics: what its client noted, and which edit brought the code that failed.

Addresses are run-time addresses.
"""

import signal
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

PANIC = -1
"""What a note has in place of a signal's number, where a panic of the first thread may have ended the program."""

_MAGIC = b"hpcrash1"
_HEADER = struct.Struct("=8sIIiiiIQQ16s")
"""Magic, process, thread, signal, code, last signal, number of frames, fault address, stack pointer, thread name."""
_FRAME = struct.Struct("=QQ")
_MOST_FRAMES = 128
_PANICS = _HEADER.size + _MOST_FRAMES * _FRAME.size + 16
"""Where the sites of panics begin, after two counts that are the client's own."""
_SITE = struct.Struct("=IIQQI4x16s16Q")
"""Number, number of frames, what stands for them, count, thread, its name, frames."""
_SITES = 64

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
        site: of a panic, the number of the `PanicSite` that counts it; 0 where none does.
    """

    signal: int
    last_signal: int
    fault_addr: int
    stack_pointer: int
    thread: str
    frames: tuple[NotedFrame, ...]
    site: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PanicSite:
    """A way through patched code that panics went.

    Args:
        number: no other site of the process has it.
        count: how many went there.
        thread: the name of the newest one's thread; the first one is called main.
        frames: inside the instructions of patched code that made the calls, innermost first, each once.
    """

    number: int
    count: int
    thread: str
    frames: tuple[int, ...]


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
        return _own(self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panic:
    """Panics that went the same way through patched code, and that something caught, be it the end of their thread.

    Args:
        count: how many.
        thread: the name of the newest one's thread; the first one is called main.
        frames: the calls of patched code that they went through, innermost first, each once; at least one.
    """

    count: int
    thread: str
    frames: tuple[CrashFrame, ...]

    @property
    def patched(self) -> CrashFrame:
        """The innermost frame of the developer's own code, if there is such; else the innermost."""
        return _own(self.frames) or self.frames[0]


def _own(frames: Sequence[CrashFrame]) -> CrashFrame | None:
    brought = [frame for frame in frames if frame.edit is not None]
    own = (frame for frame in brought if frame.file and not frame.file.startswith("/"))
    return next(own, brought[0] if brought else None)


def parse_note(content: bytes) -> CrashNote | None:
    """Read the file that a client leaves; None where it notes neither fault nor panic.

    Source: `docs/wire.md`, "Crashes".
    """
    if len(content) < _HEADER.size:
        return None
    magic, pid, tid, number, code, last, count, fault_addr, stack_pointer, name = _HEADER.unpack_from(content)
    frames = content[_HEADER.size : _HEADER.size + count * _FRAME.size]
    if magic != _MAGIC or not {number, last} <= {PANIC, *signal.valid_signals()} or len(frames) < count * _FRAME.size:
        return None
    return CrashNote(
        signal=number,
        last_signal=last,
        fault_addr=fault_addr,
        stack_pointer=stack_pointer,
        thread=_thread(tid, pid, name),
        frames=tuple(NotedFrame(addr=addr, function=function) for addr, function in _FRAME.iter_unpack(frames)),
        site=code if number == PANIC else 0,
    )


def parse_panics(content: bytes) -> tuple[PanicSite, ...]:
    """Read from the file that a client leaves what panics it counted, those that began last at the end.

    Source: `docs/wire.md`, "Crashes".
    """
    table = content[_PANICS : _PANICS + _SITES * _SITE.size]
    if content[: len(_MAGIC)] != _MAGIC or len(table) < _SITES * _SITE.size:
        return ()
    pid = _HEADER.unpack_from(content)[1]
    sites = (
        PanicSite(number=number, count=count, thread=_thread(tid, pid, name), frames=tuple(frames[:frame_count]))
        for number, frame_count, _, count, tid, name, *frames in _SITE.iter_unpack(table)
        if number
    )
    return tuple(sorted(sites, key=lambda site: site.number))


def _thread(tid: int, pid: int, name: bytes) -> str:
    return "main" if tid == pid else name.partition(b"\0")[0].decode(errors="replace")


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
    return Crash(
        signal=_name(note.signal),
        ended_by=_name(note.last_signal),
        stack_overflow=note.signal == signal.SIGSEGV
        and -_BELOW_STACK <= note.fault_addr - note.stack_pointer < _FRAME_SIZE,
        thread=note.thread,
        frames=_attributed(note.frames, tuple(patches), place_of),
    )


def attribute_panic(
    site: PanicSite,
    count: int,
    patches: Iterable[PlacedPatch],
    place_of: Callable[[NotedFrame, PlacedPatch | None], CodePlace],
) -> Panic | None:
    """Tell of the newest `count` panics of a site which edit brought the code; otherwise like `attribute`.

    Returns:
        None where no patch that is known has it.
    """
    frames = _attributed((NotedFrame(addr=addr, function=0) for addr in site.frames), tuple(patches), place_of)
    brought = tuple(frame for frame in frames if frame.edit is not None)
    return Panic(count=count, thread=site.thread, frames=brought) if brought else None


def _attributed(
    frames: Iterable[NotedFrame],
    patches: tuple[PlacedPatch, ...],
    place_of: Callable[[NotedFrame, PlacedPatch | None], CodePlace],
) -> tuple[CrashFrame, ...]:
    attributed = []
    for frame in frames:
        patch = next((patch for patch in patches if patch.start <= frame.addr < patch.end), None)
        place = place_of(frame, patch)
        attributed.append(
            CrashFrame(function=place.function, file=place.file, line=place.line, edit=patch.edit if patch else None)
        )
    return tuple(attributed)


def _name(number: int) -> str:
    return "panic" if number == PANIC else signal.Signals(number).name
