"""Functions that no thread may be inside when code is rewritten."""

from __future__ import annotations

from typing import Any

from tests.client.conftest import Stage
from tests.client.images import Image, read_symbols

ANSWER_1000 = "int replaced(int n) { return n + 1001; }"


def needing_idle(stage: Stage, program: Any, peer: Any, function: str) -> Image:
    """A patch of `answer` during which a function of the host must not run."""
    image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
    symbol = read_symbols(program.path)[function]
    idle = {"from": symbol.addr + peer.hello["slide"], "size": symbol.size, "symbol": "app::T", "detail": "it changed"}
    return image.with_changes(idle=[idle])


async def test_patch_is_refused_while_a_thread_is_inside(stage: Stage) -> None:
    """The refusal has what the daemon gave for it, and the thread's name; nothing changes."""
    async with stage.patching("host", "2") as (program, peer):
        await program.ask("waiter")
        await stage.wait_for_syscall(program, "waiter", "read")
        before = await program.ask("answer")
        image = needing_idle(stage, program, peer, "wait_for_byte")
        refused = await peer.apply(image.message, image.content)
        assert (refused["type"], refused["reason"], refused["symbol"]) == ("refused", "layout", "app::T")
        assert refused["detail"] == "it changed (thread waiter)"
        assert await program.ask("answer") == before


async def test_patch_applies_while_no_thread_is_inside(stage: Stage) -> None:
    """A function that is not running is no hindrance."""
    async with stage.patching("host", "2") as (program, peer):
        image = needing_idle(stage, program, peer, "wait_for_byte")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_undo_is_refused_while_a_thread_is_inside(stage: Stage) -> None:
    """Values that came with the patch are as wrong for the old code."""
    async with stage.patching("host", "2") as (program, peer):
        image = needing_idle(stage, program, peer, "wait_for_byte")
        await peer.apply(image.message, image.content)
        await program.ask("waiter")
        await stage.wait_for_syscall(program, "waiter", "read")
        after = await program.ask("answer")
        refused = await peer.undo(None)
        assert (refused["type"], refused["reason"]) == ("refused", "layout")
        assert await program.ask("answer") == after
