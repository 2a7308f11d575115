"""Patches for a small program: made of real objects, linked by the machine's own linker."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.client import Detour, Gap, Patch, ThreadLocalImage
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.session import Session, after_applied, after_undo
from hotpatchd.core.unit import Fingerprint, HostSymbol
from hotpatchd.daemon.carrier import Carrier, CarrierLinker
from hotpatchd.daemon.linking import LinkCache
from hotpatchd.daemon.object_cache import ObjectCache
from hotpatchd.daemon.patcher import Patcher, Ready
from hotpatchd.daemon.replacing import Origin
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, read_host
from hotpatchd.objfile.image import read_image
from hotpatchd.objfile.machines import X86_64
from hotpatchd.objfile.objects import BuildObjects, object_file
from hotpatchd.objfile.padding import Padding
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX
from tests.core.fakes import session
from tests.objfile.build import run


def symbol(name: str) -> str:
    """A function or static of the crate `app`."""
    return f"_ZN3app{len(name)}{name}17h0123456789abcdefE"


def function(name: str, *code: str, align: int = 16) -> str:
    """A function in a section of its own."""
    label = symbol(name)
    lines = (f'.section .text.{label},"ax",@progbits', f".balign {align}", f".globl {label}")
    return "\n".join((*lines, f".type {label},@function", f"{label}:", *code, f".size {label}, . - {label}", ""))


def returning(name: str, value: int) -> str:
    """A function that returns a number; six bytes long."""
    return function(name, f"mov ${value},%eax", "ret")


def static(name: str, content: str, section: str = ".data", flags: str = "aw", align: int = 4) -> str:
    """A static in a section of its own, or a thread-local (flags `awT`)."""
    label = symbol(name)
    kind = "@tls_object" if "T" in flags else "@object"
    lines = (f'.section {section}.{label},"{flags}",@progbits', f".balign {align}", f".globl {label}")
    return "\n".join((*lines, f".type {label},{kind}", f"{label}:", content, f".size {label}, . - {label}", ""))


def thread_local(name: str, content: str, align: int = 4) -> str:
    """A thread-local static."""
    return static(name, content, ".tdata", "awT", align)


def reading(name: str, *thread_locals: str) -> str:
    """A function that reads thread-locals."""
    return function(name, *(f"mov %fs:{symbol(other)}@tpoff,%eax" for other in thread_locals), "ret")


class World:
    """A program, built from `host`, and the patcher that knows its source as `baseline`."""

    def __init__(self, root: Path, baseline: str, host: str | None = None, *, optimised: bool = False) -> None:
        self.root = root
        self.state_dir = root / "state"
        self.count = 0
        self.baseline = self.objects(baseline)
        source = host if host is not None else baseline
        assembled = self._assembled(source + ".globl _start\n.section .text._start\n_start: ret\n")
        run("cc", "-nostdlib", "-static", "-no-pie", "-o", root / "host", assembled)
        index = read_host(root / "host")
        code = HostCode(root / "host", index.header)
        link_line = LinkLine(env=(("PATH", "/usr/bin:/bin"),), argv=("cc", "a.o", "-nodefaultlibs", "-o", "host"))
        self.patcher = Patcher(
            origin=Origin.of(
                index,
                archives=ArchiveSet(()),
                crate_names=frozenset({"app"}),
                baseline=self.baseline,
                host_code=code if optimised else None,
                padding=Padding(index, code),
            ),
            libraries=(),
            link_line=link_line,
            linker="bfd",
            carriers=CarrierLinker(link_line, "x86_64-unknown-linux-gnu", ["rustc"], X86_64, root),
            links=LinkCache(ObjectCache(self.state_dir / "cache"), host="host", linker="linker"),
            state_dir=self.state_dir,
        )

    def _assembled(self, source: str) -> Path:
        self.count += 1
        path = self.root / f"{self.count}.o"
        path.with_suffix(".s").write_text(source)
        run("as", path.with_suffix(".s"), "-o", path)
        return path

    def objects(self, source: str, earlier: BuildObjects | None = None) -> BuildObjects:
        """The objects of a rebuild; the crate has one codegen unit."""
        return BuildObjects({"app/one": object_file(self._assembled(source), is_optimised=False)}, earlier)

    def addr(self, name: str) -> int:
        """Where the program has a symbol."""
        found = self.patcher.origin.host.find(symbol(name))
        assert found is not None
        return found.addr

    async def prepare(self, source: str, client: Session | None = None) -> Ready:
        """The patch for an edited source."""
        return await self.patcher.prepare(client or session(1), 7, self.objects(source), self.baseline)


def reasons(ready: Ready) -> list[tuple[str | None, str]]:
    """Subjects and reasons of the refusals."""
    assert ready.patch is None
    return [(refusal.symbol, refusal.reason) for refusal in ready.prepared.refusals]


def image_of(ready: Ready) -> Patch:
    """The patch that must have been made."""
    assert isinstance(ready.patch, Patch), ready.prepared.refusals
    return ready.patch


def detours(ready: Ready) -> list[Detour]:
    """The jumps of a patch that must have been made."""
    return list(image_of(ready).detours)


def applied(client: Session, ready: Ready) -> Session:
    """The client after it took a patch."""
    assert ready.prepared.content is not None
    return after_applied(client, ready.prepared.content, client.next_addr + client.hello.region.slot_size)


def behind_the_program(client: Session) -> Session:
    """The client with its region at higher addresses than the program's."""
    region = replace(client.hello.region, addr=0x10000000, next=0x10000000)
    return replace(client, hello=replace(client.hello, region=region), next_addr=region.addr)


