"""Source lines of addresses in a linked ELF file, from its DWARF line tables."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct import ConstructError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.lineprogram import LineProgram
from elftools.elf.elffile import ELFFile

_UNREADABLE = (OSError, ELFError, DWARFError, ConstructError, ValueError, KeyError, IndexError, AttributeError)
"""What reading damaged tables raises; pyelftools lets the errors of its parser through in places."""


def find_lines(path: Path, addrs: Iterable[int]) -> dict[int, tuple[str, int]]:
    """The source file and line of each address that the line tables know.

    Args:
        path: a linked ELF file.
        addrs: link-time addresses.

    Returns:
        address → (file, line); empty where the file has no tables, or none that can be read.
    """
    wanted = sorted(set(addrs))
    found: dict[int, tuple[str, int]] = {}
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf.has_dwarf_info():
                dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
                for unit in dwarf.iter_CUs():
                    program = dwarf.line_program_for_CU(unit)
                    if program is not None:
                        for addr, file_number, line in _rows_around(program, wanted):
                            found[addr] = (_file_name(unit, program, file_number), line)
    except _UNREADABLE:
        return found
    return found


def _rows_around(program: LineProgram, wanted: list[int]) -> Iterator[tuple[int, int, int]]:
    """(address, file number, line) for each wanted address that the program's rows cover."""
    before = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if before is not None and before.line:
            for addr in wanted:
                if before.address <= addr < state.address:
                    yield addr, before.file, before.line
        before = None if state.end_sequence else state


def _file_name(unit: CompileUnit, program: LineProgram, number: int) -> str:
    """Source: DWARF 5, section 6.2.4: files and directories count from 0 there, and from 1 before."""
    header = program.header
    compiled_in = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    base = bytes(compiled_in.value) if compiled_in else b""
    directories = [bytes(directory) for directory in header["include_directory"]]
    if header["version"] < 5:
        directories.insert(0, base)
        number -= 1
    entry = header["file_entry"][number]
    return os.path.normpath(os.fsdecode(os.path.join(base, directories[entry.dir_index], bytes(entry.name))))
