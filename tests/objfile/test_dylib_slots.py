"""Objects that reach a program's data through slots: linked, read back, and run on this machine's processor."""

import contextlib
import struct
import sys
from pathlib import Path

import lief
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.dylib_stub import MachPlatform, StubSymbol, write_dylib_stub
from tests.objfile.bare import bare_object
from tests.objfile.build import run, target_dir

TARGETS = ("x86_64-apple-darwin", "aarch64-apple-darwin")
MSVC = "x86_64-pc-windows-msvc"
MACOS = MachPlatform(name="macos", minos="11.0", sdk="14.2")

PATCH = """
unsafe extern "C" {
    static total: i32;
    #[thread_local] static depth: i32;
    fn half(x: i32) -> i32;
}
pub struct Pointer(*const i32);
impl Sync for Pointer {}
#[no_mangle] pub static pointer: Pointer = Pointer(unsafe { &raw const total });
#[no_mangle] pub static count: i32 = 7;
#[no_mangle] pub extern "C" fn call(x: i32) -> i32 { unsafe { half(x) } }
#[no_mangle] pub extern "C" fn read() -> i32 { unsafe { total } }
#[no_mangle] pub extern "C" fn read_local() -> i32 { unsafe { depth } }
#[no_mangle] pub extern "C" fn address() -> *const i32 { &raw const count }
"""

COFF_PATCH = """
unsafe extern "C" { static total: i32; }
pub struct Pointer(*const i32);
impl Sync for Pointer {}
#[no_mangle] pub static pointer: Pointer = Pointer(unsafe { &raw const total });
#[no_mangle] pub static count: i32 = 7;
#[no_mangle] pub extern "C" fn address() -> *const i32 { &raw const count }
"""

HOST = """
int total = 40, count = 9;
int half(int x) { return x / 2; }
static __thread int value = 3;
static void *locate(void *descriptor) { return &value; }
void *depth[3] = {locate};
"""

IN_ONE_PROCESS = """
import ctypes, mmap, subprocess, sys
from pathlib import Path
import lief
from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.dylib_stub import MachPlatform, StubSymbol, write_dylib_stub
host = ctypes.CDLL("./host.so")
addrs = {n: ctypes.addressof(ctypes.c_char.in_dll(host, n)) for n in ("half", "total", "count", "depth")}
kinds = {"half": "function", "depth": "tls"}
Path("stub.o").write_bytes(write_dylib_stub(
    format="macho", machine="x86_64", platform=MachPlatform(name="macos", minos="11.0", sdk="11.0"),
    symbols=[StubSymbol(name=n, kind=kinds.get(n, "data"), addr=addr) for n, addr in addrs.items()]))
data = {n: addr for n, addr in addrs.items() if n != "half"}
Path("slots.o").write_bytes(reach_through_slots(Path("patch.o").read_bytes(), data, "patch.o"))
subprocess.run([sys.argv[1], *"-dylib -arch x86_64 -platform_version macos 11.0 11.0".split(),
    "slots.o", "stub.o", "-o", "patch.dylib"], check=True)
image = lief.MachO.parse("patch.dylib").at(0)
assert not list(image.relocations) and not list(image.bindings)
memory = mmap.mmap(-1, image.virtual_size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for segment in image.segments:
    memory[segment.virtual_address : segment.virtual_address + segment.file_size] = bytes(segment.content)
at = {s.name.lstrip("_"): start + s.value for s in image.symbols}
function = lambda name, result: ctypes.CFUNCTYPE(result, ctypes.c_int)(at[name])
ctypes.c_int.in_dll(host, "total").value = 100
print(function("call", ctypes.c_int)(10), function("read", ctypes.c_int)(0), function("read_local", ctypes.c_int)(0))
print(function("address", ctypes.c_void_p)(0) == addrs["count"])
print(ctypes.c_uint64.from_address(at["pointer"]).value == addrs["total"])
"""

ADDRS = {"total": 0x7FFE_9ABC_DEF0, "depth": 0x7FFE_9ABC_0000, "count": 0x7FFE_9ABC_DEF8}


def stub_for(target: str) -> bytes:
    """The stub that goes with `ADDRS`."""
    return write_dylib_stub(
        format="macho",
        machine="x86_64" if target.startswith("x86_64") else "aarch64",
        platform=MACOS,
        symbols=[
            StubSymbol(name="half", kind="function", addr=0x7FFF_1234_5678),
            *(StubSymbol(name=name, kind="data", addr=addr) for name, addr in ADDRS.items()),
        ],
    )


