"""What depends on the processor in ELF files: relocation types, the jump to a far place, where thread-locals lie.

Source: the x86-64 psABI, and ELF for the Arm 64-bit Architecture (AAELF64), for relocation types and thread-local
storage; the Arm Architecture Reference Manual for instructions.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hotpatchd.objfile import elf

_BRANCH26, _BRANCH26_BITS = 0x7C000000, 0x14000000
_ADDRESS, _ADR_BITS, _ADRP_BITS = 0x9F000000, 0x10000000, 0x90000000
_ADD_IMMEDIATE, _ADD_IMMEDIATE_BITS = 0xFFC00000, 0x91000000
_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A processor that images are made for.

    Args:
        e_machine: as the ELF header says it.
        absolute: the relocation type of a 64-bit address.
        branch_types: relocation types of calls and jumps.
        slot_types: relocation types that reach a symbol by its entry in the GOT → those that reach a slot by its name
            in the same way.
        tls_index_types: relocation types that reach the module and offset by which the dynamic loader finds a
            thread-local → those that reach a place with the same content.
        tls_module_types: likewise, where it is only the module that counts.
        tls_offset_types: relocation types of an offset in the module's thread-locals → those of an absolute number.
        jump: instructions that jump to where a slot says, before relocation.
        jump_stride: bytes from one such jump to the next; `jump_padding` fills what is left.
        jump_padding: a byte.
        jump_relocs: (offset in the jump, relocation type, addend) of what leads to the slot.
        detour_size: bytes of a function's beginning that the client overwrites.
        tls_variant: whether the program's thread-locals lie above the thread pointer (1) or below it (2).
        has_mapping_symbols: whether symbols such as `$x` tell code from data.
    """

    e_machine: int
    absolute: int
    branch_types: frozenset[int]
    slot_types: Mapping[int, int]
    tls_index_types: Mapping[int, int]
    tls_module_types: Mapping[int, int]
    tls_offset_types: Mapping[int, int]
    jump: bytes
    jump_stride: int
    jump_padding: bytes
    jump_relocs: tuple[tuple[int, int, int], ...]
    detour_size: int
    tls_variant: Literal[1, 2]
    has_mapping_symbols: bool

    def is_mapping_symbol(self, name: str) -> bool:
        """Whether a symbol names nothing, but tells what kind of bytes begin there."""
        return self.has_mapping_symbols and name.startswith("$")

    def count_references(self, code: bytes, addr: int, target: int) -> int:
        """How many relocations the linker resolved to `target` in some code: calls, jumps, addresses taken.

        Args:
            code: whole instructions.
            addr: of the first byte.
            target: an address in the same file.
        """
        if self.e_machine == elf.EM_AARCH64:
            return _count_aarch64(code, addr, target)
        places = range(len(code) - 3)
        return sum(_DISPLACEMENT.unpack_from(code, i)[0] == target - (addr + i + 4) for i in places)

    def is_call(self, code: bytes, offset: int, reloc_type: int) -> bool:
        """Whether a relocation is that of a call or jump to a function, rather than of its address.

        Args:
            code: of the section, before relocation.
            offset: of the relocation.
            reloc_type: its type.
        """
        if reloc_type in self.branch_types:
            return True
        if reloc_type not in self.slot_types:
            return False
        return code[max(offset - 2, 0) : offset] in _BRANCHES_BY_SLOT or self._is_called_from_register(code, offset)

    def _is_called_from_register(self, code: bytes, offset: int) -> bool:
        """Whether a slot is read into a register only to be called, once the arguments are in theirs."""
        is_load = self.e_machine == elf.EM_X86_64 and code[max(offset - 3, 0) : offset] == _LOAD_RAX
        return is_load and _CALL_RAX.match(code, offset + 4) is not None

    def branches(self, code: bytes, addr: int) -> Iterator[int]:
        """Where calls and jumps of some code lead; a few that are none, too.

        Args:
            code: whole instructions.
            addr: of the first byte.
        """
        if self.e_machine == elf.EM_AARCH64:
            for index, word in enumerate(memoryview(code[: len(code) & ~3]).cast("I")):
                if word & _BRANCH26 == _BRANCH26_BITS:
                    yield addr + 4 * (index + _signed(word, 26))
            return
        for match in _BRANCH.finditer(code):
            yield addr + match.end(1) + _DISPLACEMENT.unpack(match[1])[0]

    def addresses_taken(self, code: bytes, addr: int) -> Iterator[int]:
        """The addresses that some code computes other than to call or to jump there; a few that it does not, too.

        Args:
            code: from the first instruction on.
            addr: of the first byte.
        """
        if self.e_machine == elf.EM_AARCH64:
            yield from _taken_aarch64(code, addr)
            return
        for match in _LEA.finditer(code):
            yield addr + match.end() + _DISPLACEMENT.unpack(match[1])[0]
        for match in _MOVE_ADDRESS.finditer(code):
            yield _DISPLACEMENT.unpack(match[1])[0]


