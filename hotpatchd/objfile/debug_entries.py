"""The entries of an object's `.debug_info`, with the attributes that tell types.

A patch is judged within milliseconds, and a crate's objects have a million entries: each is unpacked at once, and what
its values mean is found out when somebody asks.

Source: DWARF 4 and 5, chapter 7 (encodings); `rustc_codegen_llvm::debuginfo::metadata` for what rustc writes.
"""

import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from hotpatchd.objfile.elf import string_at

ARRAY, ENUMERATION, PARAMETER, MEMBER, POINTER = 0x01, 0x04, 0x05, 0x0D, 0x0F
STRUCTURE, UNION, VARIANT, INLINED, SUBRANGE = 0x13, 0x17, 0x19, 0x1D, 0x21
ENUMERATOR, SUBPROGRAM, VARIABLE, VARIANT_PART, NAMESPACE = 0x28, 0x2E, 0x34, 0x33, 0x39
BLOCK, FUNCTION_TYPE, BASE, GENERIC = 0x0B, 0x15, 0x24, 0x2F
"""Tags."""

LOCATION, NAME, SIZE, LOW_PC, DISCR_VALUE, CONST_VALUE, CONTAINING = 0x02, 0x03, 0x0B, 0x11, 0x16, 0x1C, 0x1D
ABSTRACT_ORIGIN, COUNT, OFFSET, DECLARATION = 0x31, 0x37, 0x38, 0x3C
SPECIFICATION, TYPE, RANGES, LINKAGE_NAME, ALIGNMENT = 0x47, 0x49, 0x55, 0x6E, 0x88
"""Attributes."""

_WANTED = frozenset(
    {
        *(LOCATION, NAME, SIZE, LOW_PC, DISCR_VALUE, CONST_VALUE, CONTAINING, ABSTRACT_ORIGIN, COUNT, OFFSET),
        *(DECLARATION, SPECIFICATION, TYPE, RANGES, LINKAGE_NAME, ALIGNMENT),
    }
)

_FIXED_SIZES = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8},
    **{0x17: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4},
}
"""Form → bytes, for 64-bit addresses and 32-bit DWARF."""

_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}

_STRING, _DATA1, _SDATA, _STRP, _REF_ADDR, _PRESENT, _CONSTANT = 0x08, 0x0B, 0x0D, 0x0E, 0x10, 0x19, 0x21
_LENGTH_FIRST = frozenset((0x09, 0x18))
_PREFIXED = {0x0A: 1, 0x03: 2, 0x04: 4}
_INDEXED_STRINGS = frozenset((0x1A, 0x25, 0x26, 0x28))
_UNSIGNED = frozenset((0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23))

_STRING_OFFSETS_HEADER = 8


class DebugSections(Protocol):
    """An object with debug information, whatever its format."""

    origin: str

    def named_contents(self, name: str) -> bytes:
        """The bytes of the section with that name; empty where there is none."""

    def named_targets(self, name: str) -> dict[int, int]:
        """Place in the section with that name → offset into the section that is referred to there."""


class _Run(NamedTuple):
    """Attributes of fixed length, and the one of another length that follows them, if any."""

    fixed: struct.Struct
    form: int
    is_wanted: bool


class _Shape(NamedTuple):
    """What an entry consists of: an abbreviation.

    Args:
        tag: what it is about.
        has_children: whether entries follow that are part of it.
        runs: how it is unpacked; one that ends with no attribute of another length where `unpack` does it all.
        positions: attribute → which of the unpacked values it has.
        constants: attribute → its value, which is the abbreviation's own.
        relocated: attribute → where its offset into another section or unit is: from which of the values on, or -1
            for the entry's own start, and how many bytes behind that.
        indexed: attributes that are a number in `.debug_str_offsets`.
        short: the same where the only attribute of another length, an alignment for the most part, is one byte long,
            and which of the values that is; None where there is no such attribute.
    """

    tag: int
    has_children: bool
    runs: tuple[_Run, ...]
    positions: dict[int, int]
    constants: dict[int, int]
    relocated: dict[int, tuple[int, int]]
    indexed: frozenset[int]
    short: "tuple[_Shape, int] | None" = None

    @property
    def unpack(self) -> Callable[[bytes, int], tuple[Any, ...]] | None:
        """Unpacks it at once; None where the length of an entry depends on what is in it."""
        is_fixed = len(self.runs) == 1 and self.runs[0].form == _PRESENT
        return self.runs[0].fixed.unpack_from if is_fixed else None


