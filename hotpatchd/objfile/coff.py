"""COFF relocatable objects, read as far as comparing and linking patches takes.

Source: Microsoft, "PE Format" (COFF file header, section table, relocations, symbol table).
"""

import mmap
import struct
from functools import cached_property
from typing import NamedTuple

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import coff_writer as coff

RELOC = struct.Struct("<IIH")
IMAGE_REL_AMD64_ADDR64 = 1
IMAGE_SYM_CLASS_STATIC = 3
IMAGE_SCN_LNK_INFO, IMAGE_SCN_LNK_REMOVE, IMAGE_SCN_LNK_NRELOC_OVFL = 0x200, 0x800, 0x01000000
IMAGE_SCN_MEM_DISCARDABLE, IMAGE_SCN_MEM_WRITE = 0x02000000, 0x80000000


class Section(NamedTuple):
    """One section; numbers count from 1, as in the format.

    Args:
        name: of it.
        header: where its header is in the file.
        offset: where its bytes are in the file, 0 for those that are zero.
        size: in bytes.
        relocs_offset: where its relocations are in the file.
        reloc_count: how many.
        flags: IMAGE_SCN_*.
    """

    name: str
    header: int
    offset: int
    size: int
    relocs_offset: int
    reloc_count: int
    flags: int


class Symbol(NamedTuple):
    """One symbol; auxiliary entries are counted in the indices, and left out.

    Args:
        name: of it.
        value: its offset in the section.
        section: the number of that; 0 where it is undefined, negative where it lies in none.
        storage_class: IMAGE_SYM_CLASS_*.
        is_section: it stands for the section as a whole.
    """

    name: str
    value: int
    section: int
    storage_class: int
    is_section: bool


class Reloc(NamedTuple):
    """One relocation: `offset` in its section, `symbol` an index."""

    offset: int
    symbol: int
    type: int


class CoffFile:
    """A COFF object for x86-64, unpacked on demand.

    Args:
        data: its bytes.
        origin: what to call it in an error.

    Raises:
        ObjectError: not such an object; or, at the first access, damaged.
    """

    def __init__(self, data: bytes | mmap.mmap, origin: str) -> None:
        self.data = data
        self.origin = origin
        if len(data) < coff.HEADER.size:
            raise ObjectError(f"{origin} is no COFF object")
        self.section_count: int
        self.symbols_offset: int
        self.symbol_count: int
        machine, self.section_count, _, self.symbols_offset, self.symbol_count, optional_size, _ = (
            coff.HEADER.unpack_from(data)
        )
        if machine != coff.IMAGE_FILE_MACHINE_AMD64 or optional_size:
            raise ObjectError(f"{origin} is no COFF object for x86-64")

    def _damaged(self, what: str) -> ObjectError:
        return ObjectError(f"{self.origin} is damaged: its {what} cannot be read")

    @property
    def strings_offset(self) -> int:
        """Where the string table is in the file; its first four bytes are its size."""
        return self.symbols_offset + coff.SYMBOL.size * self.symbol_count

    @cached_property
    def strings(self) -> bytes:
        """The string table, its size included."""
        try:
            (size,) = struct.unpack_from("<I", self.data, self.strings_offset)
        except struct.error:
            raise self._damaged("string table") from None
        return self.data[self.strings_offset : self.strings_offset + size]

    def _string(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(0, offset)].decode("utf-8", "surrogateescape")

    @cached_property
    def sections(self) -> dict[int, Section]:
        """Number → section."""
        found = {}
        try:
            for number in range(1, self.section_count + 1):
                header = coff.HEADER.size + coff.SECTION.size * (number - 1)
                field, _, _, size, offset, relocs, _, count, _, flags = coff.SECTION.unpack_from(self.data, header)
                name = field.rstrip(b"\0").decode("utf-8", "surrogateescape")
                if name.startswith("/"):
                    name = self._string(int(name[1:]))
                if flags & IMAGE_SCN_LNK_NRELOC_OVFL:
                    # With more relocations than the field holds, an entry before them has the count, itself included.
                    count, relocs = RELOC.unpack_from(self.data, relocs)[0] - 1, relocs + RELOC.size
                found[number] = Section(name, header, offset, size, relocs, count, flags)
        except (struct.error, ValueError):
            raise self._damaged("section table") from None
        return found

    @cached_property
    def symbols(self) -> dict[int, Symbol]:
        """Index → symbol."""
        found = {}
        index = 0
        try:
            while index < self.symbol_count:
                at = self.symbols_offset + coff.SYMBOL.size * index
                field, value, section, _, storage_class, aux_count = coff.SYMBOL.unpack_from(self.data, at)
                zeroes, offset = struct.unpack("<II", field)
                name = field.rstrip(b"\0").decode("utf-8", "surrogateescape") if zeroes else self._string(offset)
                is_section = storage_class == IMAGE_SYM_CLASS_STATIC and aux_count > 0 and section > 0
                found[index] = Symbol(name, value, section, storage_class, is_section)
                index += 1 + aux_count
        except (struct.error, ValueError):
            raise self._damaged("symbol table") from None
        return found

    def contents(self, section: Section) -> bytes:
        """The section's bytes; empty for those that are zero."""
        return self.data[section.offset : section.offset + section.size] if section.offset else b""

    def target(self, section: Section, reloc: Reloc) -> int:
        """Where a relocation leads, as an offset in the section of its symbol."""
        width = 8 if reloc.type == IMAGE_REL_AMD64_ADDR64 else 4
        at = section.offset + reloc.offset
        return self.symbols[reloc.symbol].value + int.from_bytes(self.data[at : at + width], "little", signed=True)

    def named_contents(self, name: str) -> bytes:
        """The bytes of the section with that name; empty where there is none."""
        return next((self.contents(section) for section in self.sections.values() if section.name == name), b"")

    def named_targets(self, name: str) -> dict[int, int]:
        """Place in the section with that name → offset into the section that is referred to there."""
        return {
            reloc.offset: self.target(section, reloc)
            for section in self.sections.values()
            if section.name == name
            for reloc in self.relocs(section)
        }

    def relocs(self, section: Section) -> list[Reloc]:
        """The relocations of one section, in the file's order."""
        end = section.relocs_offset + RELOC.size * section.reloc_count
        try:
            found = [Reloc(*row) for row in RELOC.iter_unpack(self.data[section.relocs_offset : end])]
        except struct.error:
            raise self._damaged("relocations") from None
        if len(found) != section.reloc_count or any(reloc.symbol not in self.symbols for reloc in found):
            raise self._damaged("relocations")
        return found
