"""The symbols of PE files and COFF objects.

MinGW's linkers put a COFF symbol table into the file. MSVC's and lld-link put the symbols into a PDB file, which lies
beside the program.

Source: Microsoft, "PE Format"; `RSDS` records: LLVM, "The PDB File Format"; import thunks: lld `COFF/DLL.cpp`.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import Symbol, SymbolKind, SymbolTable
from hotpatchd.objfile.coff_writer import (
    HEADER,
    IMAGE_FILE_MACHINE_AMD64,
    IMAGE_FILE_MACHINE_ARM64,
    IMAGE_SCN_MEM_EXECUTE,
    IMAGE_SYM_CLASS_EXTERNAL,
    SECTION,
    SYMBOL,
)
from hotpatchd.objfile.pdb import Pdb
from hotpatchd.objfile.symbol_rows import Names, digest_of, refuse_stripped, text_of, with_derived_sizes

_ARCHS = {IMAGE_FILE_MACHINE_AMD64: "x86_64", IMAGE_FILE_MACHINE_ARM64: "aarch64"}

_BIG_HEADER = struct.Struct("<HHHHI16sIIIIIII")
_BIG_CLASS = bytes.fromhex("c7a1bad1eebaa94baf20faf66aa4dcb8")
_OPTIONAL_HEADER = struct.Struct("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII")
_BIG_SYMBOL = struct.Struct("<8sIiHBB")
_LONG_NAME = struct.Struct("<II")

_PE32_PLUS = 0x20B
_IMAGE_FILE_DLL = 0x2000
_DYNAMIC_BASE = 0x40

_DEBUG_DIRECTORY = 6
_DIRECTORY_ENTRY = struct.Struct("<II")
_DEBUG_ENTRY = struct.Struct("<IIHHIIII")
_DEBUG_TYPE_CODEVIEW = 2
_RSDS = struct.Struct("<4s16sI")

_SYM_UNDEFINED, _SYM_ABSOLUTE = 0, -1
_CLASS_STATIC, _CLASS_LABEL, _CLASS_WEAK_EXTERNAL = 3, 6, 105
_NAMING_CLASSES = (IMAGE_SYM_CLASS_EXTERNAL, _CLASS_STATIC, _CLASS_LABEL, _CLASS_WEAK_EXTERNAL)
_DTYPE_FUNCTION = 0x20

_IMPORT_SLOT = "__imp_"


class _Section(NamedTuple):
    name: bytes
    virtual_size: int
    virtual_addr: int
    raw_size: int
    raw_offset: int
    characteristics: int

    @property
    def kind(self) -> SymbolKind:
        if self.name.partition(b"$")[0].rstrip(b"\0") == b".tls":
            return "tls"
        return "function" if self.characteristics & IMAGE_SCN_MEM_EXECUTE else "data"


class _Row(NamedTuple):
    """One symbol, before its section's address is known: `section` counts from 1, or is 0 or -1."""

    name: bytes
    value: int
    section: int
    is_function: bool
    is_local: bool


def is_image(data: bytes) -> bool:
    """Whether a file is a PE image."""
    if data[:2] != b"MZ" or len(data) < 0x40:
        return False
    place = int.from_bytes(data[0x3C:0x40], "little")
    return data[place : place + 4] == b"PE\0\0"


def is_object(data: bytes) -> bool:
    """Whether a file is a COFF object."""
    return int.from_bytes(data[:2], "little") in _ARCHS or data[12:28] == _BIG_CLASS


def read_object(path: Path, data: bytes) -> SymbolTable:
    """Read the symbols of a COFF object.

    Args:
        path: the file.
        data: its content.

    Raises:
        ObjectError: as `symbols.read_symbols`.
    """
    try:
        if data[12:28] == _BIG_CLASS:
            _, _, _, machine, _, _, _, _, _, _, section_count, table, count = _BIG_HEADER.unpack_from(data)
            layout, start = _BIG_SYMBOL, _BIG_HEADER.size
        else:
            machine, section_count, _, table, count, optional_size, _ = HEADER.unpack_from(data)
            layout, start = SYMBOL, HEADER.size + optional_size
        sections = _sections(data, start, section_count)
        symbols = _place(_coff_rows(data, table, count, layout), sections, [0] * len(sections))
    except (struct.error, ValueError, IndexError):
        raise ObjectError(f"{path} is damaged or cut short: its symbol table cannot be read") from None
    return SymbolTable(
        origin=str(path),
        format="coff",
        type="object",
        os="windows",
        arch=_arch_of(path, machine),
        build_id=digest_of(data),
        image_base=0,
        position_independent=True,
        sizes="derived",
        symbols=symbols,
    )


