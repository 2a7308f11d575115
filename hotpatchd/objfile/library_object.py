"""The objects that a patch library is linked from, whatever their format."""

from collections.abc import Mapping
from pathlib import Path

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.select import KeptUnit, Selection
from hotpatchd.core.symbols import FileFormat
from hotpatchd.objfile.atoms import AtomUnit
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.dylib_stub import Format
from hotpatchd.objfile.host_index import build_id_of
from hotpatchd.objfile.library_coff import prepare_coff
from hotpatchd.objfile.library_elf import reach_by_got
from hotpatchd.objfile.rewrite import rewrite
from hotpatchd.objfile.symbols import read_symbols

PROGRAM_FORMATS: Mapping[FileFormat, Format] = {"elf": "elf", "macho": "macho", "pe": "coff"}
"""Format of a program → format of the objects that it is linked from."""


def program_build_id(path: Path) -> str:
    """What a client inside a program says of its build: what the file states, or its SHA-256.

    Raises:
        ObjectError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_elf = file.read(4) == b"\x7fELF"
    except OSError as error:
        raise ObjectError(f"cannot read {path}: {error.strerror}") from error
    # Reading all symbols of a large program for its name alone would take long.
    return build_id_of(path) if is_elf else read_symbols(path).build_id


def prepare_object(kept: KeptUnit, *, selection: Selection, replaced: frozenset[str], data: Mapping[str, int]) -> bytes:
    """The copy of one object that the linker gets.

    Args:
        kept: the object, and what the library takes of it.
        selection: the library's content.
        replaced: functions of the program whose new code the object brings.
        data: the program's data → address at run time.

    Raises:
        ObjectError: it uses that data in a way that a library cannot.
    """
    unit = kept.unit
    if isinstance(unit, AtomUnit):
        return prepare_coff(unit, kept, selection=selection, replaced=replaced, data=data)
    assert isinstance(unit, CodeUnit)
    copy = rewrite(
        unit,
        sections=kept.sections,
        host_sections=kept.host_sections,
        host_names=selection.host_names,
        replaced=replaced,
        imports=frozenset(),
    )
    return reach_by_got(copy, sections=kept.sections, names=data.keys(), origin=unit.name)
