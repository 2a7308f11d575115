"""Commands reach the running daemon, or say that there is none."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from hotpatchd.core import client as core
from hotpatchd.core.errors import HotpatchdError, UsageError
from hotpatchd.core.events import DaemonReady
from hotpatchd.daemon import control, event_log, wire
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.lock import StateLock
from hotpatchd.daemon.server import PatchServer

BOUND_S = 20


class Daemon:
    """A server that answers commands by telling what it understood."""

    def __init__(self) -> None:
        self.events = EventBus()
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.server = PatchServer(
            token="t" * 64,
            admit=lambda hello: None,
            on_event=lambda event: None,
            control=self.carry_out,
            events=self.events,
            find_patch=lambda patch: None,
        )

    async def carry_out(self, command: wire.ControlCommand) -> object:
        """Answer `trigger`, refuse `undo`, fail at `clients`, and never finish anything else."""
        match command:
            case wire.TriggerRequest(files=files):
                return {"edit": None, "files": files}
            case wire.UndoRequest():
                raise HotpatchdError("nothing to undo", hint="edit something first")
            case wire.ClientsRequest():
                return core.__name__ / 2  # type: ignore[operator]
            case _:
                self.waiting.set()
                try:
                    return await asyncio.get_running_loop().create_future()
                finally:
                    self.cancelled.set()


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A running daemon of tmp_path/hotpatchd."""
    running = Daemon()
    with StateLock(tmp_path / "hotpatchd") as lock:
        lock.publish(url=await running.server.start(), token="t" * 64)
        try:
            yield running
        finally:
            await asyncio.wait_for(running.server.close(), BOUND_S)


async def test_command_and_arguments_arrive(daemon: Daemon, tmp_path: Path) -> None:
    """A call returns the daemon's result."""
    result = await control.call(tmp_path / "hotpatchd", "trigger", files=["/a.rs"])
    assert result == {"edit": None, "files": ["/a.rs"]}


async def test_refusal_is_told_in_the_daemons_words(daemon: Daemon, tmp_path: Path) -> None:
    """An error of the daemon is raised where the command was given."""
    with pytest.raises(HotpatchdError, match=r"nothing to undo\n  help: edit something first"):
        await control.call(tmp_path / "hotpatchd", "undo", count=1)


async def test_wrong_argument_is_named(daemon: Daemon, tmp_path: Path) -> None:
    """A bad argument is an error of that command alone."""
    with pytest.raises(HotpatchdError, match="count"):
        await control.call(tmp_path / "hotpatchd", "undo", count=0)


async def test_unknown_command_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """A command of a newer version is answered, not ignored."""
    with pytest.raises(HotpatchdError, match="dance"):
        await control.call(tmp_path / "hotpatchd", "dance")


async def test_defect_in_a_command_does_not_end_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """An unexpected exception is told, and the next command works."""
    with pytest.raises(HotpatchdError, match="TypeError"):
        await control.call(tmp_path / "hotpatchd", "clients")
    assert await control.call(tmp_path / "hotpatchd", "trigger")


async def test_command_is_dropped_when_its_asker_leaves(daemon: Daemon, tmp_path: Path) -> None:
    """A command that still waits is cancelled once nobody wants its result."""
    call = asyncio.ensure_future(control.call(tmp_path / "hotpatchd", "status"))
    await asyncio.wait_for(daemon.waiting.wait(), BOUND_S)
    call.cancel()
    await asyncio.wait_for(daemon.cancelled.wait(), BOUND_S)


async def test_daemon_that_ends_meanwhile_is_told(daemon: Daemon, tmp_path: Path) -> None:
    """A command in progress fails when the daemon closes, and does not hold it up."""
    call = asyncio.ensure_future(control.call(tmp_path / "hotpatchd", "status"))
    await asyncio.wait_for(daemon.waiting.wait(), BOUND_S)
    await asyncio.wait_for(daemon.server.close(), BOUND_S)
    with pytest.raises(HotpatchdError, match="ended before it answered"):
        await call


async def test_events_are_followed_until_the_daemon_ends(daemon: Daemon, tmp_path: Path) -> None:
    """A follower gets each event, and its loop ends with the daemon."""
    async with aclosing(control.subscribe(tmp_path / "hotpatchd")) as events:
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            daemon.events.publish(DaemonReady(url="u", pid=1))
            await asyncio.sleep(0)
        assert (await first)["event"] == "daemon.ready"
        await asyncio.wait_for(daemon.server.close(), BOUND_S)
        assert all([event["event"] == "daemon.ready" async for event in events])


async def test_follower_that_is_too_slow_is_told(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that was cut off does not take it for the daemon's end."""
    monkeypatch.setattr(event_log, "SUBSCRIBER_QUEUE", 1)
    async with aclosing(control.subscribe(tmp_path / "hotpatchd")) as events:
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            daemon.events.publish(DaemonReady(url="u", pid=1))
            daemon.events.publish(DaemonReady(url="u", pid=2))
            await asyncio.sleep(0)
        with pytest.raises(HotpatchdError, match="not read fast enough"):
            async for _ in events:
                pass


async def test_no_daemon_is_said_with_the_way_out(tmp_path: Path) -> None:
    """Without a daemon the error names the target directory and how to start one."""
    with pytest.raises(UsageError) as refused:
        await control.call(tmp_path / "hotpatchd", "status")
    assert str(tmp_path) in refused.value.message
    assert "hotpatchd run" in refused.value.hint


async def test_file_of_a_dead_daemon_means_no_daemon(tmp_path: Path) -> None:
    """An address where nobody listens any more is not a daemon."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with StateLock(tmp_path / "hotpatchd") as lock:
        lock.publish(url=f"ws://127.0.0.1:{port}/hotpatch/1", token="t" * 64)
        with pytest.raises(UsageError, match="no daemon is running"):
            await control.call(tmp_path / "hotpatchd", "status")


async def test_another_daemon_at_the_address_means_no_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """A daemon that does not accept the token is not the one looked for."""
    with StateLock(tmp_path / "other/hotpatchd") as lock:
        url = (tmp_path / "hotpatchd/daemon.json").read_text().split('"url":"')[1].split('"')[0]
        lock.publish(url=url, token="w" * 64)
        with pytest.raises(UsageError, match="no daemon is running"):
            await control.call(tmp_path / "other/hotpatchd", "status")
