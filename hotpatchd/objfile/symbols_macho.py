"""The symbols of Mach-O files, thin and fat.

Source: Apple, `mach-o/loader.h`, `mach-o/nlist.h`, `mach-o/fat.h`; thunks: lld `MachO/ConcatOutputSection.cpp`.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macholib import mach_o
from macholib.MachO import MachO, MachOHeader

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import FileType, Symbol, SymbolKind, SymbolTable
from hotpatchd.objfile.macho_writer import (
    CPU_TYPE_ARM64,
    CPU_TYPE_X86_64,
    N_EXT,
    N_SECT,
    N_STAB,
    N_TYPE,
    N_UNDF,
    NLIST,
)
from hotpatchd.objfile.symbol_rows import Names, digest_of, refuse_stripped, text_of, with_derived_sizes

MAGICS = frozenset(
    bytes.fromhex(magic) for magic in ("cffaedfe", "cefaedfe", "feedfacf", "feedface", "cafebabe", "cafebabf")
)

_ARCHS = {CPU_TYPE_X86_64: "x86_64", CPU_TYPE_ARM64: "aarch64"}
_TYPES: dict[int, FileType] = {
    mach_o.MH_OBJECT: "object",
    mach_o.MH_EXECUTE: "executable",
    mach_o.MH_DYLIB: "library",
    mach_o.MH_BUNDLE: "library",
}
_PLATFORMS = {1: "macos", 2: "ios", 3: "tvos", 4: "watchos", 6: "mac-catalyst", 7: "ios-simulator", 11: "visionos"}
_VERSION_COMMANDS = {mach_o.LC_VERSION_MIN_MACOSX: "macos", mach_o.LC_VERSION_MIN_IPHONEOS: "ios"}
"""What older linkers write in place of LC_BUILD_VERSION."""

_N_ABS, _N_INDR = 0x2, 0xA
_SECTION_TYPE = 0xFF
_S_SYMBOL_STUBS, _S_THREAD_LOCALS = 0x8, range(0x11, 0x16)
_S_ATTR_INSTRUCTIONS = 0x80000000 | 0x400
_MH_PIE = 0x200000

_THUNK = re.compile(r".*\.thunk\.\d+", re.DOTALL)

# macholib checks little of what it reads; these are what damaged files make it raise.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error)


def read(path: Path, data: bytes, arch: str | None) -> SymbolTable:
    """Read the symbols of a Mach-O file.

    Args:
        path: the file.
        data: its content.
        arch: which part of a fat file.

    Raises:
        ObjectError: as `symbols.read_symbols`.
    """
    try:
        header = _choose(path, MachO(str(path), allow_unknown_load_commands=True).headers, arch)
        return _read_header(path, data, header)
    except _UNREADABLE as error:
        raise ObjectError(f"cannot read the symbols of {path}: {error}") from error


def _arch_of(header: MachOHeader) -> str:
    return _ARCHS.get(header.header.cputype, f"cputype-{header.header.cputype:#x}")


def _choose(path: Path, headers: list[MachOHeader], arch: str | None) -> MachOHeader:
    found = {_arch_of(header): header for header in headers}
    if arch in found:
        return found[arch]
    if len(headers) == 1:
        return headers[0]
    raise ObjectError(
        f"{path} is for {', '.join(found)}" + (f", not {arch}" if arch else ""),
        hint="" if arch else "say for which of them it is wanted",
    )


def _read_header(path: Path, data: bytes, header: MachOHeader) -> SymbolTable:
    type_ = _TYPES.get(header.header.filetype)
    if type_ is None:
        raise ObjectError(f"{path} is a Mach-O {header.filetype}: neither program, library nor object")
    if header.MH_MAGIC != mach_o.MH_CIGAM_64:
        raise ObjectError(f"{path} is not a 64-bit little-endian Mach-O file")
    part = data[header.offset : header.offset + header.size]
    commands = {load.cmd: command for load, command, _ in header.commands}
    symtab = commands.get(mach_o.LC_SYMTAB)
    symbols = _symbols(path, part, header, symtab) if symtab else ()
    if type_ != "object" and not any(symbol.is_defined and symbol.kind == "function" for symbol in symbols):
        refuse_stripped(path, "no names of its functions")
    uuid = commands.get(mach_o.LC_UUID)
    return SymbolTable(
        origin=str(path),
        format="macho",
        type=type_,
        os=_os_of(commands),
        arch=_arch_of(header),
        build_id=bytes(uuid.uuid).hex() if uuid else digest_of(part),
        image_base=_image_base(header),
        position_independent=type_ != "executable" or bool(header.header.flags & _MH_PIE),
        sizes="derived",
        symbols=symbols,
    )


def _os_of(commands: dict[int, Any]) -> str:
    if build := commands.get(mach_o.LC_BUILD_VERSION):
        return _PLATFORMS.get(build.platform, f"platform-{build.platform}")
    return next((name for command, name in _VERSION_COMMANDS.items() if command in commands), "macos")


def _segments(header: MachOHeader) -> Iterator[tuple[Any, list[Any]]]:
    for load, command, content in header.commands:
        if load.cmd == mach_o.LC_SEGMENT_64:
            yield command, content


def _image_base(header: MachOHeader) -> int:
    """Where the segment with the file's beginning lies; objects have no such segment with a name."""
    segments = (segment for segment, _ in _segments(header) if segment.segname.rstrip(b"\0") == b"__TEXT")
    return next((int(segment.vmaddr) for segment in segments), 0)


def _symbols(path: Path, part: bytes, header: MachOHeader, symtab: Any) -> tuple[Symbol, ...]:
    rows = part[symtab.symoff : symtab.symoff + NLIST.size * symtab.nsyms]
    if len(rows) < NLIST.size * symtab.nsyms or symtab.stroff + symtab.strsize > len(part):
        raise ObjectError(f"{path} is cut short: its symbol table lies beyond its end")
    names = Names(part[symtab.stroff : symtab.stroff + symtab.strsize])
    sections = [section for _, found in _segments(header) for section in found]
    kinds = [_kind_of(section.flags) for section in sections]
    stubs = {place + 1 for place, section in enumerate(sections) if section.flags & _SECTION_TYPE == _S_SYMBOL_STUBS}
    ends = {place + 1: int(section.addr + section.size) for place, section in enumerate(sections)}
    found: list[tuple[Symbol, int]] = []
    for strx, flags, sect, _, value in NLIST.iter_unpack(rows):
        if flags & N_STAB or not strx:
            continue
        name = text_of(names.at(strx).removeprefix(b"_"))
        place = flags & N_TYPE
        # An undefined symbol with a value is a tentative definition of that size: the linker makes room for it.
        is_defined = place not in (N_UNDF, _N_INDR) or (place == N_UNDF and value != 0)
        found.append(
            (
                Symbol(
                    name,
                    value if place not in (N_UNDF, _N_INDR) else 0,
                    0,
                    kinds[sect - 1] if place == N_SECT else "data",
                    is_defined,
                    not flags & N_EXT,
                    place == _N_ABS,
                    sect in stubs or _THUNK.fullmatch(name) is not None,
                ),
                sect if place == N_SECT else 0,
            )
        )
    return with_derived_sizes(found, ends)


def _kind_of(flags: int) -> SymbolKind:
    if flags & _SECTION_TYPE in _S_THREAD_LOCALS:
        return "tls"
    return "function" if flags & _S_ATTR_INSTRUCTIONS else "data"