_DISPLACEMENT = struct.Struct("<i")

_BRANCHES_BY_SLOT = (b"\xff\x15", b"\xff\x25")
"""x86-64's `call` and `jmp` to where an entry of the GOT says."""

_LOAD_RAX = b"\x48\x8b\x05"
"""`mov` from memory behind the instruction, which unoptimised code calls a function by if its arguments come first."""


def _operands(first_register: int) -> bytes:
    """A byte for a register and another operand, with what follows; without `rax` where the registers begin at 1.

    Source: Intel's manual, volume 2, 2.1.3, "ModR/M and SIB bytes".
    """

    def one_of(*values: int) -> bytes:
        return b"[%s]" % b"".join(b"\\x%02x" % value for value in values)

    registers = [register << 3 for register in range(first_register, 8)]
    on_stack = ((0x04, rb"\x24"), (0x44, rb"\x24."), (0x84, rb"\x24.{4}"), (0x05, rb".{4}"))
    kinds = [one_of(*(mode | register for register in registers)) + rest for mode, rest in on_stack]
    kinds.append(one_of(*(0xC0 | register | other for register in registers for other in range(1, 8))))
    return b"(?:%s)" % b"|".join(kinds)


_CALL_RAX = re.compile(
    rb"""
    (?: \x48? (?: [\x8b\x8d\x89\x31\x63] | \x0f[\xb6\xb7\xbe\xbf] ) %(low)s               # mov, lea, xor, movsx
      | [\x44\x4c] (?: [\x8b\x8d\x89\x63] | \x0f[\xb6\xb7\xbe\xbf] ) %(all)s             # the same of r8 to r15
      | [\x66\xf2\xf3]? \x0f [\x10\x11\x28\x29\x57\x6f\x7e\x7f\xd6] %(all)s              # mov and xor of xmm
      | \x45 \x31 [\xc0\xc9\xd2\xdb\xe4\xed\xf6\xff] | [\x41\x49] \x89 [\xc8-\xff]        # xor and mov to r8 to r15
      | [\xb9-\xbf] .{4} | \x41 [\xb8-\xbf] .{4} | \x48 \xc7 [\xc1-\xc7] .{4}            # mov of a number
      | \x48? \x83 [\xe1-\xe7] . | \x80 [\xe1-\xe3] .                                   # and
    )*
    \xff\xd0
    """
    % {b"low": _operands(1), b"all": _operands(0)},
    re.VERBOSE | re.DOTALL,
)
"""`call` to where that register says, behind instructions that copy it nowhere."""

_BRANCH = re.compile(rb"(?=[\xe8\xe9](.{4}))", re.DOTALL)
"""`call` and `jmp`, relative to the next instruction."""

_LEA = re.compile(rb"[\x48-\x4f]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](.{4})", re.DOTALL)
"""`lea`, relative to the next instruction."""

_MOVE_ADDRESS = re.compile(
    rb"(?:[\xb8-\xbf\x68]"
    rb"|\xc7(?:[\x00-\x03\x06\x07\xc0-\xc7]|[\x04\x40-\x43\x45-\x47].|\x44..|[\x05\x80-\x83\x85-\x87].{4}|\x84.{5}))"
    rb"(.{4})",
    re.DOTALL,
)
"""`mov` of 32 bits to a register or to memory, and `push`, as in programs that lie at fixed addresses below 2 GiB."""