def without_detours(client: Session) -> Session:
    """The client, if it enters new code by a jump table."""
    return replace(client, redirect="jump_table")


def carried(ready: Ready) -> Carrier:
    """The library that must have been linked."""
    assert ready.carrier is not None, ready.prepared.refusals
    return ready.carrier


def names(ready: Ready) -> Iterable[tuple[str, str]]:
    """Notes by subject."""
    return [(note.symbol, note.note) for note in ready.prepared.notes]


F1, F2, G1 = returning("f", 1), returning("f", 2), returning("g", 1)


async def test_without_a_difference_there_is_no_patch(tmp_path: Path) -> None:
    """The same code compiled again is what the program runs; nothing is written."""
    world = World(tmp_path, F1)
    ready = await world.prepare(F1)
    assert (ready.patch, ready.payload, ready.prepared.content) == (None, b"", None)
    assert (ready.prepared.refusals, ready.prepared.failed) == ((), False)
    assert not world.state_dir.exists()


async def test_a_changed_function_is_replaced(tmp_path: Path) -> None:
    """Its first bytes lead to its new code, in an image at the next free address; others stay."""
    world = World(tmp_path, F1 + G1)
    client = session(1)
    ready = await world.prepare(F2 + G1, client)
    (detour,) = detours(ready)
    assert (detour.from_addr, detour.size) == (world.addr("f"), 6)
    assert image_of(ready).segments[0].addr == client.next_addr
    assert (image_of(ready).patch, image_of(ready).size) == (
        hashlib.sha256(ready.payload).hexdigest(),
        len(ready.payload),
    )
    code = ready.payload[detour.to_addr - client.next_addr :][:6]
    assert code == bytes.fromhex("b802000000c3")
    assert ready.prepared.functions.patched == ("app::f",)
    assert ready.prepared.names == {detour.from_addr: "app::f"}


