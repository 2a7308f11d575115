"""The symbols of ELF files: as pyelftools sees them, and refused where there are none."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.jumptable import plan_jump_table
from hotpatchd.core.symbols import Symbol, SymbolTable
from hotpatchd.core.unit import is_rust_name
from hotpatchd.objfile.host_index import HostIndex, build_id_of, read_host
from hotpatchd.objfile.symbols import read_symbols
from tests.objfile.bare import bare_object
from tests.objfile.build import run
from tests.objfile.sources import PROGRAM

SOURCE = """
#include <stdio.h>
extern int elsewhere(void) __attribute__((weak));
__thread int local_to_thread = 4;
static int twice(int x) { return 2 * x; }
int (*pick(void))(int) { return twice; }
int chosen(int) __attribute__((ifunc("pick")));
int main(void) { puts("x"); return chosen(local_to_thread) + (elsewhere ? elsewhere() : 0); }
__asm__(".globl fixed\\n.set fixed, 0x1234\\n");
__asm__(".globl old_name\\n.type old_name, @function\\nold_name: ret\\n.size old_name, 1\\n");
__asm__(".globl promoted.llvm.77\\n.type promoted.llvm.77, @function\\npromoted.llvm.77: ret\\n");
"""

KINDS = {"STT_FUNC": "function", "STT_LOOS": "function", "STT_OBJECT": "data", "STT_NOTYPE": "data", "STT_TLS": "tls"}


def c_program(root: Path, *flags: str) -> Path:
    """The C source, compiled and linked."""
    (root / "main.c").write_text(SOURCE)
    run("gcc", "-w", *flags, "main.c", "-o", "main", cwd=root)
    return root / "main"


def only(table: SymbolTable, name: str) -> Symbol:
    """The one symbol of that name."""
    (found,) = (symbol for symbol in table.symbols if symbol.name == name)
    return found


def index_names(index: HostIndex) -> Iterator[str]:
    """The names of the Rust functions in an index."""
    return (name for name, _, _, kind in index if kind == "function" and is_rust_name(name))


@pytest.fixture(scope="module")
def rust_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linked Rust program with its symbol table."""
    root = tmp_path_factory.mktemp("program")
    (root / "main.rs").write_text(PROGRAM)
    run("rustc", "--edition=2021", "--cap-lints=allow", "main.rs", cwd=root)
    return root / "main"


def test_all_symbols_are_those_that_pyelftools_finds(rust_program: Path) -> None:
    """Names, addresses, sizes, kinds and binding agree with the reference, undefined symbols included."""
    with rust_program.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(section, SymbolTableSection)
        expected = [
            (
                symbol.name.partition("@")[0],
                symbol["st_value"],
                symbol["st_size"],
                KINDS[symbol["st_info"]["type"]],
                symbol["st_shndx"] != "SHN_UNDEF",
                symbol["st_info"]["bind"] == "STB_LOCAL",
                symbol["st_shndx"] == "SHN_ABS",
            )
            for symbol in section.iter_symbols()
            if symbol.name and symbol["st_info"]["type"] in KINDS
        ]
    assert len(expected) > 1000
    assert [tuple(symbol[:7]) for symbol in read_symbols(rust_program).symbols] == expected


def test_functions_are_those_of_the_host_index(rust_program: Path) -> None:
    """Both ways of reading a program answer alike, by name and by address."""
    table, index = read_symbols(rust_program), read_host(rust_program)
    names = sorted(table.function_names())
    assert len(names) > 500
    for name in names:
        assert set(table.functions(name)) == set(index.functions(name))
        for addr, _ in table.functions(name):
            assert sorted(table.function_names_at(addr)) == sorted(index.function_names_at(addr))


def test_a_plan_of_real_files_is_the_same_from_the_index(rust_program: Path, tmp_path: Path) -> None:
    """A library that defines functions of a program again takes their place, however the program is read."""
    index = read_host(rust_program)
    replaced = sorted(name for name in index_names(index) if len(index.functions(name)) == 1)[:20]
    lines = [f".globl {name}\n.type {name}, @function\n{name}: ret\n.size {name}, 1\n" for name in replaced]
    (tmp_path / "patch.s").write_text(".text\n" + "".join(lines) + '.section .note.GNU-stack,""\n')
    run("gcc", "-shared", "-nostdlib", "patch.s", "-o", "patch.so", cwd=tmp_path)
    patch = read_symbols(tmp_path / "patch.so")
    plan = plan_jump_table(index, patch)
    assert plan == plan_jump_table(read_symbols(rust_program), patch)
    assert {jump.name for jump in plan.jumps} | {refusal.symbol for refusal in plan.refusals} == set(replaced)
    for jump in plan.jumps:
        assert index.functions(jump.name) == ((jump.from_addr, jump.size),)
        assert patch.functions(jump.name) == ((jump.to_addr, 1),)


