"""The daemon's side of the wire, one step at a time."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

WAIT_S = 20


def proof(token: str, side: str, nonce: str) -> str:
    """What shows that `side` knows the token."""
    return hmac.new(token.encode(), f"{side}:{nonce}".encode(), hashlib.sha256).hexdigest()


class Peer:
    """One connection from a client."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.nonce = secrets.token_hex(32)
        self.hello: dict[str, Any] = {}
        self.sent = 0

    async def send(self, **message: Any) -> int:
        """Send a message under the next number, which is returned."""
        self.sent += 1
        await self.socket.send(json.dumps({"seq": self.sent, **message}))
        return self.sent

    async def receive(self) -> dict[str, Any]:
        """The client's next message."""
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), WAIT_S))
        return message

    async def challenge(self) -> None:
        """Open up to the client's hello."""
        await self.send(type="challenge", protocol=1, nonce=self.nonce)
        self.hello = await self.receive()

    async def apply(self, message: dict[str, Any], content: bytes) -> dict[str, Any]:
        """Send a patch; the client's answer to it."""
        seq = await self.send(**message)
        await self.socket.send(content)
        while (answer := await self.receive())["type"] == "panicked":
            pass
        assert answer["answers"] == seq
        return answer

    async def undo(self, to: str | None) -> dict[str, Any]:
        """Take back what came after `to`; the client's answer."""
        await self.send(type="undo", to=to)
        return await self.receive()

    async def close_code(self) -> int | None:
        """The code with which the client closes."""
        await asyncio.wait_for(self.socket.wait_closed(), WAIT_S)
        return self.socket.close_code


class FakeDaemon:
    """Listens as `state`'s `daemon.json` says."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.token = secrets.token_hex(32)
        self.url = ""
        self.arrivals: asyncio.Queue[Peer] = asyncio.Queue()
        self.handshakes: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, state: Path, library: dict[str, str] | None = None) -> AsyncIterator[Self]:
        """Listen on a free port and say so in the state directory, and that this library is what is patched."""
        daemon = cls(state)

        async def attend(socket: ServerConnection) -> None:
            assert socket.request is not None
            daemon.handshakes.append(dict(socket.request.headers.raw_items()) | {":path": socket.request.path})
            await daemon.arrivals.put(Peer(socket))
            await socket.wait_closed()

        options: dict[str, Any] = {"compression": None, "max_size": 1 << 20, "close_timeout": 1}
        async with serve(attend, "127.0.0.1", 0, process_request=daemon._screen, **options) as server:
            port = server.sockets[0].getsockname()[1]
            daemon.url = f"ws://127.0.0.1:{port}/hotpatch/1"
            daemon.publish(library)
            yield daemon

    def publish(self, library: dict[str, str] | None) -> None:
        """Write `daemon.json`."""
        content = {"schema": 1, "url": self.url, "token": self.token, "pid": 1, "library": library}
        partial = self.state / "daemon.json.partial"
        partial.write_text(json.dumps(content))
        partial.rename(self.state / "daemon.json")

    def _screen(self, _: ServerConnection, request: Request) -> Response | None:
        """Answer requests for files, to those who show the token."""
        if not request.path.startswith("/patches/"):
            return None
        content = self.files.get(request.path)
        if content is None or request.headers["Authorization"] != f"Bearer {self.token}":
            return Response(404, "Not Found", Headers({"Connection": "close", "Content-Length": "0"}), b"")
        headers = Headers({"Connection": "close", "Content-Length": str(len(content))})
        return Response(200, "OK", headers, content)

    async def arrival(self) -> Peer:
        """The next client that connects."""
        return await asyncio.wait_for(self.arrivals.get(), WAIT_S)

    async def welcome(self) -> Peer:
        """The next client, opened up to its welcome."""
        peer = await self.arrival()
        await peer.challenge()
        await peer.send(type="welcome", proof=proof(self.token, "daemon", peer.hello["nonce"]), client=1)
        return peer