async def test_addresses_are_those_of_the_running_program(tmp_path: Path) -> None:
    """The client's slide is in the detour, and the symbols that the daemon remembers are without it."""
    world = World(tmp_path, F1)
    plain = session(1)
    client = replace(plain, hello=replace(plain.hello, slide=0x1000000))
    ready = await world.prepare(function("f", f"jmp {symbol('new')}") + returning("new", 3), client)
    assert [detour.from_addr for detour in detours(ready)] == [world.addr("f") + 0x1000000]
    assert ready.prepared.functions.added == ("app::new",)
    assert ready.prepared.content is not None
    (new,) = ready.prepared.content.symbols.values()
    ends = [(part.addr, part.addr + part.mem_size) for part in image_of(ready).segments]
    assert any(start <= new.addr + 0x1000000 < end for start, end in ends)


async def test_going_back_to_the_first_source_is_an_edit(tmp_path: Path) -> None:
    """What a patch replaced is compared with that patch, not with the program's file."""
    world = World(tmp_path, F1)
    first = await world.prepare(F2)
    client = applied(session(1), first)
    assert (await world.prepare(F2, client)).patch is None
    assert detours(await world.patcher.prepare(client, 8, world.baseline, world.objects(F2)))
    assert first.prepared.content is not None
    assert (await world.prepare(F1, after_undo(client, None))).patch is None


async def test_a_function_that_a_patch_added_is_replaced_where_that_put_it(tmp_path: Path) -> None:
    """The jump goes over the code in the patch, and is possible however short that is: it has room there."""
    world = World(tmp_path, F1)
    calling = function("f", f"jmp {symbol('new')}")
    client = behind_the_program(session(1))
    client = applied(client, await world.prepare(calling + function("new", "ret"), client))
    (detour,) = detours(await world.prepare(calling + returning("new", 4), client))
    assert detour.size == 1
    assert detour.from_addr == client.symbols[symbol("new")].addr


async def test_a_function_that_is_too_short_for_a_jump_is_refused(tmp_path: Path) -> None:
    """One byte, with another function right behind it."""
    short, after = function("f", "ret", align=1), function("g", "nop", "ret", align=1)
    world = World(tmp_path, short + after)
    assert reasons(await world.prepare(F2 + after)) == [("app::f", "too_short")]


async def test_a_function_that_is_too_short_gets_padding_nearby(tmp_path: Path) -> None:
    """Two bytes with another function right behind: there is room for a short jump, to what is behind that one."""
    short, behind = function("f", "nop", "ret", align=1), function("g", "nop", "ret", align=1) + function("h", "ret")
    world = World(tmp_path, short + behind)
    client = session(1)
    client = replace(client, hello=replace(client.hello, short_jumps=True))
    (detour,) = detours(await world.prepare(F2 + behind, client))
    gap = world.addr("g") + X86_64.detour_size + client.hello.slide
    assert (detour.size, detour.room) == (2, 2)
    assert detour.padding == (Gap(addr=gap, size=world.addr("h") + client.hello.slide - gap),)


async def test_a_function_that_is_too_short_for_a_short_jump_is_refused(tmp_path: Path) -> None:
    """One byte is too short for that as well, whatever padding there is."""
    short, behind = function("f", "ret", align=1), function("g", "nop", "ret", align=1) + function("h", "ret")
    client = session(1)
    client = replace(client, hello=replace(client.hello, short_jumps=True))
    ready = await World(tmp_path, short + behind).prepare(F2 + behind, client)
    assert reasons(ready) == [("app::f", "too_short")]


async def test_padding_behind_a_short_function_is_room_enough(tmp_path: Path) -> None:
    """The same function, where the next one begins 16 bytes later."""
    short, after = function("f", "ret"), function("g", "nop", "ret")
    world = World(tmp_path, short + after)
    assert [detour.size for detour in detours(await world.prepare(F2 + after))] == [1]


FOLDED = F1 + f".globl {symbol('g')}\n.type {symbol('g')},@function\n.set {symbol('g')}, {symbol('f')}\n"


