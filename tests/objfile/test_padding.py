"""Padding: what lies between functions of Rust, by every linker, and nothing else."""

from itertools import pairwise
from pathlib import Path

import pytest

from hotpatchd.core.client import Gap
from hotpatchd.objfile.host_index import HostCode, read_host
from hotpatchd.objfile.padding import Padding
from tests.objfile.build import run, target_dir

SIZE = 5
SHORT_JUMP = range(2 - 128, 2 + 128)


def rust(name: str) -> str:
    """The symbol of a function in Rust."""
    return f"_ZN3app{len(name)}{name}17h0123456789abcdefE"


def function(label: str, *code: str, align: int = 16) -> str:
    """A function in a section of its own."""
    lines = (f'.section .text.{label},"ax",@progbits', f".balign {align}", f".globl {label}")
    return "\n".join((*lines, f".type {label},@function", f"{label}:", *code, f".size {label}, . - {label}", ""))


def padding_near(root: Path, name: str, *source: str, linker: str = "bfd") -> tuple[int, tuple[Gap, ...]]:
    """The address of a function of a program, and the padding that is found near it."""
    (root / "main.s").write_text("".join(source) + function("_start", "ret"))
    lld_dir = target_dir() / "bin" / "gcc-ld"
    run("cc", "-nostdlib", "-static", f"-B{lld_dir}", f"-fuse-ld={linker}", "main.s", "-o", "main", cwd=root)
    index = read_host(root / "main")
    found = index.find(name)
    assert found is not None
    return found.addr, Padding(index, HostCode(root / "main", index.header)).near(found.addr)


@pytest.mark.parametrize("linker", ["bfd", "lld"])
def test_padding_of_every_linker_is_found(tmp_path: Path, linker: str) -> None:
    """Behind a function of six bytes are ten of padding, with whatever the linker fills it."""
    source = (function(rust(name), "mov $1,%eax", "ret") for name in ("a", "b", "c"))
    addr, gaps = padding_near(tmp_path, rust("b"), *source, linker=linker)
    assert gaps == (Gap(addr=addr - 10, size=10), Gap(addr=addr + 6, size=10))


def test_zeros_are_padding(tmp_path: Path) -> None:
    """That is what mold fills with."""
    source = function(rust("a"), "mov $1,%eax", "ret") + ".zero 10\n" + function(rust("b"), "ret")
    addr, gaps = padding_near(tmp_path, rust("a"), source)
    assert gaps == (Gap(addr=addr + 6, size=10),)


def test_bytes_that_a_long_jump_would_overwrite_are_no_padding(tmp_path: Path) -> None:
    """A function of one byte gets its own jump into what is behind it: that much is left to it."""
    source = (function(rust(name), "ret") for name in ("a", "b"))
    addr, gaps = padding_near(tmp_path, rust("a"), *source)
    assert gaps == (Gap(addr=addr + SIZE, size=16 - SIZE),)


@pytest.mark.parametrize(
    "between",
    [
        ".quad 0x1122334455667788",
        ".zero 6\n.byte 1",
        "nop\nnop\nnop\nnop\njmp .",
        ".byte 0xcc,0xcc,0xcc,0xcc,0xcc,0xc3",
    ],
)
def test_bytes_that_may_be_something_are_no_padding(tmp_path: Path, between: str) -> None:
    """Where anything but filler is between two functions, nothing of it is given out."""
    source = function(rust("a"), "mov $1,%eax", "ret") + between + "\n" + function(rust("b"), "ret", align=1)
    assert padding_near(tmp_path, rust("a"), source)[1] == ()


@pytest.mark.parametrize(("before", "behind"), [("memcpy", rust("b")), (rust("a"), "memcpy")])
def test_padding_next_to_other_languages_is_left_alone(tmp_path: Path, before: str, behind: str) -> None:
    """Functions of an assembler may fall through to the next, or have constants beside them."""
    source = function(before, "ret") + function(behind, "ret")
    assert padding_near(tmp_path, before, source)[1] == ()


def test_padding_out_of_reach_is_left_out(tmp_path: Path) -> None:
    """A short jump leads to the first and last byte where a long one can begin, and no further."""
    source = (function(rust(f"f{number:03}"), "ret") for number in range(40))
    addr, gaps = padding_near(tmp_path, rust("f020"), *source)
    starts = [start for gap in gaps for start in range(gap.addr, gap.addr + gap.size - SIZE + 1)]
    assert {start - addr for start in starts} == {
        place for place in SHORT_JUMP if place % 16 in range(SIZE, 16 - SIZE + 1)
    }
    assert all(one.addr + one.size <= other.addr for one, other in pairwise(gaps))
