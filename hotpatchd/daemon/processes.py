"""Running compilers and linkers: each in a process group of its own, killed as a group."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

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


def starting(*, reach: Reach, signal: int) -> AbstractContextManager[Mapping[str, str]]:
    """The context in which a child is started and guarded; see `Guardian.starting`."""
    care = _CARE.get()
    return care.guardian.starting(reach=reach, signal=signal) if care else nullcontext({})


def guard(pid: int, *, reach: Reach, signal: int) -> None:
    """From now on a child is ended when this process is killed; see `Guardian.add`."""
    if care := _CARE.get():
        care.guardian.add(pid, reach=reach, signal=signal)


def release(pid: int) -> None:
    """A guarded child has ended."""
    if care := _CARE.get():
        care.guardian.remove(pid)


class Child:
    """A started program; waiting for it takes no thread.

    Args:
        process: with pipes for what is to be read of it.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._transports: list[asyncio.BaseTransport] = []
        self.pid = process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, or the negative number of the signal that ended it; None while it runs."""
        return self._process.returncode

    async def read(
        self, name: Literal["stdout", "stderr"] = "stdout", tell: Callable[[bytes], None] | None = None
    ) -> bytes:
        """All that it prints; `tell` is given each line at once, line end included."""
        pipe = self._process.stdout if name == "stdout" else self._process.stderr
        assert pipe is not None
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        self._transports.append(transport)
        return await _read_lines(stream, tell)

    async def wait(self) -> int:
        """Wait for its end; returns its status."""
        if self._process.poll() is None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            fd = os.pidfd_open(self.pid)
            loop.add_reader(fd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(fd)
                os.close(fd)
        return self._process.wait()

    def close(self) -> None:
        """Stop reading."""
        for transport in self._transports:
            transport.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None and not self._transports:
                pipe.close()


@asynccontextmanager
async def limited_process(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    stdin: int = subprocess.DEVNULL,
    stderr: int | None = None,
    own_session: bool,
    turn: Turn | None,
) -> AsyncIterator[Child]:
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
        # Not by asyncio: the guardian and the limits must know of the process before anything else happens.
        with starting(reach="group", signal=signal.SIGKILL) as mark, limits.starting() if limits else nullcontext():
            added = {**mark, **(limits.jobserver.environ() if limits else {})}
            process = subprocess.Popen(  # noqa: ASYNC220
                argv,
                cwd=cwd,
                env={**(os.environ if env is None else env), **added},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                pass_fds=limits.jobserver.fds if limits else (),
                start_new_session=own_session,
                process_group=None if own_session else 0,
            )
            guard(process.pid, reach="group", signal=signal.SIGKILL)
        child = Child(process)
        try:
            if limits:
                limits.started(child.pid)
            yield child
        finally:
            if child.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
            release(child.pid)
            child.close()


async def run_process(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
    stdin: int = subprocess.DEVNULL,
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
            stderr=subprocess.PIPE,
            own_session=True,
            turn="tool" if takes_turn else None,
        ) as child:
            stdout, stderr = await asyncio.gather(child.read("stdout"), child.read("stderr", on_stderr))
            status = await child.wait()
    except OSError as error:
        raise BuildError(
            f"cannot start `{argv[0]}`: {error.strerror}", hint="is it installed, and is it on the PATH of the build?"
        ) from error
    return Finished(status=status, stdout=stdout, stderr=stderr)


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
