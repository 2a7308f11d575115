"""ELF relocatable objects (64-bit, little-endian), read as columns and only as far as asked.

An edit is compared and linked within milliseconds, so the objects of rustc are unpacked here directly; pyelftools
serves where time does not matter (host binaries) and as the reference that the tests compare with.

Source: System V ABI, chapters 4 and 5 (gabi4+), and the x86-64 psABI and AAELF64 for relocation types.
"""

import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hotpatchd.core.errors import ObjectError

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_X86_64, EM_AARCH64 = 62, 183
MACHINE_NAMES = {EM_X86_64: "x86-64", EM_AARCH64: "aarch64"}

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA = 1, 2, 3, 4
SHT_NOBITS, SHT_INIT_ARRAY, SHT_SYMTAB_SHNDX, SHT_RELR = 8, 14, 18, 19
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_STRINGS = 0x1, 0x2, 0x4, 0x10, 0x20
SHF_TLS, SHF_EXCLUDE = 0x400, 0x80000000
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STV_DEFAULT, STV_HIDDEN = 0, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_TLS, STT_GNU_IFUNC = 0, 1, 2, 3, 4, 6, 10

R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_GOTPCREL = 1, 2, 4, 9
R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX = 41, 42
R_X86_64_32S, R_X86_64_TLSGD, R_X86_64_TLSLD, R_X86_64_DTPOFF32 = 11, 19, 20, 21
R_AARCH64_ABS64, R_AARCH64_ADR_PREL_PG_HI21, R_AARCH64_LDST64_ABS_LO12_NC = 257, 275, 286
R_AARCH64_JUMP26, R_AARCH64_CALL26 = 282, 283
R_AARCH64_ADR_GOT_PAGE, R_AARCH64_LD64_GOT_LO12_NC = 311, 312

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")
PHDR = struct.Struct("<IIQQQQQQ")

PT_LOAD = 1
PF_X, PF_W = 1, 2


