"""Symbol tables of executables, shared libraries and objects in ELF, Mach-O, PE and COFF."""

from pathlib import Path

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import SymbolTable
from hotpatchd.objfile import symbols_elf, symbols_macho, symbols_pe

_ARCH_ALIASES = {"arm64": "aarch64", "amd64": "x86_64"}


def read_symbols(path: Path, *, arch: str | None = None) -> SymbolTable:
    """Read all symbols of a file.

    Args:
        path: an executable, a shared library or an object. A PE file is one that MinGW's linker wrote, or has its PDB
            beside it.
        arch: `x86_64` or `aarch64`: which part of a fat Mach-O file; other files must be for it.

    Raises:
        ObjectError: of another format, damaged, stripped, or for another architecture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ObjectError(f"cannot read {path}: {error.strerror}") from error
    wanted = _ARCH_ALIASES.get(arch, arch) if arch else None
    if data[:4] == b"\x7fELF":
        table = symbols_elf.read(path, data)
    elif data[:4] in symbols_macho.MAGICS:
        table = symbols_macho.read(path, data, wanted)
    elif symbols_pe.is_image(data):
        table = symbols_pe.read_image(path, data)
    elif symbols_pe.is_object(data):
        table = symbols_pe.read_object(path, data)
    else:
        raise ObjectError(f"{path} is no ELF, Mach-O, PE or COFF file for a 64-bit machine")
    if wanted and table.arch != wanted:
        raise ObjectError(f"{path} is for {table.arch}, not {wanted}")
    return table
