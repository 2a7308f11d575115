"""Stubs of patch libraries: what linkers and the loader make of them, in each object format."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import lief
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from macholib.mach_o import LC_BUILD_VERSION
from macholib.MachO import MachO

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.dylib_stub import Format, Machine, MachPlatform, StubSymbol, write_dylib_stub
from tests.objfile.bare import bare_object
from tests.objfile.build import run, target_dir

MACOS = MachPlatform(name="macos", minos="11.0", sdk="14.2.1")
FUNCTION = StubSymbol(name="half", kind="function", addr=0x7FFF_1234_5678)
DATA = StubSymbol(name="total", kind="data", addr=0x7FFE_9ABC_DEF0, size=4)
THREAD_LOCAL = StubSymbol(name="depth", kind="tls", addr=0x7FFE_9ABC_0000)
MACHINES: tuple[Machine, ...] = ("x86_64", "aarch64")
JUMP = {
    "x86_64": bytes.fromhex("49bb 78563412ff7f0000 41ffe3"),
    "aarch64": bytes.fromhex("50000058 00021fd6 78563412ff7f0000"),
}

HOST = "int total = 40; int half(int x) { return x / 2; }"
PATCH = """
extern int total, half(int);
int answer(int x) { return half(x) + total; }
int *where(void) { return &total; }
"""
MSVC_PATCH = """
unsafe extern "C" { fn half(x: i32) -> i32; }
#[link(name = "host", kind = "dylib")] unsafe extern "C" { static total: i32; }
#[no_mangle] pub extern "C" fn answer(x: i32) -> i32 { unsafe { half(total) } }
"""

IN_ONE_PROCESS = """
import ctypes, subprocess, sys
from pathlib import Path
from hotpatchd.objfile.dylib_stub import StubSymbol, write_dylib_stub
host = ctypes.CDLL("./host.so")
addr_of = lambda name: ctypes.addressof(ctypes.c_char.in_dll(host, name))
Path("stub.o").write_bytes(write_dylib_stub(format="elf", machine="x86_64", symbols=[
    StubSymbol(name="half", kind="function", addr=addr_of("half")),
    StubSymbol(name="total", kind="data", addr=addr_of("total"), size=4),
]))
subprocess.run([sys.argv[1], "-shared", "-o", "patch.so", *sys.argv[2:], "stub.o"], check=True)
patch = ctypes.CDLL("./patch.so")
ctypes.c_int.in_dll(host, "total").value = 100
patch.where.restype = ctypes.c_void_p
print(patch.answer(10), patch.where() == addr_of("total"))
"""


def shared_object(root: Path, name: str, source: str) -> Path:
    """A C source as a position-independent object."""
    (root / f"{name}.c").write_text(source)
    run("gcc", "-O1", "-fPIC", "-c", f"{name}.c", "-o", f"{name}.o", cwd=root)
    return root / f"{name}.o"


def linker(name: str) -> Path:
    """One of the linkers that come with rustc."""
    return target_dir() / "bin" / "gcc-ld" / name


def play(root: Path, *objects: str) -> str:
    """Load the host library, link a patch library for that process, load it too, and call it."""
    (root / "host.c").write_text(HOST)
    run("gcc", "-shared", "-fPIC", "-O1", "host.c", "-o", "host.so", cwd=root)
    return run(sys.executable, "-c", IN_ONE_PROCESS, linker("ld.lld"), *objects, cwd=root)


def elf_symbols(data: bytes, section: str = ".symtab") -> dict[str, tuple[str, str, str, int | str, int]]:
    """Name → binding, type, visibility, section and value, as pyelftools reads them."""
    table = ELFFile(BytesIO(data)).get_section_by_name(section)
    assert isinstance(table, SymbolTableSection)
    return {
        symbol.name: (
            *(symbol["st_info"]["bind"], symbol["st_info"]["type"], symbol["st_other"]["visibility"]),
            *(symbol["st_shndx"], symbol["st_value"]),
        )
        for symbol in table.iter_symbols()
        if symbol.name
    }


def parsed_macho(data: bytes) -> lief.MachO.Binary:
    """A thin Mach-O file, as lief reads it."""
    fat = lief.MachO.parse(list(data))
    assert fat is not None
    found = fat.at(0)
    assert found is not None
    return found


def test_elf_library_calls_and_reads_the_program(tmp_path: Path) -> None:
    """A patch library calls the program's function and finds the program's own static, in the running process."""
    shared_object(tmp_path, "patch", PATCH)
    assert play(tmp_path, "patch.o") == "105 True\n"


def test_elf_data_address_is_not_relocated(tmp_path: Path) -> None:
    """The linked library has no relocation that would move the address of a static."""
    shared_object(tmp_path, "patch", PATCH)
    play(tmp_path, "patch.o")
    with (tmp_path / "patch.so").open("rb") as file:
        names = [section.name for section in ELFFile(file).iter_sections()]
    assert ".got" in names
    assert not [name for name in names if name.startswith(".rela")]


def test_elf_stub_loses_against_a_definition(tmp_path: Path) -> None:
    """What another object of the link defines is taken, on whichever side of the stub it stands."""
    shared_object(tmp_path, "patch", PATCH)
    shared_object(tmp_path, "own", "int half(int x) { return x + 1; }")
    assert play(tmp_path, "patch.o", "own.o") == "111 True\n"


def test_elf_symbols_stay_inside_the_library(tmp_path: Path) -> None:
    """The library does not export the program's symbols a second time."""
    shared_object(tmp_path, "patch", PATCH)
    play(tmp_path, "patch.o")
    assert elf_symbols((tmp_path / "patch.so").read_bytes(), ".dynsym").keys() == {"answer", "where"}


