"""The symbols of Mach-O files: as lief sees them, of the wanted part of a fat file, refused where there are none."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lief
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.symbols import Symbol, SymbolTable
from hotpatchd.objfile.symbols import read_symbols
from tests.objfile.bare import bare_object
from tests.objfile.build import run, target_dir

SOURCE = """
extern "C" { fn elsewhere(x: i32) -> i32; }
#[no_mangle] pub static VALUE: i32 = 7;
#[no_mangle] pub static mut ZERO: i32 = 0;
#[thread_local] pub static mut LOCAL: i32 = 5;
#[no_mangle] pub fn main() -> i32 { unsafe { LOCAL } }
#[inline(never)] fn inner(x: *const i32) -> i32 { unsafe { elsewhere(*x) } }
pub fn outer(x: *const i32) -> i32 { inner(x) }
"""

TARGETS = {"x86_64": ("x86_64-apple-darwin", "x86_64"), "aarch64": ("aarch64-apple-darwin", "arm64")}
CPU_TYPES = {"x86_64": (0x01000007, 3), "aarch64": (0x0100000C, 0)}


def library(root: Path, arch: str) -> Path:
    """The source, compiled and linked as a shared library by lld."""
    target, word = TARGETS[arch]
    (root / arch).mkdir(exist_ok=True)
    path = root / arch / "patch.dylib"
    flags = f"-arch {word} -platform_version macos 11.0 14.0 -dylib -undefined dynamic_lookup".split()
    linked = bare_object(root / arch, target, SOURCE, "-Ccodegen-units=1", "-Cdebuginfo=2")
    run(target_dir() / "bin" / "gcc-ld" / "ld64.lld", *flags, linked, "-o", path)
    return path


def fat_file(path: Path, parts: dict[str, bytes]) -> Path:
    """A fat file (`mach-o/fat.h`: big-endian) of parts for several architectures, at multiples of 16 KiB."""
    header = struct.pack(">II", 0xCAFEBABE, len(parts))
    body, start = b"", 0x4000
    for arch, part in parts.items():
        place = start + len(body)
        header += struct.pack(">iiIII", *CPU_TYPES[arch], place, len(part), 14)
        body += part + bytes(-len(part) % 0x4000)
    path.write_bytes(header.ljust(start, b"\0") + body)
    return path


@contextmanager
def as_lief_reads_it(path: Path) -> Iterator[lief.MachO.Binary]:
    """A thin file, read by the reference; what it consists of goes away with it."""
    parsed = lief.MachO.parse(str(path))
    binary = parsed.at(0) if parsed else None
    assert binary is not None
    yield binary


def only(table: SymbolTable, name: str) -> Symbol:
    """The one symbol whose name ends like that."""
    (found,) = (symbol for symbol in table.symbols if symbol.name.endswith(name))
    return found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shared libraries for both architectures."""
    root = tmp_path_factory.mktemp("libraries")
    return {arch: library(root, arch) for arch in TARGETS}


