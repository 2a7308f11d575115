"""Where a long jump would be in a thread's way, or has no room, a short one leads to it in padding."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import Peer
from tests.client.images import Image, read_symbols

ENTERED = "extern int entered; void replaced(void) { entered++; }"
NUMBERS = "int one(void) { return 1; } int two(void) { return 2; }"
SHORT = 3
"""Bytes of the functions without room."""
ALL = 40
"""Bytes of padding in the program."""


def padded(image: Image, peer: Peer, program: Program, size: int = 12, **changes: Any) -> Image:
    """A patch whose detours may use so many bytes of padding."""
    addr = read_symbols(program.path)["padding"].addr + peer.hello["slide"]
    padding = [{"addr": addr, "size": size}]
    return image.with_changes(
        detours=[{**detour, "padding": padding, **changes} for detour in image.message["detours"]]
    )


async def rounds_of(program: Program) -> int:
    """How often the thread in the loop has gone round."""
    return int(await program.ask("rounds"))


async def go_round(program: Program) -> None:
    """Let the thread in the loop go round once."""
    before = await rounds_of(program)
    await program.ask("go on")
    while await rounds_of(program) == before:
        pass


async def test_thread_in_a_loop_behind_the_first_bytes_stays_in_it(stage: Stage) -> None:
    """It goes on in the old code while calls reach the new one, and after the undo it does as well, byte for byte."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        await program.ask("loop behind")
        await stage.wait_for_syscall(program, "looping", "read")
        image = padded(stage.image(ENTERED, peer.hello, program, behind="replaced"), peer, program)
        answer = await peer.apply(image.message, image.content)
        assert (answer["type"], [entry["threads"] for entry in answer.get("on_stack", [])]) == (
            "applied",
            [["looping"]],
        ), answer
        changed = await program.ask("bytes")
        assert [changed[:2], changed[4:16]] == ["eb", original[4:16]]
        await go_round(program)
        assert await program.ask("enter") == "1"
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("bytes") == original
        await go_round(program)
        await program.ask("end")
        await stage.wait_for_end(program, "looping")


async def test_second_patch_of_a_function_with_a_short_jump_replaces_the_first(stage: Stage) -> None:
    """It needs no padding of its own; taken back, the first one's code runs again."""
    async with stage.patching("tight") as (program, peer):
        first = padded(stage.image(ENTERED, peer.hello, program, behind="replaced"), peer, program)
        applied = await peer.apply(first.message, first.content)
        after_first = await program.ask("bytes")
        source = ENTERED.replace("++", " += 10")
        second = stage.image(source, peer.hello, program, next_addr=applied["next"], behind="replaced")
        assert (await peer.apply(second.message, second.content))["type"] == "applied"
        assert await program.ask("enter") == "10"
        assert (await peer.undo(first.id))["type"] == "applied"
        assert await program.ask("bytes") == after_first
        assert await program.ask("enter") == "11"


async def test_without_padding_a_thread_in_the_loop_is_named(stage: Stage) -> None:
    """Then there is only the long jump, in whose middle the thread would go on."""
    async with stage.patching("tight") as (program, peer):
        await program.ask("loop behind")
        await stage.wait_for_syscall(program, "looping", "read")
        image = stage.image(ENTERED, peer.hello, program, behind="replaced")
        refused = await peer.apply(image.message, image.content)
        assert refused["detail"] == "thread looping stays in it, and it jumps back to its first bytes; restart"


