"""Real cargos: how they end, and that it is known for whom they wait."""

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon import cargo
from hotpatchd.daemon.cargo import find_wait, run_cargo
from hotpatchd.daemon.limits import Limits
from hotpatchd.daemon.processes import caring
from tests.daemon.test_processes import is_running, until


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that has been built once, so that its target directory is there."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/lib.rs").touch()
    (tmp_path / "Cargo.toml").write_text('[package]\nname = "a"\nedition = "2021"\n')
    (tmp_path / "target/debug").mkdir(parents=True)
    return tmp_path


def environ(package: Path) -> dict[str, str]:
    """Cargo's environment: the package's own target directory."""
    return {**os.environ, "CARGO_TARGET_DIR": str(package / "target")}


async def build(package: Path, told: list[str]) -> bytes:
    """Builds the package."""
    return await run_cargo(["build", "-q"], cwd=package, environ=environ(package), waiting=told.append)


@pytest.mark.parametrize("foreground", [True, False])
async def test_output_comes_back(package: Path, foreground: bool) -> None:
    """Standard output is what cargo printed."""
    args = ["locate-project", "--message-format=plain"]
    output = await run_cargo(args, cwd=package, environ=environ(package), foreground=foreground)
    assert output == os.fsencode(package / "Cargo.toml") + b"\n"


@pytest.mark.parametrize("foreground", [True, False])
async def test_failure_has_the_status_and_the_command(package: Path, foreground: bool) -> None:
    """Cargo itself has shown the rest."""
    with pytest.raises(BuildError, match="cargo build failed with exit status 101"):
        await run_cargo(["build", "--bin=none"], cwd=package, environ=environ(package), foreground=foreground)


async def test_missing_cargo_is_told(package: Path) -> None:
    """The hint leads to an installation."""
    with pytest.raises(BuildError, match="rustup"):
        await run_cargo(["build"], cwd=package, environ={"PATH": str(package)})


async def test_wait_for_another_is_told_with_its_command(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, though cargo itself is quiet; the build goes on when the lock is free."""
    monkeypatch.setattr(cargo, "_LOOK_EVERY_S", 0.01)
    lock = package / "target/debug/.cargo-lock"
    told: list[str] = []
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        building = asyncio.create_task(build(package, told))
        await until(lambda: bool(told))
        assert told[0].startswith(f"cargo waits for the lock {lock}, which process {os.getpid()} (`")
        assert "pytest" in told[0]
    await building
    assert len(told) == 1


async def test_cancelled_cargo_is_gone_with_its_children(package: Path) -> None:
    """A build script that runs is ended, too."""
    script = (
        'fn main() { std::fs::write("pid", std::process::id().to_string()).unwrap(); loop { std::thread::park(); } }'
    )
    (package / "build.rs").write_text(script)
    with caring(Limits(find_group=lambda: None)):
        building = asyncio.create_task(build(package, []))
        await until(lambda: (package / "pid").exists() and (package / "pid").read_text() != "", 60)
        pid = int((package / "pid").read_text())
        assert is_running(pid)
        building.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await building
        await until(lambda: not is_running(pid))


def test_process_that_waits_for_no_lock() -> None:
    """That is what is said of it."""
    assert find_wait(os.getpid()) is None
