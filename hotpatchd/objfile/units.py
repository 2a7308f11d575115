"""Relocatable objects of any format as units of a patch."""

import mmap

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import macho_writer as macho
from hotpatchd.objfile.atoms import AtomUnit
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject

_MACH_O = macho.MH_MAGIC_64.to_bytes(4, "little")

ObjectUnit = CodeUnit | AtomUnit


def open_unit(
    data: bytes | mmap.mmap, name: str, *, origin: str, from_archive: bool, shares_locals: bool = False
) -> ObjectUnit:
    """Look at an object by its format.

    Args:
        data: its bytes.
        name: unique among the units of one selection.
        origin: what to call it in an error.
        from_archive: it is a member of an archive.
        shares_locals: see `CodeUnit`.

    Raises:
        ObjectError: it is of no format that can be compared.
    """
    if data[:4] == b"\x7fELF":
        obj = RelocatableObject(data, origin)
        return CodeUnit(obj, name, from_archive=from_archive, shares_locals=shares_locals)
    if data[:4] == _MACH_O:
        raise ObjectError(f"{origin} is a Mach-O object, and those cannot be compared with one another yet")
    return AtomUnit(data, name, origin=origin, from_archive=from_archive, shares_locals=shares_locals)