@pytest.fixture(scope="module")
def fat_library(libraries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both libraries in one file."""
    root = tmp_path_factory.mktemp("fat")
    return fat_file(root / "fat.dylib", {arch: path.read_bytes() for arch, path in libraries.items()})


@pytest.mark.parametrize("arch", TARGETS)
def test_all_symbols_are_those_that_lief_finds(libraries: dict[str, Path], arch: str) -> None:
    """Names less their underscore, addresses, and what is defined or local agree with the reference."""
    with as_lief_reads_it(libraries[arch]) as parsed:
        expected = [
            (str(symbol.name).removeprefix("_"), symbol.value, symbol.raw_type & 0x0E != 0, symbol.raw_type & 1 == 0)
            for symbol in parsed.symbols
            if symbol.name and not symbol.raw_type & 0xE0
        ]
    found = [(s.name, s.addr, s.is_defined, s.is_local) for s in read_symbols(libraries[arch]).symbols]
    assert len(found) > 8
    assert found == expected


@pytest.mark.parametrize("arch", TARGETS)
def test_each_kind_of_symbol_is_recognised(libraries: dict[str, Path], arch: str) -> None:
    """Functions, constants, variables, thread-locals and imports differ."""
    table = read_symbols(libraries[arch])
    assert only(table, "main").kind == "function"
    assert only(table, "VALUE").kind == only(table, "ZERO").kind == "data"
    assert only(table, "5LOCAL").kind == "tls"
    assert not only(table, "elsewhere").is_defined
    assert only(table, "5inner").is_local
    assert not only(table, "5outer").is_local


def test_sizes_are_distances_within_a_section(libraries: dict[str, Path]) -> None:
    """Functions follow each other without a gap, and the last one ends where its section does."""
    table = read_symbols(libraries["aarch64"])
    with as_lief_reads_it(libraries["aarch64"]) as parsed:
        [end] = [part.virtual_address + part.size for part in parsed.sections if part.name == "__text"]
    functions = sorted((symbol.addr, symbol.size) for symbol in table.symbols if symbol.kind == "function")
    ends = [addr + size for addr, size in functions]
    assert ends == [*(addr for addr, _ in functions[1:]), end]
    assert only(table, "VALUE").size == 4
    assert table.sizes == "derived"


def test_a_library_says_what_it_is(libraries: dict[str, Path]) -> None:
    """Format, system, architecture and build id are what the file states."""
    table = read_symbols(libraries["aarch64"])
    with as_lief_reads_it(libraries["aarch64"]) as parsed:
        assert parsed.uuid is not None
        assert table.build_id == bytes(parsed.uuid.uuid).hex()
    assert (table.format, table.type, table.os, table.arch) == ("macho", "library", "macos", "aarch64")
    assert table.position_independent


def test_the_platform_is_told(tmp_path: Path) -> None:
    """What is for the simulator is not for the device, on the same architecture."""
    places = {target: tmp_path / target for target in ("aarch64-apple-ios", "aarch64-apple-ios-sim")}
    for place in places.values():
        place.mkdir()
    found = [read_symbols(bare_object(place, target, SOURCE)).os for target, place in places.items()]
    assert found == ["ios", "ios-simulator"]


def test_addresses_in_a_program_have_its_image_base_in_them(tmp_path: Path) -> None:
    """A program is linked above the 4 GiB that nothing may use."""
    target, word = TARGETS["x86_64"]
    linked = bare_object(tmp_path, target, SOURCE)
    platform = "-platform_version macos 11.0 14.0 -undefined dynamic_lookup -pie".split()
    lld = target_dir() / "bin" / "gcc-ld" / "ld64.lld"
    run(lld, "-arch", word, *platform, linked, "-o", tmp_path / "program")
    table = read_symbols(tmp_path / "program")
    assert (table.type, table.image_base, table.position_independent) == ("executable", 1 << 32, True)
    assert only(table, "main").addr > 1 << 32


@pytest.mark.parametrize("arch", TARGETS)
def test_an_object_is_read(tmp_path: Path, arch: str) -> None:
    """An object's definitions and what it leaves undefined are told apart."""
    table = read_symbols(bare_object(tmp_path, TARGETS[arch][0], SOURCE))
    assert (table.type, table.arch) == ("object", arch)
    assert only(table, "main").is_defined
    assert not only(table, "elsewhere").is_defined


@pytest.mark.parametrize("arch", TARGETS)
def test_the_wanted_part_of_a_fat_file_is_read(libraries: dict[str, Path], fat_library: Path, arch: str) -> None:
    """The part has the symbols and the build id that it has as a file of its own."""
    part, whole = read_symbols(fat_library, arch=arch), read_symbols(libraries[arch])
    assert part.symbols == whole.symbols
    assert part.build_id == whole.build_id


def test_a_fat_file_asks_which_part_is_wanted(fat_library: Path) -> None:
    """Without a choice the architectures are listed."""
    with pytest.raises(ObjectError, match="is for x86_64, aarch64") as caught:
        read_symbols(fat_library)
    assert caught.value.hint


def test_a_fat_file_without_the_wanted_part_is_refused(libraries: dict[str, Path], tmp_path: Path) -> None:
    """A part for another architecture is not taken instead."""
    path = fat_file(tmp_path / "fat.dylib", {"x86_64": libraries["x86_64"].read_bytes()})
    with pytest.raises(ObjectError, match="is for x86_64, not aarch64"):
        read_symbols(path, arch="arm64")


def test_a_stripped_program_is_refused_with_the_fix(libraries: dict[str, Path], tmp_path: Path) -> None:
    """A symbol table that names no function is as good as none."""
    data = bytearray(libraries["x86_64"].read_bytes())
    symtab = data.index(struct.pack("<II", 0x2, 24))
    struct.pack_into("<I", data, symtab + 12, 0)
    path = tmp_path / "stripped.dylib"
    path.write_bytes(data)
    with pytest.raises(ObjectError, match="is stripped") as caught:
        read_symbols(path)
    assert "strip = false" in caught.value.hint


def test_a_32_bit_file_is_refused(tmp_path: Path) -> None:
    """A format that no patch can be made for is named."""
    path = tmp_path / "old.o"
    path.write_bytes(struct.pack("<7I", 0xFEEDFACE, 7, 3, 1, 0, 0, 0))
    with pytest.raises(ObjectError, match="not a 64-bit little-endian Mach-O file"):
        read_symbols(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(fat_library: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere or changed in its headers, a file gives a table or an `ObjectError`."""
    whole = fat_library.read_bytes()
    contents = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    changed = st.dictionaries(st.integers(0, 64) | st.integers(0x4000, 0x4600), st.integers(0, 255), max_size=4)
    for place, value in data.draw(changed).items():
        if place < len(contents):
            contents[place] = value
    path = tmp_path / "damaged"
    path.write_bytes(contents)
    with suppress(ObjectError):
        assert isinstance(read_symbols(path, arch="x86_64"), SymbolTable)
