"""Mach-O and COFF objects of a patch library, changed to reach the program's data through the slots of the stub.

An object refers to data in one of these ways, told apart by the relocation:

    - a load of its address from a pointer that the linker makes (GOT, TLVP): the load is pointed at the slot instead
    - an address relative to the instruction: the instruction becomes a load from the slot
    - the address itself, in data: it is written, and the relocation dropped
    - its place, for debuggers, in a section that is not loaded: the relocation is dropped

What is left, an access relative to the instruction (`movl %eax, _x(%rip)`), has no room for a second step and is
refused by name.

Where the object defines such a symbol itself, its definition goes: the program's own instance is the one that counts.

Source: Apple, `mach-o/loader.h`, `mach-o/reloc.h`, `mach-o/x86_64/reloc.h`, `mach-o/arm64/reloc.h`; Microsoft, "PE
Format" (COFF relocations, symbol table); Intel SDM volume 2 (LEA, MOV); Arm ARM, C6.2 (ADD immediate, LDR immediate).
"""

import struct
from collections.abc import Mapping
from enum import Enum, auto
from typing import NoReturn

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import coff_writer as coff
from hotpatchd.objfile import macho_writer as macho
from hotpatchd.objfile.coff import RELOC
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX

_LOAD_COMMAND = struct.Struct("<II")
_MACH_RELOC = struct.Struct("<iI")
_R_EXTERN = 1 << 27
_QUAD = 3
"""`r_length` of eight bytes."""

_IMAGE_SYM_CLASS_STATIC = 3
_IMAGE_SCN_LNK_COMDAT, _IMAGE_SCN_LNK_NRELOC_OVFL, _IMAGE_SCN_MEM_DISCARDABLE = 0x1000, 0x01000000, 0x02000000

_X86_REX_W, _X86_LEA, _X86_MOV, _X86_RIP_RELATIVE = 0x48, 0x8D, 0x8B, 0x05
_ARM_ADD, _ARM_LDR, _ARM_REGISTERS = 0x91000000, 0xF9400000, 0x3FF


class _Way(Enum):
    LOAD = auto()
    X86_ADDRESS = auto()
    ARM_ADDRESS = auto()
    POINTER = auto()


_MACH_WAYS: dict[int, dict[int, tuple[_Way, int]]] = {
    macho.CPU_TYPE_X86_64: {
        0: (_Way.POINTER, 0),  # X86_64_RELOC_UNSIGNED
        1: (_Way.X86_ADDRESS, 1),  # X86_64_RELOC_SIGNED
        3: (_Way.LOAD, 1),  # X86_64_RELOC_GOT_LOAD
        4: (_Way.LOAD, 1),  # X86_64_RELOC_GOT
        9: (_Way.LOAD, 1),  # X86_64_RELOC_TLV
    },
    macho.CPU_TYPE_ARM64: {
        0: (_Way.POINTER, 0),  # ARM64_RELOC_UNSIGNED
        3: (_Way.LOAD, 3),  # ARM64_RELOC_PAGE21: of the slot, for the instruction that is to load it
        4: (_Way.ARM_ADDRESS, 4),  # ARM64_RELOC_PAGEOFF12
        5: (_Way.LOAD, 3),  # ARM64_RELOC_GOT_LOAD_PAGE21
        6: (_Way.LOAD, 4),  # ARM64_RELOC_GOT_LOAD_PAGEOFF12
        8: (_Way.LOAD, 3),  # ARM64_RELOC_TLVP_LOAD_PAGE21
        9: (_Way.LOAD, 4),  # ARM64_RELOC_TLVP_LOAD_PAGEOFF12
    },
}
"""CPU → relocation type → how it refers to the symbol, and the type that refers to the slot in its place."""

_MACH_PREFIXES = {macho.CPU_TYPE_X86_64: (5,), macho.CPU_TYPE_ARM64: (1, 10)}
"""CPU → the types that modify the relocation after them: SUBTRACTOR, and ADDEND."""

_COFF_WAYS: dict[int, dict[int, tuple[_Way, int]]] = {
    coff.IMAGE_FILE_MACHINE_AMD64: {
        1: (_Way.POINTER, 0),  # IMAGE_REL_AMD64_ADDR64
        4: (_Way.X86_ADDRESS, 4),  # IMAGE_REL_AMD64_REL32
    },
    coff.IMAGE_FILE_MACHINE_ARM64: {
        4: (_Way.LOAD, 4),  # IMAGE_REL_ARM64_PAGEBASE_REL21: of the slot
        6: (_Way.ARM_ADDRESS, 7),  # IMAGE_REL_ARM64_PAGEOFFSET_12A, replaced by PAGEOFFSET_12L
        14: (_Way.POINTER, 0),  # IMAGE_REL_ARM64_ADDR64
    },
}
"""As `_MACH_WAYS`."""