def test_elf_access_relative_to_the_instruction_is_refused_by_the_linker(tmp_path: Path) -> None:
    """A reference that would get the library's slide added does not link, and the message names the static."""
    hidden = PATCH.replace("extern int total", '__attribute__((visibility("hidden"))) extern int total')
    patch = shared_object(tmp_path, "patch", hidden)
    (tmp_path / "stub.o").write_bytes(write_dylib_stub(format="elf", machine="x86_64", symbols=[FUNCTION, DATA]))
    finished = subprocess.run(
        [linker("ld.lld"), "-shared", "-o", tmp_path / "patch.so", patch, tmp_path / "stub.o"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert "total" in finished.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_elf_symbols_as_pyelftools_reads_them(machine: Machine) -> None:
    """Functions are weak, hidden and in the text; data is weak, hidden and absolute."""
    stub = write_dylib_stub(format="elf", machine=machine, symbols=[DATA, FUNCTION])
    file = ELFFile(BytesIO(stub))
    assert file["e_machine"] == {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[machine]
    text = file.get_section_index(".text")
    assert text is not None
    assert elf_symbols(stub) == {
        "half": ("STB_WEAK", "STT_FUNC", "STV_HIDDEN", text, 0),
        "total": ("STB_WEAK", "STT_OBJECT", "STV_HIDDEN", "SHN_ABS", DATA.addr),
    }
    assert file.get_section(text).data().startswith(JUMP[machine])


@pytest.mark.parametrize("format", ["elf", "coff"])
def test_thread_local_is_refused_by_name(format: Format) -> None:
    """Where a library cannot share a thread-local, no symbol is written that says it can."""
    with pytest.raises(ObjectError, match="depth"):
        write_dylib_stub(format=format, machine="x86_64", symbols=[FUNCTION, THREAD_LOCAL])


@pytest.mark.parametrize(("name", "number"), [("macos", 1), ("ios-simulator", 7)])
def test_macho_build_version(tmp_path: Path, name: str, number: int) -> None:
    """The stub says for which platform and versions it is, as the linker wants it."""
    platform = MachPlatform(name="macos" if name == "macos" else "ios-simulator", minos="11.0", sdk="14.2.1")
    path = tmp_path / "stub.o"
    path.write_bytes(write_dylib_stub(format="macho", machine="aarch64", symbols=[FUNCTION], platform=platform))
    commands = [command for load, command, _ in MachO(str(path)).headers[0].commands if load.cmd == LC_BUILD_VERSION]
    assert [(c.platform, c.minos, c.sdk) for c in commands] == [(number, 0x000B_0000, 0x000E_0201)]


@pytest.mark.parametrize("machine", MACHINES)
def test_macho_symbols_as_lief_reads_them(machine: Machine) -> None:
    """Names get the underscore; functions are jumps; data and thread-local descriptors are slots, none absolute."""
    stub = parsed_macho(
        write_dylib_stub(format="macho", machine=machine, symbols=[THREAD_LOCAL, FUNCTION, DATA], platform=MACOS)
    )
    assert stub.header.cpu_type.name == {"x86_64": "X86_64", "aarch64": "ARM64"}[machine]
    placed = {symbol.name: (symbol.numberof_sections, symbol.raw_type, symbol.value) for symbol in stub.symbols}
    private_external = 0x1F
    assert placed == {
        "_half": (1, private_external, 0),
        "___imp_depth": (2, private_external, 16),
        "___imp_total": (2, private_external, 24),
    }
    text, slots = stub.sections
    assert bytes(text.content).startswith(JUMP[machine])
    assert bytes(slots.content) == THREAD_LOCAL.addr.to_bytes(8, "little") + DATA.addr.to_bytes(8, "little")


@pytest.mark.parametrize("order", ["patch.o stub.o", "stub.o patch.o"])
def test_macho_stub_loses_against_a_definition(tmp_path: Path, order: str) -> None:
    """What another object of the link defines is taken and exported, on whichever side of the stub it stands."""
    bare_object(tmp_path, "x86_64-apple-darwin", '#[no_mangle] pub extern "C" fn half(x: i32) -> i32 { x }')
    stub = write_dylib_stub(format="macho", machine="x86_64", symbols=[FUNCTION], platform=MACOS)
    (tmp_path / "stub.o").write_bytes(stub)
    options = f"-dylib -arch x86_64 -platform_version macos 11.0 11.0 -o patch.dylib {order}"
    run(linker("ld64.lld"), *options.split(), cwd=tmp_path)
    exported = parsed_macho((tmp_path / "patch.dylib").read_bytes()).exported_symbols
    assert {symbol.name for symbol in exported} == {"_half"}


def test_macho_needs_a_platform() -> None:
    """Without a platform linkers guess one, so it must be given."""
    with pytest.raises(ObjectError, match="platform"):
        write_dylib_stub(format="macho", machine="x86_64", symbols=[FUNCTION])


@pytest.mark.parametrize("version", ["", "eleven", "11.300", "11.-1", "70000.0"])
def test_macho_version_that_cannot_be_written(version: str) -> None:
    """A version that does not fit its field is refused, not cut off."""
    with pytest.raises(ObjectError, match="version"):
        write_dylib_stub(
            format="macho",
            machine="x86_64",
            symbols=[],
            platform=MachPlatform(name="macos", minos=version, sdk="11.0"),
        )


@pytest.mark.parametrize("machine", MACHINES)
def test_coff_symbols_as_lief_reads_them(machine: Machine) -> None:
    """Functions have a jump and a slot, data has a slot alone; short and long names are read alike."""
    long_name = StubSymbol(name="_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", kind="data", addr=8)
    stub = write_dylib_stub(format="coff", machine=machine, symbols=[FUNCTION, DATA, long_name])
    parsed = lief.COFF.parse(list(stub))
    assert parsed is not None
    assert parsed.header.machine.name == {"x86_64": "AMD64", "aarch64": "ARM64"}[machine]
    assert [(symbol.name, symbol.section_idx, symbol.value) for symbol in parsed.symbols] == [
        ("half", 1, 0),
        ("__imp_half", 2, 0),
        ("__imp_total", 2, 8),
        (f"__imp_{long_name.name}", 2, 16),
    ]
    text, slots = parsed.sections
    assert bytes(text.content).startswith(JUMP[machine])
    assert bytes(slots.content) == b"".join(s.addr.to_bytes(8, "little") for s in (FUNCTION, DATA, long_name))


def test_coff_library_jumps_and_imports(tmp_path: Path) -> None:
    """lld-link makes a DLL whose calls end in the jump and whose imports read the slots, without import tables."""
    bare_object(tmp_path, "x86_64-pc-windows-msvc", MSVC_PATCH)
    stub = write_dylib_stub(format="coff", machine="x86_64", symbols=[FUNCTION, DATA])
    (tmp_path / "stub.o").write_bytes(stub)
    run(linker("lld-link"), *"/dll /noentry /export:answer /out:patch.dll patch.o stub.o".split(), cwd=tmp_path)
    library = lief.PE.parse(tmp_path / "patch.dll")
    assert library is not None
    assert [function.name for function in library.exported_functions] == ["answer"]
    assert not list(library.imports)
    contents = {section.name: bytes(section.content) for section in library.sections}
    assert JUMP["x86_64"] in contents[".text"]
    assert FUNCTION.addr.to_bytes(8, "little") + DATA.addr.to_bytes(8, "little") in contents[".rdata"]
    assert not list(library.relocations)