def test_a_program_is_told_from_a_library_and_an_object(tmp_path: Path) -> None:
    """Position-independent programs and libraries are of one ELF type, and still told apart."""
    assert read_symbols(c_program(tmp_path, "-pie")).type == "executable"
    assert read_symbols(c_program(tmp_path, "-static-pie")).type == "executable"
    fixed = read_symbols(c_program(tmp_path, "-no-pie"))
    assert (fixed.type, fixed.position_independent) == ("executable", False)
    assert read_symbols(c_program(tmp_path, "-shared", "-fPIC")).type == "library"
    assert read_symbols(c_program(tmp_path, "-c")).type == "object"


def test_a_program_says_what_it_is(tmp_path: Path) -> None:
    """Format, system, architecture and build id are what the file states."""
    path = c_program(tmp_path, "-Wl,--build-id=0x0123456789abcdef")
    table = read_symbols(path)
    assert (table.format, table.os, table.arch, table.sizes) == ("elf", "linux", "x86_64", "stated")
    assert table.build_id == "0123456789abcdef" == build_id_of(path)


def test_a_note_of_another_owner_is_no_build_id(tmp_path: Path) -> None:
    """Notes of other owners use the same number for other things."""
    (tmp_path / "probe.s").write_text('.section .note.stapsdt,"",@note\n.long 8,4,3\n.asciz "stapsdt"\n.long 7\n')
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    run("gcc", "-w", "-Wl,--build-id=none", "main.c", "probe.s", "-o", "main", cwd=tmp_path)
    assert build_id_of(tmp_path / "main").startswith("sha256-")


def test_each_kind_of_symbol_is_recognised(tmp_path: Path) -> None:
    """Undefined, absolute, local, thread-local and indirect symbols differ from plain functions."""
    table = read_symbols(c_program(tmp_path, "-c"))
    assert not only(table, "elsewhere").is_defined
    assert only(table, "fixed").is_absolute
    assert only(table, "fixed").addr == 0x1234
    assert only(table, "twice").is_local
    assert only(table, "local_to_thread").kind == "tls"
    assert only(table, "chosen").is_stub
    assert not only(table, "main").is_stub
    assert not table.functions("chosen")


def test_a_procedure_linkage_entry_is_no_definition(tmp_path: Path) -> None:
    """A program at a fixed address gives an imported function whose address it takes an address of its own."""
    (tmp_path / "main.c").write_text(
        "#include <stdlib.h>\nint main(int n, char **v) { return atexit((void (*)(void))abort); }"
    )
    run("gcc", "-no-pie", "-fno-pic", "-w", "main.c", "-o", "main", cwd=tmp_path)
    symbol = only(read_symbols(tmp_path / "main"), "abort")
    assert symbol.addr != 0
    assert symbol.is_stub
    assert not symbol.is_defined


def test_suffixes_of_linkers_and_compilers_are_dropped(tmp_path: Path) -> None:
    """Neither `.llvm.<n>` nor a symbol version is part of a name."""
    names = {symbol.name for symbol in read_symbols(c_program(tmp_path)).symbols}
    assert {"promoted", "puts"} <= names


def test_mapping_symbols_are_no_symbols(tmp_path: Path) -> None:
    """What tells code from data in aarch64 sections is left out, and the rest has its target."""
    path = bare_object(tmp_path, "aarch64-unknown-linux-gnu", "#[no_mangle] pub fn f(x: i32) -> i32 { x }")
    table = read_symbols(path)
    assert table.arch == "aarch64"
    assert [symbol.name for symbol in table.symbols if symbol.name.startswith("$")] == []
    assert "$x" in run("nm", "-a", "--special-syms", path)
    assert table.functions("f")


def test_a_stripped_program_is_refused_with_the_fix(tmp_path: Path) -> None:
    """The message names the file, and the setting that keeps symbols."""
    path = c_program(tmp_path, "-s")
    with pytest.raises(ObjectError, match=f"{path} is stripped") as caught:
        read_symbols(path)
    assert "strip = false" in caught.value.hint


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """What the file is for and what was wanted are both named; `amd64` is another word for x86-64."""
    path = c_program(tmp_path)
    with pytest.raises(ObjectError, match="is for x86_64, not aarch64"):
        read_symbols(path, arch="arm64")
    assert read_symbols(path, arch="amd64").arch == "x86_64"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"MZ", bytes(64)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file of no known format is named."""
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ObjectError, match="no ELF, Mach-O, PE or COFF file"):
        read_symbols(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The system's reason is given."""
    with pytest.raises(ObjectError, match=r"cannot read .*absent: No such file"):
        read_symbols(tmp_path / "absent")


@pytest.fixture(scope="module")
def small_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The C program's file."""
    return c_program(tmp_path_factory.mktemp("small")).read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(small_program: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere or changed anywhere, a file gives a table or an `ObjectError`."""
    contents = bytearray(small_program[: data.draw(st.integers(0, len(small_program)))])
    for place, value in data.draw(st.dictionaries(st.integers(0, 4096), st.integers(0, 255), max_size=4)).items():
        if place < len(contents):
            contents[place] = value
    path = tmp_path / "damaged"
    path.write_bytes(contents)
    with suppress(ObjectError):
        assert isinstance(read_symbols(path), SymbolTable)
