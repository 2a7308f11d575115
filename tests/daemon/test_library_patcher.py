"""Patch libraries for a small program: made of real objects, linked by rustc's own lld."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hotpatchd.core.client import DylibPatch
from hotpatchd.core.dylibplan import LinkerChoice
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.session import Session, after_applied
from hotpatchd.daemon.library_patcher import ANCHOR, LibraryPatcher, choose_linker
from hotpatchd.daemon.linking import LinkCache
from hotpatchd.daemon.object_cache import ObjectCache
from hotpatchd.daemon.patcher import Ready
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.objects import BuildObjects, object_file
from hotpatchd.objfile.symbols import read_symbols
from tests.core.fakes import session as image_session
from tests.daemon.test_patcher import function, returning, static, symbol, thread_local
from tests.objfile.build import run, target_dir

TARGET = "x86_64-unknown-linux-gnu"
SLIDE = 0x5000_0000_0000
LLD_DIR = str(target_dir() / "bin" / "gcc-ld")
LINE = LinkLine(env=(("PATH", "/usr/bin:/bin"),), argv=("cc", "a.o", "-nodefaultlibs", "-o", "host"))


def session(client: int, slide: int = SLIDE, *, in_place: bool = True) -> Session:
    """A client that takes libraries."""
    base = image_session(client)
    hello = replace(base.hello, slide=slide, kind="dylib", in_place=in_place)
    return replace(base, hello=hello, redirect="detours" if in_place else "jump_table")


class World:
    """A program, and the patcher that knows its source."""

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        self.count = 0
        self.baseline = self.objects(source)
        start = self._assembled(source + ".globl _start\n.section .text._start\n_start: ret\n")
        run("cc", "-nostdlib", "-static-pie", "-o", root / "host", start)
        self.program = ProgramSymbols(read_symbols(root / "host"))
        self.patcher = LibraryPatcher(
            program=self.program,
            archives=ArchiveSet(()),
            link_line=LINE,
            target=TARGET,
            linker=LinkerChoice(driver_words=(f"-B{LLD_DIR}", "-fuse-ld=lld"), program=f"{LLD_DIR}/ld.lld"),
            crate_names=frozenset({"app"}),
            baseline=self.baseline,
            links=LinkCache(ObjectCache(root / "state" / "cache"), host="host", linker="linker"),
            state_dir=root / "state",
        )

    def _assembled(self, source: str) -> Path:
        self.count += 1
        path = self.root / f"{self.count}.o"
        path.with_suffix(".s").write_text(source)
        run("as", path.with_suffix(".s"), "-o", path)
        return path

    def objects(self, source: str) -> BuildObjects:
        """The objects of a rebuild; the crate has one codegen unit."""
        return BuildObjects({"app/one": object_file(self._assembled(source), is_optimised=False)})

    def addr(self, name: str) -> int:
        """Where a process with the usual slide has a symbol."""
        found = self.program.find(symbol(name))
        assert found is not None
        return found.addr + SLIDE

    async def prepare(self, source: str, client: Session | None = None) -> Ready:
        """The library for an edited source."""
        return await self.patcher.prepare(client or session(1), 7, self.objects(source), self.baseline)


def library(ready: Ready) -> DylibPatch:
    """The patch that was made."""
    assert isinstance(ready.patch, DylibPatch), ready.prepared.refusals
    return ready.patch


def code_at(ready: Ready, addr: int, size: int) -> bytes:
    """What a library has at a link-time address."""
    elf = ELFFile(io.BytesIO(ready.payload))
    for segment in elf.iter_segments("PT_LOAD"):
        start = addr - segment["p_vaddr"]
        if 0 <= start < segment["p_filesz"]:
            data: bytes = segment.data()
            return data[start : start + size]
    raise AssertionError(f"the library has nothing at {addr:#x}")


def applied(ready: Ready, client: Session) -> Session:
    """The session once the client applied what was prepared."""
    assert ready.prepared.content is not None
    return after_applied(client, ready.prepared.content, 0)


TWO = returning("one", 1) + returning("two", 2)


async def test_jump_leads_to_the_new_code(tmp_path: Path) -> None:
    """The edited function alone is replaced, by run-time and link-time addresses as the client takes them."""
    world = World(tmp_path, TWO)
    ready = await world.prepare(returning("one", 1) + returning("two", 20))
    patch = library(ready)
    [jump] = patch.jumps
    assert (jump.from_addr, jump.size) == (world.addr("two"), 6)
    assert code_at(ready, jump.to_addr, 6) == bytes.fromhex("b814000000c3")
    assert patch.anchor.symbol == ANCHOR
    assert ready.prepared.functions.patched == ("app::two",)


async def test_nothing_is_made_of_the_same_source(tmp_path: Path) -> None:
    """Objects with the same functions are no patch."""
    ready = await World(tmp_path, TWO).prepare(returning("two", 2) + returning("one", 1))
    assert (ready.patch, ready.prepared.content, ready.prepared.refusals) == (None, None, ())


async def test_next_library_has_what_is_in_force(tmp_path: Path) -> None:
    """The second edit's library replaces the first one's function again, and only the second is told as patched."""
    world = World(tmp_path, TWO)
    client = session(1)
    client = applied(await world.prepare(returning("one", 10) + returning("two", 2), client), client)
    ready = await world.prepare(returning("one", 10) + returning("two", 20), client)
    assert {jump.from_addr for jump in library(ready).jumps} == {world.addr("one"), world.addr("two")}
    assert ready.prepared.functions.patched == ("app::two",)


async def test_revert_is_a_library_with_the_old_code(tmp_path: Path) -> None:
    """Going back to the program's own source leads to a copy of it."""
    world = World(tmp_path, TWO)
    client = session(1)
    client = applied(await world.prepare(returning("one", 10) + returning("two", 2), client), client)
    ready = await world.prepare(TWO, client)
    [jump] = library(ready).jumps
    assert code_at(ready, jump.to_addr, 6) == bytes.fromhex("b801000000c3")


