"""Running compilers and linkers: each in a process group of its own, killed as a group."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.guardian import Guardian, Reach
from hotpatchd.daemon.jobserver import Turn
from hotpatchd.daemon.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Care:
    guardian: Guardian
    limits: Limits


_CARE: ContextVar[_Care | None] = ContextVar("_CARE", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended: exit status (negative: the signal that killed it), and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


@contextmanager
def caring(limits: Limits) -> Iterator[None]:
    """Hold every process that is started in this context, and in its tasks, to limits; none outlives this process.

    Args:
        limits: for all of them together.

    Raises:
        UsageError: an explicit limit cannot be held.
    """
    with ExitStack() as stack:
        guardian = stack.enter_context(Guardian())
        stack.enter_context(limits)
        if limits.group:
            guardian.add_control_group(limits.group.directory)
        token = _CARE.set(_Care(guardian=guardian, limits=limits))
        try:
            yield
        finally:
            _CARE.reset(token)


def guard(pid: int, *, reach: Reach, signal: int) -> None:
    """From now on a child is ended when this process is killed; see `Guardian.add`."""
    if care := _CARE.get():
        care.guardian.add(pid, reach=reach, signal=signal)


def release(pid: int) -> None:
    """A guarded child has ended."""
    if care := _CARE.get():
        care.guardian.remove(pid)


@asynccontextmanager
async def limited_process(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    stdin: int = asyncio.subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
    own_session: bool,
    turn: Turn | None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program in a process group of its own, within the limits, its standard output a pipe.

    The context ends with the program, or kills the whole group.

    Args:
        argv: the program and its arguments.
        cwd: its directory.
        env: its environment.
        stdin: its standard input.
        stderr: its standard error.
        own_session: keeps the terminal from it.
        turn: which turn it takes among what runs; None for one that is no work.

    Raises:
        OSError: the program cannot be started.
    """
    care = _CARE.get()
    limits = care.limits if care and turn else None
    async with limits.jobserver.turn(turn) if limits and turn else nullcontext():
        with limits.starting() if limits else nullcontext():
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd,
                env={**(os.environ if env is None else env), **limits.jobserver.environ()} if limits else env,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                pass_fds=limits.jobserver.fds if limits else (),
                start_new_session=own_session,
                process_group=None if own_session else 0,
            )
        guard(process.pid, reach="group", signal=signal.SIGKILL)
        try:
            if limits:
                limits.started(process.pid)
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            release(process.pid)


async def run_process(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    takes_turn: bool = True,
) -> Finished:
    """Run a program to its end, without a terminal.

    When the caller is cancelled, the whole process group is killed before the cancellation goes on.

    Args:
        argv: the program and its arguments.
        cwd: its directory.
        env: its environment.
        on_stderr: is given each line that it prints to standard error at once, line end included.
        stdin: its standard input.
        takes_turn: whether it is work, to which limits apply.

    Raises:
        BuildError: the program cannot be started.
    """
    try:
        async with limited_process(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stderr=asyncio.subprocess.PIPE,
            own_session=True,
            turn="tool" if takes_turn else None,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            reading = (process.stdout.read(), _read_lines(process.stderr, on_stderr))
            stdout, stderr = await asyncio.gather(*reading)
            await process.wait()
    except OSError as error:
        raise BuildError(
            f"cannot start `{argv[0]}`: {error.strerror}", hint="is it installed, and is it on the PATH of the build?"
        ) from error
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
