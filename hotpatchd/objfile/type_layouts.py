"""The types of an object, from its debug information.

A patch is judged within milliseconds, so entries are unpacked here directly, and only the attributes that tell layouts.

Source: DWARF 4 and 5, chapter 7 (encodings); `rustc_codegen_llvm::debuginfo::metadata` for what rustc writes.
"""

import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.layout import Field, FunctionTypes, Layout, TraitObject, Uses, Variant
from hotpatchd.objfile.elf import string_at

_ARRAY, _ENUMERATION, _PARAMETER, _MEMBER, _POINTER = 0x01, 0x04, 0x05, 0x0D, 0x0F
_STRUCTURE, _UNION, _VARIANT, _INLINED, _SUBRANGE = 0x13, 0x17, 0x19, 0x1D, 0x21
_ENUMERATOR, _SUBPROGRAM, _VARIABLE, _VARIANT_PART, _NAMESPACE = 0x28, 0x2E, 0x34, 0x33, 0x39
_BLOCK, _FUNCTION_TYPE, _BASE, _GENERIC = 0x0B, 0x15, 0x24, 0x2F
_AGGREGATES = frozenset((_STRUCTURE, _UNION, _ENUMERATION))
_PATHS = frozenset((_STRUCTURE, _UNION, _ENUMERATION, _NAMESPACE))
_LAYOUT_TAGS = _PATHS | {
    _ARRAY,
    _SUBRANGE,
    _POINTER,
    _MEMBER,
    _VARIANT_PART,
    _VARIANT,
    _ENUMERATOR,
    _BASE,
    _FUNCTION_TYPE,
}
_USE_TAGS = frozenset((_SUBPROGRAM, _PARAMETER, _VARIABLE, _BLOCK, _INLINED, _GENERIC))

_LOCATION, _NAME, _SIZE, _LOW_PC, _DISCR_VALUE, _CONST_VALUE, _CONTAINING = 0x02, 0x03, 0x0B, 0x11, 0x16, 0x1C, 0x1D
_ABSTRACT_ORIGIN, _COUNT, _OFFSET, _DECLARATION = 0x31, 0x37, 0x38, 0x3C
_SPECIFICATION, _TYPE, _RANGES, _LINKAGE_NAME, _ALIGNMENT = 0x47, 0x49, 0x55, 0x6E, 0x88
_REFERRING = frozenset((_CONTAINING, _ABSTRACT_ORIGIN, _SPECIFICATION, _TYPE))
_WANTED = frozenset(
    {
        *(_NAME, _SIZE, _LOW_PC, _DISCR_VALUE, _CONST_VALUE, _CONTAINING, _ABSTRACT_ORIGIN, _COUNT, _OFFSET),
        *(_DECLARATION, _SPECIFICATION, _TYPE, _RANGES, _LINKAGE_NAME, _ALIGNMENT),
    }
)

_FIXED_SIZES = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8},
    **{0x17: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4},
}
"""Form → bytes, for 64-bit addresses and 32-bit DWARF."""

_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}

_STRING, _SDATA, _STRP, _PRESENT, _CONSTANT = 0x08, 0x0D, 0x0E, 0x19, 0x21
_LENGTH_FIRST = frozenset((0x09, 0x18))
_PREFIXED = {0x0A: 1, 0x03: 2, 0x04: 4}
_INDEXED_STRINGS = frozenset((0x1A, 0x25, 0x26, 0x28))
_VARIABLE_INTEGERS = frozenset((0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23))

_STRING_OFFSETS_HEADER = 8

_TABLE, _TABLE_TYPE = "::{vtable}", "::{vtable_type}"


@dataclass(slots=True)
class _Entry:
    """A debugging information entry, with the wanted attributes; strings as offsets into `.debug_str`."""

    tag: int
    parent: "_Entry | None"
    attributes: dict[int, int]
    children: list["_Entry"]
    path: str | None = None

    def get(self, attribute: int) -> int | None:
        return self.attributes.get(attribute)


class _Run(NamedTuple):
    """Attributes of fixed length, and the one of another length that follows them, if any.

    `strings` are the wanted ones that are relocated, with their places in the run.
    """

    fixed: struct.Struct
    wanted: tuple[int, ...]
    strings: tuple[tuple[int, int], ...]
    form: int
    attribute: int


class _Abbreviation(NamedTuple):
    """What an entry consists of; `constants` are attributes whose value is the abbreviation's own."""

    tag: int
    has_children: bool
    constants: dict[int, int]
    indexed: tuple[int, ...]
    runs: tuple[_Run, ...]


