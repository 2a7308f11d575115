"""Copies of objects in which what the program already has is undefined.

The copy is what the linker gets. A new symbol table and string table are appended, relocations are changed in place,
functions that are too short for a jump get bytes behind their end. So every section keeps its bytes where they were,
and debug information stays right.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from hotpatchd.core.unit import Definition
from hotpatchd.objfile import elf
from hotpatchd.objfile.codeunit import CodeUnit

NEW_CODE_SUFFIX = ".hotpatch"
"""Symbol suffix of the new code of a function that the program has: the plain name is the program's address of it."""

IMPORT_SLOT_PREFIX = "__imp_"
"""Symbol prefix of the 8 bytes that hold an import's address (the name that PE gave this thing)."""

IMPORT_PLACE_MARK = ":"
"""What comes behind the import's name where these bytes are in an object's own data, before what tells them apart."""

TLS_INDEX_PREFIX = "__tls_index_"
"""Symbol prefix of the module and offset of a thread-local, as `__tls_get_addr` takes them; alone, of offset 0."""

TLS_OFFSET_PREFIX = "__tls_offset_"
"""Symbol prefix of the offset alone, as an absolute symbol."""


_NO_RELOCATION = 0
"""R_X86_64_NONE and R_AARCH64_NONE."""


class _SymbolTable:
    """The tables of a copy (symbols, their names, their SHT_SYMTAB_SHNDX): the original's, and what is appended."""

    def __init__(self, obj: elf.RelocatableObject) -> None:
        symtab = obj.sections[obj.symtab_index]
        self.symbols = bytearray(obj.contents(symtab))
        self.strings = bytearray(obj.contents(obj.sections[symtab.link]))
        self.wide_index = next((i for i, s in enumerate(obj.sections) if s.type == elf.SHT_SYMTAB_SHNDX), None)
        self.wide = bytearray(obj.contents(obj.sections[self.wide_index]) if self.wide_index else b"")
        self._appended: dict[tuple[str, int], int] = {}

    def undefine(self, index: int) -> None:
        """Make a global symbol undefined, and no longer weak: an undefined weak symbol may silently become 0."""
        name, info, other, _, _, _ = elf.SYM.unpack_from(self.symbols, index * elf.SYM.size)
        kind = elf.STT_TLS if info & 15 == elf.STT_TLS else elf.STT_NOTYPE
        row = (name, elf.STB_GLOBAL << 4 | kind, other, elf.SHN_UNDEF, 0, 0)
        elf.SYM.pack_into(self.symbols, index * elf.SYM.size, *row)

    def append_alias(self, index: int, suffix: str) -> None:
        """Define a global symbol at the place of another, with a longer name."""
        name, info, other, shndx, value, size = elf.SYM.unpack_from(self.symbols, index * elf.SYM.size)
        label = self.strings[name : self.strings.index(0, name)] + suffix.encode()
        # An assembler's function need not say what it is.
        info = elf.STB_GLOBAL << 4 | (info & 15 or elf.STT_FUNC)
        self.symbols += elf.SYM.pack(len(self.strings), info, other, shndx, value, size)
        self.wide += self.wide[4 * index : 4 * index + 4]
        self.strings += label + b"\0"

    def append_slot(self, name: str, section: int, offset: int, *, weak: bool) -> None:
        """Define 8 bytes of a section as a slot."""
        info = (elf.STB_WEAK if weak else elf.STB_GLOBAL) << 4 | elf.STT_OBJECT
        shndx = section if section < elf.SHN_LORESERVE else elf.SHN_XINDEX
        self.symbols += elf.SYM.pack(len(self.strings), info, 0, shndx, offset, 8)
        self.wide += section.to_bytes(4, "little") if shndx == elf.SHN_XINDEX else bytes(4)
        self.strings += name.encode("utf-8", "surrogateescape") + b"\0"

    def append_undefined(self, name: str, kind: int) -> int:
        """The index of a new undefined global symbol."""
        known = self._appended.get((name, kind))
        if known is not None:
            return known
        index = len(self.symbols) // elf.SYM.size
        row = (len(self.strings), elf.STB_GLOBAL << 4 | kind, 0, elf.SHN_UNDEF, 0, 0)
        self.symbols += elf.SYM.pack(*row)
        self.wide += bytes(4)
        self.strings += name.encode("utf-8", "surrogateescape") + b"\0"
        self._appended[name, kind] = index
        return index