def reach_through_slots(data: bytes, addrs: Mapping[str, int], origin: str) -> bytes:
    """Point an object's references to the program's data at slots.

    Args:
        data: a relocatable object, Mach-O (64-bit) or COFF, for x86-64 or aarch64.
        addrs: symbol, for Mach-O without its leading underscore → address in the process. Statics, and the descriptors
            of Mach-O's thread-locals; names that the object does not have are allowed.
        origin: what to call the object in an error.

    Returns:
        The object, with `__imp_<symbol>` undefined in place of each of those symbols that it has.

    Raises:
        ObjectError: not such an object; damaged; or a reference that cannot be served, by name.
    """
    try:
        if int.from_bytes(data[:4], "little") == macho.MH_MAGIC_64:
            return _MachSlots(data, origin).rewritten(addrs)
        return _CoffSlots(data, origin).rewritten(addrs)
    except (struct.error, LookupError, ValueError):
        raise ObjectError(f"{origin} is damaged: its symbols and relocations cannot be read") from None


def _serve(data: bytearray, way: _Way, at: int, addr: int) -> bool:
    """Change the field or instruction at `at`; False where it is not what `way` takes it for."""
    if way is _Way.POINTER:
        (addend,) = struct.unpack_from("<Q", data, at)
        struct.pack_into("<Q", data, at, (addr + addend) % (1 << 64))
    elif way is _Way.X86_ADDRESS:
        rex, opcode, modrm = data[at - 3 : at]
        data[at - 2] = _X86_MOV
        is_address = (rex & 0xF8, opcode, modrm & 0xC7) == (_X86_REX_W, _X86_LEA, _X86_RIP_RELATIVE)
        return is_address and not any(data[at : at + 4])
    elif way is _Way.ARM_ADDRESS:
        instruction = int.from_bytes(data[at : at + 4], "little")
        struct.pack_into("<I", data, at, _ARM_LDR | instruction & _ARM_REGISTERS)
        return instruction & ~_ARM_REGISTERS == _ARM_ADD
    return True


def _refuse(origin: str, name: str, kind: int, offset: int, section: bytes) -> NoReturn:
    raise ObjectError(
        f"{origin} accesses {name} of the running program in a way that a library cannot:"
        f" by relocation type {kind} at {offset:#x} of {section.rstrip(bytes(1)).decode('ascii', 'replace')}"
    )