class DebugSections(Protocol):
    """An object with debug information, whatever its format."""

    origin: str

    def named_contents(self, name: str) -> bytes:
        """The bytes of the section with that name; empty where there is none."""

    def named_targets(self, name: str) -> dict[int, int]:
        """Place in the section with that name → offset into the section that is referred to there."""


class ObjectTypes:
    """The types that an object's debug information describes; none where it has no such.

    Args:
        obj: the object.

    Raises:
        ObjectError: its debug information cannot be read; at the first access.
    """

    def __init__(self, obj: DebugSections) -> None:
        self._obj = obj

    def mention(self, functions: Iterable[str]) -> bool:
        """Whether any of these functions may be around something that is described; by its name, without modules."""
        names = b"|".join(re.escape(name.encode()) for name in sorted(functions)) or rb"(?!)"
        # That of a namespace, or part of a type's parameters.
        pattern = rb"(?:^|[\0:])(?:%s)(?:\0|::\{)" % names
        return re.search(pattern, self._obj.named_contents(".debug_str")) is not None

    @cached_property
    def layouts(self) -> Mapping[str, frozenset[Layout]]:
        """Path → layout; several where types share a path."""
        return self._read(_LAYOUT_TAGS).layouts()

    @property
    def uses(self) -> Uses:
        """What holds which types. Asked for only when a layout changed, since functions take time to read."""
        return self._whole[0]

    @property
    def virtual_tables(self) -> Mapping[TraitObject, int]:
        """Trait object → where in `.debug_info` the location of its virtual table is. As `uses`, it takes time."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[Uses, Mapping[TraitObject, int]]:
        found = self._read(_LAYOUT_TAGS | _USE_TAGS)
        self.__dict__.setdefault("layouts", found.layouts())
        return found.uses(), found.tables

    def _read(self, tags: frozenset[int]) -> "_Types":
        try:
            return _Types(_Reader(self._obj, tags))
        except (IndexError, KeyError, ValueError, RecursionError, struct.error) as error:
            raise ObjectError(f"{self._obj.origin}: its debug information cannot be read: {error!r}") from error


class _Reader:
    """Entries of `.debug_info`.

    Args:
        obj: the object.
        tags: what to read; other entries are passed over.
    """

    def __init__(self, obj: DebugSections, tags: frozenset[int]) -> None:
        self._tags = tags
        self._info = obj.named_contents(".debug_info")
        self._strings = obj.named_contents(".debug_str")
        self._addends = obj.named_targets(".debug_info")
        self._indexed = obj.named_targets(".debug_str_offsets")
        self._names: dict[int, str] = {}
        self.entries: dict[int, _Entry] = {}
        abbreviations = obj.named_contents(".debug_abbrev")
        at = 0
        while at < len(self._info):
            end = at + 4 + self._integer(at, 4)
            version = self._integer(at + 4, 2)
            header, abbrev_at = (12, at + 8) if version >= 5 else (11, at + 6)
            table = _abbreviations(abbreviations, self._addends.get(abbrev_at, 0))
            self._read_unit(at, at + header, end, table)
            at = end

    def string(self, offset: int | None) -> str:
        """A string of `.debug_str`; empty where there is none."""
        if offset is None:
            return ""
        known = self._names.get(offset)
        if known is None:
            known = self._names[offset] = sys.intern(string_at(self._strings, offset))
        return known

    def _integer(self, at: int, size: int) -> int:
        return int.from_bytes(self._info[at : at + size], "little")

    def _read_unit(self, start: int, at: int, end: int, table: Mapping[int, _Abbreviation]) -> None:
        data, entries, addends, tags = self._info, self.entries, self._addends, self._tags
        parent: _Entry | None = None
        parents: list[_Entry | None] = []
        while at < end:
            offset = at
            code = data[at]
            if code < 0x80:
                at += 1
            else:
                code, at = read_unsigned(data, at)
            if not code:
                parent = parents.pop() if parents else None
                continue
            tag, has_children, constants, indexed, runs = table[code]
            is_read = tag in tags
            attributes = constants.copy() if is_read else {}
            for fixed, wanted, strings, form, attribute in runs:
                if wanted and is_read:
                    attributes.update(zip(wanted, fixed.unpack_from(data, at), strict=True))
                    for name, place in strings:
                        attributes[name] = addends[at + place]
                at += fixed.size
                if form in _LENGTH_FIRST:
                    length, at = read_unsigned(data, at)
                    if is_read and attribute == _LOCATION:
                        attributes[_LOCATION] = at
                    at += length
                elif form == _SDATA:
                    attributes[attribute], at = _signed(data, at)
                elif form in _VARIABLE_INTEGERS:
                    attributes[attribute], at = read_unsigned(data, at)
                elif form in _PREFIXED:
                    at += _PREFIXED[form] + self._integer(at, _PREFIXED[form])
                elif form == _STRING:
                    at = data.index(b"\0", at) + 1
            entry = parent
            if is_read:
                for attribute in indexed:
                    attributes[attribute] = self._indexed[_STRING_OFFSETS_HEADER + 4 * attributes[attribute]]
                if start:
                    for attribute in _REFERRING & attributes.keys():
                        attributes[attribute] += start
                entry = entries[offset] = _Entry(tag, parent, attributes, [])
                if parent is not None:
                    parent.children.append(entry)
            if has_children:
                parents.append(parent)
                parent = entry


def _abbreviations(data: bytes, at: int) -> dict[int, _Abbreviation]:
    """The table of abbreviations that begins at an offset."""
    table = {}
    code, at = read_unsigned(data, at)
    while code:
        tag, at = read_unsigned(data, at)
        has_children, at = data[at] == 1, at + 1
        constants: dict[int, int] = {}
        indexed, runs = [], []
        layout, wanted, strings = "<", list[int](), list[tuple[int, int]]()
        while True:
            attribute, at = read_unsigned(data, at)
            form, at = read_unsigned(data, at)
            if not form:
                break
            if form in _INDEXED_STRINGS and attribute in _WANTED:
                indexed.append(attribute)
            if form == _PRESENT:
                constants[attribute] = 1
            elif form == _CONSTANT:
                constants[attribute], at = _signed(data, at)
            elif form not in _FIXED_SIZES:
                if form not in _LENGTH_FIRST | _VARIABLE_INTEGERS | _PREFIXED.keys() | {_SDATA, _STRING}:
                    raise ValueError(f"unknown form {form:#x}")
                runs.append(_Run(struct.Struct(layout), tuple(wanted), tuple(strings), form, attribute))
                layout, wanted, strings = "<", [], []
            elif attribute in _WANTED and _FIXED_SIZES[form] in _INTEGERS:
                if form == _STRP:
                    strings.append((attribute, struct.calcsize(layout)))
                layout += _INTEGERS[_FIXED_SIZES[form]]
                wanted.append(attribute)
            else:
                layout += f"{_FIXED_SIZES[form]}x"
        if layout != "<":
            runs.append(_Run(struct.Struct(layout), tuple(wanted), tuple(strings), _PRESENT, 0))
        table[code] = _Abbreviation(tag, has_children, constants, tuple(indexed), tuple(runs))
        code, at = read_unsigned(data, at)
    return table


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


class _Types:
    """What the entries say of types."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._layouts: dict[str, set[Layout]] = {}
        self._parts: dict[str, set[str]] = {}
        self._functions: dict[str, FunctionTypes] = {}
        self._statics: dict[str, str] = {}
        self._trait_objects: set[TraitObject] = set()
        self.tables: dict[TraitObject, int] = {}
        for entry in reader.entries.values():
            if entry.tag in _AGGREGATES:
                self._aggregate(entry)
            elif entry.tag in (_POINTER, _ARRAY):
                self._part(entry, self._type(entry))
            elif entry.tag == _SUBPROGRAM and (_LOW_PC in entry.attributes or _RANGES in entry.attributes):
                self._function(entry)
            elif entry.tag == _VARIABLE and (entry.parent is None or entry.parent.tag == _NAMESPACE):
                self._static(entry)

    def layouts(self) -> dict[str, frozenset[Layout]]:
        return {path: frozenset(layouts) for path, layouts in self._layouts.items()}

    def uses(self) -> Uses:
        return Uses(
            parts={path: frozenset(parts) for path, parts in self._parts.items()},
            functions=self._functions,
            statics=self._statics,
            trait_objects=frozenset(self._trait_objects),
        )

    def _static(self, entry: _Entry) -> None:
        name = self._reader.string(entry.get(_LINKAGE_NAME) or entry.get(_NAME))
        if not name.endswith(_TABLE):
            self._statics[name] = self._type(entry)
        elif _TYPE in entry.attributes and _LOCATION in entry.attributes:
            made = self._trait_object(self._reader.entries[entry.attributes[_TYPE]])
            if made is not None:
                self.tables[made] = entry.attributes[_LOCATION]

    def _trait_object(self, table: _Entry) -> TraitObject | None:
        """What the type of a virtual table is the table of."""
        path, containing = self._path(table), table.get(_CONTAINING)
        if containing is None or not path.endswith(_TABLE_TYPE):
            return None
        held = self._path(self._reader.entries[containing])
        return TraitObject(
            type=held, trait=path.removesuffix(_TABLE_TYPE).removeprefix(f"<{held} as ").removesuffix(">")
        )

    def _path(self, entry: _Entry) -> str:
        """The path of a type, by which it is known in all objects."""
        if entry.path is None:
            own = self._reader.string(entry.get(_NAME))
            if entry.tag == _ARRAY:
                counts = [child.get(_COUNT) for child in entry.children if child.tag == _SUBRANGE]
                own = f"[{self._type(entry)}; {counts[0] if counts else None}]"
            outer = self._path(entry.parent) if entry.parent is not None and entry.parent.tag in _PATHS else ""
            entry.path = f"{outer}::{own}" if outer else own
        return entry.path

    def _type(self, entry: _Entry) -> str:
        """The path of the type of a member, variable, pointer target or result; empty for `()` as a result."""
        offset = self._origin(entry, _TYPE)
        return "" if offset is None else self._path(self._reader.entries[offset])

    def _origin(self, entry: _Entry, attribute: int) -> int | None:
        """An attribute of an entry, or of the declaration or abstract entry that it completes."""
        value = entry.get(attribute)
        for link in (_SPECIFICATION, _ABSTRACT_ORIGIN):
            if value is None and link in entry.attributes:
                value = self._origin(self._reader.entries[entry.attributes[link]], attribute)
        return value

    def _part(self, entry: _Entry, part: str) -> None:
        if part:
            self._parts.setdefault(self._path(entry), set()).add(part)

    def _fields(self, entry: _Entry) -> tuple[Field, ...]:
        return tuple(
            Field(
                name=self._reader.string(child.get(_NAME)).removeprefix("__"),
                offset=child.get(_OFFSET) or 0,
                type=self._type(child),
            )
            for child in entry.children
            if child.tag == _MEMBER
        )

    def _aggregate(self, entry: _Entry) -> None:
        path = self._path(entry)
        if _CONTAINING in entry.attributes:
            made = self._trait_object(entry)
            if made is not None:
                self._trait_objects.add(made)
            return
        size = entry.get(_SIZE)
        if _DECLARATION in entry.attributes or size is None:
            return
        fields = self._fields(entry)
        variants: list[Variant] = []
        for child in entry.children:
            if child.tag == _VARIANT_PART:
                fields += tuple(self._tags(child))
                variants += self._variants(child)
            elif child.tag == _ENUMERATOR:
                tag = child.get(_CONST_VALUE)
                variants.append(Variant(name=self._reader.string(child.get(_NAME)), tag=tag))
        layout = Layout(
            size=size,
            align=entry.get(_ALIGNMENT) or 1,
            fields=tuple(sorted(fields, key=lambda one: one.name)),
            variants=tuple(sorted(variants, key=lambda one: one.name)),
        )
        self._layouts.setdefault(path, set()).add(layout)
        parts = {one.type for one in fields} | {one.type for variant in variants for one in variant.fields}
        # `Vec<T>` leads to values by a pointer that does not say to what.
        parts |= {self._type(one) for one in entry.children if one.tag == _GENERIC}
        self._parts.setdefault(path, set()).update(parts - {""})

    def _tags(self, entry: _Entry) -> Iterator[Field]:
        """The field that holds the tag of an enum with data."""
        for one in self._fields(entry):
            yield Field(name="(tag)", offset=one.offset, type=one.type)

    def _variants(self, entry: _Entry) -> Iterator[Variant]:
        for child in entry.children:
            if child.tag == _VARIANT:
                for member in self._fields(child):
                    content = Field(name="0", offset=member.offset, type=member.type)
                    yield Variant(name=member.name, tag=child.get(_DISCR_VALUE), fields=(content,))

    def _function_path(self, entry: _Entry) -> str:
        for link in (_ABSTRACT_ORIGIN, _SPECIFICATION):
            if link in entry.attributes:
                return self._function_path(self._reader.entries[entry.attributes[link]])
        return self._path(entry)

    def _function(self, entry: _Entry) -> None:
        name = self._reader.string(self._origin(entry, _LINKAGE_NAME) or self._origin(entry, _NAME))
        parameters = [self._type(one) for one in entry.children if one.tag == _PARAMETER]
        signature = {*parameters, self._type(entry)}
        generic = {self._type(one) for one in entry.children if one.tag == _GENERIC}
        every = signature | generic
        waiting = list(entry.children)
        while waiting:
            inner = waiting.pop()
            if inner.tag in (_PARAMETER, _VARIABLE):
                every.add(self._type(inner))
            if inner.tag not in _AGGREGATES and inner.tag != _SUBPROGRAM:
                waiting += inner.children
        self._functions[name] = FunctionTypes(
            path=self._function_path(entry),
            parameters=(*parameters, self._type(entry)),
            signature=frozenset(signature - {""}),
            generic=frozenset(generic - {""}),
            all=frozenset(every - {""}),
        )
