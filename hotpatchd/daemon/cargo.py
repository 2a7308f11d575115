"""Running cargo, and telling whom it waits for."""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.processes import guard, limited_process, release

_KILL_AFTER_S = 2.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class CargoWait:
    """A lock that cargo waits for.

    Args:
        path: of the locked file; None where it cannot be found out.
        holder: who has it, with its command line; empty where it cannot be found out.
    """

    path: Path | None
    holder: str

    def __str__(self) -> str:
        lock = f"the lock {self.path}" if self.path else "a lock"
        return f"cargo waits for {lock}" + (f", which {self.holder} has" if self.holder else "")


async def run_cargo(
    args: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    foreground: bool = False,
    on_stdout: Callable[[bytes], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> bytes:
    """Run cargo to its end. Its standard error is this process's; cancelling ends it.

    Args:
        args: its arguments.
        cwd: where it runs.
        environ: its environment.
        foreground: leave it in the terminal's foreground, where it may ask for a passphrase, without limits. Else it
            has a process group of its own, for cancelling to reach rustc and the linker; Ctrl-C on the terminal goes
            to the daemon's group, which cancels this coroutine.
        on_stdout: is given each line of its standard output at once, where it is not in the foreground; cargo still has
            its lock then, and what it names is what it made.
        waiting: is told when it waits for another cargo, and for which.

    Returns:
        its standard output.

    Raises:
        BuildError: it cannot be run, or fails; it has shown why.
    """
    try:
        if foreground:
            status, output = await _in_foreground(args, cwd, environ)
        else:
            status, output = await _in_background(args, cwd, environ, on_stdout, waiting)
    except FileNotFoundError as error:
        raise BuildError("cargo is not on PATH", hint="install Rust from https://rustup.rs") from error
    if status < 0:
        raise BuildError(f"cargo {args[0]} was ended by {signal.Signals(-status).name}")
    if status > 0:
        raise BuildError(f"cargo {args[0]} failed with exit status {status}", hint="see what it printed where it ran")
    return output


async def _in_foreground(args: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> tuple[int, bytes]:
    cargo = await asyncio.create_subprocess_exec(
        "cargo", *args, cwd=cwd, env=environ, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    guard(cargo.pid, reach="process", signal=signal.SIGTERM)
    try:
        output, _ = await cargo.communicate()
    finally:
        if cargo.returncode is None:
            cargo.terminate()
            await cargo.wait()
        release(cargo.pid)
    return cargo.returncode or 0, output


async def _in_background(
    args: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
    on_stdout: Callable[[bytes], None] | None,
    waiting: Callable[[str], None] | None,
) -> tuple[int, bytes]:
    async with limited_process(["cargo", *args], cwd=cwd, env=environ, own_session=False, turn="build") as cargo:
        watching = asyncio.create_task(_watch_locks(cargo.pid, waiting)) if waiting else None
        try:
            output = await cargo.read("stdout", on_stdout)
            return await cargo.wait(), output
        except asyncio.CancelledError:
            # What does not end soon is killed.
            os.killpg(cargo.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(cargo.wait(), _KILL_AFTER_S)
            raise
        finally:
            if watching:
                watching.cancel()


async def _watch_locks(pid: int, waiting: Callable[[str], None]) -> None:
    """Tell once of each lock and holder that cargo waits for. The kernel tells nobody of such waits."""
    told: CargoWait | None = None
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        found = find_wait(pid)
        if found and found != told:
            waiting(str(found))
        told = found or told


def find_wait(pid: int) -> CargoWait | None:
    """The file lock that a process waits for; None where it waits for none, or the system does not say.

    Source: proc_locks(5): a waiter's line has an arrow, and follows that of the holder, with the same number.
    """
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    for line in lines:
        if line[1] == "->" and int(line[5]) == pid:
            holders = (int(held[4]) for held in lines if held[0] == line[0] and held[1] != "->")
            return CargoWait(_open_file(pid, line[6]), _describe(next(holders, 0)))
    return None


def _open_file(pid: int, identity: str) -> Path | None:
    """The path of a process's open file by the device and inode that `/proc/locks` names."""
    major, minor, inode = identity.split(":")
    wanted = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
    for link in _entries(Path(f"/proc/{pid}/fd")):
        with contextlib.suppress(OSError):
            stat = link.stat()
            if (stat.st_dev, stat.st_ino) == wanted:
                return link.readlink()
    return None


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = [os.fsdecode(word) for word in command.removesuffix(b"\0").split(b"\0")]
    return f"process {pid} (`{shlex.join(words)}`)" if command else ""


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from directory.iterdir()
