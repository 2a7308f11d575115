"""A cache of files by content, bounded in size, which several processes may use at once.

    blobs/<digest>                  files, by their content
    entries/<key>                   what was stored under a key: names of files with their digests, and a note
    remembered/<key>/<digest>       short texts that belong to a key
    partial/                        files that are being written
    lock                            held shared by whoever stores, exclusively by whoever deletes

A blob is a hard link of the file that was stored, and what is taken out is one of the blob, so it is the very file: who
compares files by inode sees that nothing changed. That is right for files that nobody writes into: rustc links and
unlinks objects and metadata, and truncates neither. Their mode is left alone, since rustc copies it with the file, and
could not write over that copy later. Files that others do write into are copied.

Nothing is trusted because it is there. An entry begins with its own digest, a blob is read and compared with its name
before it is used, and what does not fit is deleted. An entry is written after its blobs and renamed into place, so a
process that dies leaves at most files that no entry names; they go with the next deletion.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hotpatchd.core.cache_key import DIGEST_SIZE, digest_of

DEFAULT_LIMIT = 2 << 30
"""Bytes that a cache may have on disk."""

_MEMO_SIZE = 1 << 16
_ABSENT = "absent"
# Time stamps are coarse: a file that was written just now may be written again under the same one.
_RACY_NS = 2_000_000_000
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored under a key: name of each file → digest of its content, and what else the maker wants to know."""

    files: dict[str, str]
    note: str = ""


