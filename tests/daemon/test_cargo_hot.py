"""Programs with the `cargo-hot-protocol` crate get jump tables that it can read."""

import asyncio
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hotpatchd.core.dioxus import (
    DevtoolsConnected,
    DevtoolsEvent,
    DevtoolsHello,
    DevtoolsLost,
    DevtoolsTable,
    DevtoolsUnavailable,
)
from hotpatchd.daemon import cargo_hot, logs, outbox
from hotpatchd.daemon.cargo_hot import table_message
from tests.daemon import test_server
from tests.daemon.test_server import BOUND_S

READER = Path(__file__).resolve().parents[2] / "fixtures" / "jump-table-reader"
MAIN = 0x55D1_0000_1139
TABLE = DevtoolsTable(
    lib="/tmp/päth/libx.so",
    map={1: 250, 251: 0xFFFF, 0x10000: 0xFFFF_FFFF, 0x1_0000_0000: 0xFFFF_FFFF_FFFF_FFFF},
    aslr_reference=250,
    new_base_address=251,
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Daemon(test_server.Daemon):
    """A server that listens for this dialect alone, and the events that came out of it."""

    def __init__(self) -> None:
        self.devtools: asyncio.Queue[DevtoolsEvent] = asyncio.Queue()
        self.port: int | None = None
        self.opened: list[asyncio.StreamWriter] = []
        super().__init__(on_devtools=self.devtools.put_nowait)

    async def devtools_event(self) -> DevtoolsEvent:
        """The next thing that happened."""
        return await asyncio.wait_for(self.devtools.get(), BOUND_S)

    async def open(self, first: bytes) -> Streams:
        """Connect and say something."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(first)
        return reader, writer

    async def connect(self) -> Streams:
        """Connect as the crate does."""
        streams = await self.open(struct.pack(">Q", MAIN))
        assert isinstance(await self.devtools_event(), DevtoolsConnected)
        return streams


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    """A server that listens for this dialect, at a free port."""
    daemon = Daemon()
    daemon.port = await daemon.server.start_cargo_hot(0)
    yield daemon
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    for writer in daemon.opened:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that reads a jump table as the crate does, and prints it as JSON."""
    project = shutil.copytree(READER, tmp_path_factory.mktemp("reader") / "project")
    subprocess.run(["cargo", "build", "--quiet", "--locked"], cwd=project, check=True)
    return project / "target" / "debug" / "jump-table-reader"


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What else comes before the connection ends."""
    async with asyncio.timeout(BOUND_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def tables() -> list[DevtoolsTable]:
    """Tables with numbers and lengths around the limits of each width."""
    draw = random.Random(20)
    limits = [edge + step for edge in (0, 251, 1 << 16, 1 << 32) for step in (-1, 0, 1) if edge + step >= 0]
    numbers = [*limits, 2**64 - 1]
    return [
        DevtoolsTable(
            lib="/" + "ü" * length,
            map={draw.getrandbits(64) if count else number: number for number in numbers for _ in range(count or 1)},
            aslr_reference=draw.choice(numbers),
            new_base_address=draw.choice(numbers),
            ifunc_count=draw.choice(numbers),
        )
        for length, count in ((0, 0), (125, 1), (126, 20), (40000, 6000))
    ]


@pytest.mark.parametrize("table", [TABLE, *tables()], ids=["small", "edges", "short", "medium", "large"])
def test_table_is_read_by_the_crates(reader: Path, table: DevtoolsTable) -> None:
    """Length, widths of numbers, text and order of fields are those of `subsecond-types` and bincode."""
    read = subprocess.run([reader], input=table_message(table), stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(read) == asdict(table) | {"map": {str(old): new for old, new in table.map.items()}}


async def test_client_is_told_of_with_its_process(daemon: Daemon) -> None:
    """The dialect has an address and nothing else; the process is found."""
    await daemon.open(struct.pack(">Q", MAIN))
    hello = DevtoolsHello(aslr_reference=MAIN, build_id=0, pid=None)
    assert await daemon.devtools_event() == DevtoolsConnected(
        client=1, hello=hello, pid=os.getpid(), dialect="cargo-hot"
    )


async def test_tables_arrive_in_order(daemon: Daemon) -> None:
    """One after the other on one connection, as often as code changes."""
    reader, _ = await daemon.connect()
    messages = [table_message(table) for table in (TABLE, tables()[1], TABLE)]
    for table in (TABLE, tables()[1], TABLE):
        assert daemon.server.send_table(1, table, 12)
    async with asyncio.timeout(BOUND_S):
        assert [await reader.readexactly(len(message)) for message in messages] == messages


async def test_what_the_dialect_has_no_words_for_is_not_sent(daemon: Daemon) -> None:
    """Nothing but tables, or the program would take it for one."""
    reader, _ = await daemon.connect()
    assert daemon.server.send_notice(1, "FullReloadStart")
    assert daemon.server.send_assets(1, ["/assets/main.css"])
    daemon.server.send_table(1, TABLE, 12)
    await asyncio.wait_for(reader.readexactly(len(table_message(TABLE))), BOUND_S)
    await daemon.server.close()
    assert await ended(reader) == b""


async def test_loss_is_told_and_a_return_is_another_client(daemon: Daemon) -> None:
    """The crate closes the connection where it cannot load a library, and comes back after a while."""
    _, writer = await daemon.connect()
    writer.close()
    assert await daemon.devtools_event() == DevtoolsLost(client=1, reason="the connection ended")
    assert not daemon.server.send_table(1, TABLE, 12)
    await daemon.connect()
    assert daemon.server.send_table(2, TABLE, 12)


async def test_port_taken_is_told_and_no_failure(daemon: Daemon) -> None:
    """The port is the same for everybody: the next daemon goes on without this dialect."""
    second = Daemon()
    assert daemon.port is not None
    assert await second.server.start_cargo_hot(daemon.port) is None
    event = await second.devtools_event()
    assert isinstance(event, DevtoolsUnavailable)
    assert event.dialect == "cargo-hot"
    assert f"127.0.0.1:{daemon.port}" in event.reason
    await second.server.close()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 8])
async def test_what_is_no_address_is_refused(daemon: Daemon, first: bytes) -> None:
    """A browser that was sent here by a page is no program with the crate."""
    with capture_logs() as logged:
        reader, _ = await daemon.open(first)
        assert await ended(reader) == b""
    assert [(line["event"], line["dialect"]) for line in logged] == [(logs.CLIENT_REJECTED, "cargo-hot")]
    assert daemon.devtools.empty()


async def test_half_an_address_is_refused(daemon: Daemon) -> None:
    """A connection that ends too early causes no event."""
    with capture_logs() as logged:
        reader, writer = await daemon.open(b"\x00\x00")
        writer.write_eof()
        assert await ended(reader) == b""
    assert [line["event"] for line in logged] == [logs.CLIENT_REJECTED]
    assert daemon.devtools.empty()


async def test_silent_connection_is_closed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say an address in time is cut off."""
    monkeypatch.setattr(cargo_hot, "HELLO_TIMEOUT_S", 0.05)
    reader, _ = await daemon.open(b"")
    assert await ended(reader) == b""
    assert daemon.devtools.empty()


async def test_chatter_is_skipped(daemon: Daemon) -> None:
    """What a client says after its address means nothing."""
    reader, writer = await daemon.connect()
    writer.write(bytes(20 << 20))
    await asyncio.wait_for(writer.drain(), BOUND_S)
    daemon.server.send_table(1, TABLE, 12)
    message = table_message(TABLE)
    assert await asyncio.wait_for(reader.readexactly(len(message)), BOUND_S) == message


async def test_client_that_does_not_read_is_cut_off(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that nobody takes pile up to the bound only; other clients are served on."""
    monkeypatch.setattr(outbox, "OUTBOX_MESSAGES", 4)
    _, stuck = await daemon.connect()
    reader, _ = await daemon.connect()
    stuck.transport.pause_reading()  # type: ignore[attr-defined]
    large = DevtoolsTable(lib="x" * (4 << 20), map={}, aslr_reference=1, new_base_address=1)
    sent = 0
    while daemon.server.send_table(1, large, 12):
        sent += 1
        assert sent < 50
        await asyncio.sleep(0)
    assert await daemon.devtools_event() == DevtoolsLost(client=1, reason="it did not keep up")
    daemon.server.send_table(2, TABLE, 12)
    await asyncio.wait_for(reader.readexactly(len(table_message(TABLE))), BOUND_S)


async def test_close_ends_connections_and_frees_the_port(daemon: Daemon) -> None:
    """Also one that has not said its address yet."""
    reader, _ = await daemon.connect()
    undecided, _ = await daemon.open(b"")
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    assert (await ended(reader), await ended(undecided)) == (b"", b"")
    assert isinstance(await daemon.devtools_event(), DevtoolsLost)
    with pytest.raises(ConnectionRefusedError):
        await daemon.open(b"")
