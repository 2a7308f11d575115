"""The dialect of the `cargo-hot-protocol` crate, which iced uses; `docs/dioxus.md` is the specification."""

import asyncio
import struct
from contextlib import suppress

import structlog

from hotpatchd.core.dioxus import DevtoolsHello, DevtoolsTable, DevtoolsUnavailable
from hotpatchd.core.errors import WireError
from hotpatchd.daemon import logs
from hotpatchd.daemon.devtools import DevtoolsClient, DevtoolsClients, Frame
from hotpatchd.daemon.peers import process_of

CARGO_HOT_PORT = 1100
HELLO_TIMEOUT_S = 5.0

_HOST = "127.0.0.1"
_NUMBER = struct.Struct(">Q")
# x86-64 and aarch64 give a process at most the lower half of a 57-bit address space.
_MAX_ADDRESS = 1 << 56

_log = structlog.get_logger()


def table_message(table: DevtoolsTable) -> bytes:
    """The bytes that carry a patch: their number, and the table in bincode's standard configuration.

    Source: `cargo-hot-protocol` 0.1.1; bincode 2, docs/spec.md.
    """
    lib = table.lib.encode()
    body = bytearray()
    body += _varint(len(lib)) + lib
    body += _varint(len(table.map))
    for old, new in table.map.items():
        body += _varint(old) + _varint(new)
    body += _varint(table.aslr_reference) + _varint(table.new_base_address) + _varint(table.ifunc_count)
    return _NUMBER.pack(len(body)) + body


def _varint(value: int) -> bytes:
    if value < 251:
        return struct.pack("<B", value)
    if value < 1 << 16:
        return struct.pack("<BH", 251, value)
    if value < 1 << 32:
        return struct.pack("<BI", 252, value)
    return struct.pack("<BQ", 253, value)


class CargoHotClient(DevtoolsClient):
    """A program that connected with the `cargo-hot-protocol` crate.

    Args:
        reader: what it says.
        writer: where it listens.
        hello: what it said of itself.
        pid: its process, if known.
    """

    dialect = "cargo-hot"

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: DevtoolsHello, pid: int | None
    ) -> None:
        super().__init__(hello, pid)
        self._reader = reader
        self._writer = writer

    def table_frame(self, table: DevtoolsTable, ms_elapsed: int) -> Frame:
        """The table; the dialect has no time."""
        return table_message(table)

    async def read(self) -> str:
        """Skip what it says until the connection ends; returns why it did."""
        try:
            while await self._reader.read(1 << 16):
                pass
        except OSError as error:
            return str(error)
        return "the connection ended"

    async def write(self, frame: Frame) -> None:
        """Send a frame, unless the connection is gone."""
        assert isinstance(frame, bytes)
        with suppress(OSError):
            self._writer.write(frame)
            await self._writer.drain()

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()


class CargoHotServer:
    """Listens where programs with that crate look for their server.

    Args:
        clients: serves them.
    """

    def __init__(self, clients: DevtoolsClients) -> None:
        self._clients = clients
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, port: int = CARGO_HOT_PORT) -> int | None:
        """Listen; port 0 takes a free one, where only programs that were told would look.

        Returns:
            the port; None where it cannot be listened on, which a `DevtoolsUnavailable` told.
        """
        try:
            self._server = await asyncio.start_server(self._accept, _HOST, port)
        except OSError as error:
            reason = f"cannot listen on {_HOST}:{port}: {error.strerror}"
            self._clients.on_event(DevtoolsUnavailable(dialect="cargo-hot", reason=reason))
            return None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and end all connections; returns when none is left. Calling it again does nothing."""
        if self._server is None:
            return
        self._server.close()
        while self._connections:
            for writer in self._connections.values():
                writer.transport.abort()
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._clients.serve(await _open(reader, writer))
        except WireError as error:
            _log.warning(logs.CLIENT_REJECTED, dialect="cargo-hot", detail=error.message)
        except Exception:
            _log.exception(logs.CONNECTION_FAILED, dialect="cargo-hot")
        finally:
            writer.transport.abort()


async def _open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> CargoHotClient:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            (aslr_reference,) = _NUMBER.unpack(await reader.readexactly(_NUMBER.size))
    except TimeoutError:
        raise WireError(f"no address within {HELLO_TIMEOUT_S:g} s") from None
    except (OSError, asyncio.IncompleteReadError):
        raise WireError("the connection ended before an address came") from None
    # A browser's request begins with letters, which no address does.
    if aslr_reference >= _MAX_ADDRESS:
        raise WireError(f"{aslr_reference:#x} is not an address in a process")
    pid = await asyncio.to_thread(process_of, writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
    hello = DevtoolsHello(aslr_reference=aslr_reference, build_id=0, pid=None)
    return CargoHotClient(reader, writer, hello, pid)
