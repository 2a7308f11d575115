"""The command and the environment of the program that is patched."""

import platform
from pathlib import Path

import pytest

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.program import client_environ, program_command

CLIENT = Path("/cache/libclient.so")
FOREIGN = "sparc64-unknown-linux-gnu"


def test_a_program_runs_through_the_runner_of_its_target(tmp_path: Path) -> None:
    """As `cargo run` does; without one it runs by itself."""
    environ = {"HOME": str(tmp_path), "CARGO_TARGET_SPARC64_UNKNOWN_LINUX_GNU_RUNNER": "emulator -L /sysroot"}
    argv = ("emulator", "-L", "/sysroot", "/app", "x")
    assert program_command(Path("/app"), ["x"], FOREIGN, cwd=tmp_path, environ=environ) == argv
    other = f"{platform.machine()}-unknown-linux-gnu"
    assert program_command(Path("/app"), ["x"], other, cwd=tmp_path, environ=environ) == ("/app", "x")


@pytest.mark.parametrize("triple", [None, f"{platform.machine()}-unknown-linux-musl"])
def test_the_client_is_loaded_before_the_developers_own_libraries(triple: str | None) -> None:
    """Those are kept."""
    environ = client_environ({"A": "1", "LD_PRELOAD": "/own.so"}, CLIENT, Path("/state"), None, triple)
    assert environ == {"A": "1", "LD_PRELOAD": f"{CLIENT} /own.so", "HOTPATCHD_STATE": "/state"}


def test_an_emulator_hands_the_client_to_the_program() -> None:
    """It cannot load a library for another machine itself."""
    environ = client_environ({"QEMU_SET_ENV": "B=2", "LD_PRELOAD": "/own.so"}, CLIENT, Path("/state"), None, FOREIGN)
    assert (environ["LD_PRELOAD"], environ["QEMU_SET_ENV"]) == ("/own.so", f"B=2,LD_PRELOAD={CLIENT}")


def test_a_comma_in_the_clients_path_is_refused_for_an_emulator() -> None:
    """It would end the variable's value there."""
    with pytest.raises(UsageError, match="has a comma"):
        client_environ({}, Path("/a,b/client.so"), Path("/state"), None, FOREIGN)


def test_a_client_in_the_program_is_not_loaded(tmp_path: Path) -> None:
    """It only has to know the daemon and the program, by the program's own path."""
    (tmp_path / "link").symlink_to(tmp_path / "app")
    environ = client_environ({}, None, Path("/state"), tmp_path / "link")
    assert environ == {"HOTPATCHD_STATE": "/state", "HOTPATCHD_HOST": str(tmp_path / "app")}