class _MachSlots:
    def __init__(self, data: bytes, origin: str) -> None:
        self.data = bytearray(data)
        self.origin = origin
        _, self.cpu, _, filetype, command_count, _, _, _ = macho.HEADER.unpack_from(data)
        if filetype != macho.MH_OBJECT or self.cpu not in _MACH_WAYS:
            raise ObjectError(f"{origin} is not an object for x86-64 or aarch64")
        self.section_headers: list[int] = []
        self.commands: dict[int, int] = {}
        offset = macho.HEADER.size
        for _ in range(command_count):
            command, size = _LOAD_COMMAND.unpack_from(data, offset)
            self.commands[command] = offset
            if command == macho.LC_SEGMENT_64:
                self.section_headers += range(offset + macho.SEGMENT.size, offset + size, macho.SECTION.size)
            offset += max(size, _LOAD_COMMAND.size)
        if macho.LC_SYMTAB not in self.commands:
            raise ObjectError(f"{origin} has no symbol table")

    def rewritten(self, addrs: Mapping[str, int]) -> bytes:
        _, _, symbols_offset, count, strings_offset, strings_size = macho.SYMTAB.unpack_from(
            self.data, self.commands[macho.LC_SYMTAB]
        )
        strings = self.data[strings_offset : strings_offset + strings_size]
        rows = [macho.NLIST.unpack_from(self.data, symbols_offset + macho.NLIST.size * i) for i in range(count)]
        of_program: dict[int, tuple[str, int]] = {}
        for index, (strx, kind, *_) in enumerate(rows):
            name = strings[strx + 1 : strings.index(0, strx)].decode("utf-8", "surrogateescape")
            if not kind & macho.N_STAB and strings[strx : strx + 1] == b"_" and name in addrs:
                of_program[index] = name, addrs[name]
                rows[index] = (len(strings), macho.N_UNDF | macho.N_EXT, 0, 0, 0)
                strings += f"_{IMPORT_SLOT_PREFIX}{name}\0".encode("utf-8", "surrogateescape")
        if not of_program:
            return bytes(self.data)
        order = sorted(range(count), key=lambda index: _group(rows[index][1]))
        place = {index: position for position, index in enumerate(order)}
        for header in self.section_headers:
            self._redirect(header, of_program, place)
        self._replace_symbols([rows[index] for index in order], strings)
        return bytes(self.data)

    def _redirect(self, header: int, of_program: Mapping[int, tuple[str, int]], place: Mapping[int, int]) -> None:
        fields = list(macho.SECTION.unpack_from(self.data, header))
        contents, relocs_offset, count = fields[4], fields[6], fields[7]
        kept = bytearray()
        is_modified = False
        for offset, info in list(
            _MACH_RELOC.iter_unpack(self.data[relocs_offset : relocs_offset + _MACH_RELOC.size * count])
        ):
            symbol, kind, is_extern = info & 0xFFFFFF, info >> 28, info & _R_EXTERN
            if is_extern and symbol in of_program:
                name, addr = of_program[symbol]
                way, new_kind = _MACH_WAYS[self.cpu].get(kind, (None, kind))
                is_whole = way is not _Way.POINTER or info >> 25 & 3 == _QUAD
                if way is None or is_modified or not is_whole or not _serve(self.data, way, contents + offset, addr):
                    _refuse(self.origin, name, kind, offset, fields[0])
                if way is not _Way.POINTER:
                    kept += _MACH_RELOC.pack(offset, place[symbol] | info & 0x0F000000 | new_kind << 28)
            else:
                kept += _MACH_RELOC.pack(offset, place[symbol] | info & 0xFF000000 if is_extern else info)
            is_modified = kind in _MACH_PREFIXES[self.cpu]
        self.data[relocs_offset : relocs_offset + len(kept)] = kept
        fields[7] = len(kept) // _MACH_RELOC.size
        macho.SECTION.pack_into(self.data, header, *fields)

    def _replace_symbols(self, rows: list[tuple[int, ...]], strings: bytearray) -> None:
        self.data += bytes(-len(self.data) % 8)
        symbols_offset = len(self.data)
        for row in rows:
            self.data += macho.NLIST.pack(*row)
        strings_offset = len(self.data)
        self.data += strings
        macho.SYMTAB.pack_into(
            *(self.data, self.commands[macho.LC_SYMTAB], macho.LC_SYMTAB, macho.SYMTAB.size),
            *(symbols_offset, len(rows), strings_offset, len(strings)),
        )
        if macho.LC_DYSYMTAB in self.commands:
            groups = [_group(row[1]) for row in rows]
            local, external, undefined = (groups.count(group) for group in range(3))
            struct.pack_into(
                *("<6I", self.data, self.commands[macho.LC_DYSYMTAB] + 8),
                *(0, local, local, external, local + external, undefined),
            )


def _group(kind: int) -> int:
    """Which of LC_DYSYMTAB's groups a symbol belongs to: 0 local, 1 defined and external, 2 undefined."""
    if kind & macho.N_STAB or not kind & macho.N_EXT:
        return 0
    return 2 if kind & macho.N_TYPE == macho.N_UNDF else 1


