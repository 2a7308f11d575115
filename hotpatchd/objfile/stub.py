"""The stub: one small object that gives a patch everything that is not code of its own.

It defines the program's symbols as absolute addresses and offsets from the thread pointer, a slot and a jump for each
import, and for the thread-locals of a shared library what the dynamic loader finds them by.
"""

import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hotpatchd.objfile import elf
from hotpatchd.objfile.elf_writer import ObjectWriter
from hotpatchd.objfile.machines import X86_64, Machine
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX, TLS_INDEX_PREFIX, TLS_OFFSET_PREFIX

_SLOT_SIZE = 8
_TLS_INDEX = struct.Struct("<QQ")
_TCB_SIZE = 16
"""Bytes from the thread pointer to the program's thread-locals where those lie above it (variant I on aarch64)."""

_TLS_ALIGN: Mapping[int, int] = {1: _TCB_SIZE, 2: 64}
"""Of the patch's TLS segment, by variant: its beginning (1) or, its size being a multiple, its end (2) is then exactly
where the thread pointer has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsBlock:
    """The program's PT_TLS segment: `p_vaddr`, `p_memsz` and `p_align`, and the variant of its layout."""

    addr: int
    size: int
    align: int
    variant: Literal[1, 2]

    def offset(self, value: int) -> int:
        """Offset from the thread pointer of the byte `value` of the segment: negative in variant II, else positive.

        Source: Drepper, "ELF Handling For Thread-Local Storage". The block is padded at the side of the thread pointer
        so that its start lies within the alignment as `p_vaddr` does.
        """
        align = max(self.align, 1)
        if self.variant == 1:
            return _TCB_SIZE + (self.addr - _TCB_SIZE) % align + value
        return value - self.size - (-self.addr - self.size) % align


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleThreadLocals:
    """Thread-locals that are reached through the dynamic loader: its number for the module, and symbol → offset."""

    module: int
    offsets: Mapping[str, int]


def write_stub(
    *,
    absolute: Mapping[str, int],
    thread_locals: Mapping[str, int],
    imports: Iterable[str],
    weak_imports: Container[str] = (),
    of_library: ModuleThreadLocals | None = None,
    machine: Machine = X86_64,
) -> bytes:
    """Write the stub of one patch for one client.

    Args:
        absolute: symbol → run-time address.
        thread_locals: symbol → offset from the thread pointer.
        imports: names that the client resolves.
        weak_imports: those that need not exist; their slots are weak symbols.
        of_library: the program's, where it is a shared library.
        machine: what the patch is for.

    Returns:
        An ELF relocatable object. It must come last in the link, and bring the only thread-locals: the zero that ends
        `.eh_frame` must be its last entry.

    Source: Drepper, "ELF Handling For Thread-Local Storage"; LSB Core, `.eh_frame` (zero terminator).
    """
    out = ObjectWriter(machine.e_machine)
    names = sorted(imports)
    align = _TLS_ALIGN[machine.tls_variant]
    if machine.tls_variant == 1:
        start = _TCB_SIZE
        size = max(thread_locals.values(), default=start) - start
    else:
        lowest = min(thread_locals.values(), default=0)
        start = lowest - lowest % align
        size = -start
    jumps = machine.jump.ljust(machine.jump_stride, machine.jump_padding) * len(names)
    text = out.section(".text.imports", jumps, flags=elf.SHF_ALLOC | elf.SHF_EXECINSTR)
    slots = out.section(".data.imports", bytes(_SLOT_SIZE * len(names)), flags=elf.SHF_ALLOC | elf.SHF_WRITE)
    flags = elf.SHF_ALLOC | elf.SHF_WRITE | elf.SHF_TLS
    block = out.section(".tbss.host", flags=flags, align=align, type=elf.SHT_NOBITS, size=size)
    out.section(".eh_frame", bytes(4), flags=elf.SHF_ALLOC)
    out.section(".note.GNU-stack", flags=0, align=1)
    for index, name in enumerate(names):
        slot = out.define(
            IMPORT_SLOT_PREFIX + name,
            slots,
            _SLOT_SIZE * index,
            type=elf.STT_OBJECT,
            size=_SLOT_SIZE,
            weak=name in weak_imports,
        )
        place = machine.jump_stride * index
        out.define(name, text, place, type=elf.STT_FUNC, size=len(machine.jump))
        for offset, kind, addend in machine.jump_relocs:
            out.relocate(text, place + offset, kind, slot, addend)
    if of_library is not None:
        places = {"": 0, **of_library.offsets}
        content = b"".join(_TLS_INDEX.pack(of_library.module, offset) for offset in places.values())
        indices = out.section(".rodata.tls_indices", content, flags=elf.SHF_ALLOC)
        for number, (name, offset) in enumerate(places.items()):
            out.define(TLS_INDEX_PREFIX + name, indices, _TLS_INDEX.size * number, type=elf.STT_OBJECT)
            out.define(TLS_OFFSET_PREFIX + name, elf.SHN_ABS, offset)
    for name, addr in absolute.items():
        out.define(name, elf.SHN_ABS, addr)
    for name, offset in thread_locals.items():
        out.define(name, block, offset - start, type=elf.STT_TLS)
    return out.finish()
