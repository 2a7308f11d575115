"""What a patch takes from shared libraries: functions, data, and what need not exist."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.image import Image, read_image
from hotpatchd.objfile.rewrite import rewrite
from hotpatchd.objfile.stub import write_stub
from tests.objfile.build import c_unit, link_image
from tests.objfile.region import Region, address_of, callable_at

SOURCE = r"""
extern unsigned long strlen(const char *);
extern int no_such_function(void) __attribute__((weak));
extern int getppid(void) __attribute__((weak));
extern char **environ;

unsigned long (*measures[])(const char *) = {strlen, strlen};
int (*optional[])(void) = {no_such_function, getppid};
char ***place = &environ;

int has_missing(void) { return no_such_function != 0; }
int has_found(void) { return getppid != 0 && getppid() > 0; }
"""

WEAK = frozenset({"no_such_function", "getppid"})


@pytest.fixture
def region() -> Iterator[Region]:
    """Memory for an image."""
    region = Region()
    yield region
    region.close()


def loaded(unit: CodeUnit, root: Path, linker: str, region: Region) -> Image:
    """The object as a patch that runs."""
    imports = WEAK | {"strlen", "environ"}
    copy = rewrite(
        unit,
        sections=frozenset(i for i in range(len(unit.obj.sections)) if unit.kind(i) != "other"),
        host_sections={},
        host_names=frozenset(),
        replaced=frozenset(),
        imports=imports,
        weak_imports=WEAK,
    )
    stub = write_stub(absolute={}, thread_locals={}, imports=imports, weak_imports=WEAK)
    image = read_image(link_image(root, linker, [copy, stub], base_addr=region.addr, keep=unit.exports))
    region.load(image)
    return image


def words(image: Image, name: str, count: int) -> list[int]:
    """The content of a static of the patch."""
    return list((ctypes.c_uint64 * count).from_address(image.symbols[name].addr))


@pytest.mark.parametrize("linker", ["lld", "bfd"])
def test_data_holds_the_addresses_themselves(tmp_path: Path, region: Region, linker: str) -> None:
    """Of functions, so that they compare equal to those of the program, of data, and none of what does not exist."""
    image = loaded(c_unit(tmp_path, SOURCE), tmp_path, linker, region)
    assert words(image, "measures", 2) == [address_of("strlen")] * 2
    assert words(image, "place", 1) == [address_of("environ")]
    assert words(image, "optional", 2) == [0, address_of("getppid")]


@pytest.mark.parametrize("linker", ["lld", "bfd"])
def test_code_sees_what_exists(tmp_path: Path, region: Region, linker: str) -> None:
    """A weak reference may be asked whether there is such a function."""
    image = loaded(c_unit(tmp_path, SOURCE), tmp_path, linker, region)
    answers = [callable_at(image.symbols[name].addr)() for name in ("has_missing", "has_found")]
    assert answers == [0, 1]
    assert {wanted.name for wanted in image.imports if wanted.weak} == WEAK


def test_references_tell_whether_they_are_weak(tmp_path: Path) -> None:
    """By the symbol of the object that has them."""
    unit = c_unit(tmp_path, SOURCE)
    section = unit.exports["has_found"].section
    assert {(reference.name, reference.weak) for reference in unit.references(section)} == {("getppid", True)}