def rewrite(
    unit: CodeUnit,
    *,
    sections: frozenset[int],
    host_sections: Mapping[int, Definition],
    host_names: frozenset[str],
    replaced: frozenset[str],
    imports: frozenset[str],
    weak_imports: frozenset[str] = frozenset(),
    of_library: frozenset[str] = frozenset(),
) -> bytes:
    """The copy of one object that the linker gets.

    Args:
        unit: the object.
        sections: the sections that the patch takes.
        host_sections: sections whose state is the program's: references to them become references to the symbol.
        host_names: exports of the object that become undefined, because the program has them.
        replaced: exports whose new code others find in the patch, under a name with `NEW_CODE_SUFFIX`.
        imports: symbols whose GOT references become references to the patch's own import slots; words of data that
            hold their addresses become such slots themselves.
        weak_imports: those of them that need not exist.
        of_library: thread-locals of the program that are reached through the dynamic loader, none of which
            `find_unreachable` names.

    Returns:
        A relocatable object. Its debug information is kept, unless it comes from an archive: then it would be as large
        as the library.
    """
    obj = unit.obj
    data = bytearray(obj.data)
    table = _SymbolTable(obj)
    for index, symbol in enumerate(obj.symbols):
        if symbol.shndx <= 0:
            continue
        if symbol.name in replaced:
            table.append_alias(index, NEW_CODE_SUFFIX)
        if symbol.name in host_names and symbol.bind != elf.STB_LOCAL:
            table.undefine(index)
    for index in sections:
        _redirect(unit, index, host_sections, imports, weak_imports, of_library, data, table)
        if unit.kind(index) == "function":
            _make_room(unit, index, data)
    for index, section in enumerate(obj.sections):
        # Linkers keep what runs at start-up, and all that it leads to, though nothing refers to it.
        is_unwanted = unit.kind(index) == "init" and index not in sections
        if is_unwanted or (unit.from_archive and section.name.startswith((".debug_", ".rela.debug_"))):
            place = obj.header.section_offset + index * elf.SHDR.size + 8
            struct.pack_into("<Q", data, place, section.flags | elf.SHF_EXCLUDE)
    return _with_tables(obj, data, table)


_FUNCTION_ALIGN = 16
"""Of functions in patches, in bytes: a later patch's jump over the first bytes of one must not reach into the next.
Code that is optimised for size is not aligned by itself."""


def _make_room(unit: CodeUnit, index: int, data: bytearray) -> None:
    """See to it that a later patch can write its jump over a function, also where it is the last of the patch."""
    section = unit.obj.sections[index]
    place = unit.obj.header.section_offset + index * elf.SHDR.size
    struct.pack_into("<Q", data, place + 48, max(section.align, _FUNCTION_ALIGN))
    if section.size < unit.machine.detour_size:
        data += bytes(-len(data) % _FUNCTION_ALIGN)
        struct.pack_into("<QQ", data, place + 24, len(data), unit.machine.detour_size)
        data += unit.obj.contents(section).ljust(unit.machine.detour_size, b"\0")


