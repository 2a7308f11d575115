"""What the readers of all formats need for a file's symbols."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import Symbol

_LTO_SUFFIX = b".llvm."


class Names:
    """The strings of one symbol table.

    Args:
        strings: NUL-terminated, one after the other.
        separator: what a name ends with as well, and what follows it is no part of it (ELF: `@` and a version).
    """

    def __init__(self, strings: bytes, separator: bytes = _LTO_SUFFIX) -> None:
        self._strings = strings
        self._separators = tuple(mark for mark in {separator, _LTO_SUFFIX} if mark in strings)

    def at(self, offset: int) -> bytes:
        """The name at an offset.

        Raises:
            ValueError: there is none.
        """
        name = self._strings[offset : self._strings.index(b"\0", offset)]
        for separator in self._separators:
            name = name.partition(separator)[0]
        return name


def text_of(name: bytes) -> str:
    """A name as text; bytes that are not UTF-8 become lone surrogates."""
    return name.decode("utf-8", "surrogateescape")


def with_derived_sizes(placed: Iterable[tuple[Symbol, int]], ends: Mapping[int, int]) -> tuple[Symbol, ...]:
    """Give symbols the distance to the next one of their section as size.

    Args:
        placed: symbols of size 0, and the numbers of their sections; those in sections without an end keep their size.
        ends: section number → address of its end.
    """
    rows = list(placed)
    addrs: dict[int, set[int]] = {section: {end} for section, end in ends.items()}
    for symbol, section in rows:
        if section in addrs:
            addrs[section].add(symbol.addr)
    sizes = {
        section: {start: end - start for start, end in pairwise(sorted(found))} for section, found in addrs.items()
    }
    return tuple(
        Symbol(symbol.name, symbol.addr, sizes[section].get(symbol.addr, 0), *symbol[3:])
        if section in sizes
        else symbol
        for symbol, section in rows
    )


def digest_of(data: bytes) -> str:
    """The build id of a file that states none."""
    return "sha256-" + hashlib.sha256(data).hexdigest()


def refuse_stripped(
    path: Path, what: str, hint: str = "set `strip = false` in the profile, and build again"
) -> NoReturn:
    """Say that a file has lost its symbols.

    Raises:
        ObjectError: always.
    """
    raise ObjectError(f"{path} is stripped: it has {what}", hint=hint)
