"""One daemon per state directory, and how others find it.

The lock is `flock(2)` on `<state>/lock`: the kernel drops it when its holder dies, however it dies, so the
file's content, which names the holder, means something only while the lock is held. `<state>/daemon.json`
tells clients and commands where the holder listens.
"""

import fcntl
import os
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from hotpatchd.core.errors import UsageError

SCHEMA = 1


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `daemon.json`."""

    schema: int = SCHEMA
    url: str
    token: str
    pid: int


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    command: str
    since: float


class StateLock:
    """The right to be the daemon of a state directory, as a context manager.

    Raises:
        UsageError: on entering, when another daemon has it; names that daemon.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._fd = -1

    def __enter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 1 << 20, 0)
            os.close(self._fd)
            raise UsageError(
                f"another daemon is running for {self._state_dir.parent}: {_describe(holder)}",
                hint="end it first, or give this one a target directory of its own with --target-dir",
            ) from None
        self._remove_daemon_json()
        me = _Holder(pid=os.getpid(), command=shlex.join(sys.orig_argv), since=time.time())
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(me), 0)
        return self

    def publish(self, *, url: str, token: str) -> None:
        """Write `daemon.json`, readable by the owner only, so that it is never seen half written."""
        temporary = self._state_dir / f"daemon.json.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        info = DaemonInfo(url=url, token=token, pid=os.getpid())
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(info))
        temporary.replace(self._state_dir / "daemon.json")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_daemon_json()
        os.close(self._fd)

    def _remove_daemon_json(self) -> None:
        (self._state_dir / "daemon.json").unlink(missing_ok=True)


def read_daemon(state_dir: Path) -> DaemonInfo | None:
    """Where the daemon of a state directory listens, or None. It may have died without removing its file."""
    try:
        info = msgspec.json.decode((state_dir / "daemon.json").read_bytes(), type=DaemonInfo)
    except (OSError, msgspec.MsgspecError):
        return None
    return info if info.schema == SCHEMA else None


def _describe(content: bytes) -> str:
    try:
        holder = msgspec.json.decode(content, type=_Holder)
    except msgspec.MsgspecError:
        return "it is starting"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return f"process {holder.pid} (`{holder.command}`), since {since}"