def read_image(path: Path, data: bytes) -> SymbolTable:
    """Read the symbols of a PE image.

    Args:
        path: the file; its PDB is looked for beside it, and where the linker wrote it.
        data: its content.

    Raises:
        ObjectError: as `symbols.read_symbols`; and there is no PDB, or one of another build.
    """
    try:
        start = int.from_bytes(data[0x3C:0x40], "little") + 4
        machine, section_count, _, table, count, optional_size, characteristics = HEADER.unpack_from(data, start)
        arch = _arch_of(path, machine)
        optional = _OPTIONAL_HEADER.unpack_from(data, start + HEADER.size)
        if optional[0] != _PE32_PLUS:
            raise ObjectError(f"{path} is not a 64-bit PE file")
        image_base, dll_characteristics, directory_count = optional[8], optional[22], optional[28]
        sections = _sections(data, start + HEADER.size + optional_size, section_count)
        directories = data[start + HEADER.size + _OPTIONAL_HEADER.size :][: 8 * directory_count]
        codeview = _codeview(data, directories, sections)
        rows = _coff_rows(data, table, count, SYMBOL) if table else _pdb_rows(path, codeview)
        symbols = _place(rows, sections, [image_base + section.virtual_addr for section in sections])
    except (struct.error, ValueError, IndexError):
        raise ObjectError(f"{path} is damaged or cut short: its symbol table cannot be read") from None
    return SymbolTable(
        origin=str(path),
        format="pe",
        type="library" if characteristics & _IMAGE_FILE_DLL else "executable",
        os="windows",
        arch=arch,
        build_id=f"{codeview.guid.hex()}{codeview.age:x}" if codeview else digest_of(data),
        image_base=image_base,
        position_independent=bool(dll_characteristics & _DYNAMIC_BASE),
        sizes="derived",
        symbols=_with_stubs(symbols, data, sections, image_base, arch),
    )


def _arch_of(path: Path, machine: int) -> str:
    if machine not in _ARCHS:
        raise ObjectError(f"{path} is for machine {machine:#x}, neither x86-64 nor aarch64")
    return _ARCHS[machine]


def _sections(data: bytes, start: int, count: int) -> list[_Section]:
    rows = data[start : start + count * SECTION.size]
    if len(rows) < count * SECTION.size:
        raise ValueError("section headers beyond the end")
    return [
        _Section(name, virtual_size, virtual_addr, raw_size, raw_offset, characteristics)
        for name, virtual_size, virtual_addr, raw_size, raw_offset, *_, characteristics in SECTION.iter_unpack(rows)
    ]


def _coff_rows(data: bytes, table: int, count: int, layout: struct.Struct) -> Iterator[_Row]:
    strings_start = table + count * layout.size
    rows = data[table:strings_start]
    if len(rows) < count * layout.size:
        raise ValueError("symbols beyond the end")
    strings_size = int.from_bytes(data[strings_start : strings_start + 4], "little")
    names = Names(data[strings_start : strings_start + strings_size])
    skipped = 0
    for field, value, section, type_, storage, aux_count in layout.iter_unpack(rows):
        if skipped:
            skipped -= 1
            continue
        skipped = aux_count
        if storage not in _NAMING_CLASSES or section < _SYM_ABSOLUTE:
            continue
        # A static symbol with an auxiliary record and no type names a section.
        if storage == _CLASS_STATIC and aux_count and type_ == 0:
            continue
        zeroes, offset = _LONG_NAME.unpack(field)
        name = field.rstrip(b"\0") if zeroes else names.at(offset)
        is_local = storage in (_CLASS_STATIC, _CLASS_LABEL)
        yield _Row(name, value, section, type_ == _DTYPE_FUNCTION, is_local)


