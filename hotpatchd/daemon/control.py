"""How a command such as `hotpatchd status` talks to the running daemon."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import CloseCode

from hotpatchd.core.errors import HotpatchdError, UsageError
from hotpatchd.daemon import wire
from hotpatchd.daemon.lock import read_daemon
from hotpatchd.daemon.server import CLIENT_PATH, CONTROL_PATH


class _Answer(msgspec.Struct):
    ok: bool
    result: Any = None
    error: str = ""


class _Event(msgspec.Struct):
    event: dict[str, Any]


async def call(state_dir: Path, command: str, **arguments: object) -> Any:
    """Have the daemon of `state_dir` carry out a command of `docs/wire.md`.

    Returns:
        its result, as JSON values.

    Raises:
        UsageError: no daemon is running.
        HotpatchdError: the daemon refused, with its words; or it ended before it answered.
    """
    async with _connect(state_dir) as socket:
        return await _request(socket, command, arguments)


async def subscribe(state_dir: Path) -> AsyncGenerator[dict[str, Any], None]:
    """Follow the daemon's events from now on, until it ends.

    Raises:
        UsageError: no daemon is running.
        HotpatchdError: the events were not taken fast enough, or the daemon died.
    """
    async with _connect(state_dir) as socket:
        await _request(socket, "events", {})
        async for text in socket:
            yield msgspec.json.decode(text, type=_Event).event


async def _request(socket: ClientConnection, command: str, arguments: dict[str, object]) -> Any:
    await socket.send(wire.encode({"id": 1, "command": command, **arguments}))
    answer = msgspec.json.decode(await socket.recv(), type=_Answer)
    if not answer.ok:
        raise HotpatchdError(answer.error)
    return answer.result


@asynccontextmanager
async def _connect(state_dir: Path) -> AsyncIterator[ClientConnection]:
    nobody = UsageError(
        f"no daemon is running for {state_dir.parent}",
        hint="start one with `hotpatchd run` or `hotpatchd serve`",
    )
    daemon = read_daemon(state_dir)
    if daemon is None:
        raise nobody
    try:
        socket = await connect(
            daemon.url.removesuffix(CLIENT_PATH) + CONTROL_PATH,
            additional_headers={"Authorization": f"Bearer {daemon.token}"},
            compression=None,
            proxy=None,
            max_size=None,
        )
    except (OSError, InvalidHandshake) as error:
        # The file outlives a daemon that was killed; something else may listen at its address by now.
        raise nobody from error
    try:
        async with socket:
            yield socket
    except ConnectionClosed as closed:
        if closed.rcvd is not None and closed.rcvd.code == CloseCode.TRY_AGAIN_LATER:
            raise HotpatchdError(f"the daemon cut the connection: {closed.rcvd.reason}") from closed
        raise HotpatchdError("the daemon ended before it answered") from closed
