"""The client built once, the programs that it is preloaded into, and the daemon that the tests play."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hotpatchd.daemon.client_build import ensure_client
from tests.client.fake_daemon import WAIT_S, FakeDaemon, Peer
from tests.client.images import Image, build_image
from tests.client.platform import X86_64_GNU, Platform

TARGET = X86_64_GNU.target
_PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def toolchain_rustc() -> Path:
    """The compiler that `rustc` on the path stands for."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout
    return Path(sysroot.strip()) / "bin" / "rustc"


@pytest.fixture(scope="session")
def client_library(pytestconfig: pytest.Config, toolchain_rustc: Path) -> Path:
    """The client, in a cache that outlives the run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("client") if pytestconfig.cache else ""))
        return asyncio.run(ensure_client(toolchain_rustc, TARGET, print))


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs by name."""
    out = tmp_path_factory.mktemp("programs")
    commands = {
        "host": ["gcc", "-g", "-O1", "-pthread", "host.c"],
        "fixed": ["gcc", "-g", "-O1", "-pthread", "-no-pie", "host.c"],
        "nameless": ["gcc", "-g", "-O1", "-pthread", "-Wl,--build-id=none", "host.c"],
        "rust": ["rustc", "--edition=2021", "-Cdebuginfo=1", "host.rs"],
        "threads": ["gcc", "-g", "-O1", "-pthread", "threads.c"],
        "tight": ["gcc", "-g", "-O1", "-pthread", "tight.c"],
        "linger": ["gcc", "linger.c"],
        "loader": ["gcc", "loader.c"],
    }
    for name, command in commands.items():
        subprocess.run([*command, "-o", str(out / name)], cwd=_PROGRAMS, check=True, capture_output=True)
    return {name: out / name for name in commands}


async def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again, for a bounded time, until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - /proc tells of nothing by itself
            await asyncio.sleep(0.005)


class Program:
    """A running program that answers commands."""

    def __init__(self, process: asyncio.subprocess.Process, path: Path) -> None:
        self.process = process
        self.path = path
        self.pid = process.pid

    async def ask(self, command: str) -> str:
        """The line with which the program answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        return (await self._line()).strip()

    async def ask_lines(self, command: str) -> list[str]:
        """The lines with which the program answers, up to `.`."""
        lines = [await self.ask(command)]
        while lines[-1] != ".":
            lines.append((await self._line()).rstrip())
        return lines[:-1]

    async def _line(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)
        assert line, "the program has ended"
        return line.decode()

    def tasks(self, name: str) -> list[Path]:
        """The threads of that name, as directories in /proc."""
        return [task for task in Path(f"/proc/{self.pid}/task").iterdir() if _thread_name(task) == name]


def _thread_name(task: Path) -> str:
    """The name of a thread by its directory in /proc; empty for one that has ended meanwhile."""
    try:
        return (task / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Stage:
    """Where a test plays: state directory, programs with the client preloaded, patches."""

    def __init__(
        self, directory: Path, library: Path, programs: dict[str, Path], platform: Platform = X86_64_GNU
    ) -> None:
        self.state = directory / "state"
        self.library = library
        self.programs = programs
        self.platform = platform
        self.runner = platform.runner
        self._work = directory / "work"
        self._images = 0
        for place in (self.state, self._work):
            place.mkdir()

    def environment(self, path: Path) -> dict[str, str]:
        """The environment of a program that is to be patched."""
        client = {"HOTPATCHD_STATE": str(self.state), "HOTPATCHD_HOST": str(path)}
        return {**os.environ, **self.platform.variables, **client, **self.platform.preload(self.library)}

    @contextlib.asynccontextmanager
    async def running(self, name: str, *args: str, **environment: str) -> AsyncIterator[Program]:
        """Run a program; it ends with the block, and must not have ended before, nor printed errors."""
        path = self.programs[name]
        process = await asyncio.create_subprocess_exec(
            *self.runner,
            path,
            *args,
            env={**self.environment(path), **environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Program(process, path)
            assert process.returncode is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            _, errors = await process.communicate()
        assert errors == b""

    @contextlib.asynccontextmanager
    async def patching(self, name: str, *args: str) -> AsyncIterator[tuple[Program, Peer]]:
        """Run a program whose client has been welcomed."""
        async with FakeDaemon.listening(self.state) as daemon, self.running(name, *args) as program:
            yield program, await daemon.welcome()

    def image(
        self,
        source: str,
        hello: dict[str, Any],
        program: Program,
        *,
        next_addr: int = 0,
        library: Path | None = None,
        **detours: str,
    ) -> Image:
        """A patch for a running program, or a library in it, made of C source."""
        self._images += 1
        work = self._work / str(self._images)
        work.mkdir()
        return build_image(
            source,
            hello=hello,
            host=library or program.path,
            detours=detours,
            work=work,
            next_addr=next_addr,
            platform=self.platform,
        )

    async def wait_for_syscall(self, program: Program, thread: str, syscall: str) -> None:
        """Wait until a thread of the program sits in a system call."""
        number = {"read": "0", "pause": "34", "vfork": "58"}[syscall]
        await wait_until(
            lambda: any((task / "syscall").read_text().split()[0] == number for task in program.tasks(thread))
        )

    async def wait_for_end(self, program: Program, thread: str) -> None:
        """Wait until the program has no such thread any more."""
        await wait_until(lambda: not program.tasks(thread))


@pytest.fixture
def stage(tmp_path: Path, client_library: Path, programs: dict[str, Path]) -> Stage:
    """A state directory without a daemon, and programs."""
    return Stage(tmp_path, client_library, programs)
