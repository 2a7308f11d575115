"""Programs that are patched by jump tables: they load libraries, say nothing, and are looked at from outside.

Nothing on the wire tells what became of a patch. A carrier's image lies at an address that is known beforehand, so the
process's memory map tells.
"""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from hotpatchd.core import messages
from hotpatchd.core.address_space import Mapping, choose_region, extent_of, is_free, parse_maps
from hotpatchd.core.client import Applied, Hello, Refused, Region, ThreadLocalReserve
from hotpatchd.core.dioxus import (
    DevtoolsConnected,
    DevtoolsHello,
    DevtoolsLost,
    DevtoolsNotice,
    DevtoolsTable,
)
from hotpatchd.core.errors import HotpatchdError, ObjectError
from hotpatchd.core.jumptable import Jump, JumpTablePlan, devtools_table
from hotpatchd.core.session import Session
from hotpatchd.daemon.carrier import Carrier, CarrierLinker
from hotpatchd.daemon.server import PatchServer
from hotpatchd.objfile.host_index import HostIndex, build_id_of

LOAD_TIMEOUT_S = 10.0
_POLL_S = 0.005
_CLIENT_LIBRARY = "libhotpatch_client"
_REACH = 1 << 31
_SLOT_SIZE = 64 << 10


class NotOursError(HotpatchdError):
    """The process is not one of the program that is watched; the text says what it is."""


def has_client_library(pid: int) -> bool:
    """Whether the native client is in a process: then it patches in place, and its handlers are only told."""
    return any(_CLIENT_LIBRARY in os.path.basename(mapping.path) for mapping in read_maps(pid))


