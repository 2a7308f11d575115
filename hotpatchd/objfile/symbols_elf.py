"""The symbols of ELF files.

Source: System V ABI, chapter 4 (gabi4+); `DF_1_PIE`: Oracle, Linker and Libraries Guide; thunks: lld `ELF/Thunks.cpp`,
GNU ld `elfnn-aarch64.c`.
"""

import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

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
_UNREADABLE = (
    *(ELFError, ConstructError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error),
)
"""What reading a damaged file raises; pyelftools lets the errors of its parser through in places."""

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
    header = elf.parse_header(data, str(path))
    if header.machine not in _ARCHS:
        raise ObjectError(f"{path} is for machine {header.machine}, neither x86-64 nor aarch64")
    try:
        file = ELFFile(BytesIO(data))
        symtab = file.get_section_by_name(".symtab")
        if symtab is None:
            refuse_stripped(path, "no symbol table")
        names = Names(_contents(file.get_section(symtab["sh_link"]), data), b"@")
        symbols = tuple(_rows(_contents(symtab, data), names, header.machine))
        type_, os = _type_of(file, path, data), _os_of(file, data)
    except _UNREADABLE as error:
        raise ObjectError(f"{path} is damaged: its symbol table cannot be read: {error}") from error
    return SymbolTable(
        origin=str(path),
        format="elf",
        type=type_,
        os=os,
        arch=_ARCHS[header.machine],
        build_id=build_id_of(path) if type_ != "object" else digest_of(data),
        image_base=0,
        position_independent=header.type != elf.ET_EXEC,
        sizes="stated",
        symbols=symbols,
    )


def _contents(section: Any, data: bytes) -> bytes:
    contents = data[section["sh_offset"] : section["sh_offset"] + section["sh_size"]]
    if len(contents) < section["sh_size"]:
        raise ValueError(f"{section.name} lies beyond the end of the file")
    return contents


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


def _type_of(file: ELFFile, path: Path, data: bytes) -> FileType:
    match file["e_type"]:
        case "ET_REL":
            return "object"
        case "ET_EXEC":
            return "executable"
        case "ET_DYN":
            return "executable" if _flags_1(file, data) & _DF_1_PIE else "library"
        case other:
            raise ObjectError(f"{path} is an ELF file of type {other}: neither program, library nor object")


def _flags_1(file: ELFFile, data: bytes) -> int:
    section = file.get_section_by_name(".dynamic")
    rows = _DYN.iter_unpack(_contents(section, data)) if section else ()
    return next((value for tag, value in rows if tag == _DT_FLAGS_1), 0)


def _os_of(file: ELFFile, data: bytes) -> str:
    section = file.get_section_by_name(".interp")
    loader = _contents(section, data) if section else b""
    if loader.startswith(b"/system/") or file.get_section_by_name(".note.android.ident"):
        return "android"
    return _OS_OF_ABI.get(data[7], f"osabi-{data[7]}")
