"""Threads are stopped whatever they do, and notice as little of it as can be."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import FakeDaemon, Peer

PATCHES = 20
THREADS = 4
USED_SIGNAL = "40"

RESTARTED = ("read", "futex", "malloc", "spin", "handler", "masked", "spawn", "vfork", "fork")
"""What threads do in which no stop is noticed."""
ENDED_EARLY = ("epoll", "nanosleep")
"""Calls that the kernel does not take up again after a signal, whatever its handler says: signal(7)."""


@contextlib.asynccontextmanager
async def patching(stage: Stage, *args: str, **environment: str) -> AsyncIterator[tuple[Program, Peer]]:
    """The program with these variables, whose client has been welcomed."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("threads", *args, **environment) as program:
        yield program, await daemon.welcome()


async def apply_often(stage: Stage, program: Program, peer: Peer) -> list[dict[str, Any]]:
    """Patch `answer` again and again, while the threads go on; the client's answers."""
    image = stage.image("int replaced(int n) { return n + 0x11223344; }", peer.hello, program, answer="replaced")
    answers = []
    for number in range(PATCHES):
        amount = (1000 * number + 1001).to_bytes(4, "little")
        numbered = image.with_content((0x11223344).to_bytes(4, "little"), amount)
        numbered = numbered.moved(number * peer.hello["region"]["slot_size"])
        answers.append(await peer.apply(numbered.message, numbered.content))
        assert await program.ask("progress") == "1"
    return answers


@pytest.mark.parametrize("kind", [*RESTARTED, *ENDED_EARLY])
async def test_threads_are_stopped_whatever_they_do(stage: Stage, kind: str) -> None:
    """Patch upon patch is applied, every call gets an old or a new answer, and the threads go on."""
    async with patching(stage, kind, str(THREADS)) as (program, peer):
        answers = await apply_often(stage, program, peer)
        assert [answer["type"] for answer in answers] == ["applied"] * PATCHES, answers
        assert {answer["threads"] for answer in answers} == {1 + THREADS}
        assert await program.ask("answer") == str(1000 * PATCHES + 2)
        assert await program.ask("wrong") == "0"


@pytest.mark.parametrize("kind", RESTARTED)
async def test_system_calls_that_can_be_taken_up_again_are(stage: Stage, kind: str) -> None:
    """Where the kernel can restart a system call, no thread sees that it was stopped."""
    async with patching(stage, kind, str(THREADS)) as (program, peer):
        await apply_often(stage, program, peer)
        assert await program.ask("interrupted") == "0"


@pytest.mark.parametrize(("kind", "count"), [("read", 500), ("spin", 64)])
async def test_many_threads_are_stopped(stage: Stage, kind: str, count: int) -> None:
    """More threads than there are seats at first, and more busy ones than processors: all of them stop."""
    async with patching(stage) as (program, peer):
        await program.ask(f"start {kind} {count}")
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        assert (applied["type"], applied.get("threads")) == ("applied", 1 + count), applied
        assert await program.ask("answer") == "1002"
        assert await program.ask("wrong") == "0"


async def test_threads_come_and_go_meanwhile(stage: Stage) -> None:
    """Threads that start others, and those that end, are no obstacle."""
    async with patching(stage, "start", str(THREADS)) as (program, peer):
        answers = await apply_often(stage, program, peer)
        assert [answer["type"] for answer in answers] == ["applied"] * PATCHES, answers
        assert await program.ask("answer") == str(1000 * PATCHES + 2)
        assert await program.ask("wrong") == "0"


async def test_thread_that_waits_for_its_vfork_child_is_named(stage: Stage) -> None:
    """No signal reaches a thread in the kernel: nothing changes, it is named, and stops once it is done."""
    async with patching(stage) as (program, peer):
        await program.ask("vfork")
        await stage.wait_for_syscall(program, "forking", "vfork")
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        refused = await peer.apply(image.message, image.content)
        assert refused["reason"] == "park"
        assert refused["detail"] == (
            "thread forking did not stop: it waits in the kernel, out of reach of signals; save again when it is done"
        )
        assert await program.ask("answer") == "2"
        await program.ask("end")
        await stage.wait_for_end(program, "forking")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "1002"


