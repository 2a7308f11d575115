"""The websocket server for clients and commands; `docs/wire.md` is the specification.

What clients say comes out as `hotpatchd.core.client` events, in order, one connection at a time: a `ClientHello`,
then `ClientAnswer`s, `ClientRan`s and `ClientPanicked`s, at last a `ClientLost`. Whoever has not proved that it knows
the token causes none.

Programs that use the `subsecond` crate are served as well, as `docs/dioxus.md` has it. They know no token; what
happens to them comes out as `hotpatchd.core.dioxus` events.
"""

import asyncio
import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import assert_never
from weakref import WeakKeyDictionary

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from hotpatchd.core import client as core
from hotpatchd.core.dioxus import DevtoolsEvent, DevtoolsHello, DevtoolsNotice, DevtoolsTable
from hotpatchd.core.errors import HotpatchdError, UsageError, WireError
from hotpatchd.daemon import logs, wire
from hotpatchd.daemon.cargo_hot import CARGO_HOT_PORT, CargoHotServer
from hotpatchd.daemon.devtools import DevtoolsClients
from hotpatchd.daemon.dioxus import DIOXUS_PATH, DioxusClient, parse_hello
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.outbox import Outbox
from hotpatchd.daemon.peers import process_of

CLIENT_PATH = "/hotpatch/1"
CONTROL_PATH = "/control/1"
MAX_CLIENT_FRAME_BYTES = 1 << 20
HELLO_TIMEOUT_S = 5.0
PING_S = 20.0
CLOSE_TIMEOUT_S = 1.0

_WRONG_TOKEN = 4401
_REFUSED_HELLO = 4409
_CLOSE_CODES: dict[core.RejectReason, int] = {
    "protocol": _REFUSED_HELLO,
    "build_id": _REFUSED_HELLO,
    "token": _WRONG_TOKEN,
    "malformed": CloseCode.PROTOCOL_ERROR,
}
_MAX_CLOSE_REASON_BYTES = 123

_log = structlog.get_logger()
# Without a level of its own it would print a traceback for every port scanner.
_websockets_log = logging.getLogger("hotpatchd.websockets")
_websockets_log.setLevel(logging.CRITICAL + 1)


class _BinaryFrame(WireError):
    """A binary frame where only text belongs."""


class _Client:
    """A welcomed client.

    Args:
        socket: its connection.
    """

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.sent_seq = 2
        self.received_seq = 1
        self.unanswered: dict[int, str | None] = {}
        self.outbox: Outbox[tuple[str, bytes | None]] = Outbox(socket.transport.abort)


