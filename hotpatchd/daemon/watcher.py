"""Tells which files changed, in settled batches.

Promise: an edit is reported once, after it went quiet (`hotpatchd.core.settle`), if the file's content is not what
it was in the last batch. Touching a file, or writing the same text twice, is not an edit.

Events only say where to look; what counts is the content found there. So events may come twice or too often, and
when some are lost (the kernel's queue overflowed) everything is looked at again.

Files that are written to without an event are missed: through memory maps. Where the kernel does not announce other
changes either (`hotpatchd.core.mounts`), and where inotify has no watches left, the tree is polled.
"""

import asyncio
import errno
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from hotpatchd.core.mounts import needs_polling, parse_mounts
from hotpatchd.core.settle import (
    SettleTimes,
    Settling,
    Tick,
    Touched,
    deadline_ms,
    is_editor_temporary,
    step,
)
from hotpatchd.daemon.file_events import EVERYTHING, POLL_INTERVAL_S, Inbox, InotifySource, PollingSource, Scope, Source

MAX_HASHED_BYTES = 8 << 20

_LONG_AGO_S = 1.0
_MOUNTINFO = Path("/proc/self/mountinfo")
_HOLLOW_LOOK_S = 0.005

_Content = bytes | frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Files that changed together.

    Args:
        files: absolute, sorted, never empty; some may not exist any more.
        last_write: when the last of them changed, in Unix seconds.
        settle_ms: from then until the batch was complete.
    """

    files: tuple[Path, ...]
    last_write: float
    settle_ms: float


class Watcher:
    """Watches source directories, as an async context manager. What changes before it is entered is not seen.

    Args:
        roots: absolute directories.
        excluded: absolute directories below them that are not looked at, such as target directories.
        files: further inputs; see `include`.
        relevant: whether a file can matter at all; asked for every file of the roots. What a running program logs
            into the tree should not: it would hold edits back until the ceiling.
        times: when a batch is complete.
        poll: look for changes instead of being told by the kernel.
        notice: called with a sentence for the developer when watching falls back to polling.
    """

    def __init__(
        self,
        roots: Iterable[Path],
        *,
        excluded: Iterable[Path] = (),
        files: Iterable[Path] = (),
        relevant: Callable[[str], bool] = lambda path: True,
        times: SettleTimes | None = None,
        poll: bool = False,
        notice: Callable[[str], None],
    ) -> None:
        self._scope = Scope(map(str, roots), map(str, excluded), map(str, files))
        self._relevant = relevant
        self._times = times or SettleTimes()
        self._poll = poll
        self._notice = notice
        self._known: dict[str, _Content] = {}
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._inbox = Inbox(lambda: self._loop.call_soon_threadsafe(self._wake.set))
        self._state: Settling | None = None
        self._locked = False
        self._source: Source | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._open_source()
        await asyncio.to_thread(self._look, [EVERYTHING])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._source is not None:
            await asyncio.to_thread(self._source.close)

    async def batches(self) -> AsyncIterator[Batch]:
        """Every batch as it settles, for ever. What changes while the caller is busy is one batch afterwards."""
        while True:
            batch = await self._wait_batch()
            if batch is not None:
                yield batch

    async def rescan(self, files: Iterable[Path] = ()) -> Batch | None:
        """Look now, without waiting for quiet, at these files, or at everything if none is named.

        Only a file that is hollow is given the time to be written.

        Returns:
            what changed since the last batch; it is not reported by `batches` again.
        """
        self._inbox.last_event = time.time()
        paths = frozenset(map(str, files)) or frozenset({EVERYTHING})
        return await self._batch_of(paths, patient=True)

    async def include(self, files: Iterable[Path]) -> None:
        """Watch further inputs from now on; they are no edits by themselves.

        Args:
            files: absolute paths of files, inside the roots or elsewhere, and of symbolic links to files. A directory
                stands for the names in it: when one comes or goes, a batch has the directory, and what has that name.
        """
        new = frozenset(map(str, files)) - self._scope.files
        if new:
            self._scope = await asyncio.to_thread(self._scope.with_files, self._scope.files | new)
            if self._source is not None:
                try:
                    await asyncio.to_thread(self._source.watch, self._scope)
                except OSError as error:
                    self._failed(error)
            async with self._looking:
                await asyncio.to_thread(self._look, new)

    async def _wait_batch(self) -> Batch | None:
        now_ms = time.monotonic() * 1000
        wait_s = None if self._state is None else max(deadline_ms(self._state, self._times) - now_ms, 0) / 1000
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        told = self._inbox.fetch()
        if told.lost:
            self._scope = await asyncio.to_thread(self._scope.with_files, self._scope.files)
            await self._open_source()
        paths = {name for path in told.paths for name in (path, *self._scope.aliases.get(path, ()))}
        touched = frozenset(filter(self._matters, paths))
        if touched or told.locked != self._locked:
            self._locked = told.locked
            event = Touched(
                paths=touched,
                hollow=frozenset(filter(self._is_hollow, touched)),
                fresh=frozenset(filter(self._is_fresh, touched)),
                bulk=bool(touched) and told.bulk,
                locked=told.locked,
            )
            self._state, settled = step(self._state, event, told.last_ms, self._times)
        else:
            self._state, settled = step(self._state, Tick(), time.monotonic() * 1000, self._times)
        if settled and told.locked:
            # Git takes too long, or left its lock behind.
            self._inbox.lock(held=False)
        return await self._batch_of(settled) if settled else None

    async def _batch_of(self, paths: frozenset[str], *, patient: bool = False) -> Batch | None:
        async with self._looking:
            if patient:
                await asyncio.to_thread(self._await_content, paths)
            changed = await asyncio.to_thread(self._look, paths)
        if not changed:
            return None
        last_write = max(map(_changed_at, changed))
        if self._inbox.last_event - last_write > _LONG_AGO_S:
            # Nothing was written: files were removed, or came and went with a directory that was renamed.
            last_write = self._inbox.last_event
        return Batch(
            files=tuple(sorted(map(Path, changed))),
            last_write=last_write,
            settle_ms=(time.time() - last_write) * 1000,
        )

    def _look(self, paths: Iterable[str]) -> set[str]:
        """Which of these files have another content than when last looked at."""
        changed = set()
        for path in self._files_of(paths):
            content, known = _content_of(path, listed=path in self._scope.files), self._known.get(path)
            if content == known:
                continue
            changed.add(path)
            changed.update(os.path.join(path, name) for name in _names(content) ^ _names(known))
            if content is None:
                del self._known[path]
            else:
                self._known[path] = content
        return changed

    def _await_content(self, paths: Iterable[str]) -> None:
        """Return when none of these files is hollow, after the hollow time at the latest."""
        until = time.monotonic() + self._times.hollow_ms / 1000
        hollow = list(filter(self._is_hollow, self._files_of(paths)))
        while hollow and time.monotonic() < until:
            time.sleep(_HOLLOW_LOOK_S)
            hollow = list(filter(self._is_hollow, hollow))

    def _files_of(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            if path == EVERYTHING:
                yield from filter(self._matters, {*self._scope.everything(), *self._known})
            elif path.endswith(os.sep):
                yield from [known for known in self._known if known.startswith(path)]
            elif self._matters(path):
                yield path

    def _matters(self, path: str) -> bool:
        if path.endswith(os.sep) or path in self._scope.files:
            return True
        return (
            path.startswith(self._scope.prefixes)
            and not is_editor_temporary(os.path.basename(path))
            and self._relevant(path)
        )

    def _is_hollow(self, path: str) -> bool:
        if not self._known.get(path):
            return False
        try:
            status = os.stat(path)
        except OSError:
            return True
        return stat.S_ISREG(status.st_mode) and status.st_size == 0

    def _is_fresh(self, path: str) -> bool:
        return path not in self._known and os.path.isfile(path)

    async def _open_source(self) -> None:
        """Begin watching, then end what watched before, so that no change falls between."""
        old, self._source = self._source, await asyncio.to_thread(self._new_source)
        if old is not None:
            await asyncio.to_thread(old.close)

    def _new_source(self) -> Source:
        if not self._poll:
            unannounced = needs_polling(parse_mounts(_read_mountinfo()), map(os.path.realpath, self._scope.roots))
            if unannounced is not None:
                mount = unannounced.mount
                self._fall_back(
                    f"{unannounced.directory} is on {mount.point}, a file system of type {mount.type}: "
                    f"the kernel does not tell what {unannounced.by} change there",
                    "to be told, keep the sources on a local disk",
                )
        if not self._poll:
            try:
                return InotifySource(self._scope, self._inbox, self._failed)
            except OSError as error:
                self._fall_back_after(error)
        # What was hollow when looked at is looked at again one interval later.
        self._times = replace(self._times, hollow_ms=self._times.hollow_ms + POLL_INTERVAL_S * 1000)
        return PollingSource(self._scope, self._inbox, self._matters, self._times.quiet_ms / 1000)

    def _failed(self, error: OSError) -> None:
        if not self._poll:
            self._fall_back_after(error)
        self._inbox.lost()

    def _fall_back_after(self, error: OSError) -> None:
        setting = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
        cause = f"the limit {setting[error.errno]} is reached" if error.errno in setting else str(error)
        self._fall_back(
            f"cannot watch all source directories: {cause}", "raise the limit with sysctl for faster response"
        )

    def _fall_back(self, cause: str, remedy: str) -> None:
        self._poll = True
        text = f"{cause}. Looking for changes every {POLL_INTERVAL_S * 1000:g} ms instead; {remedy}."
        self._loop.call_soon_threadsafe(self._notice, text)


def _content_of(path: str, *, listed: bool) -> _Content | None:
    """What tells one content of a file from another; empty for an empty file, None where there is no file.

    Args:
        listed: whether the names in a directory are its content; else a directory counts as no file.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode) and listed:
            return frozenset(name for name in os.listdir(path) if not is_editor_temporary(name))
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MAX_HASHED_BYTES:
            return b"%d:%d" % (status.st_size, status.st_mtime_ns)
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    return content and hashlib.sha256(content).digest()


def _names(content: _Content | None) -> frozenset[str]:
    return content if isinstance(content, frozenset) else frozenset()


def _read_mountinfo() -> str:
    try:
        return _MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _changed_at(path: str) -> float:
    """When a file became what it is, in Unix seconds; 0 if it is gone.

    That is the time of its inode's last change: a file that is renamed into place, or restored by a backup tool,
    brings its old modification time along.
    """
    try:
        return os.stat(path).st_ctime
    except OSError:
        return 0.0
