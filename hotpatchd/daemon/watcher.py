"""Tells which files changed, in settled batches.

Promise: an edit is reported once, after it went quiet (`hotpatchd.core.settle`), if the file's content is not what
it was in the last batch. Touching a file, or writing the same text twice, is not an edit.

Events only say where to look; what counts is the content found there. So events may come twice or too often, and
when some are lost (the kernel's queue overflowed) everything is looked at again.

Files that are written to without an event are missed: on network file systems, through memory maps. There, and where
inotify has no watches left, the tree is polled.
"""

import asyncio
import errno
import hashlib
import itertools
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)
from watchdog.observers.polling import PollingObserverVFS

from hotpatchd.core.settle import (
    IGNORED_DIRS,
    SettleTimes,
    Settling,
    Tick,
    Touched,
    deadline_ms,
    is_editor_temporary,
    step,
)

POLL_INTERVAL_S = 0.2
MAX_HASHED_BYTES = 8 << 20

_CACHE_TAG = "CACHEDIR.TAG"
_LONG_AGO_S = 1.0


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


class _Source(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """What is watched: directories with all that is below them, except `excluded`; and single files."""

    roots: tuple[str, ...]
    excluded: frozenset[str]
    files: frozenset[str]

    def enters(self, directory: str, name: str) -> bool:
        """Whether a subdirectory is worth watching. Build output says of itself that it is not.

        Source: https://bford.info/cachedir/ (cargo writes the tag into target directories).
        """
        path = os.path.join(directory, name)
        return not (name in IGNORED_DIRS or path in self.excluded or os.path.exists(os.path.join(path, _CACHE_TAG)))

    def entries(self, directory: str) -> list[os.DirEntry[str]]:
        """The files of a directory, and its subdirectories that are worth watching."""
        with os.scandir(directory) as found:
            return [
                entry
                for entry in found
                if not entry.is_dir() or (not entry.is_symlink() and self.enters(directory, entry.name))
            ]

    def files_below(self, top: str, enter: Callable[[str], None] = lambda directory: None) -> Iterator[str]:
        """The files of a tree. `enter` is called with each directory before it is read."""
        enter(top)
        try:
            entries = self.entries(top)
        except OSError:
            return
        for entry in entries:
            if entry.is_dir():
                yield from self.files_below(entry.path, enter)
            else:
                yield entry.path

    def tops(self) -> list[str]:
        """The roots to which no other root leads."""
        return [root for root in self.roots if not self._is_reached(root)]

    def _is_reached(self, root: str) -> bool:
        directory = root
        while directory != os.path.dirname(directory):
            directory, name = os.path.split(directory)
            if not self.enters(directory, name):
                return False
            if directory in self.roots:
                return True
        return False

    def everything(self) -> Iterator[str]:
        """All files there are."""
        return itertools.chain(self.files, *map(self.files_below, self.tops()))

    def file_dirs(self) -> frozenset[str]:
        """Directories of the single files: where their names are, and where these lead to."""
        return frozenset(map(os.path.dirname, self.files | self.aliases().keys()))

    def aliases(self) -> dict[str, str]:
        """The file that a symbolic link leads to → its name among the single files."""
        return {real: file for file in self.files if (real := os.path.realpath(file)) != file}


class _InotifySource:
    """Watches with inotify, one watch a directory.

    It uses the layer below watchdog's observers, because these recurse into every directory, run a thread a watch,
    and hold all events back for half a second when a file is moved out of the tree.

    Args:
        scope: what to watch.
        touched: called, in a thread, with paths to look at; a path ending in `/` stands for all known files below.
        lost: called, in a thread, when changes were missed; with the error if it cannot go on.

    Raises:
        OSError: no inotify instance or watch could be had.
    """

    _MASK = Mask(
        InotifyConstants.IN_CREATE
        | InotifyConstants.IN_MODIFY
        | InotifyConstants.IN_CLOSE_WRITE
        | InotifyConstants.IN_MOVE
        | InotifyConstants.IN_DELETE
        | InotifyConstants.IN_ONLYDIR
    )

    def __init__(
        self, scope: _Scope, touched: Callable[[Iterable[str]], None], lost: Callable[[OSError | None], None]
    ) -> None:
        self._scope = scope
        self._touched = touched
        self._lost = lost
        self._lock = threading.Lock()
        self._dirs: dict[WatchDescriptor, tuple[str, bool]] = {}
        # A directory that was renamed is watched again under its new path: watchdog warns where an id repeats.
        self._ids = itertools.count()
        self._inotify = InotifyFD()
        self._inotify.start()
        try:
            for directory in scope.file_dirs():
                self._watch(directory, whole=False)
            for root in scope.tops():
                self._watch_tree(root)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._inotify.stop()
        self._inotify.join()

    def on_event(self, event: InotifyEvent) -> None:
        with self._lock:
            directory, whole = self._dirs.get(event.wd, ("", False))
        name = os.fsdecode(event.name)
        path = os.path.join(directory, name)
        if not directory or not name:
            return
        if not event.is_directory:
            self._touched((path,))
        elif whole and event.is_moved_from:
            self._touched((path + os.sep,))
        elif whole and (event.is_create or event.is_moved_to) and self._scope.enters(directory, name):
            try:
                self._touched(self._watch_tree(path))
            except OSError as error:
                self._lost(error)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            self._dirs.pop(wd, None)

    def on_queue_overflow(self) -> None:
        self._lost(None)

    def _watch_tree(self, top: str) -> list[str]:
        """Watch every directory from `top` on; returns the files found, of which no event may have told."""
        return list(self._scope.files_below(top, lambda directory: self._watch(directory, whole=True)))

    def _watch(self, directory: str, *, whole: bool) -> None:
        try:
            wd = self._inotify.add_callback(os.fsencode(directory), self._MASK, self, CallbackId(next(self._ids)))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return
            raise
        with self._lock:
            self._dirs[wd] = (directory, whole)


class _PollingSource(FileSystemEventHandler):
    """Looks at the whole tree every `POLL_INTERVAL_S`; the arguments are those of `_InotifySource`."""

    def __init__(self, scope: _Scope, touched: Callable[[Iterable[str]], None]) -> None:
        self._scope = scope
        self._touched = touched
        self._observer = PollingObserverVFS(os.stat, self._list, polling_interval=POLL_INTERVAL_S)
        for root in scope.tops():
            self._observer.schedule(self, root, recursive=True)
        for directory in scope.file_dirs():
            self._observer.schedule(self, directory, recursive=False)
        self._observer.start()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if not event.is_directory:
            self._touched(os.fsdecode(path) for path in (event.src_path, event.dest_path) if path)

    def _list(self, directory: str | None) -> Iterator[os.DirEntry[str]]:
        return iter(self._scope.entries(directory or "."))


class Watcher:
    """Watches source directories, as an async context manager. What changes before it is entered is not seen.

    Args:
        roots: absolute directories.
        excluded: absolute directories below them that are not looked at, such as target directories.
        files: absolute paths of files elsewhere, and of symbolic links to such files, that are inputs too.
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
        self._scope = _Scope(
            roots=tuple(dict.fromkeys(map(str, roots))),
            excluded=frozenset(map(str, excluded)),
            files=frozenset(map(str, files)),
        )
        self._relevant = relevant
        self._times = times or SettleTimes()
        self._poll = poll
        self._notice = notice
        self._aliases = self._scope.aliases()
        self._known: dict[str, bytes] = {}
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._state: Settling | None = None
        self._source: _Source | None = None
        # From here to _inbox_lock: shared with the source's threads.
        self._inbox: set[str] = set()
        self._inbox_ms = 0.0
        self._last_event = 0.0
        self._incomplete = False
        self._inbox_lock = threading.Lock()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._open_source()
        await asyncio.to_thread(self._look, self._scope.everything())
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

        Returns:
            what changed since the last batch; it is not reported by `batches` again.
        """
        self._last_event = time.time()
        paths = frozenset(map(str, files))
        return await self._batch_of(paths or frozenset(itertools.chain(self._scope.everything(), self._known)))

    async def include(self, files: Iterable[Path]) -> None:
        """Watch further files outside the roots from now on."""
        new = frozenset(map(str, files)) - self._scope.files
        if new:
            self._scope = _Scope(roots=self._scope.roots, excluded=self._scope.excluded, files=self._scope.files | new)
            self._aliases = self._scope.aliases()
            async with self._looking:
                await asyncio.to_thread(self._look, new)
            self._lost(None)

    async def _wait_batch(self) -> Batch | None:
        now_ms = time.monotonic() * 1000
        wait_s = None if self._state is None else max(deadline_ms(self._state, self._times) - now_ms, 0) / 1000
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        with self._inbox_lock:
            inbox, self._inbox = self._inbox, set()
            incomplete, self._incomplete = self._incomplete, False
            touched_ms = self._inbox_ms
        if incomplete:
            await self._open_source()
            return await self.rescan()
        touched = frozenset(filter(self._matters, (self._aliases.get(path, path) for path in inbox)))
        if touched:
            event = Touched(paths=touched, hollow=frozenset(filter(self._is_hollow, touched)))
            self._state, settled = step(self._state, event, touched_ms, self._times)
        else:
            self._state, settled = step(self._state, Tick(), time.monotonic() * 1000, self._times)
        return await self._batch_of(settled) if settled else None

    async def _batch_of(self, paths: frozenset[str]) -> Batch | None:
        async with self._looking:
            changed = await asyncio.to_thread(self._look, paths)
        if not changed:
            return None
        last_write = max(map(_changed_at, changed))
        if self._last_event - last_write > _LONG_AGO_S:
            # Nothing was written: files were removed, or came and went with a directory that was renamed.
            last_write = self._last_event
        return Batch(
            files=tuple(sorted(map(Path, changed))),
            last_write=last_write,
            settle_ms=(time.time() - last_write) * 1000,
        )

    def _look(self, paths: Iterable[str]) -> list[str]:
        """Which of these files have another content than when last looked at."""
        changed = []
        for path in self._files_of(paths):
            content = _content_id(path)
            if content != self._known.get(path):
                changed.append(path)
                if content is None:
                    del self._known[path]
                else:
                    self._known[path] = content
        return changed

    def _files_of(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            if path.endswith(os.sep):
                yield from [known for known in self._known if known.startswith(path)]
            elif self._matters(path):
                yield path

    def _matters(self, path: str) -> bool:
        if path.endswith(os.sep) or path in self._scope.files:
            return True
        in_roots = any(path.startswith(root + os.sep) for root in self._scope.roots)
        return in_roots and not is_editor_temporary(os.path.basename(path)) and self._relevant(path)

    def _is_hollow(self, path: str) -> bool:
        if not self._known.get(path):
            return False
        try:
            return os.stat(path).st_size == 0
        except OSError:
            return True

    async def _open_source(self) -> None:
        """Begin watching, then end what watched before, so that no change falls between."""
        old, self._source = self._source, await asyncio.to_thread(self._new_source)
        if old is not None:
            await asyncio.to_thread(old.close)

    def _new_source(self) -> _Source:
        if not self._poll:
            try:
                return _InotifySource(self._scope, self._touched, self._lost)
            except OSError as error:
                self._fall_back(error)
        return _PollingSource(self._scope, self._touched)

    def _fall_back(self, error: OSError) -> None:
        setting = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
        cause = f"the limit {setting[error.errno]} is reached" if error.errno in setting else str(error)
        self._poll = True
        self._loop.call_soon_threadsafe(
            self._notice,
            f"cannot watch all source directories: {cause}. Looking for changes every "
            f"{POLL_INTERVAL_S * 1000:g} ms instead; raise the limit with sysctl for faster response.",
        )

    def _touched(self, paths: Iterable[str]) -> None:
        with self._inbox_lock:
            woken = bool(self._inbox)
            self._inbox.update(paths)
            self._inbox_ms = time.monotonic() * 1000
            self._last_event = time.time()
        if not woken:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _lost(self, error: OSError | None) -> None:
        if error is not None and not self._poll:
            self._fall_back(error)
        with self._inbox_lock:
            self._incomplete = True
        self._loop.call_soon_threadsafe(self._wake.set)


def _content_id(path: str) -> bytes | None:
    """What tells one content of a file from another; empty for an empty file, None where there is no file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MAX_HASHED_BYTES:
            return b"%d:%d" % (status.st_size, status.st_mtime_ns)
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    return content and hashlib.sha256(content).digest()


def _changed_at(path: str) -> float:
    """When a file became what it is, in Unix seconds; 0 if it is gone.

    That is the time of its inode's last change: a file that is renamed into place, or restored by a backup tool,
    brings its old modification time along.
    """
    try:
        return os.stat(path).st_ctime
    except OSError:
        return 0.0
