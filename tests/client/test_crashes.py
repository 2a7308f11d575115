"""A fault is noted for the daemon, and the program ends, or goes on, as it would without the client."""

import asyncio
import contextlib
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hotpatchd.core.crash import CrashNote, parse_note
from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import WAIT_S, FakeDaemon, Peer

FAULTS = {
    "SIGSEGV": "*(volatile int *)16 = n; return n;",
    "SIGILL": "__builtin_trap();",
    "SIGFPE": "volatile int zero = 0; return n / zero;",
    "SIGABRT": "call_abort(); return n;",
    "SIGBUS": "raise_bus_error(); return n;",
}
_PROGRAM = Path(__file__).parent / "programs" / "crashes.c"


class Doomed(NamedTuple):
    """A program that is to crash, and the daemon's side of its client."""

    program: Program
    peer: Peer
    note: Path

    async def apply(self, stage: Stage, body: str, next_addr: int = 0) -> int:
        """Replace `answer`; the next free address."""
        source = (
            "void call_abort(void);\nvoid raise_bus_error(void);\n"
            f"static __attribute__((noinline)) int inner(int n) {{ {body} }}\n"
            "int replaced(int n) { return inner(n) + 1; }\n"
        )
        image = stage.image(source, self.peer.hello, self.program, next_addr=next_addr, answer="replaced")
        applied = await self.peer.apply(image.message, image.content)
        assert applied["type"] == "applied"
        following: int = applied["next"]
        return following

    async def end(self) -> int:
        """Call `answer`; the exit status of the program, which has to end now."""
        process = self.program.process
        assert process.stdin is not None
        process.stdin.write(b"\n")
        return await asyncio.wait_for(process.wait(), WAIT_S)

    def noted(self) -> CrashNote:
        """What the client noted."""
        note = parse_note(self.note.read_bytes())
        assert note is not None
        return note


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    path = tmp_path_factory.mktemp("crashes") / "crashes"
    subprocess.run(["gcc", "-g", "-O1", _PROGRAM, "-o", path], check=True, capture_output=True)
    return path


