"""The symbols of PE files with their PDBs, and of COFF objects: as the linker and lief see them, or refused."""

import re
import struct
from contextlib import suppress
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
#[no_mangle] pub fn main() -> i32 { 4 }
#[inline(never)] fn inner(x: *const i32) -> i32 { unsafe { elsewhere(*x) } }
pub fn outer(x: *const i32) -> i32 { inner(x) }
"""
THREAD_LOCAL = "#[thread_local] pub static mut LOCAL: i32 = 5;"
TARGETS = {"x86_64": "x86_64-pc-windows-msvc", "aarch64": "aarch64-pc-windows-msvc"}
PUBLIC = re.compile(r" [0-9a-f]{4}:[0-9a-f]{8} {7}(\S+) +([0-9a-f]{16}) ")


def link(output: Path, *args: str | Path) -> None:
    """Link a DLL."""
    lld = target_dir() / "bin" / "gcc-ld" / "lld-link"
    run(lld, "/dll", "/noentry", f"/out:{output}", *args, cwd=output.parent)


def library(root: Path, arch: str, *flags: str) -> Path:
    """The source as a DLL that imports from another one, with a map of its symbols by the linker."""
    root.mkdir(exist_ok=True)
    other = bare_object(root, TARGETS[arch], "#[no_mangle] pub fn elsewhere(x: i32) -> i32 { x }")
    other.rename(root / "other.o")
    link(root / "other.dll", "/export:elsewhere", "other.o")
    linked = bare_object(root, TARGETS[arch], SOURCE)
    link(root / "patch.dll", "/export:main", f"/map:{root / 'patch.map'}", *(flags or ("/debug",)), linked, "other.lib")
    return root / "patch.dll"


def only(table: SymbolTable, name: str) -> Symbol:
    """The one symbol of that name, or the item of the crate `patch` whose mangled name ends like that."""
    (found,) = (s for s in table.symbols if s.name == name or (s.name[:2] == "_R" and s.name.endswith(name)))
    return found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """DLLs for both architectures, with their PDBs beside them."""
    root = tmp_path_factory.mktemp("libraries")
    return {arch: library(root / arch, arch) for arch in TARGETS}


@pytest.mark.parametrize("arch", TARGETS)
def test_all_public_symbols_are_those_of_the_linkers_map(libraries: dict[str, Path], arch: str) -> None:
    """Names and addresses agree with what the linker wrote down, image base included."""
    publics = libraries[arch].with_suffix(".map").read_text().partition(" Static symbols")[0]
    expected = {(name, int(addr, 16)) for name, addr in PUBLIC.findall(publics)}
    found = {(symbol.name, symbol.addr) for symbol in read_symbols(libraries[arch]).symbols}
    assert {"main", "VALUE", "elsewhere"} <= {name for name, _ in found}
    assert found == {(name, addr) for name, addr in expected if name in {known for known, _ in found}}
    assert {name for name, _ in expected if name.startswith(("_R", "main", "VALUE"))} <= {name for name, _ in found}


@pytest.mark.parametrize("arch", TARGETS)
def test_each_kind_of_symbol_is_recognised(libraries: dict[str, Path], arch: str) -> None:
    """Functions, data, and the jump to an imported function differ."""
    table = read_symbols(libraries[arch])
    assert only(table, "5outer").kind == "function"
    assert not only(table, "5outer").is_stub
    assert only(table, "VALUE").kind == only(table, "ZERO").kind == "data"
    assert [symbol.name for symbol in table.symbols if symbol.is_stub] == ["elsewhere"]


def test_a_library_says_what_it_is(libraries: dict[str, Path]) -> None:
    """Format, system, architecture, image base and build id are what the file states."""
    parsed = lief.PE.parse(str(libraries["aarch64"]))
    assert parsed is not None
    codeview = next(entry for entry in parsed.debug if isinstance(entry, lief.PE.CodeViewPDB))
    table = read_symbols(libraries["aarch64"])
    assert table.build_id == bytes(codeview.signature).hex() + f"{codeview.age:x}"
    assert (table.format, table.type, table.os, table.arch) == ("pe", "library", "windows", "aarch64")
    assert table.image_base == parsed.imagebase
    assert table.position_independent


def test_a_library_may_have_to_stay_where_it_was_linked(tmp_path: Path) -> None:
    """Without DYNAMIC_BASE, a file is not position independent."""
    assert not read_symbols(library(tmp_path, "x86_64", "/debug", "/dynamicbase:no")).position_independent


def test_a_size_ends_with_the_section(libraries: dict[str, Path]) -> None:
    """The last function is as long as the rest of its section."""
    table = read_symbols(libraries["x86_64"])
    parsed = lief.PE.parse(str(libraries["x86_64"]))
    assert parsed is not None
    text = next(section for section in parsed.sections if section.name == ".text")
    last = max((symbol for symbol in table.symbols if symbol.kind == "function"), key=lambda symbol: symbol.addr)
    assert last.addr + last.size == parsed.imagebase + text.virtual_address + text.virtual_size


@pytest.mark.parametrize("arch", TARGETS)
def test_an_object_has_the_symbols_that_lief_finds(tmp_path: Path, arch: str) -> None:
    """Names, offsets and what is defined agree with the reference; names of sections are none."""
    # With the thread-local, a name would be the end of another one in the string table, and lief would not find it.
    path = bare_object(tmp_path, TARGETS[arch], SOURCE)
    parsed = lief.COFF.parse(str(path))
    assert parsed is not None
    expected = [
        (symbol.name, symbol.value if symbol.section_idx > 0 else 0, symbol.section_idx != 0)
        for symbol in parsed.symbols
        if symbol.section_idx != -2 and not str(symbol.name).startswith((".", "@feat"))
    ]
    table = read_symbols(path)
    found = [(s.name, s.addr, s.is_defined) for s in table.symbols if not s.is_absolute]
    assert len(found) > 6
    assert found == expected
    assert (table.format, table.type, table.arch) == ("coff", "object", arch)


def test_an_object_tells_thread_locals_and_absolute_symbols(tmp_path: Path) -> None:
    """A thread-local lies in a section `.tls$`; a symbol may be a number."""
    table = read_symbols(bare_object(tmp_path, TARGETS["x86_64"], SOURCE + THREAD_LOCAL))
    assert only(table, "5LOCAL").kind == "tls"
    assert only(table, "@feat.00").is_absolute
    assert not only(table, "elsewhere").is_defined
    assert only(table, "main").kind == "function"


def test_a_library_without_a_pdb_is_refused_with_the_fix(tmp_path: Path) -> None:
    """What was linked without symbols has none anywhere."""
    path = library(tmp_path, "x86_64", "/debug:none")
    with pytest.raises(ObjectError, match="is stripped: it has neither a symbol table nor a PDB") as caught:
        read_symbols(path)
    assert "strip = false" in caught.value.hint


def test_a_pdb_that_was_moved_away_is_named(tmp_path: Path) -> None:
    """A PDB is looked for beside the file and where the linker put it."""
    path = library(tmp_path / "built", "x86_64")
    moved = tmp_path / "patch.dll"
    path.rename(moved)
    assert read_symbols(moved).symbols
    (tmp_path / "built" / "patch.pdb").unlink()
    with pytest.raises(ObjectError, match=r"are in patch\.pdb, which is not beside it"):
        read_symbols(moved)


def test_the_pdb_of_another_build_is_refused(libraries: dict[str, Path], tmp_path: Path) -> None:
    """Addresses of another build would be wrong, so the PDB's signature has to be the file's."""
    path = library(tmp_path, "x86_64")
    (tmp_path / "patch.pdb").write_bytes(libraries["aarch64"].with_suffix(".pdb").read_bytes())
    with pytest.raises(ObjectError, match="belongs to another build"):
        read_symbols(path)


def test_a_file_for_another_machine_is_refused(libraries: dict[str, Path], tmp_path: Path) -> None:
    """The machine's number is given where there is no word for it."""
    data = bytearray(libraries["x86_64"].read_bytes())
    struct.pack_into("<H", data, int.from_bytes(data[0x3C:0x40], "little") + 4, 0x14C)
    path = tmp_path / "old.dll"
    path.write_bytes(data)
    with pytest.raises(ObjectError, match="for machine 0x14c"):
        read_symbols(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=st.sampled_from(["patch.dll", "patch.pdb", "patch.o"]), data=st.data())
def test_a_damaged_file_is_read_or_refused(
    libraries: dict[str, Path], tmp_path: Path, damaged: str, data: st.DataObject
) -> None:
    """Cut anywhere or changed anywhere, a file or its PDB gives a table or an `ObjectError`."""
    for name in ("patch.dll", "patch.pdb", "patch.o"):
        (tmp_path / name).write_bytes(libraries["x86_64"].with_name(name).read_bytes())
    whole = (tmp_path / damaged).read_bytes()
    contents = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    changed = st.dictionaries(st.integers(0, 1023) | st.integers(0, len(whole) - 1), st.integers(0, 255), max_size=4)
    for place, value in data.draw(changed).items():
        if place < len(contents):
            contents[place] = value
    (tmp_path / damaged).write_bytes(contents)
    with suppress(ObjectError):
        read = tmp_path / ("patch.o" if damaged == "patch.o" else "patch.dll")
        assert isinstance(read_symbols(read), SymbolTable)