async def test_folded_functions_that_differ_now_are_refused(tmp_path: Path) -> None:
    """The program has one copy of two functions; a jump would redirect both."""
    ready = await World(tmp_path, F1 + G1, FOLDED).prepare(F2 + G1)
    assert reasons(ready) == [("app::f", "folded")]
    assert "app::g" in ready.prepared.refusals[0].detail


async def test_folded_function_of_another_crate_is_refused(tmp_path: Path) -> None:
    """What a crate that is not edited has there must stay as it is."""
    foreign = F1 + f".globl foreign\n.type foreign,@function\n.set foreign, {symbol('f')}\n"
    ready = await World(tmp_path, F1, foreign).prepare(F2)
    assert reasons(ready) == [("app::f", "folded")]


async def test_functions_that_a_patch_folded_are_refused(tmp_path: Path) -> None:
    """A patch brought two functions as one, and one of them changes."""
    world = World(tmp_path, F1)
    brought = HostSymbol(world.addr("f") + 0x1000, 6, "function", 1)
    running = {symbol(name): Fingerprint(b"old", b"old") for name in "gh"}
    client = replace(session(1), symbols=dict.fromkeys(running, brought), running=running)
    ready = await world.prepare(F1 + G1 + returning("h", 2), client)
    assert reasons(ready) == [("app::g", "folded"), ("app::h", "folded")]


async def test_folded_functions_that_agree_share_one_jump(tmp_path: Path) -> None:
    """Edited alike they still are one."""
    world = World(tmp_path, F1 + G1, FOLDED)
    ready = await world.prepare(F2 + returning("g", 2))
    assert [detour.from_addr for detour in detours(ready)] == [world.addr("f")]
    assert ready.prepared.functions.patched == ("app::f", "app::g")


@pytest.mark.parametrize(("jumping", "having"), [("f", "g"), ("g", "f")])
async def test_the_jump_of_folded_functions_leads_to_the_one_with_the_code(
    tmp_path: Path, jumping: str, having: str
) -> None:
    """The other's new code jumps to the place itself: the program would never leave it."""
    source = function(jumping, f"jmp {symbol(having)}") + returning(having, 1)
    client = replace(session(1), gone=frozenset({symbol(jumping)}))
    ready = await World(tmp_path, source, FOLDED, optimised=True).prepare(source, client)
    (jump,) = detours(ready)
    assert ready.linked is not None
    new_code = read_image(ready.linked, page_size=client.hello.page_size).symbols
    assert jump.to_addr == new_code[symbol(having) + NEW_CODE_SUFFIX].addr
    assert ready.prepared.functions.patched == ("app::f", "app::g")


async def test_a_function_that_became_a_jump_to_one_of_its_place_agrees_with_it(tmp_path: Path) -> None:
    """They are one function as before."""
    world = World(tmp_path, F1 + G1, FOLDED, optimised=True)
    ready = await world.prepare(function("f", f"jmp {symbol('g')}") + G1)
    assert [detour.from_addr for detour in detours(ready)] == [world.addr("f")]


async def test_folded_functions_that_call_each_other_now_are_refused(tmp_path: Path) -> None:
    """No order of jumps leads out of their one place."""
    source = function("f", f"jmp {symbol('g')}", "nop") + function("g", f"jmp {symbol('f')}", "nop")
    client = replace(session(1), gone=frozenset({symbol("f")}))
    ready = await World(tmp_path, source, FOLDED, optimised=True).prepare(source, client)
    assert [reason for _, reason in reasons(ready)] == ["folded"]


async def test_a_patch_beyond_the_end_of_the_region_is_refused(tmp_path: Path) -> None:
    """The room that the program keeps is used up."""
    client = session(1)
    region = client.hello.region
    ready = await World(tmp_path, F1).prepare(F2, replace(client, next_addr=region.addr + region.size))
    assert reasons(ready) == [(None, "region_full")]


async def test_a_patch_up_to_the_end_of_the_region_is_made(tmp_path: Path) -> None:
    """The last slot can be used as well."""
    client = session(1)
    region = client.hello.region
    last = replace(client, next_addr=region.addr + region.size - region.slot_size)
    assert detours(await World(tmp_path, F1).prepare(F2, last))


