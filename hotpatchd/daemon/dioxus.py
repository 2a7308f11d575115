"""The dialect of the `dioxus-devtools` crate; `docs/dioxus.md` is the specification."""

import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import parse_qsl

from msgspec import Struct
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from hotpatchd.core.dioxus import DevtoolsHello, DevtoolsNotice, DevtoolsTable
from hotpatchd.core.errors import WireError
from hotpatchd.daemon import wire
from hotpatchd.daemon.devtools import DevtoolsClient, Frame

DIOXUS_PATH = "/_dioxus"

# The fields that mean something, and the bits of each.
_QUERY_BITS = {"aslr_reference": 64, "build_id": 64, "pid": 32}
_MAX_QUERY_FIELDS = 16


class HotReload(Struct, kw_only=True):
    """The content of a `HotReload` message: what changed, and which process it is for."""

    templates: tuple[()] = ()
    assets: tuple[str, ...] = ()
    ms_elapsed: int
    jump_table: DevtoolsTable | None = None
    for_build_id: int
    for_pid: int | None


def parse_hello(query: str) -> DevtoolsHello:
    """Read what follows the `?` of a client's request.

    Raises:
        WireError: a field is not a number, too large, or given twice.
    """
    found: dict[str, int] = {}
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise WireError(f"not a query: {error}") from error
    for name, value in fields:
        bits = _QUERY_BITS.get(name)
        if bits is None:
            continue
        if name in found:
            raise WireError(f"{name} is given twice")
        if not re.fullmatch("[0-9]{1,20}", value) or int(value) >> bits:
            raise WireError(f"{name} is not a decimal number of {bits} bits")
        found[name] = int(value)
    return DevtoolsHello(
        aslr_reference=found.get("aslr_reference", 0), build_id=found.get("build_id", 0), pid=found.get("pid")
    )


def hot_reload_message(
    table: DevtoolsTable | None, assets: Sequence[str], ms_elapsed: int, for_build_id: int, for_pid: int | None
) -> str:
    """The text frame that carries a patch, or changed assets, to one process.

    Args:
        table: the patch.
        assets: paths of the changed assets, as the program knows them.
        ms_elapsed: how long the change took to get here.
        for_build_id: the build id that the process sent.
        for_pid: the process id that it sent. Both must agree, or the process drops the message without a word.
    """
    message = HotReload(
        assets=tuple(assets), ms_elapsed=ms_elapsed, jump_table=table, for_build_id=for_build_id, for_pid=for_pid
    )
    return wire.encode({"HotReload": message})


def notice_message(notice: DevtoolsNotice) -> str:
    """The text frame of a message without content."""
    return wire.encode(notice)


class DioxusClient(DevtoolsClient):
    """A program that connected with the `dioxus-devtools` crate.

    Args:
        socket: its connection.
        hello: what it said of itself.
        pid: its process, if known.
    """

    dialect = "dioxus"

    def __init__(self, socket: ServerConnection, hello: DevtoolsHello, pid: int | None) -> None:
        super().__init__(hello, pid)
        self._socket = socket

    def table_frame(self, table: DevtoolsTable, ms_elapsed: int) -> Frame:
        """A `HotReload` with a jump table."""
        return self._hot_reload(table, (), ms_elapsed)

    def assets_frame(self, paths: Sequence[str]) -> Frame:
        """A `HotReload` with assets."""
        return self._hot_reload(None, paths, 0)

    def notice_frame(self, notice: DevtoolsNotice) -> Frame:
        """The notice by its name."""
        return notice_message(notice)

    def _hot_reload(self, table: DevtoolsTable | None, assets: Sequence[str], ms_elapsed: int) -> str:
        # Compared with what the process takes for its id, which in a PID namespace is not the one seen from here.
        for_pid = self.pid if self.hello.pid is None else self.hello.pid
        return hot_reload_message(table, assets, ms_elapsed, self.hello.build_id, for_pid)

    async def read(self) -> str:
        """Skip log messages until the connection ends; returns why it did."""
        try:
            while True:
                await self._socket.recv(decode=False)
        except ConnectionClosed as closed:
            return str(closed)

    async def write(self, frame: Frame) -> None:
        """Send a frame, unless the connection is gone."""
        with suppress(ConnectionClosed):
            await self._socket.send(frame)

    def abort(self) -> None:
        """End the connection at once."""
        self._socket.transport.abort()