class Entry(NamedTuple):
    """A debugging information entry.

    Args:
        shape: its abbreviation.
        parent: the nearest one around it that is read.
        at: where its attributes begin.
        values: the wanted ones, and where each run of them begins if there are several.
        children: those that it is the parent of.
    """

    shape: _Shape
    parent: "Entry | None"
    at: int
    values: tuple[int, ...]
    children: "list[Entry]"

    @property
    def tag(self) -> int:
        """What it is about."""
        return self.shape.tag

    def get(self, attribute: int) -> int | None:
        """A number or offset, as it is written; None where it has none."""
        position = self.shape.positions.get(attribute)
        return self.shape.constants.get(attribute) if position is None else self.values[position]

    def has(self, attribute: int) -> bool:
        """Whether it has an attribute."""
        return attribute in self.shape.positions or attribute in self.shape.constants


_CHILDLESS: Final[list[Entry]] = []


class Entries:
    """Entries of an object's debug information.

    Args:
        obj: the object.
        tags: what to read; other entries are passed over.

    Attributes:
        all: by offset.
    """

    def __init__(self, obj: DebugSections, tags: frozenset[int]) -> None:
        self._info = obj.named_contents(".debug_info")
        self._strings = obj.named_contents(".debug_str")
        self._addends = obj.named_targets(".debug_info")
        self._indexed = obj.named_targets(".debug_str_offsets")
        self._names: dict[int, str] = {}
        self._starts: list[int] = []
        self.all: dict[int, Entry] = {}
        abbreviations = obj.named_contents(".debug_abbrev")
        at = 0
        while at < len(self._info):
            end = at + 4 + self._integer(at, 4)
            version = self._integer(at + 4, 2)
            header, abbrev_at = (12, at + 8) if version >= 5 else (11, at + 6)
            self._starts.append(at)
            self._read(at + header, end, _shapes(abbreviations, self._addends.get(abbrev_at, 0)), tags)
            at = end

    def string(self, entry: Entry, attribute: int) -> str:
        """A string of an entry; empty where it has none."""
        position = entry.shape.positions.get(attribute)
        if position is None:
            return ""
        if attribute in entry.shape.relocated:
            offset = self._relocated(entry, attribute)
        elif attribute in entry.shape.indexed:
            offset = self._indexed[_STRING_OFFSETS_HEADER + 4 * entry.values[position]]
        else:
            offset = entry.values[position]
        known = self._names.get(offset)
        if known is None:
            known = self._names[offset] = sys.intern(string_at(self._strings, offset))
        return known

    def referred(self, entry: Entry, attribute: int) -> Entry | None:
        """The entry that an attribute of another refers to; None where it has none."""
        offset = entry.get(attribute)
        if offset is None:
            return None
        if attribute in entry.shape.relocated:
            return self.all[self._relocated(entry, attribute)]
        # References count from the start of their unit, of which an object has one.
        start = self._starts[bisect_right(self._starts, entry.at) - 1] if len(self._starts) > 1 else 0
        return self.all[start + offset]

    def _relocated(self, entry: Entry, attribute: int) -> int:
        run, distance = entry.shape.relocated[attribute]
        return self._addends[(entry.at if run < 0 else entry.values[run]) + distance]

    def _integer(self, at: int, size: int) -> int:
        return int.from_bytes(self._info[at : at + size], "little")

    def _read(self, at: int, end: int, shapes: Mapping[int, _Shape], tags: frozenset[int]) -> None:
        data, entries, new = self._info, self.all, tuple.__new__
        table = {}
        for code, shape in shapes.items():
            used, guard = shape.short or (shape, None)
            size = used.runs[0].fixed.size
            table[code] = (shape, used, shape.tag in tags, used.unpack, size, guard, shape.has_children)
        parent: Entry | None = None
        parents: list[Entry | None] = []
        while at < end:
            offset = at
            code = data[at]
            if not code:
                at += 1
                parent = parents.pop() if parents else None
                continue
            if code < 0x80:
                at += 1
            else:
                code, at = read_unsigned(data, at)
            shape, used, is_read, unpack, size, guard, has_children = table[code]
            start = at
            values: tuple[int, ...] = ()
            if unpack is not None and (is_read or guard is not None):
                values = unpack(data, at)
            if unpack is None or (guard is not None and values[guard] >= 0x80):
                used = shape
                values, at = self._unpack(shape, at, is_wanted=is_read)
            else:
                at += size
            if is_read:
                entry = new(Entry, (used, parent, start, values, [] if has_children else _CHILDLESS))
                entries[offset] = entry
                if parent is not None:
                    parent.children.append(entry)
                if has_children:
                    parents.append(parent)
                    parent = entry
            elif has_children:
                parents.append(parent)

    def _unpack(self, shape: _Shape, at: int, *, is_wanted: bool) -> tuple[tuple[int, ...], int]:
        """The values of an entry, with the place of each run in front of its own, and where the next entry is."""
        data = self._info
        values: list[int] = []
        for fixed, form, is_kept in shape.runs:
            if is_wanted:
                values.append(at)
                values += fixed.unpack_from(data, at)
            at += fixed.size
            if form in _LENGTH_FIRST:
                length, at = (data[at], at + 1) if data[at] < 0x80 else read_unsigned(data, at)
                value, at = at, at + length
            elif form == _SDATA:
                value, at = _signed(data, at)
            elif form in _UNSIGNED:
                value, at = read_unsigned(data, at)
            elif form in _PREFIXED:
                value, at = at, at + _PREFIXED[form] + self._integer(at, _PREFIXED[form])
            elif form == _STRING:
                value, at = at, data.index(b"\0", at) + 1
            else:
                break
            if is_wanted and is_kept:
                values.append(value)
        return tuple(values), at