def _redirect(
    unit: CodeUnit,
    section: int,
    host_sections: Mapping[int, Definition],
    imports: frozenset[str],
    weak_imports: frozenset[str],
    of_library: frozenset[str],
    data: bytearray,
    table: _SymbolTable,
) -> None:
    obj = unit.obj
    rela = obj.rela_section(section)
    if rela is None:
        return
    machine = unit.machine
    is_data = obj.sections[section].flags & elf.SHF_WRITE
    for row, reloc in enumerate(obj.relocs(section)):
        symbol = obj.symbols[reloc.symbol]
        kind, addend = reloc.type, reloc.addend
        local = _thread_local(unit, reloc, host_sections)
        if local and local.name in of_library:
            if kind in machine.tls_module_types:
                index = table.append_undefined(TLS_INDEX_PREFIX, elf.STT_NOTYPE)
                kind = machine.tls_module_types[kind]
            elif kind in machine.tls_index_types:
                index = table.append_undefined(TLS_INDEX_PREFIX + local.name, elf.STT_NOTYPE)
                kind = machine.tls_index_types[kind]
            else:
                index = table.append_undefined(TLS_OFFSET_PREFIX + local.name, elf.STT_NOTYPE)
                kind = machine.tls_offset_types[kind]
                addend += local.displacement
        elif (
            symbol.bind == elf.STB_LOCAL
            and symbol.shndx in host_sections
            and not unit.is_internal(section, symbol.shndx)
        ):
            definition = host_sections[symbol.shndx]
            is_tls = definition.kind == "tls"
            index = table.append_undefined(definition.name, elf.STT_TLS if is_tls else elf.STT_NOTYPE)
            addend += symbol.value - definition.offset
        elif symbol.name in imports and kind in unit.machine.slot_types and symbol.shndx == elf.SHN_UNDEF:
            # "The GOT entry of X" and "the import slot of X" are the same thing: 8 bytes that hold X's address.
            index = table.append_undefined(IMPORT_SLOT_PREFIX + symbol.name, elf.STT_NOTYPE)
            kind = unit.machine.slot_types[kind]
        elif symbol.name in imports and kind == machine.absolute and is_data and not addend:
            # What is compared with others, or with null, must be the address itself and not that of a jump to it.
            place_name = f"{IMPORT_SLOT_PREFIX}{symbol.name}{IMPORT_PLACE_MARK}{unit.name}:{section}:{reloc.offset}"
            table.append_slot(place_name, section, reloc.offset, weak=symbol.name in weak_imports)
            index, kind = 0, _NO_RELOCATION
        else:
            continue
        place = rela.offset + row * elf.RELA.size
        elf.RELA.pack_into(data, place, reloc.offset, index << 32 | kind, addend)


class _ThreadLocal(NamedTuple):
    """What a relocation leads to: a thread-local, and how far behind its beginning."""

    name: str
    displacement: int


def _thread_local(unit: CodeUnit, reloc: elf.Reloc, host_sections: Mapping[int, Definition]) -> _ThreadLocal | None:
    symbol = unit.obj.symbols[reloc.symbol]
    if symbol.bind != elf.STB_LOCAL:
        return _ThreadLocal(symbol.name, 0)
    owner = host_sections.get(symbol.shndx)
    return _ThreadLocal(owner.name, symbol.value - owner.offset) if owner and owner.kind == "tls" else None


def find_unreachable(
    unit: CodeUnit, sections: frozenset[int], host_sections: Mapping[int, Definition], *, of_library: frozenset[str]
) -> frozenset[str]:
    """The thread-locals of a shared library that an object's code reaches in a way that a patch cannot imitate.

    Args:
        unit: the object.
        sections: those that the patch takes.
        host_sections: sections whose state is the library's.
        of_library: the thread-locals that are reached through the dynamic loader.
    """
    machine, found = unit.machine, set()
    by_module = {*machine.tls_module_types, *machine.tls_offset_types}
    for section in sections:
        relocs = [(reloc, _thread_local(unit, reloc, host_sections)) for reloc in unit.obj.relocs(section)]
        # One call may give the address for several offsets, which must then all be in the library's thread-locals.
        is_mixed = any(
            reloc.type in machine.tls_offset_types and not (local and local.name in of_library)
            for reloc, local in relocs
        )
        for reloc, local in relocs:
            if local is None or local.name not in of_library or (reloc.type in by_module and not is_mixed):
                continue
            if reloc.type not in machine.tls_index_types or local.displacement:
                found.add(local.name)
    return frozenset(found)


def _with_tables(obj: elf.RelocatableObject, data: bytearray, table: _SymbolTable) -> bytes:
    symtab_index = obj.symtab_index
    tables = {symtab_index: table.symbols, obj.sections[symtab_index].link: table.strings}
    if table.wide_index is not None:
        tables[table.wide_index] = table.wide
    for index, contents in tables.items():
        data += bytes(-len(data) % 8)
        place = obj.header.section_offset + index * elf.SHDR.size
        struct.pack_into("<QQ", data, place + 24, len(data), len(contents))
        data += contents
    return bytes(data)
