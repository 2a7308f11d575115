"""Small ELF relocatable objects, written section by section.

Source: System V ABI, chapter 4 (gabi4+).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hotpatchd.objfile import elf


@dataclass(slots=True)
class _Section:
    name: str
    type: int
    flags: int
    align: int
    data: bytes = b""
    size: int = 0
    link: int = 0
    info: int = 0
    entsize: int = 0
    relocs: list[bytes] = field(default_factory=list)


class ObjectWriter:
    """An object in the making; sections and symbols are referred to by the numbers that adding them returns.

    Args:
        machine: `e_machine`.
    """

    def __init__(self, machine: int) -> None:
        self.machine = machine
        self._sections = [_Section("", 0, 0, 0)]
        self._strings = bytearray(b"\0")
        self._symbols = bytearray(elf.SYM.size)

    def section(
        self, name: str, data: bytes = b"", *, flags: int, align: int = 8, type: int = elf.SHT_PROGBITS, size: int = 0
    ) -> int:
        """Add a section; `size` in bytes is for those of type SHT_NOBITS."""
        self._sections.append(_Section(name, type, flags, align, data, size))
        return len(self._sections) - 1

    def define(
        self,
        name: str,
        section: int,
        value: int,
        *,
        type: int = elf.STT_NOTYPE,
        size: int = 0,
        weak: bool = False,
        visibility: int = elf.STV_DEFAULT,
    ) -> int:
        """Add a global or weak symbol; `section` may be `elf.SHN_ABS`."""
        return self._symbol(name, _bind(weak), type, visibility, section, value, size)

    def undefined(self, name: str, *, weak: bool = False) -> int:
        """Add a symbol that others define."""
        return self._symbol(name, _bind(weak), elf.STT_NOTYPE, elf.STV_DEFAULT, elf.SHN_UNDEF, 0, 0)

    def _symbol(self, name: str, bind: int, type: int, visibility: int, section: int, value: int, size: int) -> int:
        self._symbols += elf.SYM.pack(len(self._strings), bind << 4 | type, visibility, section, value, size)
        self._strings += name.encode("utf-8", "surrogateescape") + b"\0"
        return len(self._symbols) // elf.SYM.size - 1

    def relocate(self, section: int, offset: int, type: int, symbol: int, addend: int = 0) -> None:
        """Add a relocation."""
        self._sections[section].relocs.append(elf.RELA.pack(offset, symbol << 32 | type, addend))

    def finish(self) -> bytes:
        """The object file."""
        strtab, symtab = len(self._sections), len(self._sections) + 1
        tables = [
            _Section(".strtab", elf.SHT_STRTAB, 0, 1, bytes(self._strings)),
            _Section(".symtab", elf.SHT_SYMTAB, 0, 8, bytes(self._symbols), link=strtab, info=1, entsize=elf.SYM.size),
        ]
        tables += [
            _Section(
                *(f".rela{section.name}", elf.SHT_RELA, 0, 8, b"".join(section.relocs)),
                link=symtab,
                info=index,
                entsize=elf.RELA.size,
            )
            for index, section in enumerate(self._sections)
            if section.relocs
        ]
        return self._serialize([*self._sections, *tables])

    def _serialize(self, sections: list[_Section]) -> bytes:
        shstrtab = _Section(".shstrtab", elf.SHT_STRTAB, 0, 1)
        sections = [*sections, shstrtab]
        shstrtab.data, name_offsets = _string_table(section.name for section in sections)
        body = bytearray(elf.EHDR.size)
        headers = bytearray()
        for section, name_offset in zip(sections, name_offsets, strict=True):
            body += bytes(-len(body) % max(section.align, 1))
            headers += elf.SHDR.pack(
                *(name_offset, section.type, section.flags, 0, len(body) if section.type else 0),
                *(section.size or len(section.data), section.link, section.info, section.align, section.entsize),
            )
            body += section.data
        body += bytes(-len(body) % 8)
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        elf.EHDR.pack_into(
            body,
            0,
            *(ident, elf.ET_REL, self.machine, 1, 0, 0, len(body), 0, elf.EHDR.size, 0, 0),
            *(elf.SHDR.size, len(sections), len(sections) - 1),
        )
        return bytes(body + headers)


def _bind(weak: bool) -> int:
    return elf.STB_WEAK if weak else elf.STB_GLOBAL


def _string_table(names: Iterable[str]) -> tuple[bytes, list[int]]:
    table = bytearray(b"\0")
    offsets = []
    for name in names:
        offsets.append(len(table) if name else 0)
        table += name.encode() + b"\0" if name else b""
    return bytes(table), offsets
