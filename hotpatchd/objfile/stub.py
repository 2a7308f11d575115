"""The stub: one small object that gives a patch everything that is not code of its own.

It defines the program's symbols as absolute addresses and offsets from the thread pointer, and a slot and a jump for
each import.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotpatchd.objfile import elf
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX

_JUMP = bytes.fromhex("ff2500000000")
"""`jmp *slot(%rip)`, before relocation."""

_JUMP_STRIDE = 8
_SLOT_SIZE = 8

_TLS_ALIGN = 64
"""Of the patch's TLS segment, whose size is a multiple of it: so its end is where the thread pointer is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsBlock:
    """The program's PT_TLS segment: `p_vaddr`, `p_memsz` and `p_align`."""

    addr: int
    size: int
    align: int

    def offset(self, value: int) -> int:
        """Offset from the thread pointer of the byte `value` of the segment; negative.

        Source: x86-64 psABI, thread-local storage variant II; the segment's end is padded so that the thread pointer
        is aligned as the segment's start demands.
        """
        return value - self.size - (-self.addr - self.size) % max(self.align, 1)


@dataclass(slots=True)
class _Out:
    name: str
    type: int
    flags: int
    align: int
    data: bytes = b""
    size: int = 0
    link: int = 0
    info: int = 0
    entsize: int = 0


def write_stub(
    *,
    absolute: Mapping[str, int],
    thread_locals: Mapping[str, int],
    imports: Iterable[str],
) -> bytes:
    """Write the stub of one patch for one client.

    Args:
        absolute: symbol → run-time address.
        thread_locals: symbol → offset from the thread pointer, negative.
        imports: names that the client resolves.

    Returns:
        An ELF relocatable object for x86-64. It must come last in the link: on x86-64 thread-locals count back from the
        end of the TLS segment, and the zero that ends `.eh_frame` must be its last entry.

    Source: x86-64 psABI, thread-local storage variant II; LSB Core, `.eh_frame` (zero terminator).
    """
    names = sorted(imports)
    tls_size = -min(thread_locals.values(), default=0)
    tls_size += -tls_size % _TLS_ALIGN
    jumps = b"".join(_JUMP.ljust(_JUMP_STRIDE, b"\xcc") for _ in names)
    sections = [
        _Out("", 0, 0, 0),
        _Out(".text.imports", elf.SHT_PROGBITS, elf.SHF_ALLOC | elf.SHF_EXECINSTR, 8, jumps),
        _Out(
            ".data.imports",
            elf.SHT_PROGBITS,
            elf.SHF_ALLOC | elf.SHF_WRITE,
            8,
            bytes(_SLOT_SIZE * len(names)),
        ),
        _Out(
            ".tbss.host",
            elf.SHT_NOBITS,
            elf.SHF_ALLOC | elf.SHF_WRITE | elf.SHF_TLS,
            _TLS_ALIGN,
            size=tls_size,
        ),
        _Out(".eh_frame", elf.SHT_PROGBITS, elf.SHF_ALLOC, 8, bytes(4)),
        _Out(".note.GNU-stack", elf.SHT_PROGBITS, 0, 1),
    ]
    text, slots, tls_section = 1, 2, 3
    strings = bytearray(b"\0")
    symbols = bytearray(elf.SYM.size)

    def define(name: str, kind: int, section: int, value: int, size: int) -> int:
        symbols.extend(elf.SYM.pack(len(strings), elf.STB_GLOBAL << 4 | kind, 0, section, value, size))
        strings.extend(name.encode("utf-8", "surrogateescape") + b"\0")
        return len(symbols) // elf.SYM.size - 1

    relocs = bytearray()
    for index, name in enumerate(names):
        slot = define(IMPORT_SLOT_PREFIX + name, elf.STT_OBJECT, slots, _SLOT_SIZE * index, _SLOT_SIZE)
        define(name, elf.STT_FUNC, text, _JUMP_STRIDE * index, len(_JUMP))
        relocs += elf.RELA.pack(_JUMP_STRIDE * index + 2, slot << 32 | elf.R_X86_64_PC32, -4)
    for name, addr in absolute.items():
        define(name, elf.STT_NOTYPE, elf.SHN_ABS, addr, 0)
    for name, offset in thread_locals.items():
        define(name, elf.STT_TLS, tls_section, tls_size + offset, 0)

    strtab, symtab = len(sections), len(sections) + 1
    sections += [
        _Out(".strtab", elf.SHT_STRTAB, 0, 1, bytes(strings)),
        _Out(".symtab", elf.SHT_SYMTAB, 0, 8, bytes(symbols), link=strtab, info=1, entsize=elf.SYM.size),
        _Out(
            ".rela.text.imports",
            elf.SHT_RELA,
            0,
            8,
            bytes(relocs),
            link=symtab,
            info=text,
            entsize=elf.RELA.size,
        ),
    ]
    return _serialize(sections)


def _serialize(sections: list[_Out]) -> bytes:
    names = bytearray(b"\0")
    name_offsets = []
    shstrtab = _Out(".shstrtab", elf.SHT_STRTAB, 0, 1)
    sections = [*sections, shstrtab]
    for section in sections:
        name_offsets.append(len(names) if section.name else 0)
        names += section.name.encode() + b"\0" if section.name else b""
    shstrtab.data = bytes(names)
    body = bytearray(elf.EHDR.size)
    headers = bytearray()
    for section, name_offset in zip(sections, name_offsets, strict=True):
        body += bytes(-len(body) % max(section.align, 1))
        headers += elf.SHDR.pack(
            name_offset,
            section.type,
            section.flags,
            0,
            len(body) if section.type else 0,
            section.size or len(section.data),
            section.link,
            section.info,
            section.align,
            section.entsize,
        )
        body += section.data
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf.EHDR.pack_into(
        body,
        0,
        *(ident, elf.ET_REL, elf.EM_X86_64, 1, 0, 0, len(body), 0, elf.EHDR.size, 0, 0),
        *(elf.SHDR.size, len(sections), len(sections) - 1),
    )
    return bytes(body + headers)