class _CoffSlots:
    def __init__(self, data: bytes, origin: str) -> None:
        self.data = bytearray(data)
        self.origin = origin
        self.machine, section_count, _, self.symbols_offset, self.symbol_count, optional_size, _ = (
            coff.HEADER.unpack_from(data)
        )
        if self.machine not in _COFF_WAYS or optional_size:
            raise ObjectError(f"{origin} is not an object for x86-64 or aarch64")
        first = coff.HEADER.size
        self.section_headers = range(first, first + coff.SECTION.size * section_count, coff.SECTION.size)
        self.section_symbols: dict[int, int] = {}
        self.definitions: dict[int, dict[int, str]] = {}

    def rewritten(self, addrs: Mapping[str, int]) -> bytes:
        strings_offset = self.symbols_offset + coff.SYMBOL.size * self.symbol_count
        (strings_size,) = struct.unpack_from("<I", self.data, strings_offset)
        strings = self.data[strings_offset : strings_offset + strings_size]
        of_program: dict[int, tuple[str, int]] = {}
        index = 0
        while index < self.symbol_count:
            at = self.symbols_offset + coff.SYMBOL.size * index
            field, value, section, _, storage_class, aux_count = coff.SYMBOL.unpack_from(self.data, at)
            zeroes, strx = struct.unpack("<II", field)
            encoded = bytes(field.rstrip(b"\0") if zeroes else strings[strx : strings.index(0, strx)])
            symbol = encoded.decode("utf-8", "surrogateescape")
            # rustc defines the slots of a library's statics in the library; they give way like the statics.
            name = symbol.removeprefix(IMPORT_SLOT_PREFIX)
            is_of_program = name in addrs and section >= 0
            if section > 0 and storage_class == _IMAGE_SYM_CLASS_STATIC and aux_count:
                self.section_symbols[index] = section
            elif section > 0:
                definitions = self.definitions.setdefault(section, {})
                definitions[value] = name if is_of_program else definitions.get(value, "")
            if is_of_program:
                slot_name = struct.pack("<II", 0, len(strings))
                strings += f"{IMPORT_SLOT_PREFIX}{name}\0".encode("utf-8", "surrogateescape")
                coff.SYMBOL.pack_into(self.data, at, slot_name, 0, 0, 0, coff.IMAGE_SYM_CLASS_EXTERNAL, aux_count)
                self._unlead(section)
                if symbol == name:
                    of_program[index] = name, addrs[name]
            index += 1 + aux_count
        for header in self.section_headers:
            self._redirect(header, of_program)
        struct.pack_into("<I", strings, 0, len(strings))
        self.data[strings_offset : strings_offset + strings_size] = strings
        return bytes(self.data)

    def _unlead(self, section: int) -> None:
        """Make a section, if it is a COMDAT, an ordinary one: link.exe calls one without a symbol corrupt (LNK1143)."""
        if section:
            at = self.section_headers[section - 1]
            *fields, characteristics = coff.SECTION.unpack_from(self.data, at)
            coff.SECTION.pack_into(self.data, at, *fields, characteristics & ~_IMAGE_SCN_LNK_COMDAT)

    def _reached_by_section(self, symbol: int, field: bytes) -> str:
        """The symbol, if it was taken out, that a relocation reaches as an offset in its section."""
        definitions = self.definitions.get(self.section_symbols.get(symbol, 0), {})
        if not any(definitions.values()):
            return ""
        target = int.from_bytes(field, "little")
        return definitions.get(max((value for value in definitions if value <= target), default=-1), "")

    def _redirect(self, header: int, of_program: Mapping[int, tuple[str, int]]) -> None:
        fields = list(coff.SECTION.unpack_from(self.data, header))
        contents, relocs_offset, count = fields[4], fields[5], fields[7]
        # With more relocations than the field holds, an entry before them has the count, itself included.
        is_extended = bool(fields[9] & _IMAGE_SCN_LNK_NRELOC_OVFL)
        if is_extended:
            count = RELOC.unpack_from(self.data, relocs_offset)[0] - 1
            relocs_offset += RELOC.size
        is_loaded = not fields[9] & _IMAGE_SCN_MEM_DISCARDABLE
        kept = bytearray()
        rows = RELOC.iter_unpack(self.data[relocs_offset : relocs_offset + RELOC.size * count])
        for offset, symbol, kind in list(rows):
            if symbol in of_program:
                name, addr = of_program[symbol]
                way, new_kind = _COFF_WAYS[self.machine].get(kind, (None, kind))
                if way is None and not is_loaded:
                    continue
                if way is None or not _serve(self.data, way, contents + offset, addr):
                    _refuse(self.origin, name, kind, offset, fields[0])
                if way is _Way.POINTER:
                    continue
                kept += RELOC.pack(offset, symbol, new_kind)
            else:
                field = bytes(self.data[contents + offset : contents + offset + 4])
                if is_loaded and (name := self._reached_by_section(symbol, field)):
                    _refuse(self.origin, name, kind, offset, fields[0])
                kept += RELOC.pack(offset, symbol, kind)
        self.data[relocs_offset : relocs_offset + len(kept)] = kept
        kept_count = len(kept) // RELOC.size
        if is_extended:
            struct.pack_into("<I", self.data, relocs_offset - RELOC.size, kept_count + 1)
        else:
            fields[7] = kept_count
            coff.SECTION.pack_into(self.data, header, *fields)
