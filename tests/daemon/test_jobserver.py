"""A jobserver, and those that share it."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hotpatchd.daemon.jobserver import Jobserver, Turn


@pytest.fixture
def three() -> Iterator[Jobserver]:
    """A jobserver for three jobs."""
    with Jobserver(3) as jobserver:
        yield jobserver


def available(jobserver: Jobserver) -> int:
    """How many bytes are in the pipe."""
    try:
        taken = os.read(jobserver._reader, 100)
    except BlockingIOError:
        return 0
    os.write(jobserver.fds[1], taken)
    return len(taken)


async def test_as_many_run_as_there_are_jobs(three: Jobserver) -> None:
    """A fourth begins when one of three ends."""
    running, most = 0, 0

    async def run() -> None:
        nonlocal running, most
        async with three.turn("tool"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(run() for _ in range(20)))
    assert most == 3
    assert available(three) == 2


async def test_one_job_means_one_at_a_time() -> None:
    """There is no byte to wait for then, but the end of the one that runs."""
    with Jobserver(1) as jobserver:
        order: list[int] = []

        async def run(number: int) -> None:
            async with jobserver.turn("tool"):
                order.append(number)
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.wait_for(asyncio.gather(*(run(number) for number in range(4))), 10)
        assert order[::2] == order[1::2]


async def test_edit_does_not_wait_for_a_build(three: Jobserver) -> None:
    """A build that has taken all bytes leaves the first tool its turn."""
    async with three.turn("build"):
        os.read(three.fds[0], 2)
        async with asyncio.timeout(10), three.turn("tool"):
            pass


async def test_bytes_of_a_killed_process_are_made_good(three: Jobserver) -> None:
    """Once nobody runs who may have some of them."""
    async with three.turn("tool"):
        async with three.turn("build"):
            os.read(three.fds[0], 2)
        assert available(three) == 0
    assert available(three) == 2


async def test_waiting_can_be_given_up(three: Jobserver) -> None:
    """The turns of others are not touched by it."""
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(three.turn("tool"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), three.turn("tool"):
                pass
    assert available(three) == 2


def run_beside(jobserver: Jobserver, argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program that finds the jobserver."""
    return subprocess.run(
        argv,
        cwd=cwd,
        env=os.environ | jobserver.environ(),
        pass_fds=jobserver.fds,
        capture_output=True,
        text=True,
        check=True,
    )


async def test_rustc_takes_part(three: Jobserver, tmp_path: Path) -> None:
    """It finds the pipe without a warning, and puts back what it took."""
    (tmp_path / "a.rs").write_text("\n".join(f"pub mod m{n} {{ pub fn f() {{ println!(); }} }}" for n in range(50)))
    argv = ["rustc", "--crate-type=lib", "--emit=obj", "-Ccodegen-units=50", "a.rs"]
    ran = await asyncio.to_thread(run_beside, three, argv, tmp_path)
    assert ran.stderr == ""
    assert available(three) == 2


async def test_cargo_hands_it_on(three: Jobserver, tmp_path: Path) -> None:
    """Build scripts find the same pipe and the number; cargo has no complaint."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/lib.rs").touch()
    (tmp_path / "Cargo.toml").write_text('[package]\nname = "a"\nedition = "2021"\n')
    (tmp_path / "build.rs").write_text(
        'fn main() { println!("cargo::warning={}", std::fs::metadata("/dev/fd/FD").is_ok());'
        ' println!("cargo::warning=jobs {}", std::env::var("NUM_JOBS").unwrap()); }'.replace("FD", str(three.fds[0]))
    )
    ran = await asyncio.to_thread(run_beside, three, ["cargo", "build", "--target-dir", "target"], tmp_path)
    warnings = [line for line in ran.stderr.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: a@0.0.0: true", "warning: a@0.0.0: jobs 3"]
    assert available(three) == 2


@pytest.mark.parametrize("kind", ["tool", "build"])
async def test_end_of_the_only_process_wakes_who_waits(kind: Turn) -> None:
    """Also where its byte was lost."""
    with Jobserver(2) as jobserver:
        async with jobserver.turn(kind):
            os.read(jobserver.fds[0], 1)
            waiting = asyncio.create_task(jobserver.turn(kind).__aenter__())
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 10)