async def test_thread_that_a_debugger_holds_is_named(stage: Stage) -> None:
    """A stopped thread takes no signal: it is named, and goes on unharmed when it is let go."""
    async with patching(stage) as (program, peer):
        assert int(await program.ask("trace")) > 0
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        refused = await peer.apply(image.message, image.content)
        assert refused["reason"] == "park"
        assert refused["detail"] == "thread traced did not stop: a debugger holds it; let it go on and save again"
        assert await program.ask("let go") == "1"
        await stage.wait_for_end(program, "traced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "1002"


async def test_thread_that_would_jump_under_the_detour_is_named(stage: Stage) -> None:
    """A loop may begin in the bytes that a detour overwrites: as long as a thread is in it, nothing changes."""
    async with patching(stage) as (program, peer):
        await program.ask("loop")
        await stage.wait_for_syscall(program, "looping", "read")
        image = stage.image("void replaced(void) {}", peer.hello, program, looping="replaced")
        refused = await peer.apply(image.message, image.content)
        assert (refused["type"], refused.get("reason")) == ("refused", "park"), refused
        assert refused["detail"] == "thread looping stays in it, and it jumps back to its first bytes; restart"
        assert refused["from"] == image.message["detours"][0]["from"]
        before = int(await program.ask("go on"))
        while int(await program.ask("rounds")) == before:
            pass
        assert program.tasks("looping")
        await program.ask("end")
        await stage.wait_for_end(program, "looping")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_function_beneath_a_signal_handler_is_on_the_stack(stage: Stage) -> None:
    """A thread in a signal handler is noted for the function that the signal came to."""
    async with patching(stage) as (program, peer):
        await program.ask("interrupt")
        await stage.wait_for_syscall(program, "interrupted", "read")
        image = stage.image("void replaced(void) {}", peer.hello, program, interrupt_itself="replaced")
        applied = await peer.apply(image.message, image.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["interrupted"]]


async def test_forked_child_keeps_the_code_that_it_had(stage: Stage) -> None:
    """A child that lives on is not patched, has nothing of the connection, and does not hold up its parent."""
    async with patching(stage) as (program, peer):
        first = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        applied = await peer.apply(first.message, first.content)
        child = await program.ask("fork")
        second = stage.image(
            "int replaced(int n) { return n + 2001; }",
            peer.hello,
            program,
            next_addr=applied["next"],
            answer="replaced",
        )
        assert (await peer.apply(second.message, second.content))["type"] == "applied"
        assert await program.ask("answer") == "2002"
        assert await program.ask("ask child") == "1002"
        assert not [name for name in descriptors(child) if name.startswith("socket:")]


def descriptors(pid: str) -> list[str]:
    """What a process has open."""
    return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize("used", [USED_SIGNAL, "41"])
async def test_program_that_uses_the_signal_keeps_it(stage: Stage, used: str) -> None:
    """A program that queues a signal to its threads gets each of them, be it the one that stops threads or another."""
    async with patching(stage, "queue", str(THREADS), HOTPATCHD_SIGNAL=USED_SIGNAL, USED=used) as (program, peer):
        answers = await apply_often(stage, program, peer)
        assert [answer["type"] for answer in answers] == ["applied"] * PATCHES, answers
        assert await program.ask("wrong") == "0"


async def test_another_signal_reaches_threads_that_block_the_usual_one(stage: Stage) -> None:
    """`HOTPATCHD_SIGNAL` names the signal that stops threads, for a program that blocks the usual one."""
    async with patching(stage, HOTPATCHD_SIGNAL="40") as (program, peer):
        await program.ask("block 32")
        await stage.wait_for_syscall(program, "blocking", "read")
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        assert (applied["type"], applied["threads"]) == ("applied", 2)


async def test_blocked_signal_is_named_with_what_to_do(stage: Stage) -> None:
    """The signal that was chosen is the one that stops threads, and a thread that blocks it is named."""
    async with patching(stage, HOTPATCHD_SIGNAL="40") as (program, peer):
        await program.ask("block 40")
        await stage.wait_for_syscall(program, "blocking", "read")
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        refused = await peer.apply(image.message, image.content)
        assert refused["reason"] == "park"
        assert refused["detail"] == "thread blocking blocks signal 40: choose another with HOTPATCHD_SIGNAL"


@pytest.mark.parametrize("value", ["", "usual", "2", "9", "65"])
async def test_signal_that_cannot_stop_threads_is_not_used(stage: Stage, value: str) -> None:
    """Anything but a real-time signal counts as nothing: other signals do not queue."""
    async with patching(stage, HOTPATCHD_SIGNAL=value) as (program, peer):
        image = stage.image("int replaced(int n) { return n + 1001; }", peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