def _place(rows: Iterator[_Row], sections: Sequence[_Section], starts: Sequence[int]) -> tuple[Symbol, ...]:
    kinds = [section.kind for section in sections]
    ends = {
        place + 1: start + (section.virtual_size or section.raw_size)
        for place, (start, section) in enumerate(zip(starts, sections, strict=True))
    }
    found: list[tuple[Symbol, int]] = []
    for row in rows:
        place = row.section if row.section > 0 else 0
        # An undefined symbol with a value is a tentative definition of that size: the linker makes room for it.
        is_defined = row.section != _SYM_UNDEFINED or row.value != 0
        addr = row.value + starts[place - 1] if place else row.value if row.section == _SYM_ABSOLUTE else 0
        kind = "function" if row.is_function else kinds[place - 1] if place else "data"
        is_absolute = row.section == _SYM_ABSOLUTE
        found.append((Symbol(text_of(row.name), addr, 0, kind, is_defined, row.is_local, is_absolute, False), place))
    return with_derived_sizes(found, ends)


class _CodeView(NamedTuple):
    """Which PDB belongs to an image, and where the linker wrote it."""

    guid: bytes
    age: int
    pdb: str


def _codeview(data: bytes, directories: bytes, sections: Sequence[_Section]) -> _CodeView | None:
    entry = directories[8 * _DEBUG_DIRECTORY :][: _DIRECTORY_ENTRY.size]
    virtual_addr, size = _DIRECTORY_ENTRY.unpack(entry) if len(entry) == _DIRECTORY_ENTRY.size else (0, 0)
    start = _offset_of(virtual_addr, sections)
    if start is None:
        return None
    for place in range(start, start + size - _DEBUG_ENTRY.size + 1, _DEBUG_ENTRY.size):
        *_, type_, length, _, offset = _DEBUG_ENTRY.unpack_from(data, place)
        if type_ == _DEBUG_TYPE_CODEVIEW and data[offset : offset + 4] == b"RSDS":
            _, guid, age = _RSDS.unpack_from(data, offset)
            path = data[offset + _RSDS.size : offset + length].partition(b"\0")[0]
            return _CodeView(guid, age, text_of(path))
    return None


def _offset_of(virtual_addr: int, sections: Sequence[_Section]) -> int | None:
    """Where in the file the byte with a relative virtual address is."""
    for section in sections:
        within = virtual_addr - section.virtual_addr
        if 0 <= within < section.raw_size and virtual_addr:
            return section.raw_offset + within
    return None


def _pdb_rows(path: Path, codeview: _CodeView | None) -> Iterator[_Row]:
    if codeview is None:
        refuse_stripped(path, "neither a symbol table nor a PDB")
    recorded = Path(codeview.pdb)
    places = [path.with_name(PureWindowsPath(codeview.pdb).name), *([recorded] if recorded.is_absolute() else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ObjectError(
            f"the symbols of {path} are in {places[0].name}, which is not beside it",
            hint="keep the PDB where the linker wrote it, and set `strip = false` in the profile",
        )
    try:
        pdb = Pdb(found.read_bytes(), str(found))
    except OSError as error:
        raise ObjectError(f"cannot read {found}: {error.strerror}") from error
    if pdb.guid != codeview.guid:
        raise ObjectError(f"{found} belongs to another build than {path}", hint="build again")
    for symbol in pdb.public_symbols():
        yield _Row(symbol.name, symbol.offset, symbol.section, symbol.is_function, False)


def _with_stubs(
    symbols: tuple[Symbol, ...], data: bytes, sections: Sequence[_Section], image_base: int, arch: str
) -> tuple[Symbol, ...]:
    """Mark the jumps through import slots: `name` that jumps through `__imp_name`."""
    slots = {symbol.name: symbol.addr for symbol in symbols if symbol.name.startswith(_IMPORT_SLOT)}
    if not slots:
        return symbols

    def is_stub(symbol: Symbol) -> bool:
        slot = slots.get(_IMPORT_SLOT + symbol.name)
        if slot is None or symbol.kind != "function":
            return False
        offset = _offset_of(symbol.addr - image_base, sections)
        return offset is not None and _jumps_through(data[offset : offset + 12], symbol.addr, slot, arch)

    return tuple(symbol._replace(is_stub=True) if is_stub(symbol) else symbol for symbol in symbols)


def _jumps_through(code: bytes, addr: int, slot: int, arch: str) -> bool:
    """Whether code is an import thunk: `jmp *slot(%rip)`, or `adrp`, `ldr` and `br` by way of x16."""
    if arch == "x86_64":
        return code[:2] == b"\xff\x25" and addr + 6 + int.from_bytes(code[2:6], "little", signed=True) == slot
    adrp, ldr, br = (int.from_bytes(code[place : place + 4], "little") for place in (0, 4, 8))
    return adrp & 0x9F00001F == 0x90000010 and ldr & 0xFFC003FF == 0xF9400210 and br == 0xD61F0200