async def test_clients_with_the_same_slide_share_a_library(tmp_path: Path) -> None:
    """They get the same bytes, linked once; one with another slide gets others."""
    source = static("COUNT", ".long 0") + function("count", f"lea {symbol('COUNT')}(%rip),%rax", "ret")
    world = World(tmp_path, source)
    edited = source.replace("ret", "nop; ret", 1)
    first, same, other = [
        await world.prepare(edited, session(number, slide)) for number, slide in enumerate((SLIDE, SLIDE, 2 * SLIDE), 1)
    ]
    assert first.payload == same.payload != other.payload
    assert library(first).patch == library(same).patch != library(other).patch
    assert len(list((tmp_path / "state" / "patches" / "libraries").iterdir())) == 2


async def test_static_is_reached_where_the_program_has_it(tmp_path: Path) -> None:
    """What takes the address of a static relative to the instruction gets the program's from a table."""
    source = static("COUNT", ".long 0") + function("count", f"lea {symbol('COUNT')}(%rip),%rax", "ret")
    world = World(tmp_path, source)
    ready = await world.prepare(source.replace("ret", "nop; ret", 1))
    [jump] = library(ready).jumps
    instruction = code_at(ready, jump.to_addr, 7)
    assert instruction[:3] == bytes.fromhex("488b05")
    slot = jump.to_addr + 7 + int.from_bytes(instruction[3:], "little", signed=True)
    assert int.from_bytes(code_at(ready, slot, 8), "little") == world.addr("COUNT")


async def test_static_that_is_accessed_in_one_step_is_named(tmp_path: Path) -> None:
    """There is no room for a second step: the edit fails for a reason that names the static."""
    source = static("COUNT", ".long 0") + function("count", f"mov {symbol('COUNT')}(%rip),%eax", "ret")
    ready = await World(tmp_path, source).prepare(source.replace("ret", "nop; ret", 1))
    [refusal] = ready.prepared.refusals
    assert symbol("COUNT") in refusal.detail


async def test_thread_local_of_the_program_is_refused_by_name(tmp_path: Path) -> None:
    """A library has no way to it."""
    source = thread_local("OWN", ".long 0") + function("own", f"mov %fs:{symbol('OWN')}@tpoff,%eax", "ret")
    ready = await World(tmp_path, source).prepare(source.replace("ret", "nop; ret", 1))
    assert [(it.symbol, it.reason) for it in ready.prepared.refusals] == [("app::OWN", "thread_local")]


async def test_new_static_is_noted(tmp_path: Path) -> None:
    """State that comes with a library is named."""
    fresh = static("FRESH", ".long 7")
    edited = function("one", f"lea {symbol('FRESH')}(%rip),%rax", "ret") + returning("two", 2) + fresh
    ready = await World(tmp_path, TWO).prepare(edited)
    assert [(note.symbol, note.note) for note in ready.prepared.notes] == [("app::FRESH", "own_instance")]


@pytest.mark.parametrize("in_place", [True, False])
async def test_calls_are_bound_where_the_newest_code_is(tmp_path: Path, in_place: bool) -> None:
    """By the program's own place where that leads on; else inside the library, which then has all that leads there."""
    source = returning("inner", 1) + function("outer", f"call {symbol('inner')}", "ret")
    world = World(tmp_path, source)
    edited = returning("inner", 2) + function("outer", f"call {symbol('inner')}", "nop", "ret")
    ready = await world.prepare(edited, session(1, in_place=in_place))
    jumps = {jump.from_addr: jump.to_addr for jump in library(ready).jumps}
    outer = jumps[world.addr("outer")]
    instruction = code_at(ready, outer, 5)
    called = outer + 5 + int.from_bytes(instruction[1:], "little", signed=True)
    if in_place:
        assert code_at(ready, called, 10) == b"\x49\xbb" + world.addr("inner").to_bytes(8, "little")
    else:
        assert called == jumps[world.addr("inner")]


async def test_another_linker_is_found_for_gnu_ld() -> None:
    """GNU ld cannot link libraries against a program; the one beside rustc can."""
    rustc = shutil.which("rustc")
    assert rustc
    choice = await choose_linker(replace(LINE, argv=("cc", "-fuse-ld=bfd", "-o", "host")), TARGET, rustc)
    assert choice is not None
    assert Path(choice.program).name == "ld.lld"
    assert Path(choice.program).exists()
