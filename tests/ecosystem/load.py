"""Requests without pause to the service of `fixtures/ecosystem/service`, each answer of which is judged.

What a probe's answers look like changes with the service's sources, so each probe has versions: patterns that a whole
answer must match. An edit adds a version before it is saved; once it was applied, only requests that began earlier may
still see the one before.
"""

import asyncio
import gzip
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from websockets.asyncio.client import connect

CONNECTIONS = 6
"""Connections that ask for everything in turn; two more stay open for events and for the chat."""
PAUSE_S = 0.005
"""Between two requests of a connection: without it, the load would take the processors that rustc needs."""
ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass(slots=True, kw_only=True)
class Probe:
    """A question to the service, and what answers look like.

    Args:
        path: where it is asked; `{id}` stands for an order that was made at the start.
        versions: patterns, oldest first, of an answer: status and body; of each line of it where `by_line`.
        body: of a POST; JSON where it is not text.
        headers: of the request.
        lags: what is answered was made before the request, so the version before the oldest may still be seen.
        show: the answer as the patterns know it.
        settled: number of the oldest version that a request may see that begins now.
        seen: number of the newest version that was seen.
    """

    path: str
    versions: list[str]
    body: str | Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    by_line: bool = False
    lags: bool = False
    show: Callable[[Reply], str] = lambda reply: f"{reply.status} {reply.body}"
    settled: int = 0
    seen: int = 0

    def judge(self, answer: str, oldest: int) -> None:
        """Asserts that some version gives this answer that was in force since the request began."""
        oldest = max(oldest - self.lags, 0)
        for number in range(len(self.versions) - 1, oldest - 1, -1):
            if re.fullmatch(self.versions[number], answer):
                self.seen = max(self.seen, number)
                return
        raise AssertionError(f"{self.path} answered {answer!r}, not one of {self.versions[oldest:]}")


class Connection:
    """One keep-alive connection, by the asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator[Self]:
        """Connects to `host:port`."""
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(self, probe: Probe, path: str) -> Reply:
        """A request and its whole response."""
        status, headers = await self._begin(probe, path)
        body = b"".join([chunk async for chunk in self._chunks(headers)])
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return Reply(status=status, headers=headers, body=body.decode())

    async def listen(self, probe: Probe) -> AsyncIterator[str]:
        """The pieces of an endless response."""
        _, headers = await self._begin(probe, probe.path)
        async for chunk in self._chunks(headers):
            yield chunk.decode()

    async def _begin(self, probe: Probe, path: str) -> tuple[int, Mapping[str, str]]:
        headers = {"host": "127.0.0.1:{}".format(self._writer.get_extra_info("peername")[1]), **probe.headers}
        content = b""
        if probe.body is not None:
            is_text = isinstance(probe.body, str)
            content = (probe.body if isinstance(probe.body, str) else json.dumps(probe.body)).encode()
            headers |= {
                "content-length": str(len(content)),
                "content-type": "text/plain" if is_text else "application/json",
            }
        method = "GET" if probe.body is None else "POST"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode() + content)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = (line.partition(": ")[::2] for line in head[1:] if line)
        return int(head[0].split()[1]), {name.lower(): value for name, value in fields}

    async def _chunks(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(headers["content-length"]))
            return
        while True:
            size = int(await self._reader.readline(), 16)
            chunk = await self._reader.readexactly(size + 2)
            if not size:
                return
            yield chunk[:-2]


class Load:
    """A context manager: requests all the time, in a thread of its own, to a service that has just been started.

    Args:
        address: the service's `host:port`.
        probes: what to ask on `CONNECTIONS` connections, by name; among them `order`, which makes one.
        events: what the endless stream gives.
        chat: what the web socket answers.
    """

    def __init__(self, address: str, probes: Mapping[str, Probe], *, events: Probe, chat: Probe) -> None:
        self.address = address
        self.probes = probes
        self.events = events
        self.chat = chat
        self.orders: dict[int, tuple[str, str]] = {}
        """Number → id and text of every order that was made."""
        self.answers = 0
        self.latencies: list[tuple[float, float, str]] = []
        """When each request began, how long it took (seconds), and what it was."""
        self._failure: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def check(self) -> None:
        """Raises what went wrong, if anything did."""
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as failure:
            self._failure = failure

    async def _all(self) -> None:
        async with Connection.open(self.address) as connection:
            await self._ask(connection, "order", "")
            identity = next(iter(self.orders.values()))[0]
            async with asyncio.TaskGroup() as group:
                for number in range(CONNECTIONS):
                    group.create_task(self._ask_in_turn(identity, number))
                group.create_task(self._listen())
                group.create_task(self._talk())
            await self._check_orders(connection)

    async def _check_orders(self, connection: Connection) -> None:
        """All orders are still there, as they were made, and none was lost or numbered twice."""
        assert sorted(self.orders) == list(range(1, len(self.orders) + 1))
        for identity, made in self.orders.values():
            kept = await connection.ask(self.probes["order_shown"], f"/orders/{identity}")
            assert _without_status(kept.body) == _without_status(made)

    async def _ask_in_turn(self, identity: str, first: int) -> None:
        names = [*list(self.probes)[first:], *list(self.probes)[:first]]
        served = 0
        async with Connection.open(self.address) as connection:
            while not self._over:
                for name in names:
                    reply = await self._ask(connection, name, identity)
                    if number := reply.headers.get("x-served"):
                        assert int(number) > served, f"after {served} requests came number {number}"
                        served = int(number)
                    await asyncio.sleep(PAUSE_S)

    async def _ask(self, connection: Connection, name: str, identity: str) -> Reply:
        probe = self.probes[name]
        oldest, begun = probe.settled, time.time()
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reply = await connection.ask(probe, probe.path.format(id=identity))
        self.latencies.append((begun, time.time() - begun, name))
        for answer in reply.body.splitlines() if probe.by_line else [probe.show(reply)]:
            probe.judge(answer, oldest)
        self.answers += 1
        if name == "order":
            order = json.loads(reply.body)
            assert order["number"] not in self.orders
            self.orders[order["number"]] = order["id"], reply.body
        return reply

    async def _listen(self) -> None:
        expected = 0
        async with Connection.open(self.address) as connection:
            async for message in connection.listen(self.events):
                identity, text = message.splitlines()[:2]
                expected += 1
                assert identity == f"id: {expected}"
                self.events.judge(text, self.events.settled)
                if self._over:
                    return

    async def _talk(self) -> None:
        count = 0
        async with connect(f"ws://{self.address}{self.chat.path}") as socket:
            while not self._over:
                oldest = self.chat.settled
                await socket.send("hello ")
                answer = await asyncio.wait_for(socket.recv(), ANSWER_WITHIN_S)
                assert isinstance(answer, str)
                number, _, text = answer.partition(": ")
                count += 1
                assert int(number) == count
                self.chat.judge(text, oldest)
                await asyncio.sleep(PAUSE_S)


def _without_status(order: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(order).items() if key != "status"}
