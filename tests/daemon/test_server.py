"""The server keeps strangers out, and tells in order what clients do."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from hotpatchd.core import client as core
from hotpatchd.core.errors import UsageError
from hotpatchd.daemon import logs, outbox, server, wire
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.server import PatchServer, parse_address
from tests.daemon.test_wire import APPLIED, HELLO, REFUSED

BOUND_S = 20
TOKEN = "0123456789abcdef" * 4
PATCH_BYTES = b"\x90" * 9000
PATCH = core.Patch(
    patch="f" * 64,
    edit=7,
    build_id="d" * 40,
    size=len(PATCH_BYTES),
    segments=(),
    imports=(),
    eh_frame=None,
    detours=(),
    thread_locals=(),
    elf=None,
)


class Daemon:
    """A listening server, and the events that came out of it."""

    def __init__(self, **options: Any) -> None:
        self.happened: asyncio.Queue[core.ClientEvent] = asyncio.Queue()
        self.rejection: core.Rejection | None = None
        self.server = PatchServer(
            token=TOKEN,
            admit=lambda hello: self.rejection,
            on_event=self.happened.put_nowait,
            control=self._control,
            events=EventBus(),
            find_patch={"f" * 64: PATCH_BYTES}.get,
            **options,
        )
        self.url = ""

    async def _control(self, command: wire.ControlCommand) -> object:
        return "done"

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.url.split("/")[2]

    async def event(self) -> core.ClientEvent:
        """The next thing that a client did."""
        return await asyncio.wait_for(self.happened.get(), BOUND_S)

    async def dial(self, path: str = "/hotpatch/1", **options: Any) -> ClientConnection:
        """Open a websocket."""
        return await connect(f"ws://{self.address}{path}", compression=None, max_size=None, **options)

    async def join(self) -> ClientConnection:
        """Connect as a client that knows the token, up to its welcome."""
        socket = await self.dial()
        await greet(socket)
        welcome = await receive(socket)
        assert welcome["type"] == "welcome", welcome
        return socket


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """The next text frame."""
    async with asyncio.timeout(BOUND_S):
        text = await socket.recv()
    assert isinstance(text, str)
    message: dict[str, Any] = json.loads(text)
    return message


async def greet(socket: ClientConnection, token: str = TOKEN, **changes: Any) -> None:
    """Answer the challenge with a hello."""
    challenge = await receive(socket)
    proof = wire.proof(token, "client", challenge["nonce"])
    await socket.send(json.dumps(HELLO | {"proof": proof} | changes))


async def ending(socket: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """What else the daemon says until it closes the connection, and the close code."""
    said = []
    with suppress(ConnectionClosed):
        while True:
            said.append(await receive(socket))
    return said, socket.close_code


Start = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers with options of their own."""
    running: list[Daemon] = []

    async def start_one(**options: Any) -> Daemon:
        daemon = Daemon(**options)
        running.append(daemon)
        daemon.url = await daemon.server.start()
        return daemon

    yield start_one
    for daemon in running:
        await asyncio.wait_for(daemon.server.close(), BOUND_S)


@pytest.fixture
async def daemon(start: Start) -> Daemon:
    """A listening server."""
    return await start()


async def test_client_that_knows_the_token_is_welcomed(daemon: Daemon) -> None:
    """Both sides prove that they know the token, and the daemon learns who came."""
    socket = await daemon.dial()
    challenge = await receive(socket)
    assert (challenge["type"], challenge["seq"], challenge["protocol"]) == ("challenge", 1, 1)
    await socket.send(json.dumps(HELLO | {"proof": wire.proof(TOKEN, "client", challenge["nonce"])}))
    assert await receive(socket) == {
        "type": "welcome",
        "seq": 2,
        "proof": wire.proof(TOKEN, "daemon", HELLO["nonce"]),
        "client": 1,
    }
    event = await daemon.event()
    assert isinstance(event, core.ClientHello)
    assert (event.client, event.hello.pid) == (1, HELLO["pid"])
    await socket.close()


