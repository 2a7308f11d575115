"""A process's address space as `/proc/<pid>/maps` tells it, and where in it patches fit.

Source: proc(5), `/proc/pid/maps`
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")

REGION_SIZE = 64 << 20
_ALIGN = 2 << 20
_STEP = 16 << 20


class Mapping(NamedTuple):
    """One mapping: run-time addresses, and the file's path or a name in brackets (empty for anonymous memory)."""

    start: int
    end: int
    path: str


def parse_maps(text: str) -> tuple[Mapping, ...]:
    """Read `/proc/<pid>/maps`; sorted by address."""
    matches = map(_LINE.match, text.splitlines())
    return tuple(Mapping(int(m[1], 16), int(m[2], 16), m[4]) for m in matches if m)


def extent_of(maps: Sequence[Mapping], path: str) -> range | None:
    """The addresses from the first to the last mapping of a file; None where it is not mapped."""
    own = [mapping for mapping in maps if mapping.path == path]
    return range(own[0].start, own[-1].end) if own else None


def choose_region(maps: Sequence[Mapping], program: range, reach: int) -> range | None:
    """Find free addresses from which every byte of a program can be reached, and the other way round.

    They are above the program, since a jump table's addresses count from its beginning and are not negative; and as far
    above as can be, which leaves the heap that grows there the room between.

    Args:
        maps: what is taken.
        program: its extent.
        reach: of a direct call, in bytes.
    """
    highest = (program.start + reach - REGION_SIZE) // _ALIGN * _ALIGN - _ALIGN
    lowest = -(-program.stop // _ALIGN) * _ALIGN
    for start in range(highest, lowest - 1, -_STEP):
        if is_free(maps, range(start, start + REGION_SIZE)):
            return range(start, start + REGION_SIZE)
    return None


def is_free(maps: Sequence[Mapping], wanted: range) -> bool:
    """Whether nothing is mapped in a range of addresses."""
    return not any(mapping.start < wanted.stop and wanted.start < mapping.end for mapping in maps)
