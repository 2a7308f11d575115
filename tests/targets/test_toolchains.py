"""Programs of each foreign target are built; they run where they can, and are read where they cannot."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import lief
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from macholib.mach_o import LC_BUILD_VERSION
from macholib.MachO import MachO

from tests.targets.toolchains import Name, Toolchain

PROGRAM = """
use std::panic::catch_unwind;
use std::thread;

#[no_mangle]
pub extern "C" fn exported() -> u32 { 7 }

fn main() {
    let sums: Vec<u64> = (0..4).map(|n| thread::spawn(move || (0..=n).sum())).map(|t| t.join().unwrap()).collect();
    let caught = catch_unwind(|| -> u32 { panic!("thrown") }).is_err();
    let arch = std::env::consts::ARCH;
    println!("{arch} {sums:?} {caught} {}", exported());
}
"""

RUNNING: tuple[Name, ...] = (
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-musl",
    "x86_64-unknown-linux-musl dynamic",
    "x86_64-pc-windows-gnu",
)

MACOS = 1
"""Source: `PLATFORM_MACOS` in Apple's mach-o/loader.h."""

ToolchainOf = Callable[[Name], Toolchain]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A program with threads and a panic."""
    path = tmp_path / "program.rs"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package of the same program."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/main.rs").write_text(PROGRAM)
    (tmp_path / "Cargo.toml").write_text('[package]\nname = "app"\nedition = "2021"\n[workspace]\n')
    return tmp_path


@pytest.mark.parametrize("name", RUNNING)
def test_program_with_threads_and_a_panic_runs(name: Name, toolchain: ToolchainOf, source: Path) -> None:
    """It prints what it prints everywhere."""
    chain = toolchain(name)
    program = chain.compile(source, source.with_name("program.exe"))
    done = chain.run(program)
    arch = chain.target.partition("-")[0]
    assert (done.returncode, done.stdout.strip()) == (0, f"{arch} [0, 1, 3, 6] true 7"), done.stderr


@pytest.mark.parametrize("name", RUNNING)
def test_cargo_builds_optimised_programs_that_run(name: Name, toolchain: ToolchainOf, project: Path) -> None:
    """The directory of what was built has the program."""
    chain = toolchain(name)
    directory = chain.build(project, "--release")
    [program] = [path for path in directory.iterdir() if path.name in {"app", "app.exe"}]
    assert chain.run(program).stdout.split()[-2:] == ["true", "7"]


@pytest.mark.parametrize("name", RUNNING)
def test_the_environment_tells_cargo_how_programs_are_run(name: Name, toolchain: ToolchainOf, project: Path) -> None:
    """It is enough for whoever runs cargo."""
    chain = toolchain(name)
    argv = (chain.cargo, "run", "--quiet", "--target", chain.target)
    done = subprocess.run(argv, cwd=project, env=chain.environ, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["true", "7"], done.stderr


def test_musl_programs_are_static_unless_asked_otherwise(toolchain: ToolchainOf, source: Path) -> None:
    """Only the dynamic one names a loader."""
    loaders = []
    for name in RUNNING[1:3]:
        with toolchain(name).compile(source, source.with_name("program")).open("rb") as file:
            loaders.append([segment.data() for segment in ELFFile(file).iter_segments("PT_INTERP")])
    assert loaders == [[], [b"/lib/ld-musl-x86_64.so.1\0"]]


def test_android_library_is_linked_for_its_loader(toolchain: ToolchainOf, source: Path) -> None:
    """Its pages have 16 KiB, it has a build id and unwind tables, and exports what it should."""
    library = toolchain("aarch64-linux-android").compile(source, source.with_suffix(".so"), crate_type="cdylib")
    with library.open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_machine"], elf["e_type"]) == ("EM_AARCH64", "ET_DYN")
        assert {segment["p_align"] for segment in elf.iter_segments("PT_LOAD")} == {0x4000}
        assert list(elf.iter_segments("PT_GNU_EH_FRAME"))
        assert elf.get_section_by_name(".note.gnu.build-id")
        symbols = elf.get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        assert [symbol["st_shndx"] != "SHN_UNDEF" for symbol in symbols.get_symbol_by_name("exported") or ()] == [True]


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_macos_library_is_linked_for_macos(
    arch: Literal["aarch64", "x86_64"], toolchain: ToolchainOf, source: Path
) -> None:
    """It says platform and processor, and exports what it should."""
    chain = toolchain("aarch64-apple-darwin" if arch == "aarch64" else "x86_64-apple-darwin")
    library = chain.compile(source, source.with_suffix(".dylib"), crate_type="cdylib")
    [header] = MachO(str(library)).headers
    versions = [command for load, command, _ in header.commands if load.cmd == LC_BUILD_VERSION]
    assert [command.platform for command in versions] == [MACOS]
    binary = lief.parse(library)
    assert isinstance(binary, lief.MachO.Binary)
    assert binary.header.cpu_type.name == {"aarch64": "ARM64", "x86_64": "X86_64"}[arch]
    assert "_exported" in {symbol.name for symbol in binary.exported_symbols}
