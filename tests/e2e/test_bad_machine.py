"""A machine, or a state directory, on which something is missing: named, survived, and never papered over."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project, assert_continuous

MAIN = "src/main.rs"


def test_capture_cut_short_is_named_and_made_again(single: Project) -> None:
    """A truncated capture is listed with its reason; the crate is built again, and edits apply."""
    with Session(single, "build") as session:
        assert session.daemon.wait_exit(within_s=180) == 0
        (capture,) = (single.state / "captures").glob("single-*.json")
        whole = capture.read_text()
        capture.write_text(whole[: len(whole) // 2])
        assert capture.name in str(session.cli_json("captures"))
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, "    left + right", "    left * right")
        session.daemon.wait_value("private", "60")


def test_stripped_host_says_how_to_fix_it(single: Project) -> None:
    """Without symbols nothing can be patched: the message names the setting."""
    with Session(single, env={"CARGO_PROFILE_DEV_STRIP": "symbols"}) as session:
        session.daemon.wait_text("strip = false", within_s=180)


def test_program_from_another_build_is_left_alone(single: Project, tmp_path: Path) -> None:
    """A program that is not the captured build's runs, unpatched, and is named."""
    with Session(single, "serve") as session:
        session.wait_event("daemon.ready", within_s=180)
        other = Project("busy", tmp_path / "busy")
        subprocess.run(["cargo", "build", "--quiet"], cwd=other.root, check=True)
        stranger = session.attach(other.target / "debug" / "busy", wait=False)
        session.daemon.wait_text(str(other.target / "debug" / "busy"))
        stranger.wait_next_lines(5)
        assert session.cli_json("clients") == []
        assert_continuous(stranger.app_lines())


@pytest.fixture
def own_linker(single: Project) -> Path:
    """Makes the project link with a script that lies outside of it, and returns the script."""
    linker = single.root.with_name("linker.sh")
    linker.write_text('#!/bin/sh\nexec cc "$@"\n')
    linker.chmod(0o755)
    (single.root / ".cargo").mkdir()
    (single.root / ".cargo" / "config.toml").write_text(f'[target.x86_64-unknown-linux-gnu]\nlinker = "{linker}"\n')
    return linker


def test_linker_that_is_missing_is_named(single: Project, own_linker: Path) -> None:
    """When the captured linker is gone the edit fails by its name; when it is back the next edit applies."""
    with Session(single) as session:
        session.wait_started()
        away = own_linker.rename(own_linker.with_name("linker.away"))
        verdict = session.wait_verdict(session.edit(MAIN, "    left + right", "    left * right"))
        assert verdict.verdict == "failed"
        session.daemon.wait_text(own_linker.name)
        assert session.daemon.wait_next_lines(2)["private"] == "23"
        away.rename(own_linker)
        session.apply(MAIN, "    left * right", "    left * right * 2")
        session.daemon.wait_value("private", "120")
        assert_continuous(session.daemon.app_lines())


SMALL_DISK_BYTES = 256 << 20


def fill(path: Path) -> None:
    """Writes a file until its file system, which must be the small one, is full."""
    disk = os.statvfs(path.parent)
    assert disk.f_blocks * disk.f_frsize <= SMALL_DISK_BYTES, f"{path.parent} is not the small file system"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_no_space_for_a_patch(single: Project) -> None:
    """A full file system fails the edit with the system's words; with space again the next edit applies."""
    single.state.mkdir(parents=True)
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = f'mount -t tmpfs -o size={SMALL_DISK_BYTES} tmpfs "{single.state}" && exec "$@"'
    prefix = ("unshare", *rights, "--mount", "sh", "-c", mount, "sh")
    with Session(single, prefix=prefix) as session:
        session.wait_started()
        pid = session.wait_event("daemon.ready")["pid"]
        # The mount is seen by the daemon and its children alone; /proc leads into their view.
        filler = Path(f"/proc/{pid}/root{single.state}/filler")
        fill(filler)
        verdict = session.wait_verdict(session.edit(MAIN, "    left + right", "    left * right"))
        assert verdict.verdict == "failed"
        session.daemon.wait_text("No space left on device")
        assert session.daemon.wait_next_lines(2)["private"] == "23"
        filler.unlink()
        session.apply(MAIN, "    left * right", "    left * right * 2")
        session.daemon.wait_value("private", "120")
        assert_continuous(session.daemon.app_lines())


def test_port_taken_is_named(single: Project) -> None:
    """A daemon that cannot have its address says which, and ends with an error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Session(single, "serve", options=("--listen", address)) as session:
            assert session.daemon.wait_exit(within_s=180) != 0
            assert address in session.daemon.output


def test_second_daemon_names_the_first(single: Project) -> None:
    """One daemon per target directory: the second names the first's process and ends, and the first goes on."""
    with Session(single) as session:
        session.wait_started()
        pid = session.wait_event("daemon.ready")["pid"]
        second = session.start("serve")
        assert second.wait_exit(within_s=60) != 0
        assert str(pid) in second.output
        session.apply(MAIN, "    left + right", "    left * right")


def test_daemon_after_a_killed_one(single: Project) -> None:
    """A daemon that was killed leaves no lock behind that keeps the next one out."""
    first = Session(single)
    with first:
        first.wait_started()
        first.kill()
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, "    left + right", "    left * right")
