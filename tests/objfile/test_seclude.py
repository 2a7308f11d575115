"""A secluded object shares only the names that it leaves undefined, and those that it is asked to keep."""

import subprocess
from pathlib import Path

import pytest

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.seclude import seclude

SOURCE = """
int kept(void);
int outside(int);
static int state = 3;
__attribute__((weak)) int weakly(void) { return state++; }
static __attribute__((noinline)) int local(int n) { return outside(n) + 1; }
int global(int n) { return local(n) + weakly() + kept(); }
int kept(void) { return 5; }
"""


def _compile(directory: Path, source: str, *flags: str) -> Path:
    (directory / "source.c").write_text(source)
    subprocess.run(["gcc", "-c", "-O1", *flags, "source.c", "-o", "object.o"], cwd=directory, check=True)
    return directory / "object.o"


def _symbols(path: Path) -> set[str]:
    shown = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    return {" ".join(line.split()[-2:]) for line in shown.splitlines() if line.split()[-1] != "n"}


def test_names_of_its_own(tmp_path: Path) -> None:
    """Global definitions get the prefix, undefined and kept names stay, local ones are gone."""
    path = _compile(tmp_path, SOURCE)
    path.write_bytes(seclude(path.read_bytes(), prefix="own.", keep={"kept"}, origin="object.o"))
    symbols = _symbols(path)
    assert {"T own.global", "W own.weakly", "T kept", "U outside"} <= symbols
    assert not {name for name in symbols if "local" in name or "state" in name}


def test_secluded_object_works(tmp_path: Path) -> None:
    """References inside the object still lead to what they led to."""
    path = _compile(tmp_path, SOURCE)
    path.write_bytes(seclude(path.read_bytes(), prefix="own.", keep=(), origin="object.o"))
    (tmp_path / "main.c").write_text(
        """
        int own(int n) __asm__("own.global");
        int outside(int n) { return n * 2; }
        int global(int n) { return 0; }
        int weakly(void) { return 1000; }
        int main(void) { return own(10) == 29 && own(10) == 30 ? 0 : 1; }
        """
    )
    subprocess.run(["gcc", "main.c", "object.o", "-o", "program"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], check=True)


def test_prefixed_names_are_hidden(tmp_path: Path) -> None:
    """A program that exports its symbols does not export the object's."""
    path = _compile(tmp_path, SOURCE, "-fPIC")
    path.write_bytes(seclude(path.read_bytes(), prefix="own.", keep={"kept"}, origin="object.o"))
    (tmp_path / "main.c").write_text("int outside(int n) { return n; } int main(void) { return 0; }")
    subprocess.run(["gcc", "-rdynamic", "main.c", "object.o", "-o", "program"], cwd=tmp_path, check=True)
    exported = subprocess.run(["nm", "-D", "program"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert " T kept\n" in exported
    assert "own." not in exported


def test_linked_file_is_refused(tmp_path: Path) -> None:
    """Only relocatable objects can be changed so."""
    path = _compile(tmp_path, "int main(void) { return 0; }")
    subprocess.run(["gcc", path, "-o", tmp_path / "program"], check=True)
    with pytest.raises(ObjectError, match="program is not a relocatable object"):
        seclude((tmp_path / "program").read_bytes(), prefix="own.", keep=(), origin="program")
