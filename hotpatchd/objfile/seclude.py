"""Objects whose own symbols are out of the way of others that bring the same, such as another copy of Rust's std."""

import struct
from collections.abc import Container

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import elf

_STV_HIDDEN = 2


def seclude(data: bytes, *, prefix: str, keep: Container[str], origin: str) -> bytes:
    """A copy of a relocatable object in which everything that it defines has a name of its own.

    What it leaves undefined keeps its name, so that the program's libc and unwinder serve it. Local symbols lose
    their names: nobody who looks for a function or a variable of the program can find them in their place.

    Args:
        data: the object, for any 64-bit little-endian machine.
        prefix: what the names of global symbols get in front.
        keep: names that stay as they are.
        origin: what to call the object in an error.

    Raises:
        ObjectError: not such an object.

    Source: System V ABI, chapter 4, "Symbol Table".
    """
    header = elf.parse_header(data, origin)
    places = [header.section_offset + index * elf.SHDR.size for index in range(header.section_count)]
    sections = [elf.SHDR.unpack_from(data, place) for place in places]
    symtab = next((section for section in sections if section[1] == elf.SHT_SYMTAB), None)
    if header.type != elf.ET_REL or symtab is None:
        raise ObjectError(f"{origin} is not a relocatable object")
    _, _, _, _, offset, size, strtab, *_ = symtab
    strings_offset, strings_size = sections[strtab][4:6]
    names = data[strings_offset : strings_offset + strings_size]
    strings = bytearray(names)
    copy = bytearray(data)
    for place in range(offset, offset + size, elf.SYM.size):
        name, info, other, shndx, *rest = elf.SYM.unpack_from(data, place)
        if shndx == elf.SHN_UNDEF or info & 15 in (elf.STT_SECTION, elf.STT_FILE):
            continue
        text = elf.string_at(names, name)
        if info >> 4 == elf.STB_LOCAL:
            name = 0
        elif text not in keep:
            name = len(strings)
            strings += f"{prefix}{text}\0".encode("utf-8", "surrogateescape")
            other = other & ~3 | _STV_HIDDEN
        elf.SYM.pack_into(copy, place, name, info, other, shndx, *rest)
    struct.pack_into("<QQ", copy, places[strtab] + 24, len(copy), len(strings))
    return bytes(copy + strings)
