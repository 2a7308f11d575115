"""The object that a carrier library is linked from: an image as data, and thunks that lead into it.

The other half is `client/carrier/carrier.rs`, which puts the image in its place when the library is loaded; the layout
of the tables is that of its `struct Carried`.

A jump table that the `subsecond` crate applies can only name places in the library that comes with it. So there is one
thunk for every function that is to be redirected, by this patch or by an earlier one of the same process. `main` is
where the thunks begin: the crate takes the library's `main` as the reference for all other addresses.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotpatchd.core.client import EhFrame, Import, Protection, Segment
from hotpatchd.objfile import elf
from hotpatchd.objfile.elf_writer import ObjectWriter
from hotpatchd.objfile.machines import Machine

_WORD = struct.Struct("<Q")
_IMPORT = struct.Struct("<3Q")
_WORDS_OF_HEADER = 12
_PROTECTION: Mapping[Protection, int] = {"r": 1, "rw": 3, "rx": 5}
_REGISTER_FRAME = "__register_frame"
_R_AARCH64_ABS64, _R_AARCH64_ADR_PREL_PG_HI21, _R_AARCH64_LDST64_ABS_LO12_NC = 257, 275, 286


@dataclass(frozen=True, slots=True, kw_only=True)
class Thunk:
    """A place outside the image from where a function is entered; addresses at run time.

    Args:
        before: where it leads while the image is not in its place.
        after: where it leads once it is.
    """

    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a carrier holds.

    Args:
        payload: the bytes of the image's segments.
        segments: where they go.
        imports: slots that receive addresses of dynamic symbols.
        eh_frame: the image's unwind tables.
        end: the first address after the image.
    """

    payload: bytes = b""
    segments: tuple[Segment, ...] = ()
    imports: tuple[Import, ...] = ()
    eh_frame: EhFrame | None = None
    end: int = 0


def write_carried(carried: Carried, thunks: Sequence[Thunk], *, machine: Machine, page_size: int) -> bytes:
    """Write the object that holds an image.

    Args:
        carried: the image; an empty one only redirects.
        thunks: in the order in which they lie after `main`, `machine.jump_stride` apart.
        machine: of the process.
        page_size: of the process, in bytes.

    Returns:
        An ELF relocatable object.
    """
    out = ObjectWriter(machine.e_machine)
    header = _WORD.size * _WORDS_OF_HEADER
    segments = b"".join(
        struct.pack("<5Q", s.addr, s.mem_size, s.offset, s.file_size, _PROTECTION[s.prot]) for s in carried.segments
    )
    imports = b"".join(_IMPORT.pack(wanted.slot, 0, wanted.weak) for wanted in carried.imports)
    targets = b"".join(_WORD.pack(thunk.after) for thunk in thunks)
    slots = b"".join(_WORD.pack(thunk.before) for thunk in thunks)
    start = min((s.addr for s in carried.segments), default=0)
    size = carried.end - start + -(carried.end - start) % page_size
    segments_at, imports_at, targets_at = header, header + len(segments), header + len(segments) + len(imports)
    slots_at = targets_at + len(targets)
    words = (
        *(start, size, 0, 0, len(carried.segments), 0, len(carried.imports)),
        *(carried.eh_frame.addr if carried.eh_frame else 0, 0, 0, 0, len(thunks)),
    )
    table = struct.pack(f"<{_WORDS_OF_HEADER}Q", *words) + segments + imports + targets + slots
    image_section = out.section(".rodata.carried", carried.payload, flags=elf.SHF_ALLOC, align=16)
    table_section = out.section(".data.carried", table, flags=elf.SHF_ALLOC | elf.SHF_WRITE)
    code = machine.jump.ljust(machine.jump_stride, machine.jump_padding) * max(len(thunks), 1)
    thunk_section = out.section(".text.carried", code, flags=elf.SHF_ALLOC | elf.SHF_EXECINSTR, align=16)
    image = out.define("hotpatch_image", image_section, 0, visibility=elf.STV_HIDDEN)
    carried_symbol = out.define("hotpatch_carried", table_section, 0, visibility=elf.STV_HIDDEN)
    out.define("main", thunk_section, 0, type=elf.STT_FUNC, size=len(code))
    pointers = ((2, image, 0), (3, carried_symbol, segments_at), (5, carried_symbol, imports_at))
    tables = ((9, carried_symbol, slots_at), (10, carried_symbol, targets_at))
    for word, symbol, offset in (*pointers, *tables):
        out.relocate(table_section, _WORD.size * word, machine.absolute, symbol, offset)
    out.relocate(table_section, _WORD.size * 8, machine.absolute, out.undefined(_REGISTER_FRAME, weak=True))
    for index, wanted in enumerate(carried.imports):
        place = imports_at + _IMPORT.size * index + _WORD.size
        out.relocate(table_section, place, machine.absolute, out.undefined(wanted.name, weak=True))
    for index in range(len(thunks)):
        for offset, kind, addend in machine.jump_relocs:
            place = slots_at + _WORD.size * index
            out.relocate(thunk_section, machine.jump_stride * index + offset, kind, carried_symbol, place + addend)
    out.section(".note.GNU-stack", flags=0, align=1)
    return out.finish()
