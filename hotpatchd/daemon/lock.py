"""Locks between daemons, and how others find one.

Both locks are `flock(2)` on a file: the kernel drops them when their holder dies, however it dies, so the file's
content, which names the holder, means something only while the lock is held. `<state>/daemon.json` tells clients and
commands where the daemon of a state directory listens.
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


class LibraryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The shared library that is patched in whatever program loads it."""

    build_id: str
    path: str


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `daemon.json`."""

    schema: int = SCHEMA
    url: str
    token: str
    pid: int
    library: LibraryInfo | None = None


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a lock; `since` is in Unix seconds."""

    pid: int
    command: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} (`{self.command}`), since {since}"


class LockFile:
    """A file that one open file description at a time has locked.

    Args:
        path: created where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def try_lock(self) -> bool:
        """Lock the file, unless somebody has; True where it is locked now."""
        while True:
            if self.fd < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._is_there():
                return True
            self.close()

    def holder(self) -> Holder | None:
        """Who is named in the file: who has it locked, or died with it; None while that is being written."""
        try:
            return msgspec.json.decode(os.pread(self.fd, 1 << 20, 0), type=Holder)
        except msgspec.MsgspecError:
            return None

    def sign(self) -> None:
        """Name this process as the holder."""
        me = Holder(pid=os.getpid(), command=shlex.join(sys.orig_argv), since=time.time())
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, msgspec.json.encode(me), 0)

    def release(self) -> None:
        """Unlock the file, and name nobody in it."""
        os.ftruncate(self.fd, 0)
        self.close()

    def close(self) -> None:
        """Unlock the file, or give up waiting for it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _is_there(self) -> bool:
        """Whether the locked file is still the one that others will open; `cargo clean` may have removed it."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return False


class StateLock:
    """The right to be the daemon of a state directory, as a context manager.

    Raises:
        UsageError: on entering, when another daemon has it; names that daemon.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._lock = LockFile(state_dir / "lock")

    def __enter__(self) -> Self:
        if not self._lock.try_lock():
            holder = self._lock.holder()
            self._lock.close()
            raise UsageError(
                f"another daemon is running for {self._state_dir.parent}: {holder or 'it is starting'}",
                hint="end it first, or give this one a target directory of its own with --target-dir",
            )
        self._remove_daemon_json()
        self._lock.sign()
        return self

    def publish(self, *, url: str, token: str, library: LibraryInfo | None = None) -> None:
        """Write `daemon.json`, readable by the owner only, so that it is never seen half written."""
        temporary = self._state_dir / f"daemon.json.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        info = DaemonInfo(url=url, token=token, pid=os.getpid(), library=library)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(info))
        temporary.replace(self._state_dir / "daemon.json")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_daemon_json()
        self._lock.release()

    def _remove_daemon_json(self) -> None:
        (self._state_dir / "daemon.json").unlink(missing_ok=True)


def read_daemon(state_dir: Path) -> DaemonInfo | None:
    """Where the daemon of a state directory listens, or None. It may have died without removing its file."""
    try:
        info = msgspec.json.decode((state_dir / "daemon.json").read_bytes(), type=DaemonInfo)
    except (OSError, msgspec.MsgspecError):
        return None
    return info if info.schema == SCHEMA else None
