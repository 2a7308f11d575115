"""Patch libraries linked by real linkers, as the plan says: read, and loaded where they can be."""

import subprocess
import sys
from pathlib import Path

import lief
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from hotpatchd.core.dylibplan import LinkerChoice, choose_dylib_linker, library_file_name, plan_dylib_link
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import identify_linker, plan_version_query
from tests.objfile.build import run, target_dir

LINUX = "x86_64-unknown-linux-gnu"
LLD_DIR = target_dir() / "bin" / "gcc-ld"

# A program's command, with what a patch must not take over; whatever is called `gone` does not exist.
LINE = LinkLine(
    env=(),
    argv=(
        *("cc", "-m64", "gone.rcgu.o", "-Wl,--as-needed", "-Wl,-Bstatic", "libgone.rlib", "-Wl,-Bdynamic", "-lc"),
        *("-Wl,--version-script=gone", "-Wl,--no-undefined-version", "-Wl,--eh-frame-hdr", "-Wl,-z,noexecstack"),
        *("-fuse-ld=bfd", "-o", "app", "-Wl,--gc-sections", "-pie", "-Wl,-z,relro,-z,now", "-nodefaultlibs"),
    ),
)

HOST = "int counter = 40; int helper(void) { return 1; } int scale(int n) { return 10 * n; }"
# `helper` is the patch's own although the program has one; `counter` and `scale` are the program's.
PATCH = """
extern int counter, scale(int);
int helper(void) { return 2; }
int bump(void) { counter += helper(); return scale(counter); }
int main(void) { return 0; }
"""
MISSING = "extern int not_there(void); int later(void) { return not_there(); }"
STUB = """
.globl counter
.hidden counter
.set counter, {counter}
.text
.weak scale
.hidden scale
.type scale,@function
scale: movabs ${scale}, %r11
jmp *%r11
.section .note.GNU-stack,"",@progbits
"""
RUNNER = """
import ctypes, sys
host = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
counter = ctypes.c_int.in_dll(host, "counter")
print(ctypes.addressof(counter), ctypes.cast(host.scale, ctypes.c_void_p).value, flush=True)
patch = ctypes.CDLL(sys.stdin.readline().strip())
print(patch.bump(), patch.bump(), counter.value)
"""

NO_CORE = """
#![no_core]
#![feature(no_core, lang_items)]
#![allow(internal_features)]
#![crate_type = "rlib"]
#[lang = "pointee_sized"] pub trait PointeeSized {}
#[lang = "meta_sized"] pub trait MetaSized: PointeeSized {}
#[lang = "sized"] pub trait Sized: MetaSized {}
#[lang = "copy"] pub trait Copy {}
"""
CALLER = (
    NO_CORE
    + """
unsafe extern "C" { fn host_function(); }
#[unsafe(no_mangle)] pub extern "C" fn main() { unsafe { host_function() } }
#[unsafe(no_mangle)] pub extern "C" fn unused() {}
"""
)
DEFINER = NO_CORE + '#[unsafe(no_mangle)] pub extern "C" fn host_function() {}'


def _compile(place: Path, name: str, source: str) -> str:
    (place / f"{name}.c").write_text(source)
    run("cc", "-O1", "-fPIC", "-c", f"{name}.c", cwd=place)
    return f"{name}.o"


def _assemble(place: Path, source: str) -> str:
    (place / "stub.s").write_text(source)
    run("cc", "-c", "stub.s", cwd=place)
    return "stub.o"


def _foreign_object(place: Path, target: str, name: str, source: str) -> str:
    """An object for a target of which there is no standard library."""
    (place / "source.rs").write_text(source)
    run("env", "RUSTC_BOOTSTRAP=1", "rustc", "--target", target, f"--emit=obj={name}.o", "source.rs", cwd=place)
    return f"{name}.o"


def _link(
    place: Path,
    line: LinkLine,
    target: str,
    objects: tuple[str, ...],
    output: str,
    linker: LinkerChoice | None = None,
) -> subprocess.CompletedProcess[str]:
    plan = plan_dylib_link(line, target=target, objects=objects, output=output, exports=("main",), linker=linker)
    (place / "link.args").write_bytes(plan.response_bytes)
    return subprocess.run([*plan.argv, "@link.args"], cwd=place, capture_output=True, text=True, check=False)


def _instead_of_gnu_ld() -> LinkerChoice | None:
    told = subprocess.run(plan_version_query(LINE), capture_output=True, text=True, check=False)
    return choose_dylib_linker(identify_linker(told.stdout + told.stderr), rust_lld=str(LLD_DIR))


def test_gnu_ld_cannot_link_against_absolute_symbols(tmp_path: Path) -> None:
    """Which is why another linker is chosen."""
    objects = (_compile(tmp_path, "patch", PATCH), _assemble(tmp_path, STUB.format(counter=1 << 46, scale=1 << 46)))
    assert _link(tmp_path, LINE, LINUX, objects, "libpatch.so").returncode != 0
    linked = _link(tmp_path, LINE, LINUX, objects, "libpatch.so", _instead_of_gnu_ld())
    assert linked.returncode == 0, linked.stderr


