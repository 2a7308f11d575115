"""The symbols of ELF files.

Source: System V ABI, chapter 4 (gabi4+); `DF_1_PIE`: Oracle, Linker and Libraries Guide; thunks: lld `ELF/Thunks.cpp`,
GNU ld `elfnn-aarch64.c`.
"""

import re
import struct
from pathlib import Path

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import FileType, Symbol, SymbolKind, SymbolTable
from hotpatchd.objfile import elf
from hotpatchd.objfile.host_index import build_id_of
from hotpatchd.objfile.symbol_rows import Names, digest_of, refuse_stripped, text_of

_ARCHS = {elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}
_OS_OF_ABI = {0: "linux", 2: "netbsd", 3: "linux", 6: "solaris", 9: "freebsd", 12: "openbsd"}
"""By `EI_OSABI`; 0 is what Linux uses, and what others leave it at."""

_STT_COMMON = 5
_KINDS: dict[int, SymbolKind] = {
    elf.STT_NOTYPE: "data",
    elf.STT_OBJECT: "data",
    _STT_COMMON: "data",
    elf.STT_FUNC: "function",
    elf.STT_GNU_IFUNC: "function",
    elf.STT_TLS: "tls",
}

_DYN = struct.Struct("<qQ")
_DT_FLAGS_1, _DF_1_PIE = 0x6FFFFFFB, 0x08000000

_THUNK = re.compile(r"__AArch64\w*Thunk_|__.*_veneer$")
_MAPPING = b"$"
"""Mapping symbols (`$x`, `$d`) tell code from data within aarch64 sections; they name nothing."""


def read(path: Path, data: bytes) -> SymbolTable:
    """Read the symbols of an ELF file.

    Args:
        path: the file.
        data: its content.

    Raises:
        ObjectError: as `symbols.read_symbols`.
    """
    file = elf.ElfFile(data, str(path))
    type_ = _type_of(file)
    symtab = next((section for section in file.sections if section.type == elf.SHT_SYMTAB), None)
    if symtab is None:
        refuse_stripped(path, "no symbol table")
    try:
        names = Names(file.contents(file.sections[symtab.link]), b"@")
        symbols = tuple(_rows(file.contents(symtab), names, file.header.machine))
    except (ValueError, IndexError, struct.error):
        raise ObjectError(f"{path} is damaged: its symbol table cannot be read") from None
    return SymbolTable(
        origin=str(path),
        format="elf",
        type=type_,
        os=_os_of(file),
        arch=_ARCHS[file.header.machine],
        build_id=build_id_of(path) if type_ != "object" else digest_of(data),
        image_base=0,
        position_independent=file.header.type != elf.ET_EXEC,
        sizes="stated",
        symbols=symbols,
    )


def _rows(table: bytes, names: Names, machine: int) -> list[Symbol]:
    has_thunks = machine == elf.EM_AARCH64
    found = []
    for offset, info, _, shndx, value, size in elf.SYM.iter_unpack(table):
        kind = _KINDS.get(info & 15)
        if kind is None or not offset:
            continue
        raw = names.at(offset)
        if has_thunks and raw.startswith(_MAPPING):
            continue
        name = text_of(raw)
        is_stub = (
            info & 15 == elf.STT_GNU_IFUNC
            or (shndx == elf.SHN_UNDEF and value != 0)
            or (has_thunks and _THUNK.match(name) is not None)
        )
        found.append(
            Symbol(
                name,
                value if shndx != elf.SHN_COMMON else 0,
                size,
                kind,
                shndx != elf.SHN_UNDEF,
                info >> 4 == elf.STB_LOCAL,
                shndx == elf.SHN_ABS,
                is_stub,
            )
        )
    return found


def _type_of(file: elf.ElfFile) -> FileType:
    match file.header.type:
        case elf.ET_REL:
            return "object"
        case elf.ET_EXEC:
            return "executable"
        case elf.ET_DYN:
            return "executable" if _flags_1(file) & _DF_1_PIE else "library"
        case other:
            raise ObjectError(f"{file.origin} is an ELF file of type {other}: neither program, library nor object")


def _flags_1(file: elf.ElfFile) -> int:
    index = file.section_named(".dynamic")
    rows = file.contents(file.sections[index]) if index is not None else b""
    whole = rows[: len(rows) // _DYN.size * _DYN.size]
    return next((value for tag, value in _DYN.iter_unpack(whole) if tag == _DT_FLAGS_1), 0)


def _os_of(file: elf.ElfFile) -> str:
    interp = file.section_named(".interp")
    loader = file.contents(file.sections[interp]) if interp is not None else b""
    if loader.startswith(b"/system/") or file.section_named(".note.android.ident") is not None:
        return "android"
    abi = file.data[7]
    return _OS_OF_ABI.get(abi, f"osabi-{abi}")
