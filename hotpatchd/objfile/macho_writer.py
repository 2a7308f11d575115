"""Small Mach-O relocatable objects (64-bit), written section by section.

Source: Apple, `mach-o/loader.h`, `mach-o/nlist.h`.
"""

import struct
from typing import NamedTuple

MH_MAGIC_64, MH_OBJECT = 0xFEEDFACF, 1
CPU_TYPE_X86_64, CPU_TYPE_ARM64 = 0x01000007, 0x0100000C
CPU_SUBTYPE_X86_64_ALL, CPU_SUBTYPE_ARM64_ALL = 3, 0

LC_SYMTAB, LC_DYSYMTAB, LC_SEGMENT_64, LC_BUILD_VERSION = 0x2, 0xB, 0x19, 0x32
PLATFORM_MACOS, PLATFORM_IOSSIMULATOR = 1, 7

S_REGULAR, S_ATTR_PURE_INSTRUCTIONS, S_ATTR_SOME_INSTRUCTIONS = 0x0, 0x80000000, 0x400

N_STAB, N_PEXT, N_TYPE, N_EXT = 0xE0, 0x10, 0x0E, 0x01
N_UNDF, N_SECT = 0x0, 0xE
N_WEAK_DEF = 0x80

HEADER = struct.Struct("<IiiIIIII")
SEGMENT = struct.Struct("<II16sQQQQiiII")
SECTION = struct.Struct("<16s16sQQIIIIIIII")
BUILD_VERSION = struct.Struct("<6I")
SYMTAB = struct.Struct("<6I")
DYSYMTAB = struct.Struct("<20I")
NLIST = struct.Struct("<IBBHQ")

_VM_PROT_ALL = 7


class _Section(NamedTuple):
    segment: str
    name: str
    data: bytes
    flags: int
    align: int


class MachObject:
    """An object in the making; sections are referred to by the numbers that adding them returns.

    Args:
        cputype: CPU_TYPE_*.
        cpusubtype: CPU_SUBTYPE_*.
        build_version: `platform`, `minos` and `sdk` of LC_BUILD_VERSION, versions as `xxxx.yy.zz` in four bytes.
    """

    def __init__(self, cputype: int, cpusubtype: int, *, build_version: tuple[int, int, int]) -> None:
        self._cpu = (cputype, cpusubtype)
        self._build_version = build_version
        self._sections: list[_Section] = []
        self._symbols: list[tuple[str, int, int, int, int]] = []

    def section(self, segment: str, name: str, data: bytes, *, flags: int, align: int) -> int:
        """Add a section, by its `segname` and `sectname`; `align` in bytes."""
        self._sections.append(_Section(segment, name, data, flags, align))
        return len(self._sections)

    def define_private(self, name: str, section: int, offset: int, *, weak: bool = False) -> None:
        """Add a private external symbol: other objects of the link see it, users of the linked file do not."""
        self._symbols.append((name, N_EXT | N_PEXT, section, N_WEAK_DEF if weak else 0, offset))

    def define(self, name: str, section: int, offset: int) -> None:
        """Add an external symbol, which the linked file exports."""
        self._symbols.append((name, N_EXT, section, 0, offset))

    def finish(self) -> bytes:
        """The object file."""
        segment_size = SEGMENT.size + SECTION.size * len(self._sections)
        commands_size = segment_size + BUILD_VERSION.size + SYMTAB.size + DYSYMTAB.size
        body_start = HEADER.size + commands_size
        body, headers, addrs = bytearray(), bytearray(), []
        for segment, name, data, flags, align in self._sections:
            body += bytes(-len(body) % align)
            addrs.append(len(body))
            headers += SECTION.pack(
                *(name.encode(), segment.encode(), len(body), len(data), body_start + len(body)),
                *(align.bit_length() - 1, 0, 0, flags, 0, 0, 0),
            )
            body += data
        size = len(body)
        body += bytes(-(body_start + size) % 8)
        symbols, strings = bytearray(), bytearray(b"\0")
        for name, scope, section, desc, offset in self._symbols:
            symbols += NLIST.pack(len(strings), N_SECT | scope, section, desc, addrs[section - 1] + offset)
            strings += name.encode("utf-8", "surrogateescape") + b"\0"
        symbols_offset, count = body_start + len(body), len(self._symbols)
        commands = [
            HEADER.pack(MH_MAGIC_64, *self._cpu, MH_OBJECT, 4, commands_size, 0, 0),
            SEGMENT.pack(
                *(LC_SEGMENT_64, segment_size, b"", 0, size, body_start, size, _VM_PROT_ALL, _VM_PROT_ALL),
                *(len(self._sections), 0),
            ),
            bytes(headers),
            BUILD_VERSION.pack(LC_BUILD_VERSION, BUILD_VERSION.size, *self._build_version, 0),
            SYMTAB.pack(
                *(LC_SYMTAB, SYMTAB.size, symbols_offset, count, symbols_offset + len(symbols), len(strings)),
            ),
            DYSYMTAB.pack(LC_DYSYMTAB, DYSYMTAB.size, 0, 0, 0, count, count, *(0,) * 13),
        ]
        return b"".join([*commands, bytes(body), bytes(symbols), bytes(strings)])
