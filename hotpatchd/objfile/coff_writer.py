"""Small COFF relocatable objects, written section by section.

Source: Microsoft, "PE Format" (COFF file header, section table, symbol table).
"""

import struct

IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_ARM64 = 0x8664, 0xAA64

IMAGE_SCN_CNT_CODE, IMAGE_SCN_CNT_INITIALIZED_DATA = 0x20, 0x40
IMAGE_SCN_ALIGN_8BYTES, IMAGE_SCN_ALIGN_16BYTES = 0x400000, 0x500000
IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_READ = 0x20000000, 0x40000000

IMAGE_SYM_CLASS_EXTERNAL = 2
IMAGE_SYM_DTYPE_FUNCTION = 0x20

HEADER = struct.Struct("<HHIIIHH")
SECTION = struct.Struct("<8sIIIIIIHHI")
SYMBOL = struct.Struct("<8sIhHBB")
_SHORT_NAME = 8


class CoffObject:
    """An object in the making; sections are referred to by the numbers that adding them returns.

    Args:
        machine: IMAGE_FILE_MACHINE_*.
    """

    def __init__(self, machine: int) -> None:
        self._machine = machine
        self._sections: list[tuple[str, bytes, int]] = []
        self._symbols = bytearray()
        self._strings = bytearray(4)

    def section(self, name: str, data: bytes, *, characteristics: int) -> int:
        """Add a section; its name is of 8 bytes at most."""
        self._sections.append((name, data, characteristics))
        return len(self._sections)

    def define(self, name: str, section: int, offset: int, *, type: int = 0) -> None:
        """Add an external symbol."""
        field = name.encode("utf-8", "surrogateescape")
        if len(field) > _SHORT_NAME:
            strx = len(self._strings)
            self._strings += field + b"\0"
            field = struct.pack("<II", 0, strx)
        self._symbols += SYMBOL.pack(field, offset, section, type, IMAGE_SYM_CLASS_EXTERNAL, 0)

    def finish(self) -> bytes:
        """The object file."""
        body_start = HEADER.size + SECTION.size * len(self._sections)
        headers, body = bytearray(), bytearray()
        for name, data, characteristics in self._sections:
            body += bytes(-(body_start + len(body)) % 16)
            headers += SECTION.pack(
                *(name.encode(), 0, 0, len(data), body_start + len(body) if data else 0, 0, 0, 0, 0, characteristics)
            )
            body += data
        symbol_count = len(self._symbols) // SYMBOL.size
        header = HEADER.pack(self._machine, len(self._sections), 0, body_start + len(body), symbol_count, 0, 0)
        struct.pack_into("<I", self._strings, 0, len(self._strings))
        return bytes(header + headers + body + self._symbols + self._strings)