async def test_challenges_differ(daemon: Daemon) -> None:
    """A proof that was overheard is worth nothing on the next connection."""
    first, second = await daemon.dial(), await daemon.dial()
    assert (await receive(first))["nonce"] != (await receive(second))["nonce"]


async def test_patch_arrives_and_its_answer_comes_back(daemon: Daemon) -> None:
    """The announcement is followed by the bytes; the answer names the patch that it is for."""
    socket = await daemon.join()
    await daemon.event()
    assert daemon.server.send_patch(1, PATCH, PATCH_BYTES)
    announced = await receive(socket)
    assert (announced["type"], announced["seq"], announced["size"]) == ("patch", 3, len(PATCH_BYTES))
    assert await socket.recv() == PATCH_BYTES
    await socket.send(json.dumps(APPLIED))
    answered = await daemon.event()
    assert isinstance(answered, core.ClientAnswer)
    assert (answered.client, answered.patch) == (1, "f" * 64)
    assert isinstance(answered.answer, core.Applied)


async def test_first_execution_is_told_unasked(daemon: Daemon) -> None:
    """A client may tell of it at any time; its messages are counted on."""
    socket = await daemon.join()
    await daemon.event()
    ran = {"type": "ran", "seq": 2, "patch": "f" * 64, "from": [4], "after_us": 1830, "within_us": 1060}
    await socket.send(json.dumps(ran))
    told = await daemon.event()
    assert isinstance(told, core.ClientRan)
    assert (told.client, told.ran.patch, told.ran.from_addrs) == (1, "f" * 64, (4,))
    daemon.server.send_undo(1, None)
    await socket.send(json.dumps(APPLIED | {"seq": 3}))
    assert isinstance(await daemon.event(), core.ClientAnswer)


async def test_panics_are_told_unasked(daemon: Daemon) -> None:
    """A client may tell of them at any time."""
    socket = await daemon.join()
    await daemon.event()
    await socket.send('{"type": "panicked", "seq": 2}')
    assert await daemon.event() == core.ClientPanicked(client=1)


async def test_undo_is_answered_without_a_patch(daemon: Daemon) -> None:
    """An undo goes out with its target; the answer to it names no patch."""
    socket = await daemon.join()
    await daemon.event()
    assert daemon.server.send_undo(1, "f" * 64)
    assert await receive(socket) == {"type": "undo", "seq": 3, "to": "f" * 64}
    await socket.send(json.dumps(REFUSED))
    answered = await daemon.event()
    assert isinstance(answered, core.ClientAnswer)
    assert answered.patch is None
    assert isinstance(answered.answer, core.Refused)


async def test_lost_client_is_told_once_and_gets_nothing_more(daemon: Daemon) -> None:
    """After the connection's end there is one ClientLost, and sending says that nobody is there."""
    socket = await daemon.join()
    await daemon.event()
    socket.transport.abort()
    lost = await daemon.event()
    assert isinstance(lost, core.ClientLost)
    assert lost.client == 1
    assert not daemon.server.send_patch(1, PATCH, PATCH_BYTES)
    assert daemon.happened.empty()


async def test_each_client_has_its_own_number_and_sequence(daemon: Daemon) -> None:
    """Two clients at once do not get in each other's way."""
    first, second = await daemon.join(), await daemon.join()
    daemon.server.send_patch(2, PATCH, PATCH_BYTES)
    daemon.server.send_undo(1, None)
    assert (await receive(first))["type"] == "undo"
    assert (await receive(second))["type"] == "patch"