def test_a_patch_uses_the_statics_and_functions_of_the_program(tmp_path: Path) -> None:
    """Its own functions call each other though the program exports functions of these names."""
    (tmp_path / "host.c").write_text(HOST)
    run("cc", "-shared", "-fPIC", "host.c", "-o", "libhost.so", cwd=tmp_path)
    output = tmp_path / library_file_name(LINUX, "patch-1")
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, tmp_path / "libhost.so"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        counter, scale = program.stdout.readline().split()
        objects = (_compile(tmp_path, "patch", PATCH), _assemble(tmp_path, STUB.format(counter=counter, scale=scale)))
        linked = _link(tmp_path, LINE, LINUX, objects, str(output), _instead_of_gnu_ld())
        assert linked.returncode == 0, linked.stderr
        answer, _ = program.communicate(f"{output}\n")
    assert answer.split() == ["420", "440", "44"]


def test_what_a_linux_library_exports_and_needs(tmp_path: Path) -> None:
    """All of its functions, `main` among them; what nobody defines is left to the loader, which looks at once."""
    objects = (_compile(tmp_path, "patch", PATCH), _compile(tmp_path, "later", MISSING))
    linked = _link(tmp_path, LINE, LINUX, objects, "libpatch.so", _instead_of_gnu_ld())
    assert linked.returncode == 0, linked.stderr
    with (tmp_path / "libpatch.so").open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        dynamic = elf.get_section_by_name(".dynamic")
        assert isinstance(symbols, SymbolTableSection)
        assert isinstance(dynamic, DynamicSection)
        defined = {symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
        undefined = {symbol.name for symbol in symbols.iter_symbols()} - defined
        tags = {tag.entry.d_tag for tag in dynamic.iter_tags()}
        assert elf["e_type"] == "ET_DYN"
        assert {"main", "bump", "helper", "later"} <= defined
        assert {"counter", "scale", "not_there"} <= undefined
        assert elf.get_section_by_name(".eh_frame_hdr")
        assert "DT_SONAME" not in tags
    loaded = subprocess.run(
        [sys.executable, "-c", "import ctypes; ctypes.CDLL('./libpatch.so')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "undefined symbol" in loaded.stderr


@pytest.mark.parametrize(
    ("target", "platform"),
    [
        ("aarch64-apple-darwin", "macos 14.0 14.0"),
        ("x86_64-apple-darwin", "macos 14.0 14.0"),
        ("aarch64-apple-ios-sim", "ios-simulator 17.0 17.0"),
    ],
)
def test_a_library_for_a_system_of_apple(target: str, platform: str, tmp_path: Path) -> None:
    """Exports stay although the program's list is gone; the host's function is looked up when it is loaded."""
    arch = "arm64" if target.startswith("aarch64") else "x86_64"
    words = f"-arch {arch} -platform_version {platform} gone.o -dead_strip -exported_symbols_list gone -e _main -o app"
    line = LinkLine(env=(), argv=(str(LLD_DIR / "ld64.lld"), *words.split()))
    linked = _link(tmp_path, line, target, (_foreign_object(tmp_path, target, "a", CALLER),), "libpatch.dylib")
    assert linked.returncode == 0, linked.stderr
    fat = lief.MachO.parse(str(tmp_path / "libpatch.dylib"))
    assert fat is not None
    (binary,) = fat
    assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    assert {symbol.name for symbol in binary.exported_symbols} == {"_main", "_unused"}
    assert {symbol.name for symbol in binary.imported_symbols} - {"dyld_stub_binder"} == {"_host_function"}
    assert not binary.has_dyld_chained_fixups
    assert binary.has_code_signature == (arch == "arm64")


MSVC = "x86_64-pc-windows-msvc"
MSVC_LINE = LinkLine(
    env=(),
    argv=(
        *(str(LLD_DIR / "lld-link"), "/NOLOGO", "gone.rcgu.o", "libgone.rlib", "/DEF:gone", "-opt:ref,icf", "/DEBUG"),
        *("/OUT:app.exe", "/IMPLIB:app.lib", "/PDB:app.pdb", "/Map:app.map", "/ENTRY:main", "/SUBSYSTEM:CONSOLE"),
    ),
)


def test_a_library_for_windows(tmp_path: Path) -> None:
    """It exports what it must, keeps what nothing calls, and leaves only its PDB beside it."""
    objects = tuple(
        _foreign_object(tmp_path, MSVC, name, source) for name, source in (("é a", CALLER), ("stub", DEFINER))
    )
    (tmp_path / "out").mkdir()
    linked = _link(tmp_path, MSVC_LINE, MSVC, objects, "out/patch.dll")
    assert linked.returncode == 0, linked.stdout + linked.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"patch.dll", "patch.pdb"}
    binary = lief.PE.parse(str(tmp_path / "out" / "patch.dll"))
    assert binary is not None
    assert binary.header.has_characteristic(lief.PE.Header.CHARACTERISTICS.DLL)
    assert [function.name for function in binary.exported_functions] == ["main"]
    assert binary.optional_header.addressof_entrypoint == 0
    text = next(section for section in binary.sections if section.name == ".text")
    # Three functions, each at a multiple of 16, although nothing calls one, and it has the code of another.
    assert text.virtual_size > 2 * 16


def test_windows_wants_every_symbol_defined(tmp_path: Path) -> None:
    """What the stub does not have is an error of the link, which names it."""
    objects = (_foreign_object(tmp_path, MSVC, "a", CALLER),)
    linked = _link(tmp_path, MSVC_LINE, MSVC, objects, "patch.dll")
    assert linked.returncode != 0
    assert "host_function" in linked.stderr