def test_library_reaches_the_program_wherever_it_lies(tmp_path: Path) -> None:
    """A linked library calls, reads a static, a thread-local and a pointer, and has no instance of its own."""
    bare_object(tmp_path, "x86_64-apple-darwin", PATCH)
    (tmp_path / "host.c").write_text(HOST)
    run("gcc", "-shared", "-fPIC", "-O1", "host.c", "-o", "host.so", cwd=tmp_path)
    linker = target_dir() / "bin" / "gcc-ld" / "ld64.lld"
    assert run(sys.executable, "-c", IN_ONE_PROCESS, linker, cwd=tmp_path) == "5 100 3\nTrue\nTrue\n"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", ["11.0", "14.0"])
def test_linked_library_leaves_the_loader_nothing_to_do(tmp_path: Path, target: str, version: str) -> None:
    """Neither rebases nor chained fixups touch an address of the program, and the library exports its functions."""
    rewritten = reach_through_slots(bare_object(tmp_path, target, PATCH).read_bytes(), ADDRS, "patch.o")
    (tmp_path / "slots.o").write_bytes(rewritten)
    (tmp_path / "stub.o").write_bytes(stub_for(target))
    arch = "x86_64" if target.startswith("x86_64") else "arm64"
    options = f"-dylib -arch {arch} -platform_version macos {version} {version} slots.o stub.o -o patch.dylib"
    run(target_dir() / "bin" / "gcc-ld" / "ld64.lld", *options.split(), cwd=tmp_path)
    fat = lief.MachO.parse(tmp_path / "patch.dylib")
    assert fat is not None
    library = fat.at(0)
    assert library is not None
    assert not list(library.relocations)
    assert not list(library.bindings)
    assert {function.name for function in library.exported_symbols} == {
        *("_call", "_read", "_read_local", "_address", "_pointer"),
    }
    slots = next(symbol for symbol in library.symbols if symbol.name == "___imp_total")
    assert bytes(library.get_content_from_virtual_address(slots.value, 8)) == ADDRS["total"].to_bytes(8, "little")


@pytest.mark.parametrize("target", TARGETS)
def test_symbols_stay_in_their_groups(tmp_path: Path, target: str) -> None:
    """Local, defined and undefined symbols keep the order that the file announces, and no name is lost."""
    original = bare_object(tmp_path, target, PATCH).read_bytes()
    (tmp_path / "slots.o").write_bytes(reach_through_slots(original, ADDRS, "patch.o"))
    fat = lief.MachO.parse(tmp_path / "slots.o")
    assert fat is not None
    binary = fat.at(0)
    assert binary is not None
    dynamic, symbols = binary.dynamic_symbol_command, list(binary.symbols)
    assert dynamic is not None
    first = dynamic.idx_undefined_symbol
    assert {symbol.name for symbol in symbols[first : first + dynamic.nb_undefined_symbols]} == {
        *("_half", "___imp_total", "___imp_depth", "___imp_count"),
    }
    first = dynamic.idx_external_define_symbol
    assert {symbol.name for symbol in symbols[first : first + dynamic.nb_external_define_symbols]} >= {
        *("_call", "_read", "_read_local", "_address", "_pointer"),
    }


