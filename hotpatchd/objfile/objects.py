"""The objects of one build, opened when somebody looks at them.

rustc hard-links the objects of codegen units that it did not compile again, so an unchanged object is the same inode:
most of a build is never read.
"""

import mmap
import os
import secrets
import shutil
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import Fingerprint, SectionKind
from hotpatchd.objfile.units import ObjectUnit, open_unit

_READ_WHOLE = 1 << 20

KEPT_BYTES = 1 << 30
"""Bytes of objects that `KeptObjects` may have on disk. The object cache has most of them as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFile:
    """One object on disk.

    Args:
        path: where it is.
        identity: inode, size and time of last change (ns): two files with the same identity are the same.
        is_optimised: it was compiled with an opt-level above 0.
    """

    path: Path
    identity: tuple[int, int, int]
    is_optimised: bool


def object_file(path: Path, *, is_optimised: bool) -> ObjectFile:
    """Describe an object on disk."""
    stat = path.stat()
    identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return ObjectFile(path=path, identity=identity, is_optimised=is_optimised)


def open_object(name: str, path: Path, *, is_optimised: bool) -> ObjectUnit:
    """Map an object into memory.

    Raises:
        ObjectError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            # A map keeps a descriptor, of which there may be 1024: most objects are small, and many are kept.
            is_large = os.fstat(file.fileno()).st_size > _READ_WHOLE
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_large else file.read()
    except (OSError, ValueError) as error:
        raise ObjectError(f"cannot read the object {path}: {error}") from error
    return open_unit(data, name, origin=os.fspath(path), from_archive=False, shares_locals=not is_optimised)


_opened: weakref.WeakValueDictionary[tuple[str, tuple[int, int, int]], ObjectUnit] = weakref.WeakValueDictionary()


def open_once(name: str, file: ObjectFile) -> ObjectUnit:
    """An object as a unit: one and the same for as long as somebody holds it.

    Raises:
        ObjectError: it cannot be read, or is damaged.
    """
    known = _opened.get((name, file.identity))
    if known is None:
        opened = open_object(name, file.path, is_optimised=file.is_optimised)
        known = _opened.setdefault((name, file.identity), opened)
    return known


class KeptObjects:
    """Objects that outlive their builds: on disk, as hard links, so that they take no memory while nobody looks.

    Args:
        directory: where they get a directory of their own, which goes when this does.
        limit: bytes on disk; of what was kept first goes first.
    """

    def __init__(self, directory: Path, *, limit: int = KEPT_BYTES) -> None:
        self._directory = directory / secrets.token_hex(8)
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._limit = limit
        self._kept: OrderedDict[str, Mapping[str, ObjectFile]] = OrderedDict()
        self._files: dict[tuple[int, int, int], ObjectFile] = {}
        self._uses: Counter[tuple[int, int, int]] = Counter()
        self._size = 0

    def keep(self, key: str, files: Mapping[str, ObjectFile]) -> None:
        """Keep objects, by unit name, under a key.

        Raises:
            OSError: the disk is full, or one is not there any more.
        """
        kept = {name: self._take(file) for name, file in files.items()}
        self._drop(key)
        self._kept[key] = kept
        while self._size > self._limit and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def get(self, key: str) -> Mapping[str, ObjectFile]:
        """What was kept under a key.

        Raises:
            ObjectError: it is not kept any more.
        """
        if key not in self._kept:
            raise ObjectError("the objects of the code that the program runs are not kept any more: restart it")
        return self._kept[key]

    def _take(self, file: ObjectFile) -> ObjectFile:
        if file.identity not in self._files:
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / "-".join(map(str, file.identity))
            try:
                path.hardlink_to(file.path)
            except OSError:
                shutil.copyfile(file.path, path)
            self._files[file.identity] = replace(file, path=path)
            self._size += file.identity[1]
        self._uses[file.identity] += 1
        return self._files[file.identity]

    def _drop(self, key: str) -> None:
        for file in self._kept.pop(key, {}).values():
            self._uses[file.identity] -= 1
            if not self._uses[file.identity]:
                del self._uses[file.identity], self._files[file.identity]
                self._size -= file.identity[1]
                file.path.unlink(missing_ok=True)


