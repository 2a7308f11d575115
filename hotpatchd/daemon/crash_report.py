"""Tells, once a patched program has crashed, where: from the note that its client left, and the patches sent to it."""

import asyncio
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.client import Hello, Patch
from hotpatchd.core.crash import PANIC, CodePlace, Crash, CrashNote, NotedFrame, PlacedPatch, attribute, parse_note
from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import HotpatchdError
from hotpatchd.core.lifecycle import PANICKED
from hotpatchd.core.unit import HostSymbol
from hotpatchd.objfile.code_lines import find_lines
from hotpatchd.objfile.host_index import HostIndex
from hotpatchd.objfile.image import read_image
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX

ENDING_S = 2.0
"""How long a process may take to end after its client's connection did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patched:
    """A process, the symbols of its host, and what was sent to it."""

    hello: Hello
    host: HostIndex
    patches: tuple[PlacedPatch, ...]


class CrashReports:
    """The processes that have patches.

    Args:
        patches_dir: the directory of the linked patches; each client's note is among its own.
        root: the workspace; files in it are named from there.
    """

    def __init__(self, patches_dir: Path, root: Path) -> None:
        self._patches_dir = patches_dir
        self._root = root
        self._processes: dict[int, _Patched] = {}

    def sent(self, hello: Hello, host: HostIndex, patch: Patch) -> None:
        """Remember a patch that goes to a client of this host."""
        known = self._processes.get(hello.pid)
        earlier = known.patches if known and known.hello.instance == hello.instance else ()
        placed = PlacedPatch(
            edit=patch.edit,
            start=min(segment.addr for segment in patch.segments),
            end=max(segment.addr + segment.mem_size for segment in patch.segments),
            elf=patch.elf or "",
        )
        self._processes[hello.pid] = _Patched(hello=hello, host=host, patches=(*earlier, placed))

    def take(self, pid: int, status: int | None = None) -> Crash | None:
        """What is known of the crash that ended a process, once; None where that is nothing.

        Args:
            pid: the process.
            status: its exit status, or the negative number of the signal that ended it; None where that is not known.
        """
        process = self._processes.pop(pid, None)
        if process is None:
            return None
        try:
            note = parse_note((self._patches_dir / process.hello.instance / "crash").read_bytes())
        except OSError:
            return None
        if note is None or not _is_end(note, status):
            return None
        return attribute(note, process.patches, _Lookup(note, process, self._root).place)

    async def follow(self, pid: int) -> Crash | None:
        """As `take`, for a process that others started and whose client is gone, if it has ended."""
        if pid not in self._processes or not await _has_ended(pid):
            return None
        return await asyncio.to_thread(self.take, pid)


def _is_end(note: CrashNote, status: int | None) -> bool:
    """Whether what is noted ended the program: it may have caught a panic, or gone on after a fault.

    Of a program that ends itself, a fault is noted only if its handler did that.
    """
    if note.signal == PANIC:
        return status == PANICKED
    return status is None or status > 0 or status == -note.last_signal


async def _has_ended(pid: int) -> bool:
    """Whether a process ends now: its threads, of which the client is one, do not do so at the same instant."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(ENDING_S):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True


class _Lookup:
    """Names and lines of the addresses in one note."""

    def __init__(self, note: CrashNote, process: _Patched, root: Path) -> None:
        self._host = process.host
        self._slide = process.hello.slide
        self._root = root
        inside = defaultdict(list)
        for frame in note.frames:
            for patch in process.patches:
                if patch.start <= frame.addr < patch.end:
                    inside[patch.elf].append(frame.addr)
        self._lines = {elf: find_lines(Path(elf), addrs) for elf, addrs in inside.items()}
        self._symbols = {elf: _functions(Path(elf)) for elf in inside}

    def place(self, frame: NotedFrame, patch: PlacedPatch | None) -> CodePlace:
        if patch is None:
            names = self._host.function_names_at(frame.function - self._slide)
            return CodePlace(function=demangle(names[0]) if names else None)
        functions = self._symbols[patch.elf].items()
        around = (name for name, place in functions if place.addr <= frame.addr < place.addr + place.size)
        name = next(around, None)
        file, line = self._lines[patch.elf].get(frame.addr, (None, None))
        return CodePlace(
            function=demangle(name.removesuffix(NEW_CODE_SUFFIX)) if name else None,
            file=self._from_root(file) if file else None,
            line=line,
        )

    def _from_root(self, file: str) -> str:
        return os.path.relpath(file, self._root) if Path(file).is_relative_to(self._root) else file


def _functions(elf: Path) -> Mapping[str, HostSymbol]:
    try:
        return {name: symbol for name, symbol in read_image(elf).symbols.items() if symbol.kind == "function"}
    except HotpatchdError:
        return {}
