"""Relocatable objects: read as pyelftools reads them, and refused when damaged."""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import elf
from hotpatchd.objfile.archive import Archive
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.units import ObjectUnit
from tests.objfile.build import assembled, std_rlib

MANY_SECTIONS = 65_600
EI_CLASS, EI_DATA, E_TYPE, E_MACHINE = 4, 5, 16, 18


def section_rows(file: ELFFile) -> list[tuple[object, ...]]:
    """All section headers as pyelftools sees them."""
    fields = "sh_flags sh_offset sh_size sh_link sh_info sh_addralign sh_entsize".split()
    return [(section.name, *(section[field] for field in fields)) for section in file.iter_sections()]


def symbol_rows(file: ELFFile) -> list[tuple[str, int, int, int]]:
    """Name, section (reserved values as 0), address and size of all symbols as pyelftools sees them."""
    table = file.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    wide: Any = next(file.iter_sections("SHT_SYMTAB_SHNDX"), None)
    rows = []
    for index, symbol in enumerate(table.iter_symbols()):
        shndx = symbol["st_shndx"]
        if shndx == elf.SHN_XINDEX:
            shndx = wide.get_section_index(index)
        name = symbol.name if symbol["st_info"]["type"] != "STT_SECTION" else ""
        rows.append((name, shndx if isinstance(shndx, int) else 0, symbol["st_value"], symbol["st_size"]))
    return rows


def reloc_rows(file: ELFFile) -> dict[int, list[tuple[int, int, int, int]]]:
    """Relocations by the section that they apply to, as pyelftools sees them."""
    return {
        section["sh_info"]: [
            (r["r_offset"], r["r_info_type"], r["r_info_sym"], r["r_addend"]) for r in section.iter_relocations()
        ]
        for section in file.iter_sections("SHT_RELA")
        if isinstance(section, RelocationSection)
    }


def assert_reads_alike(obj: RelocatableObject) -> None:
    """The object's tables are those that pyelftools finds."""
    file = ELFFile(io.BytesIO(bytes(obj.data)))
    assert [(s.name, *s[2:]) for s in obj.sections] == section_rows(file)
    mine = [(s.name if s.type != elf.STT_SECTION else "", max(s.shndx, 0), s.value, s.size) for s in obj.symbols]
    assert mine == symbol_rows(file)
    relocs = reloc_rows(file)
    assert relocs
    for section, expected in relocs.items():
        assert [tuple(reloc) for reloc in obj.relocs(section)] == expected


def elf_object(unit: ObjectUnit) -> RelocatableObject:
    """The object behind a unit."""
    assert isinstance(unit, CodeUnit)
    return unit.obj


def test_objects_of_rustc_read_as_pyelftools_reads_them(small_build: BuildObjects) -> None:
    """Sections, symbols and relocations of every object of a program agree with the reference."""
    for name in small_build.files:
        assert_reads_alike(elf_object(small_build.unit(name)))


def test_a_member_of_the_standard_library_reads_as_pyelftools_reads_it() -> None:
    """The tables of a large optimised object agree with the reference."""
    archive = Archive(std_rlib())
    members = map(elf_object, map(archive.member, set(archive.symbols.values())))
    largest = max(members, key=lambda obj: len(obj.data))
    assert len(largest.sections) > 1000
    assert_reads_alike(largest)


@pytest.fixture(scope="module")
def wide_object(tmp_path_factory: pytest.TempPathFactory) -> RelocatableObject:
    """An object with more sections than a 16-bit index can name."""
    lines = [
        f'.section .text.f{n},"ax",@progbits\n.globl f{n}\nf{n}: call f{n + 1}\n' for n in range(MANY_SECTIONS // 2)
    ]
    return assembled(tmp_path_factory.mktemp("wide"), "".join([*lines, ".globl fixed\nfixed = 0x1234\n"])).obj


def test_an_object_with_extended_section_indices_reads_as_pyelftools_reads_it(wide_object: RelocatableObject) -> None:
    """Symbols in sections beyond SHN_LORESERVE are found there."""
    assert len(wide_object.sections) > elf.SHN_LORESERVE
    assert_reads_alike(wide_object)


def test_absolute_symbols_are_told_from_sections_with_the_same_number(wide_object: RelocatableObject) -> None:
    """SHN_ABS is not section 65521, though the object has one."""
    fixed = next(symbol for symbol in wide_object.symbols if symbol.name == "fixed")
    assert fixed.shndx == elf.SHN_ABS - 0x10000
    assert len(wide_object.sections) > elf.SHN_ABS


def read_all(data: bytes) -> None:
    """Look at every part of an object."""
    obj = RelocatableObject(data, "damaged.o")
    _ = obj.symbols_of_section
    for index, section in enumerate(obj.sections):
        obj.contents(section)
        for reloc in obj.relocs(index):
            assert obj.symbols[reloc.symbol].shndx < len(obj.sections)


@pytest.fixture(scope="module")
def object_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small object with every kind of table."""
    source = '.text\n.globl f\nf: call g\nlea text(%rip),%rax\n.section .rodata\ntext: .asciz "x"\n'
    return bytes(assembled(tmp_path_factory.mktemp("object"), source).obj.data)


def test_every_prefix_of_an_object_is_refused(object_bytes: bytes) -> None:
    """An object that is cut short anywhere is an ObjectError: its section headers come last."""
    for length in range(len(object_bytes)):
        with pytest.raises(ObjectError, match=r"damaged\.o"):
            read_all(object_bytes[:length])


def test_cut_objects_of_rustc_are_refused(small_object: Path) -> None:
    """An object of the compiler, cut at many lengths, is an ObjectError."""
    data = small_object.read_bytes()
    for length in range(0, len(data), max(len(data) // 200, 1)):
        with pytest.raises(ObjectError):
            read_all(data[:length])


@settings(max_examples=400, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_are_an_object_error_or_another_object(object_bytes: bytes, flips: list[tuple[int, int]]) -> None:
    """Whatever a damaged object holds, nothing but ObjectError is raised."""
    data = bytearray(object_bytes)
    for place, value in flips:
        data[place % len(data)] = value
    with contextlib.suppress(ObjectError):
        read_all(bytes(data))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (EI_CLASS, b"\x01", "64-bit little-endian"),
        (EI_DATA, b"\x02", "64-bit little-endian"),
        (E_MACHINE, struct.pack("<H", 243), "machine 243"),
        (E_TYPE, struct.pack("<H", elf.ET_DYN), "not a relocatable object"),
        (0, b"MZ\0\0", "not an ELF file"),
    ],
    ids=["32-bit", "big-endian", "aarch64", "shared library", "not ELF"],
)
def test_files_of_another_kind_are_refused_by_what_they_are(
    object_bytes: bytes, place: int, value: bytes, message: str
) -> None:
    """Class, byte order, machine and type that cannot be used are named."""
    data = object_bytes[:place] + value + object_bytes[place + len(value) :]
    with pytest.raises(ObjectError, match=message):
        read_all(data)
