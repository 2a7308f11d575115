"""What is to be sent to one client, bounded: a client that does not read is cut off."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

OUTBOX_MESSAGES = 64

_Message = TypeVar("_Message")


class Outbox(Generic[_Message]):
    """Messages for one client, in order.

    Args:
        abort: ends the connection at once. A client that does not read would not take part in a closing handshake.
    """

    def __init__(self, abort: Callable[[], None]) -> None:
        self._abort = abort
        self._queue: asyncio.Queue[_Message] = asyncio.Queue(OUTBOX_MESSAGES)
        self.cut_off = False

    def put(self, message: _Message) -> bool:
        """Queue a message; the first one that finds no room is the end of the connection.

        Returns:
            False when the client is, or was, cut off.
        """
        if self.cut_off:
            return False
        if self._queue.full():
            self.cut_off = True
            self._abort()
            return False
        self._queue.put_nowait(message)
        return True

    async def drain(self, send: Callable[[_Message], Awaitable[None]]) -> None:
        """Send what is queued, and what will be, until `send` fails or the task is cancelled."""
        while True:
            await send(await self._queue.get())
