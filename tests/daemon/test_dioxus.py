"""Programs with the `dioxus-devtools` crate are told what is for them; whoever else comes learns and breaks nothing."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from hotpatchd.core import client as core
from hotpatchd.core.dioxus import (
    DevtoolsConnected,
    DevtoolsEvent,
    DevtoolsHello,
    DevtoolsLost,
    DevtoolsNotice,
    DevtoolsTable,
)
from hotpatchd.core.errors import WireError
from hotpatchd.daemon import logs, outbox, server
from hotpatchd.daemon.dioxus import hot_reload_message, notice_message, parse_hello
from tests.daemon import test_server
from tests.daemon.test_server import BOUND_S, ending, handshake

LARGEST = 2**64 - 1
TABLE = DevtoolsTable(
    lib="/tmp/päth/libpatch.so", map={LARGEST: 1, 0: LARGEST}, aslr_reference=0x1139, new_base_address=0x2250
)


class Daemon(test_server.Daemon):
    """A listening server, and the events that came out of it, those of devtools clients apart."""

    def __init__(self) -> None:
        self.devtools: asyncio.Queue[DevtoolsEvent] = asyncio.Queue()
        super().__init__(on_devtools=self.devtools.put_nowait)

    async def devtools_event(self) -> DevtoolsEvent:
        """The next thing that happened to a devtools client."""
        return await asyncio.wait_for(self.devtools.get(), BOUND_S)

    async def connect(self, query: str = "") -> tuple[ClientConnection, DevtoolsConnected]:
        """Connect as the crate does, and what the daemon takes note of."""
        socket = await self.dial("/_dioxus?" + query)
        event = await self.devtools_event()
        assert isinstance(event, DevtoolsConnected)
        return socket, event


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    """A listening server that serves devtools clients."""
    daemon = Daemon()
    daemon.url = await daemon.server.start()
    yield daemon
    await asyncio.wait_for(daemon.server.close(), BOUND_S)


@pytest.fixture
def stranger() -> Iterator[int]:
    """The id of another process of this user."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


async def frame(socket: ClientConnection) -> Any:
    """The content of the next text frame."""
    async with asyncio.timeout(BOUND_S):
        text = await socket.recv()
    assert isinstance(text, str)
    return json.loads(text)


def test_hello_is_read() -> None:
    """All three fields, up to their largest values; others are skipped."""
    hello = parse_hello(f"aslr_reference={LARGEST}&build_id=7&pid={2**32 - 1}&novel=x")
    assert hello == DevtoolsHello(aslr_reference=LARGEST, build_id=7, pid=2**32 - 1)


def test_hello_may_be_empty() -> None:
    """Every field is optional."""
    assert parse_hello("") == DevtoolsHello(aslr_reference=0, build_id=0, pid=None)


BAD_QUERIES = [
    "pid=",
    "pid=-1",
    "pid=x",
    "pid=1_0",
    "pid=%D9%A1",
    "pid=4294967296",
    "pid=1&pid=1",
    f"build_id={LARGEST + 1}",
    "aslr_reference=" + "0" * 5000,
    "&".join(["novel=1"] * 50),
]


@pytest.mark.parametrize("query", BAD_QUERIES)
def test_garbage_in_the_hello_is_an_error(query: str) -> None:
    """What is not a decimal number that fits, once, is said."""
    with pytest.raises(WireError):
        parse_hello(query)


def test_hot_reload_is_written_as_the_crate_reads_it() -> None:
    """Keys of the map are decimal strings, values integers, and nothing that the crate requires is left out."""
    assert json.loads(hot_reload_message(TABLE, (), 12, LARGEST, 4711)) == {
        "HotReload": {
            "templates": [],
            "assets": [],
            "ms_elapsed": 12,
            "jump_table": {
                "lib": "/tmp/päth/libpatch.so",
                "map": {"18446744073709551615": 1, "0": LARGEST},
                "aslr_reference": 0x1139,
                "new_base_address": 0x2250,
                "ifunc_count": 0,
            },
            "for_build_id": LARGEST,
            "for_pid": 4711,
        }
    }