@contextlib.asynccontextmanager
async def patching(stage: Stage, path: Path, *args: str) -> AsyncIterator[Doomed]:
    """Run the program, with its client welcomed."""
    async with FakeDaemon.listening(stage.state) as daemon:
        process = await asyncio.create_subprocess_exec(
            path,
            *args,
            env=stage.environment(path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )
        try:
            peer = await daemon.welcome()
            yield Doomed(Program(process, path), peer, stage.state / "patches" / peer.hello["instance"] / "crash")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_noted_and_ends_the_program_by_its_signal(stage: Stage, crashes: Path, name: str) -> None:
    """The note has the signal, the thread, and the calls from the patch down to the program's main function."""
    async with patching(stage, crashes) as doomed:
        await doomed.apply(stage, FAULTS[name])
        assert await doomed.end() == -signal.Signals[name]
        note = doomed.noted()
        assert (signal.Signals(note.signal).name, note.last_signal, note.thread) == (name, note.signal, "main")
        region = doomed.peer.hello["region"]
        inside = [region["addr"] <= frame.addr < region["addr"] + region["size"] for frame in note.frames]
        assert inside.count(True) == 2
        assert len(note.frames) > inside.index(True) + 3
        assert all(frame.function <= frame.addr for frame in note.frames)
        if name == "SIGSEGV":
            assert note.fault_addr == 16
            assert inside[0]


async def test_a_call_that_leads_nowhere_is_noted_with_its_caller(stage: Stage, crashes: Path) -> None:
    """No table tells what is there, but the call has left the address behind it."""
    async with patching(stage, crashes) as doomed:
        await doomed.apply(stage, "int (*volatile nowhere)(int) = (int (*)(int))8; return nowhere(n) + 1;")
        assert await doomed.end() == -signal.SIGSEGV
        note = doomed.noted()
        region = doomed.peer.hello["region"]
        inside = [region["addr"] <= frame.addr < region["addr"] + region["size"] for frame in note.frames]
        assert (note.frames[0].addr, note.frames[0].function, inside[:3]) == (8, 0, [False, True, True])
        assert len(note.frames) > 5


async def test_a_stack_overflow_is_noted(stage: Stage, crashes: Path) -> None:
    """The thread has a signal stack, as Rust gives each: there the handler runs."""
    async with patching(stage, crashes, "stack") as doomed:
        await doomed.apply(stage, "volatile char room[4000]; room[0] = n; return inner(n + room[0]) + room[1];")
        assert await doomed.end() == -signal.SIGSEGV
        note = doomed.noted()
        assert abs(note.fault_addr - note.stack_pointer) < 8192
        assert len({frame.function for frame in note.frames}) < 3
        assert len(note.frames) == 128


async def test_the_programs_own_handler_runs(stage: Stage, crashes: Path) -> None:
    """It gets what it would have got, and decides how the program ends."""
    async with patching(stage, crashes, "leave") as doomed:
        await doomed.apply(stage, FAULTS["SIGSEGV"])
        assert await doomed.end() == 7
        assert doomed.program.process.stdout is not None
        assert await doomed.program.process.stdout.read() == b"handled 11 at 0x10\n"
        assert doomed.noted().signal == signal.SIGSEGV


async def test_a_program_that_deals_with_faults_goes_on(stage: Stage, crashes: Path) -> None:
    """Each fault is caught as the first one is, and another end is not taken for one of them."""
    async with patching(stage, crashes, "skip") as doomed:
        following = await doomed.apply(stage, FAULTS["SIGSEGV"])
        for _ in range(3):
            assert await doomed.program.ask("") == "skipped"
        await doomed.apply(stage, FAULTS["SIGILL"], following)
        assert await doomed.end() == -signal.SIGILL
        assert doomed.noted().signal == signal.SIGILL


async def test_a_program_that_dealt_with_its_faults_leaves_no_note(stage: Stage, crashes: Path) -> None:
    """It goes on after the fault, and ends by itself later."""
    async with patching(stage, crashes, "skip") as doomed:
        await doomed.apply(stage, FAULTS["SIGSEGV"])
        assert await doomed.program.ask("") == "skipped"
        assert doomed.noted().signal == signal.SIGSEGV
        process = doomed.program.process
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
        assert parse_note(doomed.note.read_bytes()) is None


async def test_a_fault_whose_handler_ends_the_program_stays_noted(stage: Stage, crashes: Path) -> None:
    """Also where it does so in the usual way, with all that is to be done at the end."""
    async with patching(stage, crashes, "exit") as doomed:
        await doomed.apply(stage, FAULTS["SIGSEGV"])
        assert await doomed.end() == signal.SIGSEGV
        assert doomed.noted().signal == signal.SIGSEGV


async def test_an_abort_in_the_programs_handler_keeps_the_fault(stage: Stage, crashes: Path) -> None:
    """The note is of the fault, and tells that another signal ended the program."""
    async with patching(stage, crashes, "abort") as doomed:
        await doomed.apply(stage, FAULTS["SIGSEGV"])
        assert await doomed.end() == -signal.SIGABRT
        note = doomed.noted()
        assert (note.signal, note.last_signal) == (signal.SIGSEGV, signal.SIGABRT)


async def test_signals_are_untouched_before_the_first_patch(stage: Stage, crashes: Path) -> None:
    """A program that nothing was sent to has no handler and no note."""
    async with patching(stage, crashes) as doomed:
        status = Path(f"/proc/{doomed.program.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        assert not caught >> (signal.SIGSEGV - 1) & 1
        doomed.program.process.send_signal(signal.SIGSEGV)
        assert await asyncio.wait_for(doomed.program.process.wait(), WAIT_S) == -signal.SIGSEGV
        assert not doomed.note.exists()


async def test_a_signal_from_outside_ends_the_program(stage: Stage, crashes: Path) -> None:
    """It is no fault that would occur again when the handler returns."""
    async with patching(stage, crashes) as doomed:
        await doomed.apply(stage, "return n;")
        assert await doomed.program.ask("") == "2"
        doomed.program.process.send_signal(signal.SIGSEGV)
        assert await asyncio.wait_for(doomed.program.process.wait(), WAIT_S) == -signal.SIGSEGV