X86_64 = Machine(
    e_machine=elf.EM_X86_64,
    absolute=elf.R_X86_64_64,
    branch_types=frozenset({elf.R_X86_64_PLT32}),
    slot_types=dict.fromkeys(
        (elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX), elf.R_X86_64_PC32
    ),
    tls_index_types={elf.R_X86_64_TLSGD: elf.R_X86_64_PC32},
    tls_module_types={elf.R_X86_64_TLSLD: elf.R_X86_64_PC32},
    tls_offset_types={elf.R_X86_64_DTPOFF32: elf.R_X86_64_32S},
    # jmp *slot(%rip)
    jump=bytes.fromhex("ff2500000000"),
    jump_stride=8,
    jump_padding=b"\xcc",
    jump_relocs=((2, elf.R_X86_64_PC32, -4),),
    detour_size=5,
    tls_variant=2,
    has_mapping_symbols=False,
)

AARCH64 = Machine(
    e_machine=elf.EM_AARCH64,
    absolute=elf.R_AARCH64_ABS64,
    branch_types=frozenset({elf.R_AARCH64_JUMP26, elf.R_AARCH64_CALL26}),
    slot_types={
        elf.R_AARCH64_ADR_GOT_PAGE: elf.R_AARCH64_ADR_PREL_PG_HI21,
        elf.R_AARCH64_LD64_GOT_LO12_NC: elf.R_AARCH64_LDST64_ABS_LO12_NC,
    },
    # Its code calls functions that the loader chooses and that keep all registers: only the loader can do that.
    tls_index_types={},
    tls_module_types={},
    tls_offset_types={},
    # adrp x16, slot; ldr x16, [x16, :lo12:slot]; br x16
    jump=bytes.fromhex("10000090 100240f9 00021fd6"),
    jump_stride=16,
    jump_padding=b"\0",
    jump_relocs=((0, elf.R_AARCH64_ADR_PREL_PG_HI21, 0), (4, elf.R_AARCH64_LDST64_ABS_LO12_NC, 0)),
    detour_size=4,
    tls_variant=1,
    has_mapping_symbols=True,
)

MACHINES: Mapping[int, Machine] = {machine.e_machine: machine for machine in (X86_64, AARCH64)}
"""By `e_machine`."""


def _taken_aarch64(code: bytes, addr: int) -> Iterator[int]:
    """Each page that an instruction puts in a register, with what the next addition to that register makes of it."""
    pages: dict[int, int] = {}
    for index, word in enumerate(memoryview(code[: len(code) & ~3]).cast("I")):
        if word & _ADDRESS == _ADRP_BITS:
            pc = addr + 4 * index
            pages[word & 31] = (pc - pc % _PAGE) + _PAGE * _address_immediate(word)
        elif word & _ADDRESS == _ADR_BITS:
            yield addr + 4 * index + _address_immediate(word)
        elif word & _ADD_IMMEDIATE == _ADD_IMMEDIATE_BITS and word >> 5 & 31 in pages:
            yield pages[word >> 5 & 31] + (word >> 10 & 0xFFF)


def _count_aarch64(code: bytes, addr: int, target: int) -> int:
    """As many as the object had relocations: one for a branch, two for an address, which takes two instructions.

    Source: AAELF64, static relocations; linkers may put `adr` and `nop` in place of `adrp` and `add`.
    """
    found = 0
    pages: dict[int, int] = {}
    for offset in range(0, len(code) - 3, 4):
        (word,) = struct.unpack_from("<I", code, offset)
        pc = addr + offset
        register, source = word & 31, word >> 5 & 31
        if word & _BRANCH26 == _BRANCH26_BITS:
            found += pc + 4 * _signed(word, 26) == target
        elif word & _ADDRESS == _ADRP_BITS:
            pages[register] = (pc - pc % _PAGE) + _PAGE * _address_immediate(word)
        elif word & _ADDRESS == _ADR_BITS:
            found += 2 * (pc + _address_immediate(word) == target)
        elif word & _ADD_IMMEDIATE == _ADD_IMMEDIATE_BITS and source in pages:
            found += 2 * (pages[source] + (word >> 10 & 0xFFF) == target)
    return found


def _address_immediate(word: int) -> int:
    return _signed(word >> 5 << 2 | word >> 29 & 3, 21)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