@pytest.mark.parametrize("flags", [(), ("-g",)], ids=["plain", "debug"])
def test_coff_library_has_addresses_of_the_program(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A DLL loads the address of a static from its slot, and a pointer in data has it from the start."""
    original = bare_object(tmp_path, MSVC, COFF_PATCH, *flags).read_bytes()
    (tmp_path / "slots.o").write_bytes(reach_through_slots(original, ADDRS, "patch.o"))
    symbols = [StubSymbol(name=name, kind="data", addr=addr) for name, addr in ADDRS.items()]
    (tmp_path / "stub.o").write_bytes(write_dylib_stub(format="coff", machine="x86_64", symbols=symbols))
    linker = target_dir() / "bin" / "gcc-ld" / "lld-link"
    options = "/dll /noentry /export:address /export:pointer,DATA /out:patch.dll slots.o stub.o"
    run(linker, *options.split(), cwd=tmp_path)
    library = lief.PE.parse(tmp_path / "patch.dll")
    assert library is not None
    assert not list(library.relocations)
    at = {function.name: function.address for function in library.exported_functions}

    def content(addr: int, size: int) -> bytes:
        return bytes(library.get_content_from_virtual_address(addr, size, lief.Binary.VA_TYPES.RVA))

    assert content(at["pointer"], 8) == ADDRS["total"].to_bytes(8, "little")
    load = content(at["address"], 7)
    assert load[:3] == bytes.fromhex("488b05")
    slot = at["address"] + 7 + int.from_bytes(load[3:], "little", signed=True)
    assert content(slot, 8) == ADDRS["count"].to_bytes(8, "little")


@pytest.mark.parametrize("target", [*TARGETS, MSVC])
def test_access_without_room_for_a_slot_is_refused_by_name(tmp_path: Path, target: str) -> None:
    """A static that an instruction accesses directly cannot be moved out of the library, and is named."""
    source = """
    #[no_mangle] static mut count: i32 = 7;
    #[no_mangle] pub extern "C" fn read() -> i32 { unsafe { count } }
    #[no_mangle] pub extern "C" fn write(x: i32) { unsafe { count = x } }
    """
    with pytest.raises(ObjectError, match=r"patch\.o accesses count"):
        reach_through_slots(bare_object(tmp_path, target, source).read_bytes(), ADDRS, "patch.o")


def test_comdat_that_lost_its_symbol_is_an_ordinary_section(tmp_path: Path) -> None:
    """No COMDAT is left that has only its section symbol."""
    original = bare_object(tmp_path, MSVC, COFF_PATCH).read_bytes()
    parsed = lief.COFF.parse(list(reach_through_slots(original, ADDRS, "patch.o")))
    assert parsed is not None
    comdat = lief.PE.Section.CHARACTERISTICS.LNK_COMDAT.value
    comdats = {number for number, s in enumerate(parsed.sections, 1) if s.characteristics & comdat}
    named = {symbol.section_idx for symbol in parsed.symbols if symbol.storage_class.name == "EXTERNAL"}
    assert comdats
    assert comdats <= named


def test_static_reached_through_its_section_is_refused_by_name(tmp_path: Path) -> None:
    """Where an assembler refers to a section instead of the static in it, the reference is not overlooked."""
    # Section `.data` with `count`, section `.text` with `lea .data+4(%rip), %rax`; symbols `.data` (and aux), `count`.
    name, data = b"count".ljust(8, b"\0"), bytes(8)
    text = bytes.fromhex("488d05 04000000")
    start = 20 + 40 * 2
    header = struct.pack("<HHIIIHH", 0x8664, 2, 0, start + 8 + 7 + 10, 3, 0, 0)
    sections = struct.pack("<8sIIIIIIHHI", b".data", 0, 0, 8, start, 0, 0, 0, 0, 0xC0300040)
    sections += struct.pack("<8sIIIIIIHHI", b".text", 0, 0, 7, start + 8, start + 15, 0, 1, 0, 0x60500020)
    symbols = (
        struct.pack("<8sIhHBB", b".data", 0, 1, 0, 3, 1) + bytes(18) + struct.pack("<8sIhHBB", name, 4, 1, 0, 2, 0)
    )
    built = header + sections + data + text + struct.pack("<IIH", 3, 0, 4) + symbols + struct.pack("<I", 4)
    with pytest.raises(ObjectError, match=r"patch\.o accesses count"):
        reach_through_slots(built, ADDRS, "patch.o")
    before_it = built.replace(text, bytes.fromhex("488d05 00000000"))
    assert b"__imp_count" in reach_through_slots(before_it, ADDRS, "patch.o")


def test_object_without_such_symbols_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written anew where there is nothing to do."""
    original = bare_object(tmp_path, TARGETS[0], PATCH).read_bytes()
    assert reach_through_slots(original, {"other": 1}, "patch.o") == original


def test_other_files_are_refused() -> None:
    """A file that is no Mach-O object is named."""
    with pytest.raises(ObjectError, match=r"elf\.o is not an object"):
        reach_through_slots(b"\x7fELF".ljust(64, b"\0"), ADDRS, "elf.o")


@pytest.fixture(scope="module", params=[TARGETS[1], MSVC])
def patch_object(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An object with several kinds of reference."""
    source = COFF_PATCH if "windows" in request.param else PATCH
    return bare_object(tmp_path_factory.mktemp("patch"), request.param, source).read_bytes()


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(min_value=0), place=st.integers(min_value=0), byte=st.integers(0, 255))
def test_damaged_objects_end_in_an_error_or_an_object(patch_object: bytes, cut: int, place: int, byte: int) -> None:
    """No damage leads to anything but an `ObjectError`."""
    damaged = bytearray(patch_object[: len(patch_object) - cut % len(patch_object)])
    damaged[place % len(damaged)] = byte
    with contextlib.suppress(ObjectError):
        reach_through_slots(bytes(damaged), ADDRS, "patch.o")
