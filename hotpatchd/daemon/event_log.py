"""Where events go: the `--events` file, whoever follows them, and the memory of the last thousand."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from hotpatchd.core.errors import UsageError
from hotpatchd.core.events import Event, to_record
from hotpatchd.daemon import logs, wire

KEPT_EVENTS = 1000
SUBSCRIBER_QUEUE = 256

_log = structlog.get_logger()


class Subscription:
    """The records of events since it was made. Iterating ends when its reader has fallen too far behind."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(SUBSCRIBER_QUEUE)
        self._overrun = False

    def put(self, record: dict[str, Any]) -> None:
        """Hand over a record; the first one that finds no room is the end."""
        self._overrun = self._overrun or self._queue.full()
        if not self._overrun:
            self._queue.put_nowait(record)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while not (self._overrun and self._queue.empty()):
            yield await self._queue.get()


class EventBus:
    """Hands every event to the events file and to all subscriptions.

    Args:
        path: the events file, appended to with one write a line; None for no file.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self._subscriptions: set[Subscription] = set()
        self._fd: int | None = None
        if path is not None:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UsageError(
                    f"cannot write events to {path}: {error.strerror}", hint="give --events another file"
                ) from error

    def publish(self, event: Event) -> None:
        """Record an event as happening now. Failing to write to the file is logged, and no more."""
        record = to_record(event, time.time())
        self.recent.append(record)
        for subscription in self._subscriptions:
            subscription.put(record)
        if self._fd is not None:
            line = wire.encode(record).encode() + b"\n"
            try:
                os.write(self._fd, line)
            except OSError as error:
                _log.warning(logs.EVENTS_DROPPED, name=event.event, reason=error.strerror)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Follow the events from here on, until the context ends."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Close the events file; calling it again does nothing."""
        if self._fd is not None:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = None
