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
import itertools
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from hotpatchd.core.mounts import needs_polling, parse_mounts
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
from hotpatchd.daemon.source_tree import git_dir_of

POLL_INTERVAL_S = 0.2
MAX_HASHED_BYTES = 8 << 20

_CACHE_TAG = "CACHEDIR.TAG"
_EVERYTHING = os.sep
_GIT_LOCK = "index.lock"
_LONG_AGO_S = 1.0
_MOUNTINFO = Path("/proc/self/mountinfo")
_POLLING_SHARE = 0.2
_POLLING_BURST_S = 2.0
_HOLLOW_LOOK_S = 0.005
_LOCK_LEFT_S = 10.0

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


class _Source(Protocol):
    def watch(self, scope: "_Scope") -> None: ...

    def close(self) -> None: ...


class _Scope:
    """What is watched: directories with all that is below them, except `excluded`; and single files.

    A directory among the single files stands for the names that are in it.

    Attributes:
        aliases: what a symbolic link leads to → the names among the single files that lead there.
        links: symbolic links on the way to the single files.
        file_dirs: directories of the single files: where their names are, and where these lead to.
        git_dirs: where Git keeps the index of the roots.
    """

    def __init__(self, roots: Iterable[str], excluded: Iterable[str], files: Iterable[str]) -> None:
        self.roots = tuple(dict.fromkeys(roots))
        self.prefixes = tuple(root + os.sep for root in self.roots)
        self.excluded = frozenset(excluded)
        self.files = frozenset(files)
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.links: set[str] = set()
        self.file_dirs: set[str] = {file for file in self.files if os.path.isdir(file)}
        self.git_dirs = frozenset(str(found) for root in self.roots if (found := git_dir_of(root)))
        real_dirs: dict[str, str] = {}
        for file in self.files:
            directory, name = os.path.split(file)
            if directory not in real_dirs:
                real_dirs[directory] = os.path.realpath(directory)
                if real_dirs[directory] != directory:
                    self.links.update(filter(os.path.islink, map(str, [directory, *Path(directory).parents])))
            real = os.path.join(real_dirs[directory], name)
            if os.path.islink(real):
                self.links.add(file)
                real = os.path.realpath(real)
                self.file_dirs.add(os.path.dirname(real))
            if real != file:
                self.aliases[real] = (*self.aliases.get(real, ()), file)
        self.file_dirs.update(real_dirs, real_dirs.values())

    def with_files(self, files: Iterable[str]) -> "_Scope":
        """The same with other single files."""
        return _Scope(self.roots, self.excluded, files)

    def enters(self, directory: str, name: str) -> bool:
        """Whether a subdirectory is worth watching. Build output says of itself that it is not.

        Source: https://bford.info/cachedir/ (cargo writes the tag into target directories).
        """
        path = os.path.join(directory, name)
        return not (name in IGNORED_DIRS or path in self.excluded or os.path.exists(os.path.join(path, _CACHE_TAG)))

    def files_below(self, top: str, enter: Callable[[str], None] = lambda directory: None) -> Iterator[str]:
        """The files of a tree. `enter` is called with each directory before it is read."""
        enter(top)
        try:
            with os.scandir(top) as found:
                entries = list(found)
        except OSError:
            return
        for entry in entries:
            if not entry.is_dir():
                yield entry.path
            elif not entry.is_symlink() and self.enters(top, entry.name):
                yield from self.files_below(entry.path, enter)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a source has told since it was last asked.

    Args:
        paths: files to look at; a path that ends in `/` stands for all known files below, `/` for everything.
        last_ms: when the last of it was told, on the monotonic clock.
        bulk: some of it happened while Git held its lock.
        locked: Git holds its lock.
        lost: some of it could not be told; watch anew.
    """

    paths: frozenset[str]
    last_ms: float
    bulk: bool
    locked: bool
    lost: bool


@dataclass(slots=True)
class _Inbox:
    """Takes what sources tell in their threads; `wake` is called when there is something to fetch."""

    wake: Callable[[], object]
    last_event: float = 0.0
    _paths: set[str] = field(default_factory=set)
    _last_ms: float = 0.0
    _bulk: bool = False
    _locked: bool = False
    _lost: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def touched(self, paths: Iterable[str]) -> None:
        """Something happened to these paths; see `_Told`."""
        paths = frozenset(paths)
        if not paths:
            return
        with self._lock:
            idle = not self._paths
            self._paths |= paths
            self._bulk |= self._locked
            self._now()
        if idle:
            self.wake()

    def lock(self, *, held: bool) -> None:
        """Git took its lock, or has done its work: it writes the new index into the lock file after all else."""
        with self._lock:
            if self._locked == held:
                return
            self._locked = held
            self._last_ms = time.monotonic() * 1000
        self.wake()

    def lost(self) -> None:
        """Changes were missed: everything has to be looked at, and watched anew."""
        with self._lock:
            self._lost = self._bulk = True
            self._locked = False
            self._paths.add(_EVERYTHING)
            self._now()
        self.wake()

    def fetch(self) -> _Told:
        """What came since the last time."""
        with self._lock:
            told = _Told(
                paths=frozenset(self._paths),
                last_ms=self._last_ms,
                bulk=self._bulk,
                locked=self._locked,
                lost=self._lost,
            )
            self._paths.clear()
            self._bulk = self._lost = False
            return told

    def _now(self) -> None:
        self._last_ms = time.monotonic() * 1000
        self.last_event = time.time()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """A directory with an inotify watch.

    Args:
        path: under which name it is watched.
        real: the same without symbolic links.
        whole: its subdirectories are watched as well.
        id: what watchdog knows the watch by.
    """

    path: str
    real: str
    whole: bool
    id: CallbackId


class _InotifySource:
    """Watches with inotify, one watch a directory.

    It uses the layer below watchdog's observers, because these recurse into every directory, run a thread a watch,
    and hold all events back for half a second when a file is moved out of the tree.

    A directory that is not there, any more or yet, is waited for at the nearest one above it.

    Args:
        scope: what to watch.
        inbox: where to tell.
        failed: called, in a thread, if it cannot go on.

    Raises:
        OSError: no inotify instance or watch could be had.
    """

    _MASK = Mask(
        InotifyConstants.IN_CREATE
        | InotifyConstants.IN_MODIFY
        | InotifyConstants.IN_CLOSE_WRITE
        | InotifyConstants.IN_MOVE
        | InotifyConstants.IN_MOVE_SELF
        | InotifyConstants.IN_DELETE
        | InotifyConstants.IN_ONLYDIR
    )

    def __init__(self, scope: _Scope, inbox: _Inbox, failed: Callable[[OSError], None]) -> None:
        self._scope = scope
        self._inbox = inbox
        self._failed = failed
        self._lock = threading.RLock()
        self._watched: dict[WatchDescriptor, _Watched] = {}
        self._paths: dict[str, WatchDescriptor] = {}
        self._wanted: dict[str, bool] = {}
        self._missing: set[str] = set()
        self._ids = itertools.count()
        self._inotify = InotifyFD()
        self._inotify.start()
        try:
            self.watch(scope)
        except OSError:
            self.close()
            raise

    def watch(self, scope: _Scope) -> None:
        """Watch this from now on; what was watched before stays so."""
        wanted = dict.fromkeys((*scope.file_dirs, *scope.git_dirs), False) | dict.fromkeys(scope.tops(), True)
        with self._lock:
            self._scope = scope
            new = {directory: whole for directory, whole in wanted.items() if directory not in self._wanted}
            self._wanted |= new
            for directory in sorted(new, key=lambda directory: not new[directory]):
                self._seek(directory)

    def close(self) -> None:
        self._inotify.stop()
        self._inotify.join()

    def on_event(self, event: InotifyEvent) -> None:
        with self._lock:
            watched = self._watched.get(event.wd)
            if watched is None:
                return
            name = os.fsdecode(event.name)
            try:
                if event.is_move_self:
                    if not os.path.isdir(watched.path):
                        self._paths.pop(watched.path, None)
                    self._vanished(watched)
                elif watched.path not in self._scope.git_dirs:
                    self._tell(event, watched, name)
                elif name == _GIT_LOCK:
                    self._inbox.lock(held=event.is_create)
            except OSError as error:
                self._failed(error)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            watched = self._watched.pop(wd, None)
            if watched is None or not self._inotify.should_keep_running():
                return
            if self._paths.get(watched.path) == wd:
                del self._paths[watched.path]
            try:
                self._vanished(watched)
            except OSError as error:
                self._failed(error)

    def on_queue_overflow(self) -> None:
        self._inbox.lost()

    def _tell(self, event: InotifyEvent, watched: _Watched, name: str) -> None:
        path = os.path.join(watched.path, name)
        appears = event.is_create or event.is_moved_to
        touched = {watched.path, watched.real} if appears or event.is_delete or event.is_moved_from else set()
        if not event.is_directory:
            touched |= {path} if watched.real == watched.path else {path, os.path.join(watched.real, name)}
        elif watched.whole and event.is_moved_from:
            touched.add(path + os.sep)
        elif watched.whole and appears and self._scope.enters(watched.path, name):
            touched.update(self._watch_tree(path))
        if path in self._scope.links:
            self._inbox.lost()
        self._inbox.touched(touched)
        if appears and event.is_directory:
            self._seek_missing()

    def _vanished(self, watched: _Watched) -> None:
        """A directory was removed or renamed: another may be in its place already, or is waited for."""
        if watched.path in self._wanted:
            self._missing.add(watched.path)
            self._inbox.touched([watched.path + os.sep])
        self._seek_missing()

    def _seek_missing(self) -> None:
        for directory in tuple(self._missing):
            self._seek(directory)

    def _seek(self, directory: str) -> None:
        """Watch a wanted directory, or, if it is not there, where its coming will be seen."""
        whole = self._wanted[directory]
        found = self._watch_tree(directory) if whole else []
        if os.path.isdir(directory) if whole else self._watch(directory, whole=False):
            if directory in self._missing:
                self._missing.discard(directory)
                self._inbox.touched(found or self._files_in(directory))
            return
        self._missing.add(directory)
        above = os.path.dirname(directory)
        while not self._watch(above, whole=False) and above != os.path.dirname(above):
            above = os.path.dirname(above)
        if os.path.isdir(directory):
            self._seek(directory)

    def _files_in(self, directory: str) -> list[str]:
        """The single files of a directory."""
        return [file for file in self._scope.files if os.path.dirname(file) == directory]

    def _watch_tree(self, top: str) -> list[str]:
        """Watch every directory from `top` on; returns the files found, of which no event may have told."""

        def enter(directory: str) -> None:
            self._watch(directory, whole=True)

        return list(self._scope.files_below(top, enter))

    def _watch(self, directory: str, *, whole: bool) -> bool:
        """Returns whether the directory is there."""
        if not whole and directory in self._paths and os.path.isdir(directory):
            return True
        id_ = CallbackId(next(self._ids))
        try:
            wd = self._inotify.add_callback(os.fsencode(directory), self._MASK, self, id_)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return False
            raise
        watched = _Watched(path=directory, real=os.path.realpath(directory), whole=whole, id=id_)
        known = self._watched.get(wd)
        if known is not None and known.real == watched.real and not whole:
            self._inotify.remove_callbacks([(wd, id_)])
            return True
        self._watched[wd] = watched
        self._paths[directory] = wd
        if known is not None:
            self._inotify.remove_callbacks([(wd, known.id)])
        return True


class _PollingSource:
    """Looks at all files every `POLL_INTERVAL_S`, or as often as `_POLLING_SHARE` of a processor allows.

    Args:
        scope: what to watch.
        inbox: where to tell.
        matters: which files to look at.
        quiet_s: it looks again after this time when it found a change, until there are no more.
    """

    def __init__(self, scope: _Scope, inbox: _Inbox, matters: Callable[[str], bool], quiet_s: float) -> None:
        self._scope = scope
        self._inbox = inbox
        self._matters = matters
        self._quiet_s = quiet_s
        self._seen: dict[str, tuple[int, ...]] = {}
        self._took_s = 0.0
        self._look()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polling", daemon=True)
        self._thread.start()

    def watch(self, scope: _Scope) -> None:
        """Watch this from now on."""
        self._scope = scope

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = POLL_INTERVAL_S
        while not self._stop.wait(pause_s):
            until = time.monotonic() + _POLLING_BURST_S
            changed = more = self._look()
            while more and time.monotonic() < until and not self._stop.wait(self._quiet_s):
                more = self._look()
                changed |= more
            pause_s = self._quiet_s if more else max(POLL_INTERVAL_S, self._took_s / _POLLING_SHARE)
            held = any(map(_git_writes, self._scope.git_dirs))
            if changed or not held:
                self._inbox.lock(held=held)
            if changed:
                self._inbox.touched(changed)

    def _look(self) -> set[str]:
        """The files that are not as they were when last looked at."""
        started = time.perf_counter()
        seen: dict[str, tuple[int, ...]] = {}
        for path in filter(self._matters, self._scope.everything()):
            try:
                status = os.stat(path)
            except OSError:
                continue
            seen[path] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        changed = {path for path, _ in seen.items() ^ self._seen.items()}
        self._seen = seen
        self._took_s = time.perf_counter() - started
        return changed


def _git_writes(git_dir: str) -> bool:
    """Whether Git is writing files: its lock is empty, and was not left behind."""
    try:
        status = os.stat(os.path.join(git_dir, _GIT_LOCK))
    except OSError:
        return False
    return status.st_size == 0 and time.time() - status.st_mtime < _LOCK_LEFT_S


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
        self._scope = _Scope(map(str, roots), map(str, excluded), map(str, files))
        self._relevant = relevant
        self._times = times or SettleTimes()
        self._poll = poll
        self._notice = notice
        self._known: dict[str, _Content] = {}
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._inbox = _Inbox(lambda: self._loop.call_soon_threadsafe(self._wake.set))
        self._state: Settling | None = None
        self._locked = False
        self._source: _Source | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._open_source()
        await asyncio.to_thread(self._look, [_EVERYTHING])
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
        paths = frozenset(map(str, files)) or frozenset({_EVERYTHING})
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
            if path == _EVERYTHING:
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

    def _new_source(self) -> _Source:
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
                return _InotifySource(self._scope, self._inbox, self._failed)
            except OSError as error:
                self._fall_back_after(error)
        # What was hollow when looked at is looked at again one interval later.
        self._times = replace(self._times, hollow_ms=self._times.hollow_ms + POLL_INTERVAL_S * 1000)
        return _PollingSource(self._scope, self._inbox, self._matters, self._times.quiet_ms / 1000)

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