class BuildObjects:
    """All objects of one state of the source.

    Args:
        files: unit name (`<crate>/<cgu>`) → object.
        earlier: the objects of the build before; what is the same as there is not read again.
        conventions: the functions with a calling convention of their own, by name, each with that.
    """

    def __init__(
        self,
        files: Mapping[str, ObjectFile],
        earlier: "BuildObjects | None" = None,
        conventions: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.files = files
        self.conventions = conventions
        self._units: dict[str, ObjectUnit] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._definers: dict[str, str] = {}
        if earlier is not None:
            self._take_over(earlier)
        for name in files:
            if name not in self._names:
                self._names[name] = tuple(self.unit(name).exports)
        for name, exports in self._names.items():
            self._definers.update(dict.fromkeys(exports, name))

    def _take_over(self, earlier: "BuildObjects") -> None:
        for name in self.files.keys() & earlier.files.keys():
            if self.files[name].identity == earlier.files[name].identity:
                self._names[name] = earlier._names[name]
                if name in earlier._units:
                    self._units[name] = earlier._units[name]

    def forget_units(self) -> None:
        """Close the objects; they are opened again when somebody looks at them."""
        self._units.clear()

    def unit(self, name: str) -> ObjectUnit:
        """An object by its unit name."""
        known = self._units.get(name)
        if known is None:
            # Patches for several clients are planned in threads: all of them must see one and the same unit.
            known = self._units.setdefault(name, open_once(name, self.files[name]))
        return known

    def changed_files(self, earlier: "BuildObjects") -> dict[str, ObjectFile]:
        """The objects that are not the same files as in another build, by unit name."""
        changed = {}
        for name, file in self.files.items():
            before = earlier.files.get(name)
            if before is None or before.identity != file.identity:
                changed[name] = file
        return changed

    def changed_since(self, earlier: "BuildObjects") -> Iterator[ObjectUnit]:
        """The objects that are not the same files as in another build."""
        yield from map(self.unit, self.changed_files(earlier))

    def units_defining(self, symbols: Iterable[str]) -> Iterator[ObjectUnit]:
        """The objects that define any of these symbols."""
        for name in {self._definers[symbol] for symbol in symbols if symbol in self._definers}:
            yield self.unit(name)

    def get(self, symbol: str) -> ObjectUnit | None:
        """The object that defines a symbol."""
        name = self._definers.get(symbol)
        return self.unit(name) if name is not None else None

    def callers(self, symbol: str) -> Iterator[tuple[str, int]]:
        """The exported functions whose code refers to a function, and how often."""
        for name in self.files:
            yield from self.unit(name).calls.get(symbol, {}).items()

    def users(self, symbol: str) -> Iterator[str]:
        """The exported functions whose code leads to a function, directly or by way of constants."""
        for name in self.files:
            yield from self.unit(name).users.get(symbol, ())

    def holders(self, symbol: str) -> Iterator[str]:
        """The exported statics that hold the address of a function or static."""
        for name in self.files:
            yield from self.unit(name).holders.get(symbol, ())

    def kind(self, symbol: str) -> SectionKind | None:
        """What a symbol of this build names; None for one that it does not define."""
        unit = self.get(symbol)
        return unit.exports[symbol].kind if unit else None

    def fingerprint(self, symbol: str) -> Fingerprint | None:
        """The fingerprint of a function or static of this build."""
        unit = self.get(symbol)
        return unit.fingerprint(unit.exports[symbol].section) if unit else None

    def state_names(self) -> frozenset[str]:
        """All statics and thread-locals that the objects define."""
        return frozenset(
            symbol
            for name in self.files
            for symbol, definition in self.unit(name).exports.items()
            if definition.kind in ("data", "tls")
        )
