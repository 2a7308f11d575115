"""The client in programs of foreign Linux targets: on aarch64, and on musl, preloaded and linked in."""

import asyncio
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hotpatchd.core.crash import parse_note, parse_panics
from hotpatchd.daemon.client_build import ClientKind, ensure_client
from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import WAIT_S, FakeDaemon, Peer
from tests.client.images import Image
from tests.client.platform import Platform
from tests.client.test_panics import PANICS, PRINTS, apply
from tests.targets.toolchains import Name, Toolchain, toolchains

_PROGRAMS = Path(__file__).parents[1] / "client" / "programs"
_REACH = {"aarch64": 128 << 20, "x86_64": 1 << 31}


class _Case(NamedTuple):
    toolchain: Name
    kind: ClientKind
    cc: tuple[str, ...]
    ld: str


_CASES = {
    "aarch64": _Case("aarch64-unknown-linux-gnu", "preload", ("aarch64-linux-gnu-gcc",), "aarch64-linux-gnu-ld"),
    "musl": _Case("x86_64-unknown-linux-musl dynamic", "preload", ("musl-gcc", "-fcf-protection=none"), "ld"),
    "static-musl": _Case("x86_64-unknown-linux-musl", "linked", ("musl-gcc", "-fcf-protection=none"), "ld"),
}


class _Ground(NamedTuple):
    """What tests of one target share."""

    platform: Platform
    client: Path
    programs: dict[str, Path]


@pytest.fixture(scope="session", params=_CASES)
def ground(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> _Ground:
    """The client and programs of a target."""
    case = _CASES[request.param]
    toolchain = toolchains()[case.toolchain]
    platform = Platform(
        target=toolchain.target,
        cc=case.cc,
        ld=case.ld,
        runner=toolchain.runner,
        preloads=case.kind == "preload",
        variables=toolchain.variables,
    )
    with pytest.MonkeyPatch.context() as patched:
        for name, value in toolchain.environ.items():
            patched.setenv(name, value)
        patched.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("client") if pytestconfig.cache else ""))
        client = asyncio.run(ensure_client(toolchain.rustc, toolchain.target, print, kind=case.kind))
    out = tmp_path_factory.mktemp("programs")
    linked = [] if case.kind == "preload" else _linked(toolchain, client)
    command: list[str | Path] = [
        *case.cc,
        "-g",
        "-O1",
        "-pthread",
        *(["-static"] if linked else []),
        _PROGRAMS / "host.c",
    ]
    _run(*command, *linked, "-o", out / "host")
    arguments = ["-Cdebuginfo=1", *(f"-Clink-arg={argument}" for argument in linked)]
    toolchain.compile(_PROGRAMS / "host.rs", out / "rust", args=arguments)
    return _Ground(platform, client, {name: out / name for name in ("host", "rust")})


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _linked(toolchain: Toolchain, client: Path) -> list[str]:
    """The client, and after it what it wants from libraries."""
    native = [flag.removeprefix("-Lnative=") for flag in toolchain.rustflags if flag.startswith("-Lnative=")]
    return [str(client), *(f"-L{path}" for path in native), "-l:libunwind.a", "-l:libc.a"]


@pytest.fixture
def stage(ground: _Ground, tmp_path: Path) -> Stage:
    """A state directory without a daemon, and programs."""
    return Stage(tmp_path, ground.client, ground.programs, ground.platform)


def adding(amount: int) -> str:
    """A body for `answer` that adds `amount`."""
    return f"int replaced(int n) {{ return n + {amount}; }}"


def assert_region_in_reach(stage: Stage, program: Program, peer: Peer) -> None:
    """Every byte of the region is a branch away from every byte of the program's code."""
    region = peer.hello["region"]
    lines = [line.split() for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines()]
    # An emulator maps code without the right to execute it: what it executes is its translation.
    protections = ("r-xp", "r--p") if stage.runner else ("r-xp",)
    code = [
        [int(bound, 16) for bound in fields[0].split("-")]
        for fields in lines
        if fields[-1] == str(program.path) and fields[1] in protections
    ]
    first, end = min(start for start, _ in code), max(end for _, end in code)
    reach = _REACH[stage.platform.target.partition("-")[0]]
    assert max(end, region["addr"] + region["size"]) - min(first, region["addr"]) <= reach


async def test_hello_names_target_and_region(stage: Stage) -> None:
    """The client knows what it was built for, and every byte of its region is in reach of the program's code."""
    async with stage.patching("host") as (program, peer):
        assert (peer.hello["target"], peer.hello["pid"]) == (stage.platform.target, program.pid)
        assert_region_in_reach(stage, program, peer)


