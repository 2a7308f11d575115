"""The program that is patched: its environment, the client in it, its beginning and its end."""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.client_build import ensure_client
from hotpatchd.daemon.report import Terminal

GRACE_S = 3.0
"""How long a program may take to end before it is told again, more firmly."""


async def client_for(target: str | None, environ: Mapping[str, str], terminal: Terminal) -> Path:
    """The client library for programs of a target (None: this machine's), built if it has to be.

    Raises:
        HotpatchdError: it cannot be had.
    """
    rustc = shutil.which("rustc", path=environ.get("PATH"))
    if rustc is None:
        raise UsageError("rustc is not on PATH", hint="install Rust from https://rustup.rs")
    triple = target or f"{platform.machine()}-unknown-linux-gnu"
    with terminal.console.status("Building the client") as status:
        return await ensure_client(Path(rustc), triple, lambda line: status.update(f"Building the client: {line}"))


def client_environ(environ: Mapping[str, str], client: Path, state_dir: Path, host: Path | None) -> dict[str, str]:
    """The environment in which a program starts with the client in it.

    Args:
        environ: the environment that it would have otherwise.
        client: the client library.
        state_dir: the daemon's directory.
        host: the program, if it is known; other programs that inherit the environment are then left alone.
    """
    preload = " ".join(filter(None, [str(client), environ.get("LD_PRELOAD")]))
    added = {"LD_PRELOAD": preload, "HOTPATCHD_STATE": str(state_dir)}
    if host is not None:
        added["HOTPATCHD_HOST"] = os.path.realpath(host)
    return {**environ, **added}


async def run_program(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    cwd: Path,
    terminal: Terminal,
    was_interrupted: Callable[[], bool],
) -> int:
    """Run the program to its end, in the terminal's foreground; ends it when cancelled.

    Args:
        argv: the program and its arguments.
        environ: its environment.
        cwd: its directory.
        terminal: where its beginning and a violent end are told.
        was_interrupted: whether a Ctrl-C is why this is cancelled.

    Returns:
        its exit status; 128 and the signal's number where a signal ended it.
    """
    process = await asyncio.create_subprocess_exec(*argv, cwd=cwd, env=environ)
    terminal.say("Running", f"{argv[0]} (process {process.pid})")
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        await _end(process, interrupted=was_interrupted())
        raise
    if status < 0:
        terminal.say("Ended", f"by {signal.Signals(-status).name}", "bold red")
        return 128 - status
    return status


async def _end(process: asyncio.subprocess.Process, *, interrupted: bool) -> None:
    # Ctrl-C reached the program as well, which may be saving its state.
    for number in ((None,) if interrupted else ()) + (signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        try:
            async with asyncio.timeout(GRACE_S):
                await process.wait()
                return
        except TimeoutError:
            continue
