"""COFF objects of a patch library.

The copy of an object keeps all bytes in their places. What the library does not take of it loses its relocations, so
that nothing is wanted for it. Functions that the program has become undefined, and the stub leads to them; their new
code has a second name. Unwind tables are kept whole: compilers have them refer to sections, not to functions by name.

Source: Microsoft, "PE Format" (COFF symbol table, relocations, `.pdata`).
"""

import struct
from collections.abc import Mapping

from hotpatchd.core.select import KeptUnit, Selection
from hotpatchd.objfile import coff_writer as coff
from hotpatchd.objfile.atoms import AtomUnit
from hotpatchd.objfile.coff import IMAGE_SCN_LNK_NRELOC_OVFL, RELOC
from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX

_RELOC_COUNT_AT = 32
"""Offset of `NumberOfRelocations` in a section header."""


def prepare_coff(
    unit: AtomUnit, kept: KeptUnit, *, selection: Selection, replaced: frozenset[str], data: Mapping[str, int]
) -> bytes:
    """The copy of one object that the linker gets; see `library_object.prepare_object`."""
    file = unit.file
    copy = bytearray(file.data)
    for number, section in file.sections.items():
        rows = bytearray()
        for reloc in file.relocs(section):
            atom = unit.atom_at(number, reloc.offset)
            if not atom or atom in kept.sections:
                rows += RELOC.pack(*reloc)
        _replace_relocs(copy, section.header, section.relocs_offset, rows, section.flags)
    strings = bytearray(file.strings)
    appended = bytearray()
    for index, symbol in file.symbols.items():
        at = file.symbols_offset + coff.SYMBOL.size * index
        if symbol.section <= 0 or symbol.is_section or symbol.name in data:
            continue
        field, value, section_number, type_, _, aux_count = coff.SYMBOL.unpack_from(copy, at)
        if symbol.name in replaced:
            name = struct.pack("<II", 0, len(strings))
            strings += f"{symbol.name}{NEW_CODE_SUFFIX}\0".encode("utf-8", "surrogateescape")
            appended += coff.SYMBOL.pack(name, value, section_number, type_, coff.IMAGE_SYM_CLASS_EXTERNAL, 0)
        if symbol.name in selection.host_names:
            coff.SYMBOL.pack_into(copy, at, field, 0, 0, type_, coff.IMAGE_SYM_CLASS_EXTERNAL, aux_count)
    struct.pack_into("<I", strings, 0, len(strings))
    struct.pack_into("<I", copy, 12, file.symbol_count + len(appended) // coff.SYMBOL.size)
    copy[file.strings_offset : file.strings_offset + len(file.strings)] = appended + strings
    return reach_through_slots(bytes(copy), data, unit.name)


def _replace_relocs(copy: bytearray, header: int, offset: int, rows: bytearray, flags: int) -> None:
    """Write the relocations of a section in place of its former ones, which were as many or more."""
    copy[offset : offset + len(rows)] = rows
    count = len(rows) // RELOC.size
    if flags & IMAGE_SCN_LNK_NRELOC_OVFL:
        RELOC.pack_into(copy, offset - RELOC.size, count + 1, 0, 0)
    else:
        struct.pack_into("<H", copy, header + _RELOC_COUNT_AT, count)
