"""On request the client tells when new code runs for the first time."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.client.conftest import Program, Stage, wait_until
from tests.client.fake_daemon import WAIT_S, FakeDaemon, Peer
from tests.client.images import Image

_BOTH = "int replaced(int n) { return n + 1001; } int tripled(int n) { return n * 3; }"


async def apply_watched(peer: Peer, image: Image) -> dict[str, Any]:
    """Apply a patch of which first executions are to be told."""
    applied = await peer.apply({**image.message, "proof": True}, image.content)
    assert (applied["type"], applied["proof"]) == ("applied", True)
    return applied


async def silence(peer: Peer) -> None:
    """Make sure that the client says nothing but the answer to another question."""
    await peer.send(type="undo", to="0" * 64)
    assert (await peer.receive())["reason"] == "unknown_patch"


async def test_first_execution_is_told_once(stage: Stage) -> None:
    """Nothing is told before a call of the new code; then one message names patch and function, and later none."""
    async with stage.patching("host") as (program, peer):
        image = stage.image(_BOTH, peer.hello, program, answer="replaced", doubled="tripled")
        await apply_watched(peer, image)
        await silence(peer)
        assert await program.ask("answer") == "1002"
        ran = await peer.receive()
        assert (ran["type"], ran["patch"]) == ("ran", image.id)
        [called] = [detour["from"] for detour in image.message["detours"] if detour["from"] in ran["from"]]
        assert ran["from"] == [called]
        assert 0 < ran["within_us"] <= ran["after_us"] < WAIT_S * 1_000_000
        assert await program.ask("answer") == "1002"
        await silence(peer)


async def test_nothing_is_told_unasked(stage: Stage) -> None:
    """Without the request, jumps lead straight to the new code, and nothing is told of it."""
    async with stage.patching("host", "2") as (program, peer):
        image = stage.image(_BOTH, peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        assert applied["proof"] is False
        assert await program.ask("progress") == "1"
        await silence(peer)


async def test_busy_threads_run_new_code_at_once(stage: Stage) -> None:
    """Patch after patch of a function that eight threads call all the time: each is told of, no call goes wrong."""
    async with stage.patching("host", "8") as (program, peer):
        source = "int replaced(int n) { return n + 0x11223344; }"
        image = stage.image(source, peer.hello, program, answer="replaced")
        addr = peer.hello["region"]["next"]
        start = addr
        for number in range(40):
            numbered = image.with_content(
                (0x11223344).to_bytes(4, "little"), (1001 + 1000 * number).to_bytes(4, "little")
            )
            numbered = numbered.moved(addr - start)
            addr = (await apply_watched(peer, numbered))["next"]
            ran = await peer.receive()
            assert (ran["type"], ran["patch"]) == ("ran", numbered.id)
        assert await program.ask("progress") == "1"
        assert await program.ask("answer") == "40002"
        assert await program.ask("wrong") == "0"


async def test_replaced_before_it_ran(stage: Stage) -> None:
    """Of a patch whose function is replaced before a call, nothing is told, until an undo makes it the newest again."""
    async with stage.patching("host") as (program, peer):
        first = stage.image("int replaced(int n) { return n + 5; }", peer.hello, program, answer="replaced")
        next_addr = (await apply_watched(peer, first))["next"]
        second = stage.image(
            "int replaced(int n) { return n + 7; }", peer.hello, program, next_addr=next_addr, answer="replaced"
        )
        await apply_watched(peer, second)
        assert await program.ask("answer") == "8"
        assert (await peer.receive())["patch"] == second.id
        assert (await peer.undo(first.id))["type"] == "applied"
        assert await program.ask("answer") == "6"
        assert (await peer.receive())["patch"] == first.id


async def test_undo_restores_every_byte_of_a_watched_function(stage: Stage) -> None:
    """After an undo the function has its own bytes, and its own code runs."""
    async with stage.patching("host") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(_BOTH, peer.hello, program, answer="replaced")
        await apply_watched(peer, image)
        assert await program.ask("answer") == "1002"
        await peer.receive()
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("bytes") == original
        assert await program.ask("answer") == "2"
        await silence(peer)


async def test_first_execution_is_told_again_to_whoever_listens_next(stage: Stage) -> None:
    """What the client told a daemon that may not have heard it, it tells after the next welcome, with the same time."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host") as program:
        peer = await daemon.welcome()
        image = stage.image(_BOTH, peer.hello, program, answer="replaced")
        await apply_watched(peer, image)
        await program.ask("answer")
        told = await peer.receive()
        await peer.socket.close()
        peer = await daemon.welcome()
        again = await peer.receive()
        assert (again["type"], again["patch"], again["from"]) == ("ran", image.id, told["from"])
        assert again["after_us"] == told["after_us"]


