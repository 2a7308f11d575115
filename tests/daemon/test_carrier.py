"""Carrier libraries as the daemon links them."""

import asyncio
import ctypes
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.linkline import LinkLine
from hotpatchd.daemon.carrier import CarrierLinker, Entry
from hotpatchd.objfile.machines import X86_64

LINE = LinkLine(env=(("PATH", "/usr/bin:/bin"),), argv=("cc", "a.o", "-nodefaultlibs", "-o", "host"))
TARGET = "x86_64-unknown-linux-gnu"


async def test_libraries_that_are_linked_at_once_share_their_first_part(tmp_path: Path) -> None:
    """It is compiled once, and no link reads it before it is complete."""
    linker = CarrierLinker(LINE, TARGET, ["rustc"], X86_64, tmp_path)
    entry = Entry(places=(0x1000, 0x2000), before=0x1000, after=0x3000)
    work = (linker.link(None, [entry], tmp_path / f"lib{number}.so", page_size=4096) for number in range(4))

    carriers = await asyncio.gather(*work)

    for carrier in carriers:
        assert ctypes.CDLL(str(carrier.path)).main
        ((main_addr, _),) = carrier.symbols.functions("main")
        assert carrier.jumps == {0x1000: main_addr, 0x2000: main_addr}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["carrier.o", *(f"lib{n}.so" for n in range(4))]


async def test_a_compiler_without_the_standard_library_is_told_of(tmp_path: Path) -> None:
    """The error has the compiler's own words."""
    linker = CarrierLinker(LINE, TARGET, ["rustc", "--sysroot", str(tmp_path)], X86_64, tmp_path)
    with pytest.raises(BuildError, match="does not compile") as raised:
        await linker.link(None, [], tmp_path / "lib.so", page_size=4096)
    assert "can't find crate" in raised.value.output