class Section(NamedTuple):
    """One section header, with the ABI's field names less their `sh_`."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


class Symbol(NamedTuple):
    """One symbol table entry.

    `shndx` is already resolved through SHT_SYMTAB_SHNDX, so it may exceed SHN_LORESERVE; reserved values (SHN_ABS,
    SHN_COMMON) are negative: the 16 bits read as a signed number.
    """

    name: str
    bind: int
    type: int
    visibility: int
    shndx: int
    value: int
    size: int

    @property
    def is_bound_by_name(self) -> bool:
        """Whether a reference to it leads to whatever has its name, and not to a place or number of its own object."""
        return self.bind != STB_LOCAL and self.shndx != SHN_ABS - 0x10000


class Reloc(NamedTuple):
    """One RELA entry: `offset` in bytes within the section it applies to, `symbol` an index."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """What the ELF header says of the file and of where its tables are."""

    type: int
    machine: int
    segment_offset: int
    segment_count: int
    section_offset: int
    section_count: int
    name_section: int


def parse_header(data: bytes | mmap.mmap, origin: str) -> ElfHeader:
    """Read an ELF header.

    Args:
        data: the file, from its first byte.
        origin: what to call it in an error.

    Raises:
        ObjectError: not a 64-bit little-endian ELF file, or cut short.
    """
    if len(data) < EHDR.size or bytes(data[:4]) != b"\x7fELF":
        raise ObjectError(f"{origin} is not an ELF file")
    ident, e_type, machine, _, _, phoff, shoff, _, _, _, phnum, shentsize, shnum, shstrndx = EHDR.unpack_from(data)
    if ident[4:6] != b"\x02\x01":
        raise ObjectError(f"{origin} is not a 64-bit little-endian ELF file")
    if shoff and (shentsize != SHDR.size or shoff + SHDR.size * max(shnum, 1) > len(data)):
        raise ObjectError(f"{origin} is cut short: its section headers lie beyond its end")
    if shoff and shnum == 0:
        shnum = SHDR.unpack_from(data, shoff)[5]
    if shoff and shstrndx == SHN_XINDEX:
        shstrndx = SHDR.unpack_from(data, shoff)[6]
    return ElfHeader(e_type, machine, phoff, phnum, shoff, shnum, shstrndx)


def string_at(table: bytes, offset: int) -> str:
    """The NUL-terminated string at `offset`; bytes that are not UTF-8 become lone surrogates."""
    return table[offset : table.index(b"\0", offset)].decode("utf-8", "surrogateescape")


class ElfFile:
    """An ELF file for one of `MACHINE_NAMES`, unpacked on demand.

    Args:
        data: its bytes.
        origin: what to call it in an error: a path, or `archive(member)`.

    Raises:
        ObjectError: at construction, or at the first access to a part that is damaged.
    """

    def __init__(self, data: bytes | mmap.mmap, origin: str) -> None:
        self.data = data
        self.origin = origin
        self.header = parse_header(data, origin)
        if self.header.machine not in MACHINE_NAMES:
            known = " or ".join(MACHINE_NAMES.values())
            raise ObjectError(f"{origin} is for machine {self.header.machine}, not {known}")

    def contents(self, section: Section) -> bytes:
        """The section's bytes; empty for SHT_NOBITS."""
        if section.type == SHT_NOBITS:
            return b""
        if section.offset + section.size > len(self.data):
            raise ObjectError(f"{self.origin} is cut short: section {section.name} lies beyond its end")
        return self.data[section.offset : section.offset + section.size]

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All section headers, by index."""
        end = self.header.section_offset + SHDR.size * self.header.section_count
        if end > len(self.data):
            raise ObjectError(f"{self.origin} is cut short: its section headers lie beyond its end")
        rows = list(SHDR.iter_unpack(self.data[self.header.section_offset : end]))
        if self.header.name_section >= len(rows):
            raise ObjectError(f"{self.origin} is damaged: it has no table of section names")
        names_row = rows[self.header.name_section]
        names = self.data[names_row[4] : names_row[4] + names_row[5]]
        try:
            return tuple(
                Section(string_at(names, name), kind, flags, offset, size, link, info, align, entsize)
                for name, kind, flags, _, offset, size, link, info, align, entsize in rows
            )
        except ValueError:
            raise ObjectError(f"{self.origin} is damaged: a section name has no end") from None

    @cached_property
    def symtab_index(self) -> int:
        """Index of the one SHT_SYMTAB section."""
        for index, section in enumerate(self.sections):
            if section.type == SHT_SYMTAB:
                return index
        raise ObjectError(f"{self.origin} has no symbol table")

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbol table, by index."""
        symtab = self.sections[self.symtab_index]
        wide: tuple[int, ...] = ()
        try:
            names = self.contents(self.sections[symtab.link])
            for section in self.sections:
                if section.type == SHT_SYMTAB_SHNDX and section.link == self.symtab_index:
                    wide = struct.unpack(f"<{section.size // 4}I", self.contents(section))
            found = tuple(
                Symbol(
                    string_at(names, name) if name else "",
                    info >> 4,
                    info & 15,
                    other & 3,
                    shndx if shndx < SHN_LORESERVE else wide[index] if shndx == SHN_XINDEX else shndx - 0x10000,
                    value,
                    size,
                )
                for index, (name, info, other, shndx, value, size) in enumerate(SYM.iter_unpack(self.contents(symtab)))
            )
        except (ValueError, IndexError, struct.error):
            raise ObjectError(f"{self.origin} is damaged: its symbol table cannot be read") from None
        if any(symbol.shndx >= len(self.sections) for symbol in found):
            raise ObjectError(f"{self.origin} is damaged: a symbol lies in a section that does not exist")
        return found

    @cached_property
    def symbols_of_section(self) -> dict[int, list[int]]:
        """Section index → indices of the named symbols that it defines (no section symbols), by table order."""
        found: dict[int, list[int]] = {}
        for index, symbol in enumerate(self.symbols):
            if symbol.name and symbol.type not in (STT_SECTION, STT_FILE):
                found.setdefault(symbol.shndx, []).append(index)
        return found

    @cached_property
    def _section_named(self) -> dict[str, int]:
        return {section.name: index for index, section in enumerate(self.sections)}

    def section_named(self, name: str) -> int | None:
        """Index of the section with that name."""
        return self._section_named.get(name)


class RelocatableObject(ElfFile):
    """An ET_REL file.

    Raises:
        ObjectError: as `ElfFile`, and for other types of ELF file.
    """

    def __init__(self, data: bytes | mmap.mmap, origin: str) -> None:
        super().__init__(data, origin)
        if self.header.type != ET_REL:
            raise ObjectError(f"{origin} is not a relocatable object")

    @cached_property
    def _rela_of(self) -> dict[int, Section]:
        return {section.info: section for section in self.sections if section.type == SHT_RELA}

    def rela_section(self, section: int) -> Section | None:
        """The SHT_RELA section that applies to `section`, if any."""
        return self._rela_of.get(section)

    def named_contents(self, name: str) -> bytes:
        """The bytes of the section with that name; empty where there is none."""
        index = self.section_named(name)
        return b"" if index is None else self.contents(self.sections[index])

    def named_targets(self, name: str) -> dict[int, int]:
        """Place in the section with that name → offset into the section that is referred to there."""
        index = self.section_named(name)
        rela = None if index is None else self.rela_section(index)
        if rela is None:
            return {}
        columns = struct.unpack(f"<{rela.size // 8}Q", self.contents(rela))
        return dict(zip(columns[0::3], columns[2::3], strict=True))

    def relocs(self, section: int) -> list[Reloc]:
        """The relocations of one section, in the file's order."""
        rela = self._rela_of.get(section)
        if rela is None:
            return []
        try:
            found = [
                Reloc(offset, info & 0xFFFFFFFF, info >> 32, addend)
                for offset, info, addend in RELA.iter_unpack(self.contents(rela))
            ]
        except struct.error:
            raise ObjectError(f"{self.origin} is damaged: {rela.name} cannot be read") from None
        if any(reloc.symbol >= len(self.symbols) for reloc in found):
            raise ObjectError(f"{self.origin} is damaged: {rela.name} refers to a symbol that does not exist")
        return found
