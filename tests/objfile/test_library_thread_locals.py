"""Code of a patch reaches the thread-locals of a shared library, which have another place in every thread."""

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotpatchd.core.unit import Definition
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.host_index import read_host
from hotpatchd.objfile.image import read_image
from hotpatchd.objfile.rewrite import find_unreachable, rewrite
from hotpatchd.objfile.stub import ModuleThreadLocals, write_stub
from tests.objfile.build import c_unit, link_image, run
from tests.objfile.region import Region, callable_at

LIBRARY = r"""
#define _GNU_SOURCE
#include <link.h>

__thread int shared = 7;
static __thread int first = 20, second = 30;

int *where(int which) { return which == 0 ? &shared : which == 1 ? &first : &second; }

static int look(struct dl_phdr_info *info, size_t size, void *found) {
    if ((char *)info->dlpi_tls_data > (char *)&shared - 64 && (char *)info->dlpi_tls_data <= (char *)&shared)
        *(size_t *)found = info->dlpi_tls_modid;
    return 0;
}

size_t module(void) {
    size_t found = 0;
    dl_iterate_phdr(look, &found);
    return found;
}
"""

PATCH = r"""
extern __thread int shared;
static __thread int first = 20, second = 30;

int *of_shared(void) { return &shared; }
int sum(void) { return first++ + second++; }
int *of_second(void) { return &second; }
"""


@pytest.fixture
def region() -> Iterator[Region]:
    """Memory for one image."""
    region = Region()
    yield region
    region.close()


def local_definitions(unit: CodeUnit) -> dict[str, Definition]:
    """The object-local thread-locals of an object, by name."""
    found = [d for section in range(len(unit.obj.sections)) for d in unit.definitions_in(section)]
    return {d.name: d for d in found if d.local and d.kind == "tls"}


def code_of(unit: CodeUnit) -> frozenset[int]:
    """The sections with functions."""
    return frozenset(i for i in range(len(unit.obj.sections)) if unit.kind(i) == "function")


def unreachable(unit: CodeUnit, *names: str) -> frozenset[str]:
    """What a patch with all of an object's functions cannot reach of a library's thread-locals."""
    states = {d.section: d for d in local_definitions(unit).values() if d.name in names}
    return find_unreachable(unit, code_of(unit), states, of_library=frozenset(names))


@pytest.mark.parametrize("linker", ["lld", "bfd"])
@pytest.mark.parametrize("flags", [(), ("-fno-plt",)])
def test_each_thread_has_its_own(tmp_path: Path, region: Region, linker: str, flags: tuple[str, ...]) -> None:
    """Exported and local thread-locals are the library's, in the thread that calls."""
    (tmp_path / "library.c").write_text(LIBRARY)
    run("gcc", "-shared", "-fPIC", "-O1", "library.c", "-o", "library.so", cwd=tmp_path)
    library = ctypes.CDLL(str(tmp_path / "library.so"))
    library.where.restype, library.module.restype = ctypes.c_void_p, ctypes.c_size_t
    host = read_host(tmp_path / "library.so")
    block = host.header.tls
    assert block is not None
    names = ("shared", "first", "second")
    places = {name: found.addr for name in names if (found := host.find(name))}
    unit = c_unit(tmp_path, PATCH, *flags)
    assert unreachable(unit, *names) == frozenset()
    copy = rewrite(
        unit,
        sections=code_of(unit),
        host_sections={d.section: d for d in local_definitions(unit).values()},
        host_names=frozenset(names),
        replaced=frozenset(),
        imports=frozenset({"__tls_get_addr"}),
        of_library=frozenset(names),
    )
    stub = write_stub(
        absolute={},
        thread_locals=places,
        imports=["__tls_get_addr"],
        of_library=ModuleThreadLocals(
            module=library.module(), offsets={name: place - block.offset(0) for name, place in places.items()}
        ),
    )
    functions = ["of_shared", "sum", "of_second"]
    image = read_image(link_image(tmp_path, linker, [copy, stub], base_addr=region.addr, keep=functions))
    region.load(image)
    of_shared, total, of_second = (callable_at(image.symbols[name].addr) for name in functions)

    def in_this_thread() -> None:
        assert of_shared() == library.where(0)
        assert of_second() == library.where(2)
        assert [total(), total()] == [50, 52]
        assert ctypes.c_int.from_address(library.where(1)).value == 22

    in_this_thread()
    with ThreadPoolExecutor() as pool:
        pool.submit(in_this_thread).result()


@pytest.mark.parametrize("flags", ["-ftls-model=initial-exec", "-mtls-dialect=gnu2", "-ftls-model=local-exec"])
def test_what_only_the_loader_can_reach_is_named(tmp_path: Path, flags: str) -> None:
    """Fixed offsets from the thread pointer, and descriptors, cannot be imitated."""
    unit = c_unit(tmp_path, "extern __thread int far; int get(void) { return far; }", "-fPIC", flags)
    assert unreachable(unit, "far") == {"far"}


def test_one_call_for_old_and_new_ones_is_refused(tmp_path: Path) -> None:
    """Where the code asks once for the library's block and then for a thread-local that is not in it."""
    unit = c_unit(tmp_path, "static __thread int old, new; int get(void) { return old++ + new++; }")
    assert unreachable(unit, "old") == {"old"}
    assert unreachable(unit, "old", "new") == frozenset()
