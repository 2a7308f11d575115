"""Thread-locals that a patch brings have a place in every thread, and start there as the patch says."""

from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import FakeDaemon, Peer
from tests.client.images import Image

_MARK = 0x11223344
_SEVEN = (7).to_bytes(4, "little").hex()


def counting(hello: dict[str, Any]) -> str:
    """A body for `answer` that counts up the first and the last number of the reserve: `first * 100 + last`."""
    first, last = (
        hello["thread_locals"]["offset"],
        hello["thread_locals"]["offset"] + hello["thread_locals"]["size"] - 4,
    )
    return f"""
        int replaced(int n) {{
            int first, last;
            __asm__ volatile("addl $1, %%fs:{first}; movl %%fs:{first}, %0; addl $1, %%fs:{last}; movl %%fs:{last}, %1"
                             : "=&r"(first), "=r"(last));
            return first * 100 + last;
        }}
    """


def counting_from_seven(stage: Stage, program: Program, peer: Peer, **detours: Any) -> Image:
    """A patch that counts in the reserve, whose first number starts with 7."""
    image = stage.image(counting(peer.hello), peer.hello, program, **detours)
    return image.with_changes(thread_locals=[{"offset": peer.hello["thread_locals"]["offset"], "data": _SEVEN}])


async def test_each_thread_has_its_own(stage: Stage) -> None:
    """Running threads and later ones have values of their own, which begin as the patch says, or else at zero."""
    async with stage.patching("host") as (program, peer):
        assert peer.hello["thread_locals"]["size"] == 4096
        assert peer.hello["thread_locals"]["offset"] % 64 == 0
        await program.ask("start worker 0")
        image = counting_from_seven(stage, program, peer, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        await program.ask("start worker 1")
        for expected in ("801", "902", "1003"):
            assert await program.ask("answer") == expected
        for worker in (0, 1):
            assert await program.ask(f"ask worker {worker}") == "801"
            assert await program.ask(f"ask worker {worker}") == "902"


async def test_undo_and_later_patches_leave_them(stage: Stage) -> None:
    """Values go on after an undo and under a later patch that brings no thread-local."""
    async with stage.patching("host") as (program, peer):
        image = counting_from_seven(stage, program, peer, answer="replaced")
        await peer.apply(image.message, image.content)
        assert await program.ask("answer") == "801"
        await peer.undo(None)
        assert await program.ask("answer") == "2"
        again = image.moved(peer.hello["region"]["slot_size"]).with_changes(thread_locals=[])
        await peer.apply(again.message, again.content)
        assert await program.ask("answer") == "902"
        await program.ask("start worker 0")
        assert await program.ask("ask worker 0") == "801"


async def test_refused_patch_writes_none(stage: Stage) -> None:
    """A patch that a thread holds off leaves the reserve as it was, for running threads and for new ones."""
    async with stage.patching("host") as (program, peer):
        await program.ask("early caller")
        await stage.wait_for_syscall(program, "early", "read")
        image = counting_from_seven(stage, program, peer, answer="replaced", early_call="replaced")
        assert (await peer.apply(image.message, image.content))["reason"] == "park"
        image = stage.image(counting(peer.hello), peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        await program.ask("start worker 0")
        assert await program.ask("answer") == "101"
        assert await program.ask("ask worker 0") == "101"


async def test_patch_may_bring_nothing_but_thread_locals(stage: Stage) -> None:
    """Without a detour, contents are written all the same."""
    async with stage.patching("host") as (program, peer):
        image = counting_from_seven(stage, program, peer, answer="replaced")
        alone = image.with_changes(detours=[])
        assert (await peer.apply(alone.message, alone.content))["threads"] == 1
        image = image.moved(peer.hello["region"]["slot_size"]).with_changes(thread_locals=[])
        await peer.apply(image.message, image.content)
        assert await program.ask("answer") == "801"


async def test_thread_that_is_starting_another_holds_the_patch_off(stage: Stage) -> None:
    """New thread-locals are refused while a thread is in `pthread_create`; patches without any are not."""
    async with stage.patching("host") as (program, peer):
        await program.ask("held starter")
        await stage.wait_for_syscall(program, "held", "read")
        image = counting_from_seven(stage, program, peer, answer="replaced")
        refused = await peer.apply(image.message, image.content)
        assert (refused["reason"], refused["detail"]) == ("park", "thread held stays in starting another")
        without = image.with_changes(thread_locals=[])
        assert (await peer.apply(without.message, without.content))["type"] == "applied"
        await program.ask("free")
        await stage.wait_for_end(program, "held")
        later = image.moved(peer.hello["region"]["slot_size"])
        assert (await peer.apply(later.message, later.content))["type"] == "applied"


async def test_threads_that_start_meanwhile_have_them(stage: Stage) -> None:
    """Patches that bring one each, while threads are started all the time: none ever misses its content."""
    async with stage.patching("host") as (program, peer):
        await program.ask("spawner")
        await program.ask("spawner")
        offset, slot_size = peer.hello["thread_locals"]["offset"], peer.hello["region"]["slot_size"]
        source = f"""
            int replaced(int n) {{ __asm__ volatile("addl %%fs:{_MARK}, %0" : "+r"(n)); return n; }}
        """
        image = stage.image(source, peer.hello, program, answer="replaced")
        for number in range(50):
            place, amount = offset + 8 * number, 1001 + 1000 * number
            displacement = place.to_bytes(4, "little", signed=True)
            numbered = image.with_content(_MARK.to_bytes(4, "little"), displacement).moved(number * slot_size)
            numbered = numbered.with_changes(
                thread_locals=[{"offset": place, "data": amount.to_bytes(4, "little").hex()}]
            )
            applied = await peer.apply(numbered.message, numbered.content)
            assert applied["type"] == "applied", applied
        assert await program.ask("progress") == "1"
        assert await program.ask("wrong") == "0"


@pytest.mark.parametrize(
    ("shift", "data", "reason"),
    [
        (-1, "00", "address"),
        (4096, "00", "address"),
        (4093, "00000000", "address"),
        (0, "00" * 4097, "address"),
        (-(2**62), "00", "address"),
        (0, "0", "malformed"),
        (0, "0g", "malformed"),
        (0, "+1", "malformed"),
        (0, "é0", "malformed"),
    ],
)
async def test_bad_thread_local_is_refused(stage: Stage, shift: int, data: str, reason: str) -> None:
    """Content that is not hex, or not for the reserve, is refused, and nothing of the patch is applied."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        offset = peer.hello["thread_locals"]["offset"] + shift
        spoilt = image.with_changes(thread_locals=[{"offset": offset, "data": data}])
        assert (await peer.apply(spoilt.message, spoilt.content))["reason"] == reason
        assert await program.ask("answer") == "2"
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_initial_image_is_protected_again(stage: Stage) -> None:
    """After a patch with thread-locals, the client's library is mapped as it was before."""
    async with stage.patching("host") as (program, peer):
        before = _protections(program, stage.library)
        image = counting_from_seven(stage, program, peer, answer="replaced")
        await peer.apply(image.message, image.content)
        assert _protections(program, stage.library) == before


async def test_client_loaded_late_has_no_room(stage: Stage) -> None:
    """A client that a running program loads offers nothing, refuses thread-locals, and applies other patches."""
    async with (
        FakeDaemon.listening(stage.state) as daemon,
        stage.running("host", LD_PRELOAD="") as program,
    ):
        assert await program.ask(f"load {stage.library}") == "1"
        peer = await daemon.welcome()
        assert peer.hello["thread_locals"] == {"offset": 0, "size": 0}
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        spoilt = image.with_changes(thread_locals=[{"offset": -64, "data": "00"}])
        assert (await peer.apply(spoilt.message, spoilt.content))["reason"] == "address"
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "9"


def _protections(program: Program, library: Path) -> list[str]:
    lines = Path(f"/proc/{program.pid}/maps").read_text().splitlines()
    pages: list[str] = []
    for line in lines:
        if line.endswith(str(library)):
            start, _, end = line.split()[0].partition("-")
            pages += [line.split()[1]] * ((int(end, 16) - int(start, 16)) // 4096)
    return pages
