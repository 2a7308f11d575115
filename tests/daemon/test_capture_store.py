"""Captures on disk: which are used, and what is said about the others."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotpatchd.daemon.capture_store import CaptureStore

NAME = "app-12ab-bin-host.json"


class Disk:
    """A directory with one valid capture."""

    def __init__(self, root: Path) -> None:
        self.store = CaptureStore(root / "captures")
        self.path = self.store.directory / NAME
        self.rustc = root / "rustc"
        self.output = root / "app"
        self.store.directory.mkdir()
        self.write_rustc("rustc 1.95.0")
        self.output.write_text("program")
        stat = self.output.stat()
        self.record: dict[str, Any] = {
            "schema": 1,
            "tip_args": [],
            "rustc": str(self.rustc),
            "argv": ["--crate-name", "app", "-C", "metadata=12ab"],
            "cwd": str(root),
            "env": {},
            "toolchain": "rustc 1.95.0\n",
            "outputs": [{"path": str(self.output), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}],
            "dep_info": None,
            "link_line": None,
            "exit_status": 0,
        }
        self.path.write_text(json.dumps(self.record))

    def write_rustc(self, version: str) -> None:
        """Makes the compiler say this version."""
        self.rustc.write_text(f"#!/bin/sh\necho {version}\n")
        self.rustc.chmod(0o755)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A new disk."""
    return Disk(tmp_path)


def test_a_valid_capture_is_listed(disk: Disk) -> None:
    """And nothing is wrong."""
    listing = disk.store.load_all()
    assert [capture.crate_name for capture in listing.captures] == ["app"]
    assert listing.problems == ()


def test_an_empty_store_is_no_problem(tmp_path: Path) -> None:
    """Before the first fat build there is not even a directory."""
    listing = CaptureStore(tmp_path / "none").load_all()
    assert (listing.captures, listing.problems) == ((), ())


def test_unfinished_files_and_toolchains_are_no_captures(disk: Disk) -> None:
    """A temporary file of a running shim is passed over."""
    (disk.store.directory / f".4711.{NAME}").write_text("{")
    (disk.store.directory / "toolchains").mkdir()
    assert len(disk.store.load_all().captures) == 1
    assert disk.store.load_all().problems == ()


def rewrite(disk: Disk, **fields: object) -> None:
    """Changes fields of the capture."""
    disk.path.write_text(json.dumps(disk.record | fields))


PROBLEMS: dict[str, tuple[Callable[[Disk], object], str]] = {
    "cut short": (lambda d: os.truncate(d.path, 100), "cut short"),
    "empty": (lambda d: os.truncate(d.path, 0), "cut short"),
    "not UTF-8": (lambda d: d.path.write_bytes(b"\xff{}"), "cannot be read"),
    "foreign version": (lambda d: rewrite(d, schema=2), "has schema 2"),
    "wrong type": (lambda d: rewrite(d, argv="rustc"), "wrong type"),
    "of another crate": (lambda d: rewrite(d, argv=["--crate-name", "lib"]), "lib--bin-host.json"),
    "output gone": (lambda d: d.output.unlink(), "app is gone"),
    "output of another size": (lambda d: d.output.write_text("longer program"), "written by another"),
    "output of another time": (lambda d: os.utime(d.output, ns=(1, 1)), "written by another"),
    "no output": (lambda d: rewrite(d, outputs=[]), "names no output"),
    "toolchain updated": (lambda d: d.write_rustc("rustc 1.96.0"), "another version now"),
    "rustc gone": (lambda d: d.rustc.unlink(), "is gone"),
    "rustc failing": (lambda d: d.rustc.write_text("#!/bin/sh\nexit 1\n"), "does not run"),
}


@pytest.mark.parametrize(("break_it", "reason"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_cannot_be_used_is_named(disk: Disk, break_it: Callable[[Disk], object], reason: str) -> None:
    """The reason names the file, and the capture is not used."""
    break_it(disk)
    listing = disk.store.load_all()
    assert listing.captures == ()
    (problem,) = listing.problems
    assert problem.path == disk.path
    assert NAME in problem.reason
    assert reason in problem.reason


def test_one_bad_capture_leaves_the_others(disk: Disk) -> None:
    """Problems are told one by one."""
    (disk.store.directory / "bad.json").write_text("{")
    listing = disk.store.load_all()
    assert len(listing.captures) == len(listing.problems) == 1


def test_a_proxy_is_asked_for_the_captured_toolchain(disk: Disk) -> None:
    """What a rustup proxy answers depends on `RUSTUP_TOOLCHAIN`."""
    disk.rustc.write_text("#!/bin/sh\necho rustc of $RUSTUP_TOOLCHAIN\n")
    rewrite(disk, env={"RUSTUP_TOOLCHAIN": "nightly"}, toolchain="rustc of nightly\n")
    assert disk.store.load_all().problems == ()
