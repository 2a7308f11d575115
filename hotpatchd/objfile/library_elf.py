"""ELF objects of a patch library, which take the program's data from the library's table of addresses (GOT).

Code that was compiled for the program may address data relative to the instruction, which a library has no use for. An
instruction that takes an address so becomes a load of the address from the table. What accesses data in one step has no
room for a second one and is refused by name.

Source: System V ABI, x86-64 and aarch64 supplements (relocations); Intel SDM volume 2 (LEA, MOV); Arm ARM, C6.2 (ADD
immediate, LDR immediate); LLVM `AArch64.def` (ELF relocation numbers).
"""

import struct
from collections.abc import Container, Mapping
from typing import NamedTuple

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import elf

_R_AARCH64_ADR_PREL_PG_HI21, _R_AARCH64_ADD_ABS_LO12_NC = 275, 277
_R_AARCH64_ADR_GOT_PAGE, _R_AARCH64_LD64_GOT_LO12_NC = 311, 312
_X86_LEA, _X86_MOV, _X86_RIP_RELATIVE = 0x8D, 0x8B, 0x05
_ARM_ADD, _ARM_LDR, _ARM_REGISTERS = 0x91000000, 0xF9400000, 0x3FF


_UNWIND_TABLES = (".eh_frame", ".gcc_except_table")


class _Row(NamedTuple):
    """What refers to the GOT in place of a relocation; `is_taken` says that the instruction changes with it."""

    type: int
    is_taken: bool


_BY_GOT: Mapping[int, Mapping[int, _Row]] = {
    elf.EM_X86_64: {
        elf.R_X86_64_PC32: _Row(elf.R_X86_64_GOTPCREL, is_taken=True),
        elf.R_X86_64_PLT32: _Row(elf.R_X86_64_GOTPCREL, is_taken=True),
    },
    elf.EM_AARCH64: {
        _R_AARCH64_ADR_PREL_PG_HI21: _Row(_R_AARCH64_ADR_GOT_PAGE, is_taken=False),
        _R_AARCH64_ADD_ABS_LO12_NC: _Row(_R_AARCH64_LD64_GOT_LO12_NC, is_taken=True),
        # Loads and stores of 8 to 128 bits.
        **dict.fromkeys((278, 284, 285, 286, 299), _Row(0, is_taken=True)),
    },
}


def reach_by_got(data: bytes, *, sections: Container[int], names: Container[str], origin: str) -> bytes:
    """Prepare the copy of an object that a library is linked from.

    Args:
        data: an object, in which `names` are undefined already.
        sections: what the library takes of it; other code and data is left out of the link.
        names: the program's data.
        origin: what to call the object in an error.

    Raises:
        ObjectError: the object accesses some of that data in one step.
    """
    copy = bytearray(data)
    obj = elf.RelocatableObject(data, origin)
    rows = _BY_GOT[obj.header.machine]
    for index, section in enumerate(obj.sections):
        if not section.flags & elf.SHF_ALLOC or section.name.startswith(_UNWIND_TABLES):
            continue
        if index not in sections:
            place = obj.header.section_offset + index * elf.SHDR.size + 8
            struct.pack_into("<Q", copy, place, section.flags | elf.SHF_EXCLUDE)
            continue
        rela = obj.rela_section(index)
        for number, reloc in enumerate(obj.relocs(index)):
            row, symbol = rows.get(reloc.type), obj.symbols[reloc.symbol]
            if rela is None or row is None or symbol.name not in names:
                continue
            if not _serve(copy, section.offset + reloc.offset, row, reloc, obj.header.machine):
                raise ObjectError(
                    f"{symbol.name} is accessed in one step, by relocation type {reloc.type} at {reloc.offset:#x} of"
                    f" {section.name}, and a patch library cannot do that with the program's data",
                    hint="access it by a reference, or by a function that the edit leaves as it is",
                )
            info = reloc.symbol << 32 | row.type
            elf.RELA.pack_into(copy, rela.offset + number * elf.RELA.size, reloc.offset, info, reloc.addend)
    return bytes(copy)


def _serve(data: bytearray, at: int, row: _Row, reloc: elf.Reloc, machine: int) -> bool:
    """Change the instruction whose field is at `at`; False where it does not take an address."""
    if not row.is_taken:
        return reloc.addend == 0
    if machine == elf.EM_X86_64:
        rex, opcode, modrm = data[at - 3 : at]
        data[at - 2] = _X86_MOV
        # The field is the instruction's last four bytes, from whose end displacements count.
        return (rex & 0xF8, opcode, modrm & 0xC7, reloc.addend) == (0x48, _X86_LEA, _X86_RIP_RELATIVE, -4)
    instruction = int.from_bytes(data[at : at + 4], "little")
    struct.pack_into("<I", data, at, _ARM_LDR | instruction & _ARM_REGISTERS)
    return instruction & ~_ARM_REGISTERS == _ARM_ADD and reloc.addend == 0
