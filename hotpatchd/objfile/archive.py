"""Archives (`.rlib`, `.a`): which member defines a symbol, read from the archive's own symbol table.

Source: System V / GNU archive format, `ar(5)`; the symbol table member is `/` (32-bit offsets) or `/SYM64/`.
"""

import mmap
import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import is_rust_name
from hotpatchd.objfile.units import ObjectUnit, open_unit

MAGIC = b"!<arch>\n"
_HEADER_SIZE = 60


class Archive:
    """One archive file.

    Raises:
        ObjectError: not an archive, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ObjectError(f"cannot read the archive {path}: {error}") from error
        if self._data[:8] != MAGIC:
            raise ObjectError(f"{path} is not an archive", hint="thin archives are not supported")
        self._members: dict[int, ObjectUnit] = {}

    def _header(self, offset: int) -> tuple[bytes, int]:
        """Name field and content size of the member whose header is at `offset`."""
        header = self._data[offset : offset + _HEADER_SIZE]
        if len(header) < _HEADER_SIZE or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise ObjectError(f"{self.path} is damaged: no member header at byte {offset}")
        size = int(header[48:58])
        if offset + _HEADER_SIZE + size > len(self._data):
            raise ObjectError(f"{self.path} is cut short: a member lies beyond its end")
        return header[:16].rstrip(), size

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Symbol → offset of the header of the first member that defines it."""
        name, size = self._header(len(MAGIC))
        table = self._data[len(MAGIC) + _HEADER_SIZE : len(MAGIC) + _HEADER_SIZE + size]
        word = {b"/": ">I", b"/SYM64/": ">Q"}.get(name)
        if word is None:
            return {}
        width = struct.calcsize(word)
        try:
            (count,) = struct.unpack_from(word, table)
            offsets = struct.unpack_from(f">{count}{word[1]}", table, width)
        except struct.error:
            raise ObjectError(f"{self.path} is damaged: its symbol table is too short") from None
        names = table[width * (count + 1) :].split(b"\0")
        found: dict[str, int] = {}
        for symbol, offset in zip(names, offsets, strict=False):
            found.setdefault(symbol.decode("utf-8", "surrogateescape"), offset)
        return found

    @cached_property
    def _long_names(self) -> bytes:
        offset = len(MAGIC)
        while offset < len(self._data):
            name, size = self._header(offset)
            if name == b"//":
                return self._data[offset + _HEADER_SIZE : offset + _HEADER_SIZE + size]
            if not name.startswith(b"/"):
                break
            offset += _HEADER_SIZE + size + size % 2
        return b""

    def member(self, offset: int) -> ObjectUnit:
        """The member whose header is at `offset`; the same object each time."""
        known = self._members.get(offset)
        if known:
            return known
        field, size = self._header(offset)
        if field.startswith(b"/"):
            try:
                start = int(field[1:])
                label = self._long_names[start : self._long_names.index(b"/", start)]
            except ValueError:
                raise ObjectError(f"{self.path} is damaged: the member at byte {offset} has no name") from None
        else:
            label = field.rstrip(b"/")
        origin = f"{self.path.name}({label.decode('utf-8', 'replace')})"
        data = self._data[offset + _HEADER_SIZE : offset + _HEADER_SIZE + size]
        # Threads may come here at once; all of them get the same.
        return self._members.setdefault(offset, open_unit(data, origin, origin=origin, from_archive=True))


_PROMOTED = ".llvm."
"""What link-time optimisation puts behind a local name that it makes global, before the hash of the module."""


class ArchiveSet:
    """The archives of one link line, in its order, opened when first asked.

    Args:
        paths: the archives.
        directories: of libraries that the crates are compiled with. A crate that no source of the program mentioned is
            not on the link line, but may be mentioned now; names of Rust, and hashed ones, tell it from all others.
    """

    def __init__(self, paths: tuple[Path, ...], directories: tuple[Path, ...] = ()) -> None:
        self._paths = paths
        self._directories = directories

    @cached_property
    def _index(self) -> dict[str, tuple[Archive, int]]:
        return _members(self._paths)

    @cached_property
    def _unlinked_index(self) -> dict[str, tuple[Archive, int]]:
        return _members(sorted(path for directory in self._directories for path in directory.glob("*.rlib")))

    def warm(self) -> None:
        """Read the archives' symbol tables now, so that the first edit need not."""
        _ = self._index

    def member_defining(self, name: str) -> ObjectUnit | None:
        """The first member whose archive symbol table lists `name`."""
        place = self._index.get(name)
        if place is None and self._directories and (is_rust_name(name) or _PROMOTED in name):
            place = self._unlinked_index.get(name)
        return place[0].member(place[1]) if place else None


def _members(paths: Iterable[Path]) -> dict[str, tuple[Archive, int]]:
    """Symbol → the first of the archives that defines it, and the offset of its member's header."""
    found: dict[str, tuple[Archive, int]] = {}
    for path in paths:
        archive = Archive(path)
        for symbol, offset in archive.symbols.items():
            found.setdefault(symbol, (archive, offset))
    return found