async def test_a_linker_that_fails_is_quoted(tmp_path: Path) -> None:
    """The edit fails, with the program's name and what it said."""
    world = World(tmp_path, F1)
    world.patcher.link_line = LinkLine(env=(), argv=("cc", "-Wl,--no-such-flag"))
    ready = await world.prepare(F2)
    assert (reasons(ready), ready.prepared.failed) == ([(None, "link")], True)
    assert "`cc` failed with exit status 1" in ready.prepared.refusals[0].detail
    assert "no-such-flag" in ready.prepared.refusals[0].detail


async def test_a_linker_that_is_missing_is_named(tmp_path: Path) -> None:
    """The edit fails, and the daemon goes on."""
    world = World(tmp_path, F1)
    world.patcher.link_line = LinkLine(env=(), argv=("no-such-linker",))
    ready = await world.prepare(F2)
    assert (reasons(ready), ready.prepared.failed) == ([(None, "link")], True)
    assert "no-such-linker" in ready.prepared.refusals[0].detail


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With the system's words."""
    world = World(tmp_path, F1)
    world.state_dir.write_text("in the way")
    ready = await world.prepare(F2)
    assert (reasons(ready), ready.prepared.failed) == ([(None, "disk")], True)
    assert str(world.state_dir) in ready.prepared.refusals[0].detail
    assert "Not a directory" in ready.prepared.refusals[0].detail


async def test_the_linked_patch_is_found_under_every_slot_that_it_covers(tmp_path: Path) -> None:
    """A debugger that looks for a slot's file finds the same file."""
    client = session(1)
    region = replace(client.hello.region, slot_size=0x1000)
    client = replace(client, hello=replace(client.hello, region=region), next_addr=region.addr + 0x2000)
    ready = await World(tmp_path, F1).prepare(function("f", "ret", ".zero 0x2100, 0x90"), client)
    assert image_of(ready).elf is not None
    linked = Path(image_of(ready).elf or "")
    assert linked.name == "slot-2.elf"
    slots = sorted(linked.parent.glob("slot-*.elf"))
    assert [path.name for path in slots] == ["slot-2.elf", "slot-3.elf", "slot-4.elf"]
    assert all(path.samefile(linked) for path in slots)


async def test_new_thread_locals_are_placed_one_after_the_other(tmp_path: Path) -> None:
    """Each where its alignment allows, counted from the thread pointer; zeros need no image."""
    world = World(tmp_path, F1)
    locals_ = thread_local("a", ".byte 5", 1) + thread_local("b", ".quad 0", 8) + thread_local("c", ".quad 6", 16)
    ready = await world.prepare(locals_ + reading("f", "a", "b", "c"))
    assert ready.patch is not None, ready.prepared.refusals
    assert image_of(ready).thread_locals == (
        ThreadLocalImage(offset=-64, data="05"),
        ThreadLocalImage(offset=-48, data="0600000000000000"),
    )
    content = ready.prepared.content
    assert content is not None
    assert content.symbols[symbol("b")].addr == -56
    assert content.thread_locals == 24


async def test_later_thread_locals_are_placed_behind_earlier_ones(tmp_path: Path) -> None:
    """What an earlier patch placed keeps its place and its value."""
    world = World(tmp_path, F1)
    first = thread_local("a", ".long 5")
    client = applied(session(1), await world.prepare(first + reading("f", "a")))
    ready = await world.prepare(first + thread_local("b", ".long 6") + reading("f", "a", "b"), client)
    assert image_of(ready).thread_locals == (ThreadLocalImage(offset=-60, data="06000000"),)


