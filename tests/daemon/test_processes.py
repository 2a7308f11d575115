"""Real processes: how they end, and that nothing of them outlives a cancelled caller."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.processes import run_process


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be collected."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_output_and_exit_status_come_back_apart() -> None:
    """Standard output, standard error and the status are each told."""
    finished = await run_process(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (finished.status, finished.stdout, finished.stderr) == (3, b"out\n", b"err\n")


async def test_a_process_ended_by_a_signal_has_its_negative_number() -> None:
    """The status tells the signal."""
    assert (await run_process(["sh", "-c", "kill -TERM $$"])).status == -15


async def test_directory_and_environment_are_those_given(tmp_path: Path) -> None:
    """Nothing of the caller's environment is added."""
    finished = await run_process(["/usr/bin/env"], cwd=str(tmp_path), env={"ONLY": "this"})
    assert finished.stdout == b"ONLY=this\n"
    assert (await run_process(["pwd"], cwd=str(tmp_path))).stdout == os.fsencode(tmp_path) + b"\n"


async def test_standard_input_is_empty() -> None:
    """A program that reads ends at once and takes nothing from the terminal."""
    assert (await run_process(["cat"])).stdout == b""


async def test_much_output_does_not_block_the_process() -> None:
    """More than a pipe holds is read while the process runs."""
    finished = await run_process(["sh", "-c", "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2"])
    assert (len(finished.stdout), len(finished.stderr)) == (1_000_000, 1_000_000)


@pytest.mark.parametrize(("name", "said"), [("missing", "No such file"), ("plain", "Permission denied")])
async def test_a_program_that_cannot_be_started_is_named(tmp_path: Path, name: str, said: str) -> None:
    """The error has its path and the system's words."""
    (tmp_path / "plain").write_text("not executable")
    with pytest.raises(BuildError, match=f"{name}.*{said}"):
        await run_process([str(tmp_path / name)])


async def test_cancelling_kills_what_the_process_started_as_well(tmp_path: Path) -> None:
    """A shell and its background child are both gone when the cancellation comes through."""
    pids = tmp_path / "pids"
    script = f'sleep 600 & echo $! $$ > "{pids}.new"; mv "{pids}.new" "{pids}"; wait'
    task = asyncio.create_task(run_process(["sh", "-c", script]))
    await until(pids.exists)
    child, shell = map(int, pids.read_text().split())
    assert is_running(child)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert not is_running(shell)
    await until(lambda: not is_running(child))


async def test_lines_of_standard_error_are_told_as_they_come(tmp_path: Path) -> None:
    """Whoever waits for a line need not wait for the end; the line may be longer than a pipe holds."""
    os.mkfifo(gate := tmp_path / "gate")
    told: list[bytes] = []
    seen = asyncio.Event()

    def take(line: bytes) -> None:
        told.append(line)
        seen.set()

    script = "import sys; print('x' * 200_000, file=sys.stderr, flush=True); open(sys.argv[1]).read()"
    running = asyncio.create_task(run_process([sys.executable, "-c", script, str(gate)], on_stderr=take))
    await asyncio.wait_for(seen.wait(), 30)
    assert not running.done()
    await asyncio.to_thread(gate.write_bytes, b"")
    assert told == [b"x" * 200_000 + b"\n"] == [(await running).stderr]