def read_maps(pid: int) -> tuple[Mapping, ...]:
    """The memory map of a process; empty where it is gone or another user's."""
    try:
        return parse_maps(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return ()


def open_session(client: int, pid: int, host: HostIndex, target: str) -> Session:
    """Look at a process that connected.

    Args:
        client: its number.
        pid: the process.
        host: the symbols of the program that is watched.
        target: target triple of that.

    Raises:
        NotOursError: it runs something else, or cannot be looked at.
    """
    try:
        exe = os.readlink(f"/proc/{pid}/exe")
        build_id = build_id_of(Path(f"/proc/{pid}/exe"))
        started_ns = os.stat(f"/proc/{pid}").st_ctime_ns
    except (OSError, ObjectError) as error:
        raise NotOursError(f"process {pid} cannot be looked at: {error}") from error
    if build_id != host.header.build_id:
        raise NotOursError(f"{exe} (process {pid}) is not the build that is watched; start that one instead")
    maps = read_maps(pid)
    program = extent_of(maps, exe)
    region = choose_region(maps, program, _REACH) if program else None
    if program is None or region is None:
        raise NotOursError(f"process {pid} has no address space left within reach of its code")
    hello = Hello(
        instance=f"{pid}-{started_ns}",
        build_id=build_id,
        pid=pid,
        exe=exe,
        target=target,
        slide=program.start if host.header.position_independent else 0,
        region=Region(addr=region.start, size=len(region), slot_size=_SLOT_SIZE, next=region.start),
        thread_locals=ThreadLocalReserve(offset=0, size=0),
        page_size=resource.getpagesize(),
        patches=(),
    )
    return Session(client=client, hello=hello, next_addr=region.start, redirect="jump_table")


def table_for(client: DevtoolsHello, carrier: Carrier, session: Session, host: HostIndex) -> DevtoolsTable:
    """The jump table of a carrier, as its program computes with it.

    Raises:
        ObjectError: the program took another `main` for its own.
    """
    slide = session.hello.slide
    jumps = tuple(Jump(place - slide, to, 0, "") for place, to in carrier.jumps.items())
    return devtools_table(
        JumpTablePlan(jumps=jumps, refusals=()),
        lib=str(carrier.path),
        host=host,
        host_origin=session.hello.exe,
        host_image_base=0,
        patch=carrier.symbols,
        loaded_main_addr=client.aslr_reference,
        slide=slide,
        page_size=session.hello.page_size,
    )


class JumpTableClients:
    """The connected programs that use the `subsecond` crate.

    Those that the native client is in are patched by it; they are sent an empty table afterwards, for the handlers to
    run that they registered. The others are sessions of their own.

    Args:
        server: sends what they are to be sent.
        host: the symbols of the program that is watched.
        target: target triple of that.
        carriers: links libraries.
        directory: for the library that is sent with empty tables.
        known: the session of a process by its instance, if it was connected before.
        dispatch: takes in what became of them.
        ignored: is told of programs that are left alone.
    """

    def __init__(
        self,
        *,
        server: PatchServer,
        host: HostIndex,
        target: str,
        carriers: CarrierLinker,
        directory: Path,
        known: Callable[[str], Session | None],
        dispatch: Callable[[messages.StepEvent], None],
        ignored: Callable[[str], None],
    ) -> None:
        self._server = server
        self._host = host
        self._target = target
        self._carriers = carriers
        self._directory = directory
        self._known = known
        self._dispatch = dispatch
        self._ignored = ignored
        self._clients: dict[int, DevtoolsConnected] = {}
        self._empty: Carrier | None = None
        self._linking = asyncio.Lock()

    def __contains__(self, client: int) -> bool:
        return client in self._clients

    def is_for(self, event: DevtoolsConnected | DevtoolsLost) -> bool:
        """Whether an event is about a process of the program that is watched here."""
        if isinstance(event, DevtoolsLost) or event.pid is None:
            return event.client in self._clients
        try:
            return build_id_of(Path(f"/proc/{event.pid}/exe")) == self._host.header.build_id
        except ObjectError:
            return False

    def take(self, event: DevtoolsConnected | DevtoolsLost) -> None:
        """Take in that one connected or left."""
        match event:
            case DevtoolsConnected(client=client, pid=pid):
                self._clients[client] = event
                if pid is None:
                    self._ignored("a program connected whose process cannot be found")
                elif not has_client_library(pid):
                    self._join(client, pid)
            case DevtoolsLost(client=client):
                if self._clients.pop(client, None):
                    self._dispatch(messages.Left(client=client))

    def _join(self, client: int, pid: int) -> None:
        try:
            session = open_session(client, pid, self._host, self._target)
        except NotOursError as error:
            self._ignored(error.message)
            return
        known = self._known(session.hello.instance)
        if known is not None:
            # It connected anew, as those of cargo-hot do, and runs what it loaded before.
            session = replace(known, client=client, hello=session.hello, next_addr=session.next_addr)
        self._dispatch(messages.Joined(session=session))

    def tell(self, notice: DevtoolsNotice) -> None:
        """Tell all of them how a build is going."""
        for client in self._clients:
            self._server.send_notice(client, notice)

    def tell_assets(self, paths: Iterable[str]) -> None:
        """Tell all of them which assets changed."""
        changed = tuple(paths)
        for client in self._clients if changed else ():
            self._server.send_assets(client, changed)

    async def send(self, session: Session, carrier: Carrier, since_edit_ms: float) -> None:
        """Send a patch, and wait until the program has loaded it."""
        started = time.perf_counter()
        connected = self._clients.get(session.client)
        if connected is None:
            return
        answer: Applied | Refused
        try:
            table = table_for(connected.hello, carrier, session, self._host)
        except ObjectError as error:
            answer = Refused(reason="address", detail=str(error), symbol=None)
        else:
            self._server.send_table(session.client, table, int(since_edit_ms))
            answer = await wait_loaded(session.hello.pid, carrier)
        since_ms = (time.perf_counter() - started) * 1000
        self._dispatch(messages.Answered(client=session.client, answer=answer, now=time.time(), since_sent_ms=since_ms))

    async def announce(self, pid: int) -> None:
        """Have the handlers run that a process has for patches: the native client patched it."""
        for client, connected in list(self._clients.items()):
            if connected.pid == pid:
                table = DevtoolsTable(
                    lib=str(await self._empty_library()), map={}, aslr_reference=0, new_base_address=0
                )
                self._server.send_table(client, table, 0)

    async def _empty_library(self) -> Path:
        # Patches may follow each other faster than it is linked.
        async with self._linking:
            if self._empty is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                library = self._directory / "libhotpatchd-announcement.so"
                self._empty = await self._carriers.link(None, (), library, page_size=resource.getpagesize())
        return self._empty.path


async def wait_loaded(pid: int, carrier: Carrier, timeout_s: float = LOAD_TIMEOUT_S) -> Applied | Refused:
    """Wait until a process has loaded a carrier, and tell what became of it."""
    started = time.perf_counter()
    path = str(carrier.path)
    was_there = False
    while time.perf_counter() < started + timeout_s:
        maps = read_maps(pid)
        if any(mapping.path == path for mapping in maps):
            is_there = any(mapping.start == carrier.image.start for mapping in maps)
            if is_there and was_there:
                took_us = (time.perf_counter() - started) * 1e6
                end = carrier.image.stop + -carrier.image.stop % resource.getpagesize()
                return Applied(next=end, threads=0, timings_us={"total": took_us}, on_stack=())
            if not is_there and not is_free(maps, carrier.image):
                return Refused(
                    reason="memory",
                    detail="something else took the address space that the patch was linked for: save again",
                    symbol=None,
                )
            # Twice, since the library takes an image out again that it cannot complete.
            was_there = is_there
        await asyncio.sleep(_POLL_S)
    return Refused(
        reason="memory", detail=f"the program did not load it within {timeout_s:g} s: is it stopped?", symbol=None
    )
