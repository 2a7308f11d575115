"""A linked patch image: what of it a client needs."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hotpatchd.core.client import EhFrame, Import, Protection, Segment
from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import HostSymbol
from hotpatchd.objfile import elf
from hotpatchd.objfile.rewrite import IMPORT_PLACE_MARK, IMPORT_SLOT_PREFIX

PAGE = 4096
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A patch linked at its final address.

    Args:
        payload: the bytes of all segments.
        segments: where they go; page-aligned, sorted by address.
        imports: slots for the client to fill.
        eh_frame: its unwind tables, ending with a zero.
        symbols: functions and data that it defines, with run-time addresses.
    """

    payload: bytes
    segments: tuple[Segment, ...]
    imports: tuple[Import, ...]
    eh_frame: EhFrame | None
    symbols: dict[str, HostSymbol]

    @property
    def end(self) -> int:
        """The first address after the image."""
        return max((s.addr + s.mem_size for s in self.segments), default=0)


def read_image(path: Path, *, page_size: int = PAGE) -> Image:
    """Read what the linker wrote.

    Args:
        path: the linked patch.
        page_size: of the process that it is for, in bytes.

    Raises:
        ObjectError: it is not what the link plan asked for.
    """
    try:
        file = elf.ElfFile(path.read_bytes(), str(path))
    except OSError as error:
        raise ObjectError(f"cannot read the linked patch {path}: {error}") from error
    payload = bytearray()
    segments = []
    headers_end = file.header.segment_offset + file.header.segment_count * elf.PHDR.size
    if headers_end > len(file.data):
        raise ObjectError(f"{path} is cut short: its program headers lie beyond its end")
    for segment_type, flags, offset, vaddr, _, filesz, memsz, _ in elf.PHDR.iter_unpack(
        file.data[file.header.segment_offset : headers_end]
    ):
        if segment_type != elf.PT_LOAD or not memsz:
            continue
        if offset + filesz > len(file.data):
            raise ObjectError(f"{path} is cut short: a segment lies beyond its end")
        lead = vaddr % page_size
        segments.append(
            Segment(
                addr=vaddr - lead,
                mem_size=lead + memsz,
                offset=len(payload),
                file_size=lead + filesz,
                prot=_protection(flags, path),
            )
        )
        payload += bytes(lead) + file.data[offset : offset + filesz]

    def is_assembled(symbol: elf.Symbol) -> bool:
        """Whether it is a function that an assembler was not told to be one."""
        is_code = file.sections[symbol.shndx].flags & elf.SHF_EXECINSTR
        return bool(is_code) and symbol.type == elf.STT_NOTYPE and symbol.bind != elf.STB_LOCAL

    imports = []
    symbols: dict[str, HostSymbol] = {}
    for symbol in file.symbols:
        if not symbol.name or symbol.shndx <= 0:
            continue
        if symbol.name.startswith(IMPORT_SLOT_PREFIX):
            name = symbol.name.removeprefix(IMPORT_SLOT_PREFIX).partition(IMPORT_PLACE_MARK)[0]
            imports.append(Import(name=name, slot=symbol.value, weak=symbol.bind == elf.STB_WEAK))
        elif symbol.type in (elf.STT_FUNC, elf.STT_OBJECT) or is_assembled(symbol):
            homonyms = symbols[symbol.name].homonyms + 1 if symbol.name in symbols else 1
            kind: Literal["function", "data"] = "data" if symbol.type == elf.STT_OBJECT else "function"
            symbols[symbol.name] = HostSymbol(symbol.value, symbol.size, kind, homonyms)
    return Image(
        payload=bytes(payload),
        segments=tuple(segments),
        imports=tuple(imports),
        eh_frame=_eh_frame(file),
        symbols=symbols,
    )


def _protection(flags: int, path: Path) -> Protection:
    if flags & elf.PF_X and flags & elf.PF_W:
        raise ObjectError(f"{path} has a segment that is writable and executable")
    if flags & elf.PF_X:
        return "rx"
    return "rw" if flags & elf.PF_W else "r"


def _eh_frame(file: elf.ElfFile) -> EhFrame | None:
    index = file.section_named(".eh_frame")
    if index is None:
        return None
    section = file.sections[index]
    if section.size <= _LENGTH.size:
        return None
    if not _is_terminated(file.contents(section)):
        raise ObjectError(f"{file.origin} has unwind tables without a terminating zero")
    addr = elf.SHDR.unpack_from(file.data, file.header.section_offset + index * elf.SHDR.size)[3]
    return EhFrame(addr=addr, size=section.size)


def _is_terminated(frames: bytes) -> bool:
    """Whether the last record is the one of length 0; the padding of any other record may be zeros too."""
    place = 0
    while place + _LENGTH.size <= len(frames):
        (length,) = _LENGTH.unpack_from(frames, place)
        if not length:
            return not any(frames[place:])
        place += _LENGTH.size + length
    return False