class Digests:
    """Digests of files, remembered as long as the files are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of_immutable(self, path: Path) -> str:
        """Digest of a file that nobody writes into; it is the same file if inode, size and time of writing are.

        The time of the last change is not asked for: each hard link that is made changes it.

        Raises:
            OSError: the file cannot be read.
        """
        found = path.stat()
        return self._remembered(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))

    def of_source(self, path: str, now_ns: int) -> str:
        """Digest of what anybody may change at any time.

        Args:
            path: of a file, or of a directory, where the names in it count; there may be nothing.
            now_ns: the time, in nanoseconds, by the clock that stamps files.

        Raises:
            OSError: it is there, and cannot be read.
        """
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                return digest_of("directory", *sorted(os.listdir(path)))
            if found.st_ctime_ns > now_ns - _RACY_NS:
                return digest_of_file(path)
            stamps = (found.st_mtime_ns, found.st_ctime_ns)
            return self._remembered(path, (found.st_dev, found.st_ino, found.st_size, *stamps))
        except (FileNotFoundError, NotADirectoryError):
            return _ABSENT

    def _remembered(self, path: Path | str, identity: tuple[int, ...]) -> str:
        known = self._known.get(identity)
        if known is None:
            if len(self._known) >= _MEMO_SIZE:
                self._known.clear()
            known = self._known[identity] = digest_of_file(path)
        return known


class ObjectCache:
    """Files by key. All methods may be called from threads.

    Args:
        directory: its own; made when something is stored. Hard links need the file system of the files that are stored.
        limit: bytes on disk, in all. What was not used for longest goes first. It is looked at once this process stored
            a sixteenth of it.
    """

    def __init__(self, directory: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self.digests = Digests()
        self._blobs = directory / "blobs"
        self._entries = directory / "entries"
        self._remembered = directory / "remembered"
        self._partial = directory / "partial"
        self._lock = directory / "lock"
        self._limit = limit
        # The first to store looks at once: an earlier process may have left things behind.
        self._growth = limit

    def clock_ns(self) -> int:
        """The time by the clock that stamps files, in nanoseconds: what is changed from now on has no earlier time."""
        self._make_directories()
        self._lock.touch()
        return self._lock.stat().st_ctime_ns

    def device(self) -> int:
        """The file system that the clock is for."""
        return self._lock.stat().st_dev

    def store(self, key: str, files: Mapping[str, Path], note: str = "", *, copied: bool = False) -> None:
        """Put files under a key.

        Args:
            key: hexadecimal digits; what was there is replaced.
            files: by name.
            note: a text.
            copied: files that others may write into.

        Raises:
            OSError: a file is not there any more, or the disk is full.
        """
        self._make_directories()
        with self._locked(fcntl.LOCK_SH):
            stored = {name: self._add_blob(path, copied=copied) for name, path in files.items()}
            text = msgspec.json.encode(Entry(files=stored, note=note))
            self._write(self._entries / key, _digest_of(text).encode() + b"\n" + text)
            self._growth += len(text)
        if self._growth > self._limit // 16:
            self.trim()

    def load(self, key: str) -> Entry | None:
        """What was stored under a key; None where there is nothing, or it is damaged. It counts as used."""
        path = self._entries / key
        entry = _read_entry(path)
        if entry is None:
            path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        return entry

    def drop(self, key: str) -> None:
        """Delete what was stored under a key."""
        (self._entries / key).unlink(missing_ok=True)

    def take_out(self, digest: str, path: Path, *, copied: bool = False) -> bool:
        """Put a file of an entry in its place; what is there is replaced.

        Args:
            digest: of the file.
            path: of its place.
            copied: make it a file of its own, because somebody may write into it.

        Returns:
            Whether it is there now; otherwise it was missing or damaged in the cache.
        """
        blob = self._blobs / digest
        if path.exists():
            path.unlink()
        try:
            if copied or not _link(blob, path):
                shutil.copyfile(blob, path)
        except FileNotFoundError:
            return False
        if self.digests.of_immutable(path) == digest:
            return True
        blob.unlink(missing_ok=True)
        path.unlink()
        return False

    def remember(self, key: str, text: str) -> None:
        """Keep a text with a key. It counts as used.

        Raises:
            OSError: the disk is full.
        """
        path = self._remembered / key / digest_of(text)
        if path.exists():
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
                return
        self._make_directories()
        with self._locked(fcntl.LOCK_SH):
            path.parent.mkdir(exist_ok=True)
            self._write(path, text.encode("utf-8", "surrogateescape"))

    def recall(self, key: str) -> Iterator[str]:
        """All texts that are kept with a key."""
        for path in (self._remembered / key).glob("*"):
            try:
                text = path.read_bytes().decode("utf-8", "surrogateescape")
            except FileNotFoundError:
                continue
            if digest_of(text) == path.name:
                yield text
            else:
                path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Delete what was not used for longest, until the rest is within the limit, and what no entry names.

        Where another process is storing or deleting just now, it is left to that one, or to the next time.
        """
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._growth = 0
            sizes = {blob.name: blob.stat().st_size for blob in os.scandir(self._blobs)}
            used = sorted(((found.stat().st_mtime_ns, found.name) for found in os.scandir(self._entries)), reverse=True)
            kept: set[str] = set()
            total, oldest_ns = 0, sys.maxsize
            is_full = False
            for used_ns, key in used:
                path = self._entries / key
                entry = None if is_full else _read_entry(path)
                if entry is not None:
                    added = set(entry.files.values()) - kept
                    total += path.stat().st_size + sum(sizes.get(digest, 0) for digest in added)
                    is_full = total > self._limit
                if entry is None or is_full:
                    path.unlink(missing_ok=True)
                else:
                    kept |= added
                    oldest_ns = used_ns
            for digest in sizes.keys() - kept:
                (self._blobs / digest).unlink()
            for partial in self._partial.iterdir():
                partial.unlink()
            self._forget_before(oldest_ns)

    def _forget_before(self, oldest_ns: int) -> None:
        """Delete texts that were used before the oldest entry was: none that is left can be found through them."""
        for directory in self._remembered.iterdir():
            for path in directory.iterdir():
                if path.stat().st_mtime_ns < oldest_ns:
                    path.unlink()
            with contextlib.suppress(OSError):  # It is not empty.
                directory.rmdir()

    def _add_blob(self, path: Path, *, copied: bool) -> str:
        """Store a file by its content; what is there by that name is kept only if it is what its name says."""
        if copied:
            return self._copy_blob(path)
        digest = self.digests.of_immutable(path)
        blob = self._blobs / digest
        if self._is_whole(blob):
            return digest
        blob.unlink(missing_ok=True)
        try:
            if not _link(path, blob):
                return self._copy_blob(path)
        except FileExistsError:  # Another process stored the same just now.
            return digest
        self._growth += path.stat().st_size
        return digest

    def _copy_blob(self, path: Path) -> str:
        with self._new_file() as (file, partial):
            file.close()
            shutil.copyfile(path, partial)
            digest = digest_of_file(partial)
            self._growth += partial.stat().st_size
            partial.replace(self._blobs / digest)
        return digest

    def _is_whole(self, blob: Path) -> bool:
        try:
            return self.digests.of_immutable(blob) == blob.name
        except FileNotFoundError:
            return False

    def _write(self, path: Path, content: bytes) -> None:
        with self._new_file() as (file, partial):
            file.write(content)
            file.close()
            partial.replace(path)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple["tempfile._TemporaryFileWrapper[bytes]", Path]]:
        with tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as file:
            partial = Path(file.name)
            try:
                yield file, partial
            finally:
                partial.unlink(missing_ok=True)

    def _make_directories(self) -> None:
        for directory in (self._blobs, self._entries, self._remembered, self._partial):
            directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        with self._lock.open("ab") as file:
            fcntl.flock(file, operation)
            yield


def _link(source: Path, path: Path) -> bool:
    """Make a hard link; False where the file system has none, or no more of them."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _read_entry(path: Path) -> Entry | None:
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
        return msgspec.json.decode(text, type=Entry) if digest == _digest_of(text).encode() else None
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).hexdigest()


def digest_of_file(path: Path | str) -> str:
    """Digest of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_SIZE)).hexdigest()
