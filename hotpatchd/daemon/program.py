"""The program that is patched: its environment, the client in it, its beginning and its end."""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from hotpatchd.core.errors import UsageError
from hotpatchd.core.targets import TargetSupport, describe_target
from hotpatchd.daemon.cargo_config import rustc_of, user_runner, user_rustflags
from hotpatchd.daemon.client_build import ClientKind, ensure_client
from hotpatchd.daemon.processes import guard, release, run_process, starting
from hotpatchd.daemon.report import Terminal

GRACE_S = 3.0
"""How long a program may take to end before it is told again, more firmly."""


def native_triple() -> str:
    """The target triple of this machine's own programs."""
    return f"{platform.machine()}-unknown-linux-gnu"


async def target_support(triple: str, *, cwd: Path, environ: Mapping[str, str]) -> TargetSupport:
    """What can be done for programs of a target as they are built here; whether those for musl are static, rustc knows.

    Raises:
        BuildError: there is no rustc.
    """
    if "-musl" not in triple:
        return describe_target(triple)
    flags = user_rustflags(triple, cwd=cwd, environ=environ)
    finished = await run_process(
        [rustc_of(environ), "--print", "cfg", "--target", triple, *flags], cwd=str(cwd), env=environ
    )
    return describe_target(triple, crt_static=b'target_feature="crt-static"' in finished.stdout)


def linked_client_args(client: Path) -> tuple[str, ...]:
    """Arguments for rustc that link the client, a relocatable object, into a program, before the libraries it needs.

    Source: the rustc book, `-l`: native libraries of a program come before those of the crates that it depends on.
    """
    return (f"-Lnative={client.parent}", f"-lstatic:+whole-archive,+verbatim={client.name}")


async def client_for(
    target: str | None, environ: Mapping[str, str], terminal: Terminal, kind: ClientKind = "preload"
) -> Path:
    """The client for programs of a target (None: this machine's), built if it has to be.

    Raises:
        HotpatchdError: it cannot be had.
    """
    rustc = shutil.which(rustc_of(environ), path=environ.get("PATH"))
    if rustc is None:
        raise UsageError(f"{rustc_of(environ)} is not on PATH", hint="install Rust from https://rustup.rs")
    triple = target or native_triple()
    with terminal.console.status("Building the client") as status:

        def told(line: str) -> None:
            status.update(f"Building the client: {line}")

        return await ensure_client(Path(rustc), triple, told, kind=kind)


def program_command(
    executable: Path, args: Sequence[str], triple: str, *, cwd: Path, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """The command that `cargo run` would run: the program, or the runner that is configured for its target.

    Args:
        executable: the program.
        args: its arguments.
        triple: its target.
        cwd: where cargo runs.
        environ: cargo's environment.
    """
    return (*user_runner(triple, cwd=cwd, environ=environ), str(executable), *args)


def client_environ(
    environ: Mapping[str, str], client: Path | None, state_dir: Path, host: Path | None, triple: str | None = None
) -> dict[str, str]:
    """The environment in which a program starts with the client in it.

    Args:
        environ: the environment that it would have otherwise.
        client: the client library; None where it is linked into the program.
        state_dir: the daemon's directory.
        host: the program, if it is known; other programs that inherit the environment are then left alone.
        triple: the program's target, if it is not this machine's.

    Raises:
        UsageError: the client's path cannot be given to an emulator.
    """
    added = {"HOTPATCHD_STATE": str(state_dir)}
    if host is not None:
        added["HOTPATCHD_HOST"] = os.path.realpath(host)
    if client is not None:
        added |= _preload(environ, client, triple)
    return {**environ, **added}


def _preload(environ: Mapping[str, str], client: Path, triple: str | None) -> dict[str, str]:
    if triple is None or triple.partition("-")[0] == platform.machine():
        return {"LD_PRELOAD": " ".join(filter(None, [str(client), environ.get("LD_PRELOAD")]))}
    # The emulator must not load the client itself; it sets these variables for the program alone.
    # Source: QEMU's user documentation, "Environment variables"; linux-user/main.c splits the value at commas.
    if "," in str(client):
        raise UsageError(
            f"the path of the client has a comma: {client}", hint="set XDG_CACHE_HOME to another directory"
        )
    return {"QEMU_SET_ENV": ",".join(filter(None, [environ.get("QEMU_SET_ENV"), f"LD_PRELOAD={client}"]))}


class RunningProgram:
    """A program that the daemon started, in the terminal's foreground.

    Args:
        process: it.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end; returns its exit status, or the negative number of the signal that ended it."""
        status = await self._process.wait()
        release(self.pid)
        return status

    async def end(self, *, interrupted: bool = False) -> None:
        """End it; more firmly where it does not listen.

        Args:
            interrupted: a Ctrl-C reached it as well, after which it may be saving its state.
        """
        for number in ((None,) if interrupted else ()) + (signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
            try:
                async with asyncio.timeout(GRACE_S):
                    await self._process.wait()
                    return
            except TimeoutError:
                continue


async def start_program(
    argv: Sequence[str], environ: Mapping[str, str], *, cwd: Path, reads_terminal: bool = True
) -> RunningProgram:
    """Start the program.

    Args:
        argv: the program and its arguments.
        environ: its environment.
        cwd: its directory.
        reads_terminal: whether what is typed is for it.

    Raises:
        UsageError: it cannot be started.
    """
    try:
        stdin = None if reads_terminal else asyncio.subprocess.DEVNULL
        with starting(reach="process", signal=signal.SIGTERM) as mark:
            process = await asyncio.create_subprocess_exec(*argv, cwd=cwd, env={**environ, **mark}, stdin=stdin)
            guard(process.pid, reach="process", signal=signal.SIGTERM)
            return RunningProgram(process)
    except OSError as error:
        raise UsageError(f"cannot start {argv[0]}: {error.strerror}") from error
