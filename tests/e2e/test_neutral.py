"""What editors and developers run in the same tree, rust-analyzer above all, and patches leave each other alone."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Project
from tests.e2e.test_workspace import compiled_for

BASE = "main/crates/base/src/lib.rs"
TIP = "main/crates/app/src/main.rs"
TOOLS = {
    "build": ("build",),
    "check": ("check",),
    "rust_analyzer": ("check", "--workspace", "--message-format=json", "--all-targets"),
    "rust_analyzer_apart": (
        "check",
        "--workspace",
        "--message-format=json",
        "--all-targets",
        "--target-dir",
        "target/ra",
    ),
    "test": ("test", "--no-run"),
}


def cargo(session: Session, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """Runs cargo as a developer does; returns the packages that it did not find fresh."""
    finished = subprocess.run(
        ["cargo", *arguments, "-v"],
        cwd=session.directory,
        env={**session.env, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Fresh" in finished.stderr or "Compiling" in finished.stderr or "Checking" in finished.stderr
    return re.findall(r"^ *(?:Compiling|Checking|Dirty) (\S+)", finished.stderr, re.MULTILINE)


def edit_and_take_back(session: Session, file: str, old: str, new: str) -> None:
    """Two patches, after which the file is what it was, its time included."""
    path = session.project.root / file
    times = path.stat()
    session.apply(file, old, new)
    session.apply(file, new, old)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def objects(session: Session, crate: str) -> set[int]:
    """The inodes of the objects that the newest compile of a crate left; those it reused are hard links."""
    (place,) = session.directory.glob(f"target/hotpatchd/thin/{crate}-*/objects")
    newest = max(place.iterdir(), key=lambda directory: directory.stat().st_ctime_ns)
    return {path.stat().st_ino for path in newest.iterdir()}


@pytest.mark.parametrize("tool", TOOLS)
def test_patches_leave_what_cargo_built_fresh(tool: str, workspace: Session) -> None:
    """After patches in two crates, whose files have their old content and time again, cargo has nothing to do."""
    cargo(workspace, TOOLS[tool])
    assert cargo(workspace, TOOLS[tool]) == []
    edit_and_take_back(workspace, BASE, "    10\n", "    11\n")
    edit_and_take_back(workspace, TIP, "    61", "    62")
    assert cargo(workspace, TOOLS[tool]) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_cargo_leaves_patches_warm(tool: str, workspace: Session) -> None:
    """After cargo ran over an edit, the next one compiles its crate only, and of that only what it touches."""
    # Code that was compiled before would come from the cache.
    first, second = (f"    {100 * number + list(TOOLS).index(tool)}" for number in (1, 2))
    workspace.apply(TIP, "    61", first)
    before = objects(workspace, "runner")
    cargo(workspace, TOOLS[tool])
    verdict = workspace.apply(TIP, first, second)
    assert compiled_for(workspace, verdict) == ["runner"]
    after = objects(workspace, "runner")
    assert 0 < len(after - before) < len(after) / 2
    workspace.daemon.wait_value("own", second.strip())


def test_tools_with_other_flags_do_not_touch_the_program(workspace: Session) -> None:
    """A check with other `RUSTFLAGS`, or with a wrapper of its own, leaves what the daemon built as it is."""
    program = workspace.directory / "target/debug/runner"
    built = program.stat()
    cargo(workspace, TOOLS["check"], {"RUSTFLAGS": "--cfg checked"})
    cargo(workspace, TOOLS["check"], {"RUSTC_WORKSPACE_WRAPPER": wrapper(workspace.logs)})
    assert program.stat().st_mtime_ns == built.st_mtime_ns
    edit_and_take_back(workspace, BASE, "    10\n", "    11\n")
    assert cargo(workspace, TOOLS["check"], {"RUSTC_WORKSPACE_WRAPPER": wrapper(workspace.logs)}) == []


def wrapper(directory: Path) -> str:
    """A wrapper as clippy's driver is one, which only runs rustc."""
    path = directory / "wrapper"
    if not path.exists():
        path.write_text('#!/bin/sh\nexec "$@"\n')
        path.chmod(0o755)
    return str(path)


def test_daemons_and_cargo_take_turns(tmp_path: Path) -> None:
    """Once each has built the tree, neither has anything to compile after the other, whoever began."""
    project = Project("workspace", tmp_path / "workspace")
    with Session(project, "build", directory="main") as session:
        assert session.daemon.wait_exit(within_s=START_WITHIN_S) == 0
        cargo(session, TOOLS["build"])
        cargo(session, TOOLS["check"])
        session.start_daemon("run")
        session.wait_started()
        assert "Compiling" not in session.daemon.output
        assert cargo(session, TOOLS["build"]) == []
        assert cargo(session, TOOLS["check"]) == []
