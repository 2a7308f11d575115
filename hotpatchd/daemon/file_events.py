"""Where changes of files are told: by the kernel (inotify), or found by looking at all of them now and then.

What is told says only where to look: it may come twice, too often, and for files whose content is what it was.
"""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from hotpatchd.core.settle import IGNORED_DIRS
from hotpatchd.daemon.source_tree import git_dir_of

EVERYTHING = os.sep
"""As a path that is told: look at all files."""
POLL_INTERVAL_S = 0.2

_CACHE_TAG = "CACHEDIR.TAG"
_GIT_LOCK = "index.lock"
_POLLING_SHARE = 0.2
_POLLING_BURST_S = 2.0
_LOCK_LEFT_S = 10.0


class Source(Protocol):
    """Tells an inbox where something may have changed, from when it is made until it is closed."""

    def watch(self, scope: "Scope") -> None:
        """Watch this from now on."""

    def close(self) -> None:
        """End it; after that, it tells nothing."""


class Scope:
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

    def with_files(self, files: Iterable[str]) -> "Scope":
        """The same with other single files."""
        return Scope(self.roots, self.excluded, files)

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
class Told:
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
class Inbox:
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
        """Something happened to these paths; see `Told`."""
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
            self._paths.add(EVERYTHING)
            self._now()
        self.wake()

    def fetch(self) -> Told:
        """What came since the last time."""
        with self._lock:
            told = Told(
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


class InotifySource:
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

    def __init__(self, scope: Scope, inbox: Inbox, failed: Callable[[OSError], None]) -> None:
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

    def watch(self, scope: Scope) -> None:
        """Watch this from now on; what was watched before stays so."""
        wanted = dict.fromkeys((*scope.file_dirs, *scope.git_dirs), False) | dict.fromkeys(scope.tops(), True)
        with self._lock:
            self._scope = scope
            new = {directory: whole for directory, whole in wanted.items() if directory not in self._wanted}
            self._wanted |= new
            for directory in sorted(new, key=lambda directory: not new[directory]):
                self._seek(directory)

    def close(self) -> None:
        """End the thread that is told, and all watches."""
        self._inotify.stop()
        self._inotify.join()

    def on_event(self, event: InotifyEvent) -> None:
        """Something happened in a directory."""
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
        """A directory is gone, or its watch was taken away."""
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
        """The kernel dropped events."""
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


class PollingSource:
    """Looks at all files every `POLL_INTERVAL_S`, or as often as `_POLLING_SHARE` of a processor allows.

    Args:
        scope: what to watch.
        inbox: where to tell.
        matters: which files to look at.
        quiet_s: it looks again after this time when it found a change, until there are no more.
    """

    def __init__(self, scope: Scope, inbox: Inbox, matters: Callable[[str], bool], quiet_s: float) -> None:
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

    def watch(self, scope: Scope) -> None:
        """Watch this from now on."""
        self._scope = scope

    def close(self) -> None:
        """End the thread that looks."""
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
