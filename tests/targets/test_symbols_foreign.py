"""The symbols of whole programs for other systems, as their own tools see them."""

from collections.abc import Callable
from pathlib import Path

import lief
import pytest

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.symbols import read_symbols
from tests.objfile.build import run
from tests.targets.toolchains import Name, Toolchain

PROGRAM = """
use std::cell::Cell;
thread_local! { static COUNT: Cell<u32> = const { Cell::new(1) }; }
#[inline(never)] fn edit(x: u32) -> u32 { x + 1 }
fn main() { COUNT.with(|count| count.set(edit(count.get()))); println!("{}", COUNT.with(Cell::get)); }
"""

C_LIBRARY = r"""
#include <stdio.h>
static int hidden(int x) { return x * 3; }
int given = 4;
int shown(int x) { return printf("%d", hidden(x) + given); }
"""


def program(toolchain: Callable[[Name], Toolchain], target: Name, root: Path) -> Path:
    """A Rust program with std."""
    (root / "app.rs").write_text(PROGRAM)
    return toolchain(target).compile(root / "app.rs", root / ("app.exe" if "windows" in target else "app"))


def text_symbols(nm: str, path: Path) -> set[tuple[str, int]]:
    """Rust's functions as nm prints them: name, address."""
    lines = [line.split(" ", 2) for line in run(nm, "--defined-only", path).splitlines()]
    text = [(name.partition(".llvm.")[0], int(addr, 16)) for addr, kind, name in lines if kind in "tT"]
    return {(name, addr) for name, addr in text if name.startswith(("_ZN", "_R"))}


def test_the_symbols_of_a_windows_program_are_those_of_nm(
    toolchain: Callable[[Name], Toolchain], tmp_path: Path
) -> None:
    """The COFF table of a program linked by MinGW has the addresses that nm prints for its text symbols."""
    path = program(toolchain, "x86_64-pc-windows-gnu", tmp_path)
    table = read_symbols(path)
    expected = text_symbols("x86_64-w64-mingw32-nm", path)
    found = {(symbol.name, symbol.addr) for symbol in table.symbols if symbol.kind == "function"}
    assert len(expected) > 500
    assert expected <= found
    assert (table.format, table.type, table.os, table.arch) == ("pe", "executable", "windows", "x86_64")
    assert table.build_id
    assert len(table.functions("main")) == 1


def test_the_jumps_of_a_windows_library_to_imports_are_stubs(tmp_path: Path) -> None:
    """`vfprintf` is in the C library: what has its name here jumps there, and is no code of the file."""
    (tmp_path / "library.c").write_text(C_LIBRARY)
    run("x86_64-w64-mingw32-gcc", "-shared", "library.c", "-o", "library.dll", cwd=tmp_path)
    table = read_symbols(tmp_path / "library.dll")
    assert table.functions("shown")
    assert table.functions("hidden")
    assert not table.functions("vfprintf")
    assert [symbol.is_stub for symbol in table.symbols if symbol.name == "vfprintf"] == [True]


def test_a_stripped_windows_library_is_refused(tmp_path: Path) -> None:
    """MinGW's linker leaves no table, and there is no PDB."""
    (tmp_path / "library.c").write_text(C_LIBRARY)
    run("x86_64-w64-mingw32-gcc", "-shared", "-s", "library.c", "-o", "library.dll", cwd=tmp_path)
    with pytest.raises(ObjectError, match="is stripped"):
        read_symbols(tmp_path / "library.dll")


def test_an_object_with_many_sections_is_read(tmp_path: Path) -> None:
    """Objects of more than 65,279 sections have a longer header and longer symbols."""
    (tmp_path / "big.s").write_text(".globl edit\n.def edit; .scl 2; .type 32; .endef\nedit: ret\n")
    run("x86_64-w64-mingw32-as", "-mbig-obj", "big.s", "-o", "big.obj", cwd=tmp_path)
    table = read_symbols(tmp_path / "big.obj")
    assert [(symbol.name, symbol.size, symbol.kind) for symbol in table.symbols] == [("edit", 16, "function")]
    assert table.arch == "x86_64"


@pytest.mark.parametrize("target", ["aarch64-apple-darwin", "x86_64-apple-darwin"])
def test_the_symbols_of_a_macos_program_are_those_of_lief(
    toolchain: Callable[[Name], Toolchain], target: Name, tmp_path: Path
) -> None:
    """A whole program's defined symbols have the addresses that the reference finds."""
    path = program(toolchain, target, tmp_path)
    table = read_symbols(path)
    parsed = lief.MachO.parse(str(path))
    assert parsed is not None
    binary = parsed.at(0)
    assert binary is not None
    expected = {
        (str(symbol.name).removeprefix("_").partition(".llvm.")[0], symbol.value)
        for symbol in binary.symbols
        if symbol.name and not symbol.raw_type & 0xE0 and symbol.raw_type & 0x0E
    }
    assert len(expected) > 500
    assert {(symbol.name, symbol.addr) for symbol in table.symbols if symbol.is_defined} == expected
    assert (table.os, table.image_base) == ("macos", 1 << 32)
    assert len(table.functions("main")) == 1


def test_the_symbols_of_an_aarch64_program_are_those_of_nm(
    toolchain: Callable[[Name], Toolchain], tmp_path: Path
) -> None:
    """A Linux program for another architecture is read like one for this machine."""
    path = program(toolchain, "aarch64-unknown-linux-gnu", tmp_path)
    table = read_symbols(path)
    expected = text_symbols("nm", path)
    assert len(expected) > 500
    assert expected <= {(symbol.name, symbol.addr) for symbol in table.symbols}
    assert (table.os, table.arch) == ("linux", "aarch64")
