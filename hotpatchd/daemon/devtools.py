"""The connected programs that use the `subsecond` crate, whatever dialect they speak."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import structlog

from hotpatchd.core.dioxus import (
    DevtoolsConnected,
    DevtoolsDialect,
    DevtoolsEvent,
    DevtoolsHello,
    DevtoolsLost,
    DevtoolsNotice,
    DevtoolsTable,
)
from hotpatchd.daemon import logs
from hotpatchd.daemon.outbox import Outbox

Frame: TypeAlias = str | bytes

_log = structlog.get_logger()


class DevtoolsClient(ABC):
    """One connected program.

    Args:
        hello: what it said of itself.
        pid: its process, if known.
    """

    dialect: ClassVar[DevtoolsDialect]

    def __init__(self, hello: DevtoolsHello, pid: int | None) -> None:
        self.hello = hello
        self.pid = pid
        self.outbox: Outbox[Frame] = Outbox(self.abort)

    @abstractmethod
    def table_frame(self, table: DevtoolsTable, ms_elapsed: int) -> Frame:
        """What tells it to load a patch library."""

    def assets_frame(self, paths: Sequence[str]) -> Frame | None:
        """What tells it that assets changed; None where the dialect has no words for that."""
        return None

    def notice_frame(self, notice: DevtoolsNotice) -> Frame | None:
        """What tells it how a build is going; None where the dialect has no words for that."""
        return None

    @abstractmethod
    async def read(self) -> str:
        """Skip what it says until the connection ends; returns why it did."""

    @abstractmethod
    async def write(self, frame: Frame) -> None:
        """Send a frame, unless the connection is gone."""

    @abstractmethod
    def abort(self) -> None:
        """End the connection at once."""


class DevtoolsClients:
    """Serves such programs and tells of them.

    Args:
        number: the next client's number.
        on_event: receives what happens to them.
    """

    def __init__(self, number: Callable[[], int], on_event: Callable[[DevtoolsEvent], None]) -> None:
        self._number = number
        self.on_event = on_event
        self._clients: dict[int, DevtoolsClient] = {}

    async def serve(self, client: DevtoolsClient) -> None:
        """Serve a program until its connection ends."""
        number = self._number()
        self._clients[number] = client
        _log.info(logs.CLIENT_CONNECTED, client=number, pid=client.pid, dialect=client.dialect)
        reason = "its connection was dropped"
        try:
            self.on_event(DevtoolsConnected(client=number, hello=client.hello, pid=client.pid, dialect=client.dialect))
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(client.outbox.drain(client.write))
                reason = await client.read()
                writer.cancel()
            if client.outbox.cut_off:
                reason = "it did not keep up"
        finally:
            del self._clients[number]
            _log.info(logs.CLIENT_LOST, client=number, reason=reason)
            self.on_event(DevtoolsLost(client=number, reason=reason))

    def send_table(self, number: int, table: DevtoolsTable, ms_elapsed: int) -> bool:
        """Queue a patch for a client; no answer will come.

        Args:
            number: the client.
            table: the patch, for its process alone.
            ms_elapsed: how long the patch took, for display.

        Returns:
            False when the client is not there (any more); a `DevtoolsLost` says so, or said so.
        """
        client = self._clients.get(number)
        return client is not None and client.outbox.put(client.table_frame(table, ms_elapsed))

    def send_assets(self, number: int, paths: Sequence[str]) -> bool:
        """Queue the names of changed assets, for a dialect that has them; otherwise like `send_table`."""
        client = self._clients.get(number)
        return client is not None and _put(client, client.assets_frame(paths))

    def send_notice(self, number: int, notice: DevtoolsNotice) -> bool:
        """Queue word of how a build is going, for a dialect that has it; otherwise like `send_table`."""
        client = self._clients.get(number)
        return client is not None and _put(client, client.notice_frame(notice))


def _put(client: DevtoolsClient, frame: Frame | None) -> bool:
    return not client.outbox.cut_off if frame is None else client.outbox.put(frame)