@pytest.mark.parametrize(("size", "fits"), [(64, True), (65, False)])
async def test_thread_locals_beyond_the_reserve_are_refused(tmp_path: Path, size: int, fits: bool) -> None:
    """The reserve can be used to its last byte."""
    ready = await World(tmp_path, F1).prepare(thread_local("a", f".zero {size}", 1) + reading("f", "a"))
    assert (ready.patch is not None) == fits
    if not fits:
        assert reasons(ready) == [("app::a", "new_thread_local")]


async def test_a_function_that_the_program_lacks_is_noted(tmp_path: Path) -> None:
    """The linker dropped it, since nothing calls it: there is nothing to patch."""
    ready = await World(tmp_path, F1 + G1, F1).prepare(F1 + returning("g", 2))
    assert (ready.patch, names(ready)) == (None, [("app::g", "not_in_host")])


async def test_a_changed_initialiser_is_noted(tmp_path: Path) -> None:
    """The running program keeps the value that the static has."""
    ready = await World(tmp_path, F1 + static("s", ".long 1")).prepare(F2 + static("s", ".long 2"))
    assert detours(ready)
    assert names(ready) == [("app::s", "initialiser_kept")]


async def test_a_new_entry_of_a_collected_section_is_noted(tmp_path: Path) -> None:
    """The running program has read its table already."""
    entry = '.section table,"a",@progbits\n.quad 1\n'
    assert names(await World(tmp_path, F1).prepare(F2 + entry)) == [("table", "collected")]


async def test_a_function_into_which_another_was_inlined_is_replaced_with_it(tmp_path: Path) -> None:
    """In an optimised program a caller without a call has the old code inside."""
    calling, inlined = function("g", f"call {symbol('f')}", "ret"), returning("g", 1)
    world = World(tmp_path, F1 + calling, F1 + inlined, optimised=True)
    assert (await world.prepare(F2 + calling)).prepared.functions.patched == ("app::f", "app::g")


async def test_a_caller_that_calls_is_left_alone(tmp_path: Path) -> None:
    """Its call leads to the jump."""
    calling = function("g", f"call {symbol('f')}", "ret")
    world = World(tmp_path, F1 + calling, optimised=True)
    assert (await world.prepare(F2 + calling)).prepared.functions.patched == ("app::f",)


def private(code: str) -> str:
    """The same functions, for their own object only."""
    return "".join(line for line in code.splitlines(keepends=True) if not line.startswith(".globl"))


async def test_a_function_that_the_optimiser_may_have_changed_is_replaced_in_its_callers(tmp_path: Path) -> None:
    """Nothing else calls it: its arguments need not be what its source says: new code cannot take its place."""
    calling = function("g", f"call {symbol('f')}", "ret")
    world = World(tmp_path, F1 + calling, private(F1) + calling, optimised=True)
    ready = await world.prepare(F2 + calling)
    assert ready.prepared.functions.patched == ("app::g",)
    assert ready.prepared.functions.added == ("app::f",)


async def test_a_patch_does_not_call_a_function_that_the_optimiser_may_have_changed(tmp_path: Path) -> None:
    """It brings one that is as the source says."""
    calling, doing_more = (function("g", *more, f"call {symbol('f')}", "ret") for more in ((), ("nop",)))
    world = World(tmp_path, F1 + calling, private(F1) + calling, optimised=True)
    assert (await world.prepare(F1 + doing_more)).prepared.functions.added == ("app::f",)


async def test_a_private_function_whose_address_is_known_is_replaced_itself(tmp_path: Path) -> None:
    """Whoever has the address calls it as its source says, and so does the optimiser, then."""
    table = static("table", f".quad {symbol('f')}", ".data.rel.ro")
    world = World(tmp_path, F1 + table, private(F1) + table, optimised=True)
    assert (await world.prepare(F2 + table)).prepared.functions.patched == ("app::f",)


async def test_an_earlier_edit_of_an_unused_function_is_not_noted_again(tmp_path: Path) -> None:
    """A note is of the edit that changed the function."""
    world = World(tmp_path, F1 + G1, F1)
    client, before = session(1), world.objects(F1 + returning("g", 2))
    ready = await world.patcher.prepare(client, 8, world.objects(F2 + returning("g", 2), before), before)
    assert detours(ready)
    assert names(ready) == []