async def test_client_that_does_not_read_is_cut_off(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches that nobody takes pile up to the bound only; other clients are served on."""
    monkeypatch.setattr(outbox, "OUTBOX_MESSAGES", 4)
    stuck, well = await daemon.join(), await daemon.join()
    await daemon.event()
    await daemon.event()
    stuck.transport.pause_reading()
    large = bytes(4 << 20)
    sent = 0
    while daemon.server.send_patch(1, replace(PATCH, size=len(large)), large):
        sent += 1
        assert sent < 50
        await asyncio.sleep(0)
    lost = await daemon.event()
    assert lost == core.ClientLost(client=1, reason="it did not keep up")
    daemon.server.send_undo(2, None)
    assert (await receive(well))["type"] == "undo"
    stuck.transport.abort()


async def test_wrong_token_is_rejected_and_unseen(daemon: Daemon) -> None:
    """A client without the token is told so, cut off, logged, and causes no event."""
    with capture_logs() as logged:
        socket = await daemon.dial()
        await greet(socket, token="f" * 64)
        said, code = await ending(socket)
    assert [(message["type"], message["reason"]) for message in said] == [("reject", "token")]
    assert code == 4401
    assert [line["event"] for line in logged] == [logs.CLIENT_REJECTED]
    assert TOKEN not in str(logged)
    assert daemon.happened.empty()


async def test_other_protocol_version_is_rejected_by_name(daemon: Daemon) -> None:
    """A client of another version is told both versions, whatever else its hello holds."""
    socket = await daemon.dial()
    await receive(socket)
    await socket.send('{"type": "hello", "seq": 1, "protocol": 2, "novel": true}')
    said, code = await ending(socket)
    assert said[0]["reason"] == "protocol"
    assert "protocol 2" in said[0]["detail"]
    assert not said[0]["retry"]
    assert code == 4409


async def test_daemons_own_objection_is_passed_on(daemon: Daemon) -> None:
    """What `admit` says is what the client is told."""
    daemon.rejection = core.Rejection(reason="build_id", detail="not the program", retry=False)
    socket = await daemon.dial()
    await greet(socket)
    said, code = await ending(socket)
    assert said == [{"type": "reject", "seq": 2, "reason": "build_id", "detail": "not the program", "retry": False}]
    assert code == 4409
    assert daemon.happened.empty()


@pytest.mark.parametrize("text", ["not JSON", "{}", json.dumps(APPLIED), json.dumps(HELLO | {"pid": "x"})])
async def test_garbage_instead_of_hello_is_rejected(daemon: Daemon, text: str) -> None:
    """What is not a hello ends the connection as a protocol error, and is logged."""
    with capture_logs() as logged:
        socket = await daemon.dial()
        await receive(socket)
        await socket.send(text)
        said, code = await ending(socket)
    assert [message["reason"] for message in said] == ["malformed"]
    assert code == 1002
    assert [line["event"] for line in logged] == [logs.CLIENT_REJECTED]


async def test_silent_connection_is_closed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say hello in time is cut off."""
    monkeypatch.setattr(server, "HELLO_TIMEOUT_S", 0.05)
    socket = await daemon.dial()
    said, code = await ending(socket)
    assert [message["type"] for message in said] == ["challenge", "reject"]
    assert code == 1002


BAD_MESSAGES: list[tuple[str | bytes, int]] = [
    ("garbage", 1002),
    (json.dumps(HELLO | {"seq": 2}), 1002),
    (json.dumps(APPLIED | {"answers": 99}), 1002),
    (json.dumps(APPLIED | {"seq": 7, "answers": 3}), 1002),
    (b"\x00\x01", 1003),
    ("x" * (server.MAX_CLIENT_FRAME_BYTES + 1), 1009),
]


@pytest.mark.parametrize(
    ("frame", "code"), BAD_MESSAGES, ids=["garbage", "hello", "answers", "seq", "binary", "oversized"]
)
async def test_client_that_breaks_the_rules_is_closed_alone(daemon: Daemon, frame: str | bytes, code: int) -> None:
    """The offender gets the specified close code; a client beside it does not notice."""
    bad, good = await daemon.join(), await daemon.join()
    await daemon.event()
    await daemon.event()
    daemon.server.send_undo(1, None)
    await receive(bad)
    await bad.send(frame)
    assert (await ending(bad))[1] == code
    assert isinstance(await daemon.event(), core.ClientLost)
    daemon.server.send_undo(2, None)
    assert (await receive(good))["type"] == "undo"


async def test_oversized_frame_before_hello_is_closed(daemon: Daemon) -> None:
    """The bound on frames holds for strangers too."""
    socket = await daemon.dial()
    await receive(socket)
    await socket.send("x" * (server.MAX_CLIENT_FRAME_BYTES + 1))
    assert (await ending(socket))[1] == 1009


async def test_binary_frame_before_hello_is_closed(daemon: Daemon) -> None:
    """A hello is text."""
    with capture_logs() as logged:
        socket = await daemon.dial()
        await receive(socket)
        await socket.send(json.dumps(HELLO).encode())
        assert (await ending(socket))[1] == 1003
    assert [line["event"] for line in logged] == [logs.CLIENT_REJECTED]


async def test_answering_twice_is_against_the_rules(daemon: Daemon) -> None:
    """A second answer to the same message ends the connection."""
    socket = await daemon.join()
    await daemon.event()
    daemon.server.send_undo(1, None)
    await receive(socket)
    await socket.send(json.dumps(APPLIED))
    assert isinstance(await daemon.event(), core.ClientAnswer)
    await socket.send(json.dumps(APPLIED | {"seq": 3}))
    assert (await ending(socket))[1] == 1002


async def handshake(daemon: Daemon, path: str = "/hotpatch/1", **headers: str) -> int:
    """The HTTP status of a handshake as a browser writes it, with headers added or replaced."""
    sent = {
        "Host": daemon.address,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    } | headers
    reader, writer = await asyncio.open_connection(*parse_address(daemon.address))
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    status = await asyncio.wait_for(reader.readline(), BOUND_S)
    writer.close()
    await writer.wait_closed()
    return int(status.split()[1])


@pytest.mark.parametrize("path", ["/hotpatch/1", "/control/1", "/patches/" + "f" * 64])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_browser_from_a_foreign_origin_is_refused(daemon: Daemon, path: str, origin: str) -> None:
    """A page cannot connect, not even with the token."""
    assert await handshake(daemon, path, Origin=origin, Authorization=f"Bearer {TOKEN}") == 403


async def test_listed_origin_is_let_in(start: Start) -> None:
    """An origin that the developer listed may connect, another may not."""
    daemon = await start(allowed_origins=frozenset({"http://localhost:8080"}))
    assert await handshake(daemon, Origin="http://localhost:8080") == 101
    assert await handshake(daemon, Origin="http://localhost:8081") == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
async def test_foreign_host_name_is_refused(daemon: Daemon, host: str) -> None:
    """A DNS name that was made to point here is not served."""
    assert await handshake(daemon, Host=host) == 403


async def test_localhost_is_a_name_of_the_daemon(daemon: Daemon) -> None:
    """`localhost` with the right port is let in."""
    assert await handshake(daemon, Host=f"LocalHost:{daemon.address.split(':')[1]}") == 101


async def test_handshake_of_a_native_client_passes(daemon: Daemon) -> None:
    """Without an origin, and with the address as host, the handshake succeeds."""
    assert await handshake(daemon) == 101


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer " + "f" * 64, TOKEN])
async def test_control_needs_the_token(daemon: Daemon, authorization: str) -> None:
    """Commands without the token are answered with 401."""
    assert await handshake(daemon, "/control/1", Authorization=authorization) == 401


async def test_unknown_path_is_not_found(daemon: Daemon) -> None:
    """There is nothing at other paths."""
    assert await handshake(daemon, "/") == 404


async def test_control_without_an_id_is_closed(daemon: Daemon) -> None:
    """A request that cannot be answered ends the connection."""
    socket = await daemon.dial("/control/1", additional_headers={"Authorization": f"Bearer {TOKEN}"})
    await socket.send('{"command": "status"}')
    assert (await ending(socket))[1] == 1002


async def fetch(daemon: Daemon, path: str, token: str = TOKEN) -> tuple[int, bytes, dict[str, str]]:
    """GET a path: status, body, headers."""
    request = urllib.request.Request(f"http://{daemon.address}{path}", headers={"Authorization": f"Bearer {token}"})

    def blocking() -> tuple[int, bytes, dict[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=BOUND_S) as response:
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    return await asyncio.to_thread(blocking)


async def test_patch_can_be_fetched(daemon: Daemon) -> None:
    """The bytes come whole, and no header invites other origins."""
    status, body, headers = await fetch(daemon, "/patches/" + "f" * 64)
    assert (status, body) == (200, PATCH_BYTES)
    assert not [name for name in headers if name.lower().startswith("access-control")]


async def test_large_patch_is_fetched_whole(start: Start) -> None:
    """A body far above the socket's buffer is not cut."""
    daemon = await start()
    large = bytes(range(256)) * (64 << 10)
    daemon.server._find_patch = lambda patch: large
    assert (await fetch(daemon, "/patches/" + "f" * 64))[1] == large


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/patches/" + "f" * 64, "wrong", 401),
        ("/patches/" + "e" * 64, TOKEN, 404),
        ("/patches/..%2fdaemon.json", TOKEN, 404),
        ("/patches/" + "F" * 64, TOKEN, 404),
    ],
)
async def test_patch_is_not_given_away(daemon: Daemon, path: str, token: str, status: int) -> None:
    """Neither without the token, nor under any name but a known hash."""
    assert (await fetch(daemon, path, token))[0] == status