class PatchServer:
    """Listens on a loopback address for clients and commands.

    Args:
        token: the shared secret.
        admit: judges a client that knows the token; None lets it in.
        on_event: receives what clients do.
        control: carries out a command; its result must be plain JSON values. A `HotpatchdError` is told to whoever
            asked. It is cancelled when they leave.
        events: what `events` requests follow.
        find_patch: the bytes of a patch by their SHA-256 in hex, or None.
        allowed_origins: values of the `Origin` header that are let in; browsers send one, native clients do not.
        on_devtools: receives what happens to programs that use the `subsecond` crate; None serves none.
    """

    def __init__(
        self,
        *,
        token: str,
        admit: Callable[[core.Hello], core.Rejection | None],
        on_event: Callable[[core.ClientEvent], None],
        control: Callable[[wire.ControlCommand], Awaitable[object]],
        events: EventBus,
        find_patch: Callable[[str], bytes | None],
        allowed_origins: frozenset[str] = frozenset(),
        on_devtools: Callable[[DevtoolsEvent], None] | None = None,
    ) -> None:
        self._token = token
        self._admit = admit
        self._on_event = on_event
        self._control = control
        self._events = events
        self._find_patch = find_patch
        self._allowed_origins = allowed_origins
        self._hosts: frozenset[str] = frozenset()
        self._clients: dict[int, _Client] = {}
        self._last_client = 0
        self._server: Server | None = None
        self._devtools = DevtoolsClients(self._number, on_devtools) if on_devtools is not None else None
        # Of connections whose handshake may still fail.
        self._dioxus: WeakKeyDictionary[ServerConnection, tuple[DevtoolsHello, int | None]] = WeakKeyDictionary()
        self._cargo_hot: CargoHotServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; port 0 takes a free one.

        Returns:
            the URL for clients.

        Raises:
            UsageError: not a loopback address, or it cannot be listened on.
        """
        address = _loopback(host)
        bracketed = f"[{address}]" if address.version == 6 else str(address)
        try:
            self._server = await serve(
                self._serve,
                str(address),
                port,
                process_request=self._screen,
                compression=None,
                server_header=None,
                open_timeout=HELLO_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=MAX_CLIENT_FRAME_BYTES,
                logger=_websockets_log,
            )
        except OSError as error:
            raise UsageError(
                f"cannot listen on {bracketed}:{port}: {error.strerror}",
                hint="end the program that uses the address, or choose another with --listen; port 0 is any free one",
            ) from error
        port = next(iter(self._server.sockets)).getsockname()[1]
        self._hosts = frozenset({f"{bracketed}:{port}", f"localhost:{port}"})
        return f"ws://{bracketed}:{port}{CLIENT_PATH}"

    async def start_cargo_hot(self, port: int = CARGO_HOT_PORT) -> int | None:
        """Listen for programs that use the `cargo-hot-protocol` crate too; they look at one fixed port.

        Args:
            port: another port, for programs that were told; 0 takes a free one.

        Returns:
            the port; None where it cannot be listened on, which a `DevtoolsUnavailable` told.
        """
        assert self._devtools is not None
        self._cargo_hot = CargoHotServer(self._devtools)
        return await self._cargo_hot.start(port)

    async def close(self) -> None:
        """Stop listening and end all connections; returns when none is left. Calling it again does nothing."""
        if self._cargo_hot is not None:
            await self._cargo_hot.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def send_patch(self, client: int, patch: core.Patch | core.DylibPatch, payload: bytes) -> bool:
        """Queue a patch for a client; its answer comes as a `ClientAnswer`.

        Returns:
            False when the client is not there (any more); a `ClientLost` says so, or said so.
        """
        if isinstance(patch, core.Patch):
            return self._send(client, patch.patch, lambda seq: wire.patch_message(seq, patch), payload)
        return self._send(
            client, patch.patch, lambda seq: wire.dylib_message(seq, patch), None if patch.pull else payload
        )

    def send_undo(self, client: int, to: str | None) -> bool:
        """Queue taking back every patch after `to`, or all; otherwise like `send_patch`."""
        return self._send(client, None, lambda seq: wire.UndoMessage(seq=seq, to=to), None)

    def dismiss(self, client: int) -> None:
        """End a client's connection; a `ClientLost` follows. It may come back, and is judged anew."""
        if client in self._clients:
            self._clients[client].socket.transport.abort()

    def send_table(self, client: int, table: DevtoolsTable, ms_elapsed: int) -> bool:
        """Queue a patch for a program that uses `subsecond`; no answer will come.

        Args:
            client: its number.
            table: the patch, for its process alone.
            ms_elapsed: how long the patch took, for display.

        Returns:
            False when it is not there (any more); a `DevtoolsLost` says so, or said so.
        """
        return self._devtools is not None and self._devtools.send_table(client, table, ms_elapsed)

    def send_assets(self, client: int, paths: Sequence[str]) -> bool:
        """Queue the names of changed assets, for a dialect that has them; otherwise like `send_table`."""
        return self._devtools is not None and self._devtools.send_assets(client, paths)

    def send_notice(self, client: int, notice: DevtoolsNotice) -> bool:
        """Queue word of how a build is going, for a dialect that has it; otherwise like `send_table`."""
        return self._devtools is not None and self._devtools.send_notice(client, notice)

    def _send(
        self, number: int, patch: str | None, message: Callable[[int], wire.Message], payload: bytes | None
    ) -> bool:
        client = self._clients.get(number)
        if client is None:
            return False
        client.sent_seq += 1
        client.unanswered[client.sent_seq] = patch
        return client.outbox.put((wire.encode(message(client.sent_seq)), payload))

    def _number(self) -> int:
        self._last_client += 1
        return self._last_client

    def _screen(self, connection: ServerConnection, request: Request) -> Response | Awaitable[Response | None] | None:
        """Judge a request before anything else happens; None goes on to the websocket handshake.

        A page in a browser can reach a loopback port. It cannot hide its origin, and one that was let in by
        rebinding a DNS name to this address cannot hide that name.
        """
        hosts = [host.lower() for host in request.headers.get_all("Host")]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return connection.respond(HTTPStatus.FORBIDDEN, "This host name is not served.\n")
        if not self._allowed_origins.issuperset(request.headers.get_all("Origin")):
            return connection.respond(HTTPStatus.FORBIDDEN, "This origin is not allowed.\n")
        if request.path == CLIENT_PATH:
            return None
        path, _, query = request.path.partition("?")
        if path == DIOXUS_PATH and self._devtools is not None:
            return self._screen_dioxus(connection, query)
        patch = re.fullmatch("/patches/([0-9a-f]{64})", request.path)
        if request.path != CONTROL_PATH and patch is None:
            return connection.respond(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
        authorization = "".join(request.headers.get_all("Authorization"))
        if not hmac.compare_digest(authorization.encode(errors="replace"), f"Bearer {self._token}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "A valid token is needed.\n")
        if patch is None:
            return None
        payload = self._find_patch(patch[1])
        if payload is None:
            return connection.respond(HTTPStatus.NOT_FOUND, "There is no such patch.\n")
        headers = Headers(
            {
                "Connection": "close",
                "Content-Length": str(len(payload)),
                "Content-Type": "application/octet-stream",
            }
        )
        return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, payload)

    async def _screen_dioxus(self, connection: ServerConnection, query: str) -> Response | None:
        try:
            hello = parse_hello(query)
        except WireError as error:
            return _refuse_dioxus(connection, HTTPStatus.BAD_REQUEST, error)
        try:
            pid = await asyncio.to_thread(process_of, connection.remote_address, connection.local_address, hello.pid)
        except WireError as error:
            return _refuse_dioxus(connection, HTTPStatus.FORBIDDEN, error)
        # It answers no ping while it loads a patch and its handlers run, and it would not come back.
        connection.ping_interval = None
        self._dioxus[connection] = hello, pid
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        try:
            if socket.request.path == CLIENT_PATH:
                await self._serve_client(socket)
            elif socket in self._dioxus and self._devtools is not None:
                hello, pid = self._dioxus.pop(socket)
                await self._devtools.serve(DioxusClient(socket, hello, pid))
            else:
                await self._serve_control(socket)
        except ConnectionClosed:
            pass
        except WireError as error:
            _log.warning(logs.CLIENT_REJECTED, reason="malformed", detail=error.message)
            await _close_on(socket, error)
        except Exception:
            _log.exception(logs.CONNECTION_FAILED, path=socket.request.path)
            await socket.close(CloseCode.INTERNAL_ERROR)

    async def _serve_client(self, socket: ServerConnection) -> None:
        opened = await self._open(socket)
        if isinstance(opened, core.Rejection):
            _log.warning(logs.CLIENT_REJECTED, reason=opened.reason, detail=opened.detail)
            await socket.send(
                wire.encode(wire.RejectMessage(seq=2, reason=opened.reason, detail=opened.detail, retry=opened.retry))
            )
            await _close(socket, _CLOSE_CODES[opened.reason], opened.detail)
            return
        hello = wire.inward(opened, core.Hello)
        number = self._number()
        welcome = wire.proof(self._token, "daemon", opened.nonce)
        await socket.send(wire.encode(wire.WelcomeMessage(seq=2, proof=welcome, client=number)))
        client = self._clients[number] = _Client(socket)
        _log.info(logs.CLIENT_CONNECTED, client=number, pid=hello.pid, exe=hello.exe, target=hello.target)
        reason = "its connection was dropped"
        try:
            self._on_event(core.ClientHello(client=number, hello=hello))
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(client.outbox.drain(partial(_write, socket)))
                reason = await self._read(number, client)
                writer.cancel()
        finally:
            del self._clients[number]
            _log.info(logs.CLIENT_LOST, client=number, reason=reason)
            self._on_event(core.ClientLost(client=number, reason=reason))

    async def _open(self, socket: ServerConnection) -> wire.HelloMessage | core.Rejection:
        nonce = secrets.token_hex(32)
        await socket.send(wire.encode(wire.ChallengeMessage(seq=1, nonce=nonce)))
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                text = await _receive(socket)
            protocol = wire.decode_protocol(text)
            if protocol != core.PROTOCOL:
                detail = f"the client speaks protocol {protocol}, this daemon {core.PROTOCOL}"
                return core.Rejection(reason="protocol", detail=detail, retry=False)
            hello = wire.decode_from_client(text)
        except TimeoutError:
            detail = f"no hello within {HELLO_TIMEOUT_S:g} s"
            return core.Rejection(reason="malformed", detail=detail, retry=True)
        except _BinaryFrame:
            raise
        except WireError as error:
            return core.Rejection(reason="malformed", detail=error.message, retry=False)
        if not isinstance(hello, wire.HelloMessage) or hello.seq != 1:
            return core.Rejection(reason="malformed", detail="the first message is not hello 1", retry=False)
        if not hmac.compare_digest(hello.proof, wire.proof(self._token, "client", nonce)):
            # It may have read the file of the daemon before this one: it reads it again before it comes back.
            return core.Rejection(reason="token", detail="the proof does not match", retry=True)
        return self._admit(wire.inward(hello, core.Hello)) or hello

    async def _read(self, number: int, client: _Client) -> str:
        """Take in what a client says until its connection ends; returns why it did."""
        try:
            while True:
                message = wire.decode_from_client(await _receive(client.socket))
                client.received_seq += 1
                if message.seq != client.received_seq:
                    raise WireError(f"message {message.seq} came where {client.received_seq} was due")
                match message:
                    case wire.HelloMessage():
                        raise WireError("a second hello")
                    case wire.RanMessage():
                        self._on_event(core.ClientRan(client=number, ran=wire.inward(message, core.Ran)))
                        continue
                    case wire.PanickedMessage():
                        self._on_event(core.ClientPanicked(client=number))
                        continue
                    case wire.AppliedMessage():
                        answer: core.Applied | core.Refused = wire.inward(message, core.Applied)
                    case wire.RefusedMessage():
                        answer = wire.inward(message, core.Refused)
                    case _:
                        assert_never(message)
                if message.answers not in client.unanswered:
                    raise WireError(f"an answer to message {message.answers}, which waits for none")
                patch = client.unanswered.pop(message.answers)
                self._on_event(core.ClientAnswer(client=number, patch=patch, answer=answer))
        except ConnectionClosed as closed:
            return "it did not keep up" if client.outbox.cut_off else str(closed)
        except WireError as error:
            await _close_on(client.socket, error)
            return error.message

    async def _serve_control(self, socket: ServerConnection) -> None:
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()
            try:
                while True:
                    text = await _receive(socket)
                    task = tasks.create_task(self._answer(socket, wire.decode_control_id(text), text))
                    running.add(task)
                    task.add_done_callback(running.discard)
            except ConnectionClosed:
                pass
            except WireError as error:
                await _close_on(socket, error)
            for task in running:
                task.cancel()

    async def _answer(self, socket: ServerConnection, request_id: int, text: str) -> None:
        try:
            command = wire.decode_control(text)
            if isinstance(command, wire.EventsRequest):
                await self._follow(socket, request_id)
                return
            answer = {"id": request_id, "ok": True, "result": await self._control(command)}
        except ConnectionClosed:
            return
        except HotpatchdError as error:
            answer = {"id": request_id, "ok": False, "error": str(error)}
        except Exception as error:
            _log.exception(logs.CONTROL_FAILED)
            answer = {"id": request_id, "ok": False, "error": f"the daemon failed: {error!r}; see its log"}
        with suppress(ConnectionClosed):
            await socket.send(wire.encode(answer))

    async def _follow(self, socket: ServerConnection, request_id: int) -> None:
        with self._events.subscribe() as subscription:
            await socket.send(wire.encode({"id": request_id, "ok": True, "result": True}))
            async for record in subscription:
                await socket.send(wire.encode({"event": record}))
        await _close(socket, CloseCode.TRY_AGAIN_LATER, "the events were not read fast enough")


def parse_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[HOST]:PORT` or `HOST`, for which the port is 0.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text)
    if match is None or int(match[3] or 0) > 0xFFFF:
        raise UsageError(f"not an address to listen on: {text}", hint="give it as HOST:PORT, such as 127.0.0.1:0")
    return match[1] or match[2], int(match[3] or 0)


def _loopback(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UsageError(f"not an IP address: {host}", hint="listen on 127.0.0.1 or ::1") from None
    if not address.is_loopback:
        raise UsageError(
            f"will not listen on {host}: beyond this machine TLS and signed patches are required, "
            "which this version does not have",
            hint="listen on 127.0.0.1, and forward the port to the other machine",
        )
    return address


def _refuse_dioxus(connection: ServerConnection, status: HTTPStatus, error: WireError) -> Response:
    _log.warning(logs.CLIENT_REJECTED, dialect="dioxus", detail=error.message)
    return connection.respond(status, f"{error.message}\n")


async def _receive(socket: ServerConnection) -> str:
    data = await socket.recv()
    if isinstance(data, bytes):
        raise _BinaryFrame("a binary frame where only text belongs")
    return data


async def _write(socket: ServerConnection, message: tuple[str, bytes | None]) -> None:
    text, payload = message
    with suppress(ConnectionClosed):
        await socket.send(text)
        if payload is not None:
            await socket.send(payload)


async def _close_on(socket: ServerConnection, error: WireError) -> None:
    code = CloseCode.UNSUPPORTED_DATA if isinstance(error, _BinaryFrame) else CloseCode.PROTOCOL_ERROR
    await _close(socket, code, error.message)


async def _close(socket: ServerConnection, code: int, reason: str) -> None:
    shortened = reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
    await socket.close(code, shortened)