CALLING_F, TOP = function("mid", f"jmp {symbol('f')}"), function("top", f"jmp {symbol('mid')}")


async def test_without_detours_whatever_leads_to_a_changed_function_is_replaced_too(tmp_path: Path) -> None:
    """The program may enter any of it; what was not edited is not reported as edited."""
    world = World(tmp_path, F1 + CALLING_F + TOP + G1)

    ready = await world.prepare(F2 + CALLING_F + TOP + G1, without_detours(session(1)))

    assert carried(ready).jumps.keys() == {world.addr("f"), world.addr("mid"), world.addr("top")}
    assert ready.prepared.functions.patched == ("app::f",)
    assert ready.prepared.kind == "dylib"
    assert ready.prepared.bytes == carried(ready).path.stat().st_size


async def test_a_later_table_covers_earlier_patches(tmp_path: Path) -> None:
    """A table replaces the one before it, so functions of earlier patches are in it, at all their places."""
    world = World(tmp_path, F1 + G1)
    client = without_detours(session(1))
    first = await world.prepare(F2 + G1, client)
    assert first.prepared.content is not None
    client = applied(client, first)
    (copy,) = (found.addr for found in first.prepared.content.copies.values())

    second = await world.prepare(F2 + returning("g", 2), client)

    assert carried(second).jumps.keys() == {world.addr("f"), copy, world.addr("g")}
    assert carried(second).jumps[world.addr("f")] == carried(second).jumps[copy]


async def test_a_client_that_joins_late_gets_everything_in_one_library(tmp_path: Path) -> None:
    """It is told from the program's own code, not from what others were sent."""
    world = World(tmp_path, F1 + G1)

    ready = await world.prepare(F2 + returning("g", 2), without_detours(session(1)))

    assert carried(ready).jumps.keys() == {world.addr("f"), world.addr("g")}


async def test_without_detours_a_short_function_can_be_replaced(tmp_path: Path) -> None:
    """Nothing is written over it."""
    world = World(tmp_path, function("f", "ret", align=1) + function("g", "nop", "ret", align=1))

    ready = await world.prepare(F2 + G1, without_detours(session(1)))

    assert carried(ready).jumps.keys() == {world.addr("f"), world.addr("g")}


HOT = "_ZN53_$LT$T$u20$as$u20$subsecond..HotFunction$LT$A$GT$$GT$7call_it17hbdc3991c56a0bb5eE"


async def test_a_function_that_no_hot_call_leads_to_is_noted(tmp_path: Path) -> None:
    """It would be reported as applied, and the program would never enter it."""
    hot = F1.replace(symbol("f"), HOT).replace("mov $1,%eax", f"call {symbol('f')}")
    for index, (extra, expected) in enumerate([("", [("app::f", "not_hot")]), (hot, [])]):
        root = tmp_path / str(index)
        root.mkdir()
        ready = await World(root, F1 + extra).prepare(F2 + extra, without_detours(session(1)))
        assert names(ready) == expected


THROUGH_A_TABLE = function("user", "lea .Ltable(%rip),%rax", "jmp *(%rax)") + (
    f'.section .data.rel.ro.table,"aw",@progbits\n.balign 8\n.Ltable: .quad {symbol("f")}\n'
)


async def test_what_leads_to_a_function_by_a_table_may_hold_a_copy_of_it(tmp_path: Path) -> None:
    """The program's optimiser saw which function it is, and put its code in place of the call."""
    world = World(tmp_path, F1 + THROUGH_A_TABLE, F1 + returning("user", 1), optimised=True)
    ready = await world.prepare(F2 + THROUGH_A_TABLE)
    assert ready.prepared.functions.patched == ("app::f", "app::user")