def test_notice_is_a_bare_string() -> None:
    """A message without content is its name, as serde writes such a variant."""
    assert notice_message("FullReloadStart") == '"FullReloadStart"'


async def test_client_is_told_of_with_its_process(daemon: Daemon) -> None:
    """What the query says comes out, and the process that was found at the other end."""
    _, event = await daemon.connect(f"aslr_reference=94755198718816&build_id=5&pid={os.getpid()}")
    hello = DevtoolsHello(aslr_reference=94755198718816, build_id=5, pid=os.getpid())
    assert event == DevtoolsConnected(client=1, hello=hello, pid=os.getpid(), dialect="dioxus")


async def test_table_is_for_that_process_and_build(daemon: Daemon) -> None:
    """Each client gets its own build id back, or it would drop the message."""
    first, _ = await daemon.connect(f"build_id=5&pid={os.getpid()}")
    second, _ = await daemon.connect(f"build_id=6&pid={os.getpid()}")
    assert daemon.server.send_table(2, TABLE, 1)
    assert daemon.server.send_table(1, TABLE, 1)
    assert (await frame(first))["HotReload"]["for_build_id"] == 5
    message = (await frame(second))["HotReload"]
    assert (message["for_build_id"], message["for_pid"]) == (6, os.getpid())
    assert message["jump_table"]["new_base_address"] == 0x2250


async def test_process_that_does_not_say_its_id_is_found(daemon: Daemon) -> None:
    """An old crate sends no process id; its tables are addressed to the process at the other end."""
    socket, event = await daemon.connect("build_id=5")
    assert (event.hello.pid, event.pid) == (None, os.getpid())
    daemon.server.send_table(1, TABLE, 1)
    assert (await frame(socket))["HotReload"]["for_pid"] == os.getpid()


async def test_assets_come_without_a_table(daemon: Daemon) -> None:
    """Changed assets are named; no code is touched."""
    socket, _ = await daemon.connect()
    assert daemon.server.send_assets(1, ["/assets/main.css"])
    message = (await frame(socket))["HotReload"]
    assert (message["assets"], message["jump_table"]) == (["/assets/main.css"], None)


@pytest.mark.parametrize(
    "notice", ["HotPatchStart", "FullReloadStart", "FullReloadFailed", "FullReloadCommand", "Shutdown"]
)
async def test_notice_arrives(daemon: Daemon, notice: DevtoolsNotice) -> None:
    """How a build is going is told by name."""
    socket, _ = await daemon.connect()
    assert daemon.server.send_notice(1, notice)
    assert await frame(socket) == notice


async def test_what_the_client_says_is_skipped(daemon: Daemon) -> None:
    """Log messages, text that is no message or no UTF-8, and binary frames."""
    socket, _ = await daemon.connect()
    for said in ('{"Log": {"level": "info", "messages": ["hello"]}}', "garbage", b"\xff\x00"):
        await socket.send(said)
    await socket.send(b"\xff", text=True)
    daemon.server.send_notice(1, "HotPatchStart")
    assert await frame(socket) == "HotPatchStart"


async def test_loss_is_told_once(daemon: Daemon) -> None:
    """After a connection broke, sending says that nobody is there."""
    socket, _ = await daemon.connect()
    socket.transport.abort()
    lost = await daemon.devtools_event()
    assert isinstance(lost, DevtoolsLost)
    assert lost.client == 1
    assert not daemon.server.send_table(1, TABLE, 1)
    assert not daemon.server.send_assets(1, [])
    assert not daemon.server.send_notice(1, "Shutdown")
    assert daemon.devtools.empty()


async def test_numbers_are_shared_with_native_clients(daemon: Daemon) -> None:
    """A number means one client, and what is for one kind is not sent to the other."""
    await daemon.connect()
    native = await daemon.join()
    hello = await daemon.event()
    assert isinstance(hello, core.ClientHello)
    assert hello.client == 2
    assert not daemon.server.send_table(2, TABLE, 1)
    assert not daemon.server.send_undo(1, None)
    await native.close()


