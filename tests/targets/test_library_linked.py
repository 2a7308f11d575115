"""The recipe `single-object` as far as a linked library, for systems whose programs do not run here, or not all.

An app's code is in a shared library there. It is built, its crate compiled once more to one object, and that linked as
the app was, with the addresses that the app would have in a process.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import lief
import pytest
from macholib.mach_o import LC_BUILD_VERSION
from macholib.MachO import MachO

from hotpatchd.core.dylibplan import library_file_name, plan_dylib_link
from hotpatchd.core.jumptable import plan_jump_table
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import LinkLine, parse_link_line
from hotpatchd.core.recipe import edit_single_object
from hotpatchd.core.unit import is_rust_name
from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.dylib_stub import MachPlatform, StubSymbol, write_dylib_stub
from hotpatchd.objfile.library_object import PROGRAM_FORMATS
from hotpatchd.objfile.symbols import read_symbols
from tests.objfile.build import target_dir
from tests.targets.toolchains import Name, Toolchain

SLIDE = 0x7000_0000_0000
ANCHOR = "anchor"
APP = """
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(40);

#[inline(never)]
fn label(count: u64) -> String {
    format!("count {count}")
}

#[no_mangle]
pub extern "C" fn app_main() -> usize {
    label(COUNT.fetch_add(1, Ordering::Relaxed)).len()
}
"""
EDIT = ("count {count}", "{count} counted")

Linker = Literal["captured", "ld64.lld"]
Case = tuple[Name, Linker]

MACOS: tuple[Case, ...] = (
    ("aarch64-apple-darwin", "captured"),
    ("x86_64-apple-darwin", "captured"),
    ("aarch64-apple-darwin", "ld64.lld"),
    ("x86_64-apple-darwin", "ld64.lld"),
)
ANDROID: Case = ("aarch64-linux-android", "captured")
WINDOWS: Case = ("x86_64-pc-windows-gnu", "captured")
CASES = (*MACOS, ANDROID, WINDOWS)
ARCHS = {"aarch64-apple-darwin": "arm64", "x86_64-apple-darwin": "x86_64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """An app, and a patch library for it.

    Args:
        app: the app's file.
        patch: the library's.
        object: what the library was linked from.
        wanted: symbols of the app that the object leaves undefined.
        left: symbols that neither has.
    """

    app: Path
    patch: Path
    object: Path
    wanted: frozenset[str]
    left: frozenset[str]


def link_patch(toolchain: Toolchain, place: Path, linker: Linker) -> Linked:
    """Build the app, edit it, and link a library as the classic recipe does."""
    source, app, line_file = place / "app.rs", place / "app.lib", place / "link-args"
    source.write_text(APP)
    driver = Path(toolchain.linker)
    if toolchain.target in ARCHS:
        # What runs zig tells so by its name.
        driver = place / "zig-cc"
        driver.symlink_to(toolchain.linker)
    argv = (
        *("--crate-name", "app", "--edition=2021", str(source), "--crate-type", "cdylib", "--emit=link"),
        *("--target", toolchain.target, f"-Clinker={driver}", *toolchain.rustflags),
    )
    run(toolchain, toolchain.rustc, *argv, "-o", app, f"--print=link-args={line_file}")
    source.write_text(APP.replace(*EDIT))
    thin = edit_single_object(argv, out_dir=str(place), incremental_dir=str(place / "incremental"))
    run(toolchain, toolchain.rustc, *thin.argv)
    compiled = place / "app.o"

    table = read_symbols(app)
    program, symbols = ProgramSymbols(table), read_symbols(compiled).symbols
    undefined = {symbol.name for symbol in symbols if not symbol.is_defined}
    wanted = {name: found for name in undefined if (found := program.find(name))}
    statics = {
        symbol.name: found.addr + SLIDE
        for symbol in symbols
        if symbol.is_defined and symbol.kind == "data" and symbol.name.startswith(("_ZN", "_R"))
        if (found := program.find(symbol.name))
    }
    if table.format != "elf":
        compiled.write_bytes(reach_through_slots(compiled.read_bytes(), statics, "app.o"))
    stub = place / "stub.o"
    stub.write_bytes(
        write_dylib_stub(
            format=PROGRAM_FORMATS[table.format],
            machine="aarch64" if table.arch == "aarch64" else "x86_64",
            symbols=[
                *(StubSymbol(name=name, kind=found.kind, addr=found.addr + SLIDE) for name, found in wanted.items()),
                *(StubSymbol(name=name, kind="data", addr=addr) for name, addr in statics.items()),
            ],
            platform=MachPlatform(name="macos", minos="11.0", sdk="11.0") if table.format == "macho" else None,
            anchor=ANCHOR,
        )
    )
    patch = place / library_file_name(toolchain.target, "patch")
    line = parse_link_line(line_file.read_text())
    if linker == "ld64.lld":
        lld = str(target_dir() / "bin" / "gcc-ld" / "ld64.lld")
        platform = ("-arch", ARCHS[toolchain.target], "-platform_version", "macos", "11.0", "11.0")
        line = LinkLine(env=(), argv=(lld, *platform, "gone.o", "-dynamic", "-dead_strip", "-o", "app"))
    plan = plan_dylib_link(
        line, target=toolchain.target, objects=[str(compiled), str(stub)], output=str(patch), exports=[ANCHOR]
    )
    response = place / "link.args"
    response.write_bytes(plan.response_bytes)
    run(toolchain, *plan.argv, f"@{response}")
    return Linked(
        app=app,
        patch=patch,
        object=compiled,
        wanted=frozenset(wanted),
        left=frozenset(undefined - wanted.keys()),
    )


def run(toolchain: Toolchain, *argv: str | Path) -> None:
    """Run a compiler or linker to its end."""
    done = subprocess.run(argv, env=toolchain.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FindLinked = Callable[[Case], Linked]


@pytest.fixture(scope="module")
def linked(toolchain: Callable[[Name], Toolchain], tmp_path_factory: pytest.TempPathFactory) -> FindLinked:
    """The app and the library of a target, made once by each linker."""

    @cache
    def find(case: Case) -> Linked:
        target, linker = case
        return link_patch(toolchain(target), tmp_path_factory.mktemp(target), linker)

    return find


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_library_is_for_the_apps_system(linked: FindLinked, case: Case) -> None:
    """Format, kind of file, processor and system are those of the app."""
    it = linked(case)
    app, patch = read_symbols(it.app), read_symbols(it.patch)
    assert patch.type == "library"
    assert (patch.format, patch.arch) == (app.format, app.arch)
    assert patch.os == app.os


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_all_functions_of_the_app_are_replaced(linked: FindLinked, case: Case) -> None:
    """The jump table leads from each function of the crate to its new code, without a refusal."""
    it = linked(case)
    program, patch = ProgramSymbols(read_symbols(it.app)), read_symbols(it.patch)
    defined = {name for name in read_symbols(it.object).function_names() if program.functions(name)}
    table = plan_jump_table(program, patch, replaced=defined)
    assert table.refusals == ()
    assert {jump.name for jump in table.jumps} >= {name for name in defined if "label" in name or name == "app_main"}
    assert len(defined) > 2


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_exports_and_imports_are_as_planned(linked: FindLinked, case: Case) -> None:
    """The anchor is exported; what the app has is not looked for elsewhere, and the rest is."""
    it = linked(case)
    binary = lief.parse(it.patch)
    if isinstance(binary, lief.MachO.Binary):
        exported = {str(symbol.name).removeprefix("_") for symbol in binary.exported_symbols}
        imported = {str(symbol.name).removeprefix("_") for symbol in binary.imported_symbols}
    elif isinstance(binary, lief.ELF.Binary):
        exported = {str(symbol.name) for symbol in binary.exported_symbols}
        imported = {str(symbol.name) for symbol in binary.dynamic_symbols if symbol.shndx == 0 and symbol.name}
    else:
        assert isinstance(binary, lief.PE.Binary)
        exported = {str(function.name) for function in binary.exported_functions}
        imported = {str(entry.name) for library in binary.imports for entry in library.entries}
    assert ANCHOR in exported
    assert it.wanted
    # For C functions, zig's linker prefers a library of the system to the stub's weak definition.
    assert not [name for name in imported & it.wanted if is_rust_name(name)]
    if case is not WINDOWS:  # There, linkers add what starts a library.
        assert it.left <= imported


@pytest.mark.parametrize("case", MACOS, ids="-".join)
def test_macos_library_can_be_loaded(linked: FindLinked, case: Case) -> None:
    """It names its platform, looks symbols up at run time, and is signed where unsigned code does not run."""
    it = linked(case)
    binary = lief.parse(it.patch)
    assert isinstance(binary, lief.MachO.Binary)
    assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    [header] = MachO(str(it.patch)).headers
    assert LC_BUILD_VERSION in [command.cmd for command, _, _ in header.commands]
    assert binary.build_version
    assert binary.build_version.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert not binary.has_dyld_chained_fixups
    if case[0].startswith("aarch64"):
        assert binary.has_code_signature


def test_android_library_can_be_loaded(linked: FindLinked) -> None:
    """Its segments are aligned to 16 KiB, its calls are bound inside, and it resolves everything when it is loaded."""
    binary = lief.parse(linked(ANDROID).patch)
    assert isinstance(binary, lief.ELF.Binary)
    loaded = [segment for segment in binary.segments if segment.type == lief.ELF.Segment.TYPE.LOAD]
    assert loaded
    assert {segment.alignment % 16384 for segment in loaded} == {0}
    tags = {entry.tag for entry in binary.dynamic_entries}
    assert lief.ELF.DynamicEntry.TAG.FLAGS_1 in tags
    assert lief.ELF.DynamicEntry.TAG.TEXTREL not in tags


def test_windows_library_is_a_dll(linked: FindLinked) -> None:
    """It is a DLL that may be loaded at any address."""
    binary = lief.parse(linked(WINDOWS).patch)
    assert isinstance(binary, lief.PE.Binary)
    assert binary.header.has_characteristic(lief.PE.Header.CHARACTERISTICS.DLL)
    assert binary.has_relocations
