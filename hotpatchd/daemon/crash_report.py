"""Tells where a patched program crashed, or panics: from the notes of its client, and the patches sent to it."""

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hotpatchd.core.client import Hello, Patch
from hotpatchd.core.crash import (
    PANIC,
    CodePlace,
    Crash,
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
GATHERING_S = 0.25
"""How long panics are gathered before they are told. One that ends the program has done so by then, as a rule."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 10.0
"""How long nothing more is told of a place that panicked: longer each time, until it panics but once meanwhile."""


@dataclass(slots=True, kw_only=True)
class _Told:
    """Panics at one place: how many were told, by site, how long to tell no more, and whether there are more."""

    counts: dict[int, int] = field(default_factory=dict)
    pause_s: float = 0.0
    until: float = 0.0
    are_more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patched:
    """A process, the symbols of its host, what was sent to it, and its panics by the calls that they went through."""

    hello: Hello
    host: HostIndex
    patches: tuple[PlacedPatch, ...]
    told: dict[tuple[int, ...], _Told] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a process left behind that ended: the crash that did it, if any, and panics before that."""

    crash: Crash | None
    panics: tuple[Panic, ...]


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
        self._telling: dict[int, bool] = {}
        self._reading = threading.Lock()

    def sent(self, hello: Hello, host: HostIndex, patch: Patch) -> None:
        """Remember a patch that goes to a client of this host."""
        known = self._processes.get(hello.pid)
        if known and known.hello.instance != hello.instance:
            known = None
        placed = PlacedPatch(
            edit=patch.edit,
            start=min(segment.addr for segment in patch.segments),
            end=max(segment.addr + segment.mem_size for segment in patch.segments),
            elf=patch.elf or "",
        )
        self._processes[hello.pid] = _Patched(
            hello=hello,
            host=host,
            patches=(*(known.patches if known else ()), placed),
            told=known.told if known else {},
        )

    def take(self, pid: int, status: int | None = None) -> Ending:
        """What is known of the crash that ended a process, and of panics that were not told, once.

        Args:
            pid: the process.
            status: its exit status, or the negative number of the signal that ended it; None where that is not known.
        """
        process = self._processes.pop(pid, None)
        if process is None:
            return Ending(crash=None, panics=())
        content = self._notes(process)
        note = parse_note(content)
        if note is None or not _is_end(note, status):
            return Ending(crash=None, panics=self._new_panics(process, content))
        lookup = _Lookup((frame.addr for frame in note.frames), process, self._root)
        return Ending(
            crash=attribute(note, process.patches, lookup.place),
            panics=self._new_panics(process, content, without=note.site),
        )

    async def follow(self, pid: int) -> Ending | None:
        """As `take`, for a process that others started and whose client is gone, if it has ended."""
        if pid not in self._processes or not await _has_ended(pid):
            return None
        return await asyncio.to_thread(self.take, pid)

    async def tell_panics(self, pid: int, tell: Callable[[Panic], None]) -> None:
        """Tell of panics that a client has heard of, until there are none that were not told.

        Panics that go the same way are told together, the more rarely the longer they go on. A call while another is at
        it for the same process has that one look again.

        Args:
            pid: the process.
            tell: takes each.
        """
        is_told = pid in self._telling
        self._telling[pid] = True
        if is_told:
            return
        try:
            while self._telling[pid]:
                self._telling[pid] = False
                await asyncio.sleep(GATHERING_S)
                process = self._processes.get(pid)
                if process is None:
                    return
                panics = await asyncio.to_thread(self._due_panics, process)
                self._telling[pid] |= any(told.are_more for told in list(process.told.values()))
                for panic in panics:
                    tell(panic)
        finally:
            del self._telling[pid]

    def _notes(self, process: _Patched) -> bytes:
        try:
            return (self._patches_dir / process.hello.instance / "crash").read_bytes()
        except OSError:
            return b""

    def _due_panics(self, process: _Patched) -> tuple[Panic, ...]:
        return self._new_panics(process, self._notes(process), now=time.monotonic())

    def _new_panics(
        self, process: _Patched, content: bytes, *, without: int = 0, now: float | None = None
    ) -> tuple[Panic, ...]:
        """Panics that were not told yet.

        Args:
            process: the program.
            content: the notes of its client.
            without: the site of one that is told otherwise.
            now: leaves out what is told too often already; None: nothing will be told later.
        """
        new: list[tuple[PanicSite, int]] = []
        with self._reading:
            by_way: dict[tuple[int, ...], list[PanicSite]] = defaultdict(list)
            for site in parse_panics(content):
                by_way[site.frames].append(site)
            for frames, sites in by_way.items():
                told = process.told.setdefault(frames, _Told())
                counts = {site.number: site.count for site in sites}
                count = sum(_since(told.counts.get(number, 0), counted) for number, counted in counts.items())
                count -= without in counts
                told.are_more = count > 0 and now is not None and now < told.until
                if count < 1 or told.are_more:
                    continue
                told.counts |= counts
                longer = min(max(FIRST_PAUSE_S, 2 * told.pause_s), LONGEST_PAUSE_S)
                told.pause_s = FIRST_PAUSE_S if count == 1 else longer
                told.until = (now or 0.0) + told.pause_s
                new.append((sites[-1], count))
        lookup = _Lookup((addr for site, _ in new for addr in site.frames), process, self._root)
        panics = (attribute_panic(site, count, process.patches, lookup.place) for site, count in new)
        return tuple(panic for panic in panics if panic)


def _since(before: int, now: int) -> int:
    """How much a count has grown; where it is less than before, the client has begun a new file."""
    return now - before if now >= before else now


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
    """Names and lines of addresses in a process."""

    def __init__(self, addrs: Iterable[int], process: _Patched, root: Path) -> None:
        self._host = process.host
        self._slide = process.hello.slide
        self._root = root
        inside = defaultdict(list)
        for addr in addrs:
            for patch in process.patches:
                if patch.start <= addr < patch.end:
                    inside[patch.elf].append(addr)
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