async def test_client_that_lies_about_its_process_is_refused(daemon: Daemon, stranger: int) -> None:
    """The connection must be one of the process that it is said to come from; it is logged, and causes no event."""
    with capture_logs() as logged, pytest.raises(InvalidStatus) as refused:
        await daemon.dial(f"/_dioxus?pid={stranger}")
    assert refused.value.response.status_code == 403
    assert [(line["event"], line["dialect"]) for line in logged] == [(logs.CLIENT_REJECTED, "dioxus")]
    assert daemon.devtools.empty()


@pytest.mark.parametrize("query", ["?pid=x", "?aslr_reference=-1", "?build_id=1&build_id=2"])
async def test_garbage_query_is_a_bad_request(daemon: Daemon, query: str) -> None:
    """What the query must not be is answered with 400, and no failure of the daemon is logged."""
    with capture_logs() as logged:
        assert await handshake(daemon, "/_dioxus" + query) == 400
    assert [line["event"] for line in logged] == [logs.CLIENT_REJECTED]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_page_in_a_browser_is_refused(daemon: Daemon, origin: str) -> None:
    """No token is asked for here, and a page still gets no jump table."""
    assert await handshake(daemon, "/_dioxus", Origin=origin) == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1"])
async def test_foreign_host_name_is_refused(daemon: Daemon, host: str) -> None:
    """Nor is a DNS name served that was made to point here."""
    assert await handshake(daemon, "/_dioxus", Host=host) == 403


async def test_dialect_is_off_unless_asked_for() -> None:
    """A daemon that takes no devtools events has nothing at that path."""
    daemon = test_server.Daemon()
    daemon.url = await daemon.server.start()
    assert await handshake(daemon, "/_dioxus") == 404
    assert not daemon.server.send_table(1, TABLE, 1)
    await daemon.server.close()


async def test_large_frame_ends_that_connection_alone(daemon: Daemon) -> None:
    """20 MB are not taken in; a client beside it does not notice."""
    bad, _ = await daemon.connect()
    good, _ = await daemon.connect()
    await bad.send("x" * (20 << 20))
    assert (await ending(bad))[1] == 1009
    assert isinstance(await daemon.devtools_event(), DevtoolsLost)
    assert daemon.server.send_notice(2, "HotPatchStart")
    assert await frame(good) == "HotPatchStart"


async def test_client_that_does_not_read_is_cut_off(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that nobody takes pile up to the bound only; other clients are served on."""
    monkeypatch.setattr(outbox, "OUTBOX_MESSAGES", 4)
    stuck, _ = await daemon.connect()
    well, _ = await daemon.connect()
    stuck.transport.pause_reading()
    assets = ["x" * (4 << 20)]
    sent = 0
    while daemon.server.send_assets(1, assets):
        sent += 1
        assert sent < 50
        await asyncio.sleep(0)
    assert await daemon.devtools_event() == DevtoolsLost(client=1, reason="it did not keep up")
    daemon.server.send_notice(2, "HotPatchStart")
    assert await frame(well) == "HotPatchStart"
    stuck.transport.abort()


async def test_client_that_answers_no_ping_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs handlers on the thread that reads, for as long as they take; a native client must answer."""
    monkeypatch.setattr(server, "PING_S", 0.5)
    daemon = Daemon()
    daemon.url = await daemon.server.start()
    busy, _ = await daemon.connect()
    busy.transport.pause_reading()
    native = await daemon.join()
    await daemon.event()
    native.transport.pause_reading()
    lost = await daemon.event()
    assert isinstance(lost, core.ClientLost)
    assert "keepalive" in lost.reason
    assert daemon.server.send_notice(1, "HotPatchStart")
    busy.transport.resume_reading()
    assert await frame(busy) == "HotPatchStart"
    native.transport.abort()
    await daemon.server.close()


async def test_close_ends_the_connection_in_order(daemon: Daemon) -> None:
    """The program sees a close frame, and its loss is told."""
    socket, _ = await daemon.connect()
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    assert (await ending(socket))[1] == 1001
    assert isinstance(await daemon.devtools_event(), DevtoolsLost)
