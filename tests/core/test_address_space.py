"""Where patches fit in a process."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.address_space import REGION_SIZE, Mapping, choose_region, extent_of, is_free, parse_maps

REACH = 1 << 31
PROGRAM = range(0x5555_5555_4000, 0x5555_5560_0000)

TEXT = """\
555555554000-555555556000 r--p 00000000 fd:00 42 /home/me/a b (deleted)
555555556000-555555600000 r-xp 00002000 fd:00 42 /home/me/a b (deleted)
555555a00000-555555a21000 rw-p 00000000 00:00 0 [heap]
7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0
"""


def test_mappings_are_read_with_their_names() -> None:
    """Names may hold spaces, and may be missing."""
    maps = parse_maps(TEXT)
    assert [mapping.path for mapping in maps] == ["/home/me/a b (deleted)"] * 2 + ["[heap]", ""]
    assert extent_of(maps, "/home/me/a b (deleted)") == PROGRAM
    assert extent_of(maps, "/usr/bin/true") is None


def test_this_process_can_be_read() -> None:
    """What the kernel writes is what is expected."""
    maps = parse_maps(Path("/proc/self/maps").read_text())
    assert len(maps) == len(Path("/proc/self/maps").read_text().splitlines())
    assert any(mapping.path == "[stack]" for mapping in maps)


@given(st.lists(st.tuples(st.integers(-200, 200), st.integers(1, 64)), max_size=40))
def test_a_region_is_free_above_the_program_and_within_reach(taken: list[tuple[int, int]]) -> None:
    """From its first and last bytes to the program's and back, a signed 32-bit displacement is enough."""
    unit = 16 << 20
    maps = [Mapping(PROGRAM.start + unit * at, PROGRAM.start + unit * (at + size), "") for at, size in taken]
    region = choose_region(maps, PROGRAM, REACH)
    if region is not None:
        assert is_free(maps, region)
        assert len(region) == REGION_SIZE
        assert PROGRAM.stop <= region.start
        assert region.stop - PROGRAM.start <= REACH


def test_the_room_for_the_heap_is_left_free() -> None:
    """In an empty address space the region is as far away as it can be."""
    region = choose_region([], PROGRAM, REACH)
    assert region is not None
    assert region.start - PROGRAM.stop > REACH // 2


def test_a_full_neighbourhood_has_no_region() -> None:
    """Rather none than one out of reach."""
    assert choose_region([Mapping(PROGRAM.start, PROGRAM.start + REACH, "")], PROGRAM, REACH) is None


def test_overlaps_are_seen_at_both_ends() -> None:
    """Neighbours do not overlap."""
    maps = [Mapping(10, 20, "")]
    assert is_free(maps, range(0, 10))
    assert is_free(maps, range(20, 30))
    assert not is_free(maps, range(0, 11))
    assert not is_free(maps, range(19, 30))
    assert not is_free(maps, range(12, 13))