async def test_thread_in_a_loop_behind_the_first_byte_stays_in_it(stage: Stage) -> None:
    """The call that the loop begins with is made elsewhere, and returns into the old code, which stays on the stack."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        await program.ask("loop second")
        await stage.wait_for_syscall(program, "looping", "read")
        next_addr = 0
        for entered in ("1", "2"):
            image = stage.image(ENTERED, peer.hello, program, next_addr=next_addr, second="replaced")
            image = padded(image, peer, program, size=ALL)
            answer = await peer.apply(image.message, image.content)
            assert answer["type"] == "applied", answer
            assert [entry["threads"] for entry in answer["on_stack"]] == [["looping"]]
            await go_round(program)
            assert await program.ask("enter second") == entered
            next_addr = answer["next"]
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("bytes") == original
        await go_round(program)
        await program.ask("end")
        await stage.wait_for_end(program, "looping")


async def test_busy_loop_behind_the_first_byte_goes_on(stage: Stage) -> None:
    """A thread that goes round all the time is stopped nowhere between its old code and the call that is elsewhere."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        await program.ask("spin")
        image = padded(stage.image(ENTERED, peer.hello, program, second="replaced"), peer, program, size=ALL)
        for number in range(30):
            moved = image.moved(number * 2 * peer.hello["region"]["slot_size"])
            for answer in (await peer.apply(moved.message, moved.content), await peer.undo(None)):
                assert answer["type"] == "applied", answer
                before = await rounds_of(program)
                while await rounds_of(program) < before + 1000:
                    pass
        assert await program.ask("bytes") == original


async def test_loop_that_begins_in_the_short_jump_is_waited_for(stage: Stage) -> None:
    """Where no jump to the padding leaves room for that, nothing changes while a thread is in the loop."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        await program.ask("loop second")
        await stage.wait_for_syscall(program, "looping", "read")
        image = padded(stage.image(ENTERED, peer.hello, program, second="replaced"), peer, program)
        refused = await peer.apply(image.message, image.content)
        assert refused["detail"] == "thread looping stays in it, and it jumps back to its first bytes; restart"
        assert await program.ask("bytes") == original
        await program.ask("end")
        await stage.wait_for_end(program, "looping")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_functions_without_room_share_padding(stage: Stage) -> None:
    """Two functions of three bytes each get a jump of their own in it; what is behind them stays as it is."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(NUMBERS, peer.hello, program, zero="one", nought="two")
        image = padded(image, peer, program, room=SHORT)
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("numbers") == "1 2 5"
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("numbers") == "0 0 5"
        assert await program.ask("bytes") == original


async def test_busy_threads_never_see_half_a_jump(stage: Stage) -> None:
    """A function without room is replaced and put back many times under threads that call it all the time."""
    async with stage.patching("tight") as (program, peer):
        for _ in range(4):
            assert await program.ask("busy") == "0"
        image = padded(stage.image(NUMBERS, peer.hello, program, zero="one"), peer, program, room=SHORT)
        for number in range(30):
            moved = image.moved(number * peer.hello["region"]["slot_size"])
            assert (await peer.apply(moved.message, moved.content))["type"] == "applied"
            assert await program.ask("numbers") == "1 0 5"
            assert (await peer.undo(None))["type"] == "applied"
            assert await program.ask("numbers") == "0 0 5"
        assert await program.ask("wrong") == "0"


@pytest.mark.parametrize(("size", "room"), [(9, SHORT), (4, SHORT), (12, 1)], ids=["used up", "too small", "no room"])
async def test_function_without_room_and_padding_is_refused(stage: Stage, size: int, room: int) -> None:
    """Where not every function gets its padding, none is changed, and the function is named by its address."""
    async with stage.patching("tight") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(NUMBERS, peer.hello, program, zero="one", nought="two")
        image = padded(image, peer, program, size=size, room=room)
        refused = await peer.apply(image.message, image.content)
        assert refused["reason"] == "too_short"
        assert refused["from"] in [detour["from"] for detour in image.message["detours"]]
        assert await program.ask("bytes") == original


async def test_padding_that_is_none_is_not_used(stage: Stage) -> None:
    """What the daemon calls padding has other bytes: it may be somebody's code."""
    async with stage.patching("tight") as (program, peer):
        image = stage.image(NUMBERS, peer.hello, program, zero="one")
        symbols = read_symbols(program.path)
        code = [{"addr": symbols["five"].addr + peer.hello["slide"], "size": symbols["five"].size}]
        detours = [{**detour, "room": SHORT, "padding": code} for detour in image.message["detours"]]
        image = image.with_changes(detours=detours)
        assert (await peer.apply(image.message, image.content))["reason"] == "too_short"
        assert await program.ask("numbers") == "0 0 5"
