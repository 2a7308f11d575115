"""Running compilers and linkers: each in a process group of its own, killed as a group."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hotpatchd.core.errors import BuildError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended: exit status (negative: the signal that killed it), and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


async def run_process(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
) -> Finished:
    """Run a program to its end, without a terminal.

    When the caller is cancelled, the whole process group is killed before the cancellation goes on.

    Args:
        argv: the program and its arguments.
        cwd: its directory.
        env: its environment.
        on_stderr: is given each line that it prints to standard error at once, line end included.

    Raises:
        BuildError: the program cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(
            f"cannot start `{argv[0]}`: {error.strerror}", hint="is it installed, and is it on the PATH of the build?"
        ) from error
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        reading = (process.stdout.read(), _read_lines(process.stderr, on_stderr))
        stdout, stderr = await asyncio.gather(*reading)
        await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return Finished(status=process.returncode or 0, stdout=stdout, stderr=stderr)


async def _read_lines(stream: asyncio.StreamReader, tell: Callable[[bytes], None] | None) -> bytes:
    """All of a stream; lines of any length are told as they come."""
    if tell is None:
        return await stream.read()
    read, line = bytearray(), bytearray()
    while piece := await stream.read(1 << 16):
        read += piece
        *whole, rest = (line + piece).split(b"\n")
        for finished in whole:
            tell(bytes(finished) + b"\n")
        line = rest
    return bytes(read)