def _shapes(data: bytes, at: int) -> dict[int, _Shape]:
    """The table of abbreviations that begins at an offset."""
    table = {}
    code, at = read_unsigned(data, at)
    while code:
        tag, at = read_unsigned(data, at)
        has_children, at = data[at] == 1, at + 1
        pairs: list[tuple[int, int]] = []
        constants: dict[int, int] = {}
        while True:
            attribute, at = read_unsigned(data, at)
            form, at = read_unsigned(data, at)
            if not form:
                break
            if form == _PRESENT:
                constants[attribute] = 1
            elif form == _CONSTANT:
                constants[attribute], at = _signed(data, at)
            else:
                pairs.append((attribute, form))
        table[code] = _shape(tag, has_children, pairs, constants)
        code, at = read_unsigned(data, at)
    return table


def _shape(tag: int, has_children: bool, pairs: list[tuple[int, int]], constants: dict[int, int]) -> _Shape:
    """An abbreviation.

    Args:
        tag: what entries are about.
        has_children: whether entries follow that are part of it.
        pairs: attribute and form, of those that entries have values for.
        constants: attribute → value, of the others.
    """
    others = [(attribute, form) for attribute, form in pairs if form not in _FIXED_SIZES]
    positions: dict[int, int] = {}
    relocated: dict[int, tuple[int, int]] = {}
    runs: list[_Run] = []
    layout, start = "<", 0 if others else -1
    count = start + 1
    for attribute, form in pairs:
        is_wanted = attribute in _WANTED
        if form not in _FIXED_SIZES:
            if form not in _LENGTH_FIRST | _UNSIGNED | _PREFIXED.keys() | {_SDATA, _STRING}:
                raise ValueError(f"unknown form {form:#x}")
            is_wanted &= form in _UNSIGNED | {_SDATA} or attribute == LOCATION
            runs.append(_Run(struct.Struct(layout), form, is_wanted))
            if is_wanted:
                positions[attribute], count = count, count + 1
            layout, start, count = "<", count, count + 1
        elif is_wanted and _FIXED_SIZES[form] in _INTEGERS:
            if form in (_STRP, _REF_ADDR):
                relocated[attribute] = (start, struct.calcsize(layout))
            layout += _INTEGERS[_FIXED_SIZES[form]]
            positions[attribute], count = count, count + 1
        else:
            layout += f"{_FIXED_SIZES[form]}x"
    runs.append(_Run(struct.Struct(layout), _PRESENT, is_wanted=False))
    indexed = frozenset(attribute for attribute, form in pairs if form in _INDEXED_STRINGS)
    shape = _Shape(tag, has_children, tuple(runs), positions, constants, relocated, indexed)
    match others:
        case [(attribute, form)] if attribute in _WANTED and form in _UNSIGNED:
            in_a_byte = [(one, _DATA1 if one == attribute else of_one) for one, of_one in pairs]
            short = _shape(tag, has_children, in_a_byte, constants)
            return shape._replace(short=(short, short.positions[attribute]))
        case _:
            return shape


def read_unsigned(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number, and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _signed(data: bytes, at: int) -> tuple[int, int]:
    start = at
    value, at = read_unsigned(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), at