async def test_no_compression_is_negotiated(daemon: Daemon) -> None:
    """permessage-deflate is off even if a client offers it."""
    socket = await connect(daemon.url, compression="deflate")
    assert socket.response is not None
    assert "Sec-WebSocket-Extensions" not in socket.response.headers
    await socket.close()


async def test_port_taken_is_said_with_the_address(daemon: Daemon) -> None:
    """The error names the address and the option."""
    host, port = parse_address(daemon.address)
    with pytest.raises(UsageError) as refused:
        await Daemon().server.start(host, port)
    assert daemon.address in refused.value.message
    assert "--listen" in refused.value.hint


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
async def test_beyond_loopback_is_refused(host: str) -> None:
    """The daemon does not listen where others could reach it, and says what is missing."""
    with pytest.raises(UsageError, match="TLS and signed patches"):
        await Daemon().server.start(host, 0)


async def test_host_name_is_refused() -> None:
    """A name could mean any address."""
    with pytest.raises(UsageError, match="not an IP address"):
        await Daemon().server.start("example.org", 0)


async def test_close_is_orderly_and_idempotent(daemon: Daemon) -> None:
    """Clients get code 1001, their loss is told, the port is free again; closing twice is fine."""
    socket = await daemon.join()
    await daemon.event()
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    assert (await ending(socket))[1] == 1001
    assert isinstance(await daemon.event(), core.ClientLost)
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    with pytest.raises(OSError, match=r"refused|failed"):
        await daemon.dial()


async def test_server_that_never_started_can_be_closed() -> None:
    """An end before the beginning is no error."""
    await Daemon().server.close()


async def test_no_task_is_left_behind(daemon: Daemon) -> None:
    """After closing, nothing of the connections runs on."""
    socket = await daemon.join()
    controlling = await daemon.dial("/control/1", additional_headers={"Authorization": f"Bearer {TOKEN}"})
    await controlling.send('{"id": 1, "command": "events"}')
    assert (await receive(controlling))["ok"]
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    await asyncio.gather(socket.wait_closed(), controlling.wait_closed())
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - {asyncio.current_task()}]  # type: ignore[union-attr]
    assert not [name for name in names if "PatchServer" in name or "_write" in name]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("127.0.0.1", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_address_is_split(text: str, address: tuple[str, int]) -> None:
    """Host and port are told apart, brackets taken off."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":80", "::1", "h:70000", "h:x", "[::1"])
def test_wrong_address_is_refused(text: str) -> None:
    """What is not an address is named."""
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)
