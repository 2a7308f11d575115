"""Archives: symbol tables and members as binutils see them, and damage."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.archive import Archive, ArchiveSet
from tests.objfile.build import run, std_rlib

LONG = "a_member_whose_name_is_longer_than_fifteen_bytes.o"


def armap(path: Path) -> dict[str, str]:
    """Symbol → first member that defines it, as nm prints the archive's symbol table."""
    found: dict[str, str] = {}
    for line in run("nm", "--print-armap", path).partition("Archive index:\n")[2].split("\n\n")[0].splitlines():
        symbol, _, member = line.rpartition(" in ")
        found.setdefault(symbol, member)
    return found


def member_name(origin: str) -> str:
    """The member's part of `archive(member)`."""
    match = re.fullmatch(r".*\((.*)\)", origin)
    assert match is not None
    return match[1]


@pytest.fixture(scope="module")
def gnu_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of GNU ar with short and long member names, and `twice` in two members."""
    root = tmp_path_factory.mktemp("archive")
    members = {"short.o": "first twice", LONG: "second twice", "odd.o": "third"}
    for name, symbols in members.items():
        lines = [f".globl {symbol}\n{symbol}: ret\n" for symbol in symbols.split()]
        (root / "source.s").write_text("".join(lines))
        run("as", root / "source.s", "-o", root / name)
    run("ar", "rcs", root / "libgnu.a", *(root / name for name in members))
    return root / "libgnu.a"


def test_the_symbols_of_the_standard_library_are_those_that_nm_prints() -> None:
    """Every symbol leads to the member that the archive's own table names."""
    path = std_rlib()
    archive = Archive(path)
    expected = armap(path)
    assert len(expected) > 500
    assert {symbol: member_name(archive.member(place).name) for symbol, place in archive.symbols.items()} == expected


def test_members_are_listed_by_ar_and_define_their_symbols(gnu_archive: Path) -> None:
    """Long names are read in full, and a member exports what the table says of it."""
    archive = Archive(gnu_archive)
    units = {symbol: archive.member(place) for symbol, place in archive.symbols.items()}
    assert {member_name(unit.name) for unit in units.values()} == set(run("ar", "t", gnu_archive).split())
    assert all(symbol in unit.exports for symbol, unit in units.items())
    assert all(unit.from_archive for unit in units.values())


def test_of_two_members_with_a_symbol_the_first_counts(gnu_archive: Path) -> None:
    """As for linkers, the member that comes first in the table defines the symbol."""
    archive = Archive(gnu_archive)
    assert member_name(archive.member(archive.symbols["twice"]).name) == "short.o"
    assert {symbol: member_name(archive.member(place).name) for symbol, place in archive.symbols.items()} == armap(
        gnu_archive
    )


def test_a_member_is_the_same_object_each_time(gnu_archive: Path) -> None:
    """Two symbols of one member lead to one unit."""
    members = ArchiveSet((gnu_archive,))
    assert members.member_defining("first") is members.member_defining("twice")
    assert members.member_defining("nowhere") is None


def test_the_first_archive_of_a_set_wins(gnu_archive: Path, tmp_path: Path) -> None:
    """The order of the link line decides who defines a symbol."""
    (tmp_path / "source.s").write_text(".globl third\nthird: nop\n.globl fourth\nfourth: ret\n")
    run("as", tmp_path / "source.s", "-o", tmp_path / "other.o")
    run("ar", "rcs", tmp_path / "libother.a", tmp_path / "other.o")
    members = ArchiveSet((tmp_path / "libother.a", gnu_archive))
    found = {name: members.member_defining(name) for name in ("third", "first", "fourth")}
    assert {name: unit and unit.name for name, unit in found.items()} == {
        "third": "libother.a(other.o)",
        "first": "libgnu.a(short.o)",
        "fourth": "libother.a(other.o)",
    }


def test_libraries_beside_the_line_are_asked_for_names_of_rust(gnu_archive: Path, tmp_path: Path) -> None:
    """The program's sources had no use for them; a name of C says nothing of which library is meant."""
    mangled, promoted = "_RNvCs_3dep3new", "anon.0123.4.llvm.56789"
    (tmp_path / "source.s").write_text("".join(f".globl {s}\n{s}: nop\n" for s in (mangled, promoted, "plain")))
    run("as", tmp_path / "source.s", "-o", tmp_path / "other.o")
    run("ar", "rcs", tmp_path / "libdep-1.rlib", tmp_path / "other.o")
    members = ArchiveSet((gnu_archive,), (tmp_path,))
    found = members.member_defining(mangled)
    assert found is not None
    assert found.name == "libdep-1.rlib(other.o)"
    assert members.member_defining(promoted) is found
    assert members.member_defining("plain") is None
    assert ArchiveSet((gnu_archive,)).member_defining(mangled) is None


def read_all(path: Path) -> None:
    """Look at every member that the symbol table leads to."""
    archive = Archive(path)
    for place in archive.symbols.values():
        _ = archive.member(place).exports


def test_a_cut_archive_is_refused(gnu_archive: Path, tmp_path: Path) -> None:
    """An archive that ends within its last member is an ObjectError that names it."""
    data = gnu_archive.read_bytes()
    path = tmp_path / "cut.a"
    for length in range(0, len(data) - 1, 7):
        path.write_bytes(data[:length])
        if length == len(b"!<arch>\n"):
            continue
        with pytest.raises(ObjectError, match=r"cut\.a"):
            read_all(path)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_raise_nothing_but_object_errors(
    gnu_archive: Path, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    """Headers, symbol table and long names may hold anything."""
    data = bytearray(gnu_archive.read_bytes())
    for place, value in flips:
        data[place % min(len(data), 600)] = value
    path = tmp_path_factory.getbasetemp() / "flipped.a"
    path.write_bytes(data)
    with contextlib.suppress(ObjectError):
        read_all(path)


def test_a_thin_archive_is_refused_as_one(gnu_archive: Path, tmp_path: Path) -> None:
    """The hint says that the archive is of a kind without contents."""
    run("ar", "rcsT", tmp_path / "thin.a", gnu_archive.with_name("odd.o"))
    with pytest.raises(ObjectError, match="thin archives"):
        Archive(tmp_path / "thin.a")


def test_a_missing_archive_is_an_object_error(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(ObjectError, match=r"none\.a"):
        Archive(tmp_path / "none.a")
