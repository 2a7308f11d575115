"""Carrier libraries, loaded into this process: what they put in place, and where their thunks lead."""

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.core.address_space import is_free, parse_maps
from hotpatchd.objfile.carrier import Carried, Thunk, write_carried
from hotpatchd.objfile.image import Image, read_image
from hotpatchd.objfile.machines import X86_64
from hotpatchd.objfile.rewrite import rewrite
from hotpatchd.objfile.stub import write_stub
from tests.objfile.build import c_unit, link_image, run
from tests.objfile.region import Region, callable_at
from tests.objfile.test_link import PLUS_100, all_sections

SOURCE = Path(__file__).parents[2] / "client" / "carrier" / "carrier.rs"

PATCH = r"""
extern int old(int);
extern unsigned long strlen(const char *);
char text[] = "carried";
int fresh = 5;
int twice(int n) { return 2 * old(n); }
unsigned long measure(int n) { return strlen(text) + n; }
int count(int n) { return fresh += n; }
"""


@pytest.fixture
def region() -> Iterator[Region]:
    """Memory that holds the old code; the image goes before it."""
    region = Region()
    yield region
    region.close()


def carrier_library(root: Path, carried: Carried, thunks: list[Thunk]) -> ctypes.CDLL:
    """A carrier library, loaded."""
    (root / "carried.o").write_bytes(write_carried(carried, thunks, machine=X86_64, page_size=mmap.PAGESIZE))
    flags = "--edition=2021 --crate-type=lib --emit=obj -Copt-level=s -Cpanic=abort -Crelocation-model=pic"
    run("rustc", *flags.split(), "-o", root / "carrier.o", SOURCE)
    run("cc", "-shared", "-nostdlib", "-o", root / "libcarrier.so", "carrier.o", "carried.o", cwd=root)
    return ctypes.CDLL(str(root / "libcarrier.so"))


def free_addr(region: Region) -> int:
    """Where an image finds room, within reach of the region; images of earlier tests stay where they are."""
    maps = parse_maps(Path("/proc/self/maps").read_text())
    places = range(region.addr - (16 << 20), region.addr - (1 << 30), -(16 << 20))
    return next(addr for addr in places if is_free(maps, range(addr, addr + (1 << 20))))


def image_at(root: Path, addr: int, old: int) -> Image:
    """The patch, linked for an address."""
    unit = c_unit(root, PATCH)
    names = ["twice", "measure", "count"]
    copy = rewrite(
        unit,
        sections=all_sections(unit),
        host_sections={},
        host_names=frozenset(),
        replaced=frozenset(),
        imports=frozenset({"strlen"}),
    )
    stub = write_stub(absolute={"old": old}, thread_locals={}, imports=["strlen"])
    return read_image(link_image(root, "lld", [copy, stub], base_addr=addr, keep=names))


def carried_of(image: Image) -> Carried:
    """What a carrier takes of an image."""
    return Carried(
        payload=image.payload,
        segments=image.segments,
        imports=image.imports,
        eh_frame=image.eh_frame,
        end=image.end,
    )


def enter(library: ctypes.CDLL, number: int, argument: int) -> int:
    """What a thunk returns."""
    main = ctypes.cast(library.main, ctypes.c_void_p).value or 0
    return callable_at(main + X86_64.jump_stride * number, ctypes.c_int)(argument)


def test_loading_a_carrier_puts_its_image_in_place(tmp_path: Path, region: Region) -> None:
    """Thunks lead to code that reaches the program's functions, imports, constants and its own statics."""
    old, _ = region.place_host(PLUS_100, b"")
    image = image_at(tmp_path, free_addr(region), old)
    thunks = [Thunk(before=old, after=image.symbols[name].addr) for name in ("twice", "measure", "count")]

    library = carrier_library(tmp_path, carried_of(image), thunks)

    assert enter(library, 0, 1) == 202
    assert enter(library, 1, 3) == 10
    assert [enter(library, 2, 1), enter(library, 2, 1)] == [6, 7]


def test_a_carrier_without_room_for_its_image_changes_nothing(tmp_path: Path, region: Region) -> None:
    """Where other memory lies at the image's address it stays as it is, and thunks lead to the old code."""
    old, _ = region.place_host(PLUS_100, b"")
    ctypes.memmove(region.addr, b"theirs", 6)
    image = image_at(tmp_path, region.addr, old)

    library = carrier_library(tmp_path, carried_of(image), [Thunk(before=old, after=image.symbols["twice"].addr)])

    assert enter(library, 0, 1) == 101
    assert ctypes.string_at(region.addr, 6) == b"theirs"


def test_a_carrier_with_an_import_that_nobody_has_changes_nothing(tmp_path: Path, region: Region) -> None:
    """The image is taken out again, and thunks lead to the old code."""
    old, _ = region.place_host(PLUS_100, b"")
    image = image_at(tmp_path, free_addr(region), old)
    wanted = [type(entry)(name="nobody_has_this", slot=entry.slot) for entry in image.imports]
    carried = Carried(payload=image.payload, segments=image.segments, imports=tuple(wanted), end=image.end)

    library = carrier_library(tmp_path, carried, [Thunk(before=old, after=image.symbols["twice"].addr)])

    assert enter(library, 0, 1) == 101
    assert f"{image.segments[0].addr:x}-" not in Path("/proc/self/maps").read_text()


def test_a_carrier_without_an_image_redirects_only(tmp_path: Path, region: Region) -> None:
    """A function that was changed before keeps its newest code under a new library."""
    old, _ = region.place_host(PLUS_100, b"")

    library = carrier_library(tmp_path, Carried(), [Thunk(before=0, after=old)])

    assert enter(library, 0, 1) == 101