@pytest.mark.parametrize("ground", ["aarch64"], indirect=True)
async def test_region_of_a_large_program_is_smaller(stage: Stage, tmp_path: Path) -> None:
    """A program whose code takes much of what branches reach has the region that the rest has room for."""
    (tmp_path / "large.s").write_text(".text\n.space 80 << 20\n")
    sources = (_PROGRAMS / "host.c", tmp_path / "large.s")
    stage.programs = {"large": tmp_path / "large"}
    _run(*stage.platform.cc, "-g", "-O1", "-pthread", *sources, "-o", tmp_path / "large")
    async with stage.patching("large") as (program, peer):
        assert peer.hello["region"]["size"] == 32 << 20
        assert_region_in_reach(stage, program, peer)
        image = stage.image(adding(9), peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "10"


async def test_patch_is_applied_and_taken_back(stage: Stage) -> None:
    """Code that has run already changes with the patch, also with the second one, and undo restores every byte."""
    async with stage.patching("host") as (program, peer):
        original = await program.ask("bytes")
        next_addr = 0
        for amount in (5, 7):
            image = stage.image(adding(amount), peer.hello, program, next_addr=next_addr, answer="replaced")
            applied = await peer.apply(image.message, image.content)
            assert applied["type"] == "applied", applied
            next_addr = applied["next"]
            assert await program.ask("answer") == str(1 + amount)
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("answer") == "2"
        assert await program.ask("bytes") == original


async def test_patch_uses_host_functions(stage: Stage) -> None:
    """A patch calls functions of the program."""
    source = "int doubled(int); int replaced(int n) { return doubled(n) + 40; }"
    async with stage.patching("host") as (program, peer):
        image = stage.image(source, peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "42"


async def test_busy_threads_never_see_half_a_patch(stage: Stage) -> None:
    """Twenty patches in a row under threads that call the function: each call gives an old or a new answer."""
    async with stage.patching("host", "3") as (program, peer):
        next_addr = 0
        for number in range(20):
            source = adding(1001 + 1000 * number)
            image = stage.image(source, peer.hello, program, next_addr=next_addr, answer="replaced")
            applied = await peer.apply(image.message, image.content)
            assert (applied["type"], applied.get("threads")) == ("applied", 4), applied
            next_addr = applied["next"]
        assert await program.ask("progress") == "1"
        assert await program.ask("answer") == "20002"
        assert await program.ask("wrong") == "0"


async def test_first_execution_is_told(stage: Stage) -> None:
    """Ten patches of a function that three threads call all the time: each is told to have run, no call goes wrong."""
    async with stage.patching("host", "3") as (program, peer):
        next_addr = 0
        for number in range(10):
            source = adding(1001 + 1000 * number)
            image = stage.image(source, peer.hello, program, next_addr=next_addr, answer="replaced")
            applied = await peer.apply({**image.message, "proof": True}, image.content)
            assert (applied["type"], applied.get("proof")) == ("applied", True), applied
            next_addr = applied["next"]
            ran = await peer.receive()
            assert (ran["type"], ran["patch"], ran["from"]) == ("ran", image.id, [image.message["detours"][0]["from"]])
        assert await program.ask("progress") == "1"
        assert await program.ask("answer") == "10002"
        assert await program.ask("wrong") == "0"


async def test_running_function_is_on_the_stack(stage: Stage) -> None:
    """A thread that waits in the old body of a replaced function is named, and no other."""
    async with stage.patching("host") as (program, peer):
        await program.ask("waiter")
        await stage.wait_for_syscall(program, "waiter", "read")
        image = stage.image("void *gone(void *p) { return p; }", peer.hello, program, wait_for_byte="gone")
        applied = await peer.apply(image.message, image.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["waiter"]]


async def test_thread_that_blocks_all_signals_is_parked(stage: Stage) -> None:
    """A thread that blocks every signal with libc's functions does not stand in the way."""
    async with stage.patching("host") as (program, peer):
        await program.ask("masked")
        await stage.wait_for_syscall(program, "masked", "read")
        image = stage.image(adding(9), peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        assert (applied["type"], applied.get("threads")) == ("applied", 2), applied


def counting_from_seven(stage: Stage, program: Program, hello: dict[str, Any]) -> Image:
    """A patch that counts a thread-local up, which starts with 7."""
    offset = hello["thread_locals"]["offset"]
    source = f"""
        int replaced(int n) {{ return ++*(int *)((char *)__builtin_thread_pointer() + {offset}); }}
    """
    image = stage.image(source, hello, program, answer="replaced")
    return image.with_changes(thread_locals=[{"offset": offset, "data": (7).to_bytes(4, "little").hex()}])


async def test_each_thread_has_its_own_thread_locals(stage: Stage) -> None:
    """Running threads and later ones have values of their own, which begin as the patch says."""
    async with stage.patching("host") as (program, peer):
        assert peer.hello["thread_locals"]["size"] == 4096
        await program.ask("start worker 0")
        image = counting_from_seven(stage, program, peer.hello)
        applied = await peer.apply(image.message, image.content)
        assert applied["type"] == "applied", applied
        await program.ask("start worker 1")
        for expected in ("8", "9", "10"):
            assert await program.ask("answer") == expected
        for worker in (0, 1):
            assert await program.ask(f"ask worker {worker}") == "8"
            assert await program.ask(f"ask worker {worker}") == "9"


async def test_threads_that_start_meanwhile_have_their_thread_locals(stage: Stage) -> None:
    """Patches with a thread-local each, while threads are started all the time: none misses its content."""
    async with stage.patching("host") as (program, peer):
        await program.ask("spawner")
        offset, next_addr = peer.hello["thread_locals"]["offset"], 0
        for number in range(20):
            place, amount = offset + 8 * number, 1001 + 1000 * number
            source = f"int replaced(int n) {{ return n + *(int *)((char *)__builtin_thread_pointer() + {place}); }}"
            image = stage.image(source, peer.hello, program, next_addr=next_addr, answer="replaced")
            local = {"offset": place, "data": amount.to_bytes(4, "little").hex()}
            image = image.with_changes(thread_locals=[local])
            applied = await peer.apply(image.message, image.content)
            assert applied["type"] == "applied", applied.get("detail")
            next_addr = applied["next"]
        assert await program.ask("progress") == "1"
        assert await program.ask("wrong") == "0"


async def test_panic_unwinds_through_patched_code(stage: Stage) -> None:
    """A panic under a patched function is caught above it, and drops run on the way; in a second patch too.

    It is counted, unless the unwinder is in the program itself.
    """
    async with stage.patching("rust") as (program, peer):
        assert await program.ask_lines("answer") == ["dropped", "2"]
        next_addr = 0
        for _ in range(2):
            next_addr = await apply(stage, peer, program, PANICS, next_addr)
            assert await program.ask_lines("answer") == ["dropped", "caught"]
        counted = parse_panics((stage.state / "patches" / peer.hello["instance"] / "crash").read_bytes())
        assert [site.count for site in counted] == ([1, 1] if stage.platform.preloads else [])


async def test_backtrace_names_patched_functions(stage: Stage) -> None:
    """A backtrace shows name, file and line of patched functions, though one was printed before the patch came."""
    async with stage.patching("rust") as (program, peer):
        assert "replaced" not in "\n".join(await program.ask_lines("backtrace"))
        await apply(stage, peer, program, PRINTS)
        backtrace = "\n".join(await program.ask_lines("answer"))
        assert re.search(r"\d+: replaced\n +at .*/patched\.c:4\b", backtrace), backtrace
        assert re.search(r"host::main\n +at .*host\.rs:\d+", backtrace), backtrace


async def test_fault_in_patched_code_is_noted(stage: Stage) -> None:
    """The note has the place and its caller, and the program ends by its signal."""
    source = "int replaced(int n) { *(volatile int *)16 = n; return n; }"
    path = stage.programs["host"]
    async with FakeDaemon.listening(stage.state) as daemon:
        pipe = asyncio.subprocess.PIPE
        argv, env = (*stage.runner, str(path)), stage.environment(path)
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        peer = await daemon.welcome()
        image = stage.image(source, peer.hello, Program(process, path), answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        await asyncio.wait_for(process.communicate(b"answer\n"), WAIT_S)
        assert process.returncode == -signal.SIGSEGV
        note = parse_note((stage.state / "patches" / peer.hello["instance"] / "crash").read_bytes())
        assert note is not None
        assert (note.signal, note.fault_addr, note.thread) == (signal.SIGSEGV, 16, "main")
        start, size = peer.hello["region"]["addr"], peer.hello["region"]["size"]
        assert [start <= frame.addr < start + size for frame in note.frames[:2]] == [True, False]