async def test_proven_jump_becomes_a_straight_one(stage: Stage) -> None:
    """The next patch has the jumps of an earlier one lead to their code itself, once it ran; undo goes on to work."""
    async with stage.patching("host") as (program, peer):
        original = await program.ask("bytes")
        first = stage.image(_BOTH, peer.hello, program, answer="replaced", doubled="tripled")
        next_addr = (await apply_watched(peer, first))["next"]
        assert await program.ask("answer") == "1002"
        [ran] = (await peer.receive())["from"]
        source = "int again(void) { return 0; }"
        second = stage.image(source, peer.hello, program, next_addr=next_addr, serve="again")
        applied = await apply_watched(peer, second)
        assert [entry["from"] for entry in applied["on_stack"]] == [second.message["detours"][0]["from"]]
        straight = {
            detour["from"] for detour in first.message["detours"] if target_of(program, detour["from"]) == detour["to"]
        }
        assert straight == {ran}
        assert await program.ask("answer") == "1002"
        assert (await peer.undo(first.id))["type"] == "applied"
        assert await program.ask("answer") == "1002"
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("bytes") == original
        assert await program.ask("answer") == "2"


def read_memory(program: Program, addr: int, size: int) -> bytes:
    """Of a program of which this process is the parent."""
    with Path(f"/proc/{program.pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(addr)
        return memory.read(size)


def target_of(program: Program, function: int) -> int:
    """Where the jump at a function leads."""
    opcode, displacement = struct.unpack("<Bi", read_memory(program, function, 5))
    assert opcode == 0xE9
    target: int = function + 5 + displacement
    return target


class Entry:
    """What a watched detour leads to.

    `jmp [slot]`, and further code behind it: see `client/src/proof.rs`.
    """

    def __init__(self, program: Program, function: int) -> None:
        self._memory = Path(f"/proc/{program.pid}/mem")
        self.addr = target_of(program, function)
        jump, displacement = struct.unpack("<Hi", read_memory(program, self.addr, 6))
        assert jump == 0x25FF
        self._slot = self.addr + 6 + displacement

    def lead_to(self, addr: int) -> None:
        """Have it jump there."""
        with self._memory.open("r+b", buffering=0) as memory:
            memory.seek(self._slot)
            memory.write(struct.pack("<Q", addr))


@asynccontextmanager
async def caught_in_entry(stage: Stage) -> AsyncIterator[tuple[Program, Peer, Image, int]]:
    """A thread `worker` goes round in circles between the jump at `answer` and its new code, until this ends.

    Gives the next free address as well.
    """
    async with stage.patching("host") as (program, peer):
        await program.ask("start worker 0")
        image = stage.image("int replaced(int n) { return n + 5; }", peer.hello, program, answer="replaced")
        applied = await apply_watched(peer, image)
        entry = Entry(program, image.message["detours"][0]["from"])
        entry.lead_to(entry.addr)
        asked = asyncio.create_task(program.ask("ask worker 0"))
        [worker] = program.tasks("worker")
        # Nowhere else does it take that much time.
        await wait_until(lambda: int((worker / "stat").read_text().rpartition(")")[2].split()[11]) >= 2)
        yield program, peer, image, applied["next"]
        entry.lead_to(image.message["detours"][0]["to"])
        assert await asked == "6"


async def test_thread_before_new_code_runs_that_code(stage: Stage) -> None:
    """A thread that is past the jump when the function is patched again has yet to run the former code: it is noted."""
    async with caught_in_entry(stage) as (program, peer, _, next_addr):
        newer = "int replaced(int n) { return n + 7; } void *again(void *p) { return p; }"
        image = stage.image(newer, peer.hello, program, next_addr=next_addr, answer="replaced", work="again")
        applied = await apply_watched(peer, image)
        assert {entry["from"]: entry["threads"] for entry in applied["on_stack"]} == {
            detour["from"]: ["worker"] for detour in image.message["detours"]
        }


async def test_thread_before_new_code_keeps_it_busy(stage: Stage) -> None:
    """Nor is a function idle that a thread is about to enter: a patch that needs it so is refused."""
    async with caught_in_entry(stage) as (program, peer, first, next_addr):
        [detour] = first.message["detours"]
        idle = [{"from": detour["from"], "size": detour["size"], "symbol": "State", "detail": "it grew"}]
        source = "int replaced(int n) { return n * 2; }"
        image = stage.image(source, peer.hello, program, next_addr=next_addr, doubled="replaced")
        refused = await peer.apply({**image.message, "idle": idle}, image.content)
        assert (refused["reason"], refused["symbol"]) == ("layout", "State")
        assert "worker" in refused["detail"]


async def test_looks_become_rare(stage: Stage) -> None:
    """Code that is never called does not keep the client busy: after the first second it looks ten times a second."""
    async with stage.patching("host") as (program, peer):
        image = stage.image(_BOTH, peer.hello, program, answer="replaced")
        await apply_watched(peer, image)
        await asyncio.sleep(1.1)
        [task] = program.tasks("hotpatchd")

        def switches() -> int:
            status = (task / "status").read_text()
            return int(next(line for line in status.splitlines() if line.startswith("voluntary")).split()[1])

        before = switches()
        await asyncio.sleep(1)
        assert switches() - before <= 20
