"""Panics pass through patched code, and backtraces and debuggers name it."""

import os
import re
import shutil
from pathlib import Path

from hotpatchd.core.crash import parse_note, parse_panics
from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import Peer
from tests.client.images import Image

PANICS = "void panic_now(void); int replaced(int n) { panic_now(); return n; }"
PRINTS = "void print_backtrace(void);\n\nint replaced(int n) {\n    print_backtrace();\n    return n + 2;\n}\n"


def keep_elf(stage: Stage, peer: Peer, image: Image) -> None:
    """Put the linked patch where a daemon leaves it, under the name of its slot."""
    region = peer.hello["region"]
    slot = (image.message["segments"][0]["addr"] - region["addr"]) // region["slot_size"]
    directory = stage.state / "patches" / peer.hello["instance"]
    directory.mkdir(parents=True, exist_ok=True)
    os.link(image.message["elf"], directory / f"slot-{slot}.elf")


async def apply(stage: Stage, peer: Peer, program: Program, source: str, next_addr: int = 0) -> int:
    """Apply a patch of `answer` whose debug information is at hand; the next free address."""
    image = stage.image(source, peer.hello, program, next_addr=next_addr, answer="replaced")
    keep_elf(stage, peer, image)
    applied = await peer.apply(image.message, image.content)
    assert applied["type"] == "applied"
    following: int = applied["next"]
    return following


async def test_panic_unwinds_through_patched_code(stage: Stage) -> None:
    """A panic under a patched function is caught above it, and drops run on the way."""
    async with stage.patching("rust") as (program, peer):
        assert await program.ask_lines("answer") == ["dropped", "2"]
        await apply(stage, peer, program, PANICS)
        assert await program.ask_lines("answer") == ["dropped", "caught"]


async def test_panics_through_patched_code_are_counted(stage: Stage) -> None:
    """The client says that there are some; its notes have the way that they went, once, and the newest one's thread."""
    async with stage.patching("rust") as (program, peer):
        note = stage.state / "patches" / peer.hello["instance"] / "crash"
        await apply(stage, peer, program, PANICS)
        assert parse_panics(note.read_bytes()) == ()
        for count in (1, 2):
            await program.ask_lines("answer")
            assert await peer.receive() == {"type": "panicked", "seq": 2 + count}
            [site] = parse_panics(note.read_bytes())
            assert (site.number, site.count, site.thread) == (1, count, "main")
        [addr] = site.frames
        assert peer.hello["region"]["addr"] <= addr < peer.hello["region"]["addr"] + peer.hello["region"]["size"]


async def test_panics_that_leave_no_patched_code_are_not_counted(stage: Stage) -> None:
    """What is caught below patched code goes through none of it."""
    source = "void catch_panic(void); int replaced(int n) { catch_panic(); return n + 3; }"
    async with stage.patching("rust") as (program, peer):
        await apply(stage, peer, program, source)
        assert await program.ask_lines("answer") == ["caught inside", "dropped", "4"]
        note = (stage.state / "patches" / peer.hello["instance"] / "crash").read_bytes()
        assert parse_note(note) is not None
        assert parse_panics(note) == ()


async def test_backtrace_names_patched_functions(stage: Stage) -> None:
    """A backtrace shows name, file and line of patched functions, though one was printed before the patches came."""
    async with stage.patching("rust") as (program, peer):
        assert "replaced" not in "\n".join(await program.ask_lines("backtrace"))
        next_addr = 0
        for line in (4, 6):
            source = "\n" * (line - 4) + PRINTS
            next_addr = await apply(stage, peer, program, source, next_addr)
            backtrace = "\n".join(await program.ask_lines("answer"))
            assert re.search(rf"\d+: replaced\n +at .*/patched\.c:{line}\b", backtrace), backtrace
            assert re.search(r"host::main\n +at .*host\.rs:\d+", backtrace), backtrace


async def test_backtrace_names_functions_of_a_replaced_file(stage: Stage, tmp_path: Path) -> None:
    """A backtrace shows names and lines though a newer build has taken the place of the program's file."""
    copy = Path(shutil.copy(stage.programs["rust"], tmp_path / "rust"))
    stage.programs = {**stage.programs, "rust": copy}
    async with stage.patching("rust") as (program, peer):
        await apply(stage, peer, program, PRINTS)
        copy.unlink()
        copy.write_bytes(b"a newer build")
        backtrace = "\n".join(await program.ask_lines("answer"))
        assert re.search(r"\d+: replaced\n +at .*/patched\.c:4\b", backtrace), backtrace
        assert re.search(r"host::main\n +at .*host\.rs:\d+", backtrace), backtrace


async def test_patch_is_shown_to_gdb(stage: Stage) -> None:
    """Patches are linked into the list of gdb's JIT interface, newest first, as the files that the daemon named."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        size = os.stat(image.message["elf"]).st_size
        assert await program.ask("jit") == f"{size} 7f454c46"


async def test_patch_without_debug_information_is_applied(stage: Stage) -> None:
    """The linked file is for debuggers: a missing one does not matter."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        for number, elf in enumerate((None, "/nonexistent/patch.elf")):
            moved = image.with_changes(elf=elf).moved(number * peer.hello["region"]["slot_size"])
            assert (await peer.apply(moved.message, moved.content))["type"] == "applied"
        assert await program.ask("answer") == "9"
