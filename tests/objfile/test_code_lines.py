"""Lines of addresses in linked files, compared with what the compiler was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpatchd.objfile.code_lines import find_lines
from tests.objfile.build import run

SOURCE = "int helper(int n);\n\nint outer(int n) {\n    n = helper(n);\n    return n + 1;\n}\n"


def linked(directory: Path, *flags: str) -> tuple[Path, int]:
    """A linked file, and the address of its function `outer`."""
    (directory / "part").mkdir()
    (directory / "part" / "outer.c").write_text(SOURCE)
    (directory / "helper.c").write_text("int helper(int n) { return n; }\n")
    run("gcc", "-shared", "-fPIC", *flags, "part/outer.c", "helper.c", "-o", "linked.so", cwd=directory)
    symbols = run("nm", "linked.so", cwd=directory)
    return directory / "linked.so", int(
        next(row for row in symbols.splitlines() if row.endswith(" outer")).split()[0], 16
    )


@pytest.mark.parametrize("version", [4, 5])
def test_addresses_have_the_lines_of_their_source(tmp_path: Path, version: int) -> None:
    """The first instruction is of the line that opens the function, the last ones of that which closes it."""
    path, outer = linked(tmp_path, f"-gdwarf-{version}", "-O0")
    lines = find_lines(path, range(outer, outer + 30))
    file = str(tmp_path / "part" / "outer.c")
    assert lines[outer] == (file, 3)
    assert {line for _, line in lines.values()} >= {3, 4, 5}
    assert {name for name, _ in lines.values()} == {file}


def test_addresses_outside_the_tables_have_no_line(tmp_path: Path) -> None:
    """They are left out."""
    path, outer = linked(tmp_path, "-g", "-O0")
    assert find_lines(path, [outer, 1 << 40]).keys() == {outer}


def test_a_file_without_tables_has_no_lines(tmp_path: Path) -> None:
    """Nor has one that is none."""
    path, outer = linked(tmp_path, "-g0")
    assert find_lines(path, [outer]) == {}
    (tmp_path / "text").write_text("no ELF")
    assert find_lines(tmp_path / "text", [outer]) == {}
    assert find_lines(tmp_path / "nothing", [outer]) == {}
