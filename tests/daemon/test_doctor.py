"""What the doctor finds on machines and in workspaces that are made up."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon import doctor

MANIFEST = '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n'


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A client that is ready: building it is not the doctor's own work."""
    path = tmp_path / "client.so"

    async def ready(target: str | None, environ: Mapping[str, str], terminal: object) -> Path:
        return path

    monkeypatch.setattr(doctor, "client_for", ready)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package."""
    root = tmp_path / "app"
    (root / "src").mkdir(parents=True)
    (root / "Cargo.toml").write_text(MANIFEST)
    (root / "src/main.rs").write_text("fn main() {}\n")
    return root


def examine(root: Path, environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The doctor's rows, by name."""
    rows = asyncio.run(doctor.examine(CargoSelection(), root, os.environ if environ is None else environ))
    found = {row["name"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def program(directory: Path, name: str, text: str) -> None:
    """A program to be found on PATH."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def test_a_machine_on_which_everything_works(root: Path, client: Path) -> None:
    """Everything that an edit needs has a row, none of them an error."""
    rows = examine(root)
    assert set(rows) == {
        *("platform", "rustc", "cargo", "linker", "client", "file events", "workspace", "target directory", "daemon")
    }
    assert not [row for row in rows.values() if row["state"] == "error"]
    assert rows["client"]["detail"] == str(client)
    assert rows["workspace"]["detail"] == str(root)
    assert rows["daemon"]["detail"] == "none is running"


@pytest.mark.parametrize("value", ["true", '"symbols"'])
def test_a_profile_that_strips_is_an_error_with_the_fix(root: Path, value: str) -> None:
    """The fix names the setting and the profile."""
    (root / "Cargo.toml").write_text(f"{MANIFEST}[profile.release]\nstrip = {value}\n")
    row = examine(root)["profile release"]
    assert row["state"] == "error"
    assert row["fix"] == "set `strip = false` in [profile.release]"


def test_fat_lto_is_a_warning(root: Path) -> None:
    """It works, for few functions."""
    (root / "Cargo.toml").write_text(f'{MANIFEST}[profile.release]\nlto = "fat"\n')
    row = examine(root)["profile release"]
    assert (row["state"], "thin" in row["fix"]) == ("warning", True)


@pytest.mark.parametrize("settings", ["strip = false", 'strip = "none"', 'strip = "debuginfo"', 'lto = "thin"'])
def test_a_profile_that_keeps_symbols_is_fine(root: Path, settings: str) -> None:
    """Debug information is not needed, nor is a whole program without link-time optimisation."""
    (root / "Cargo.toml").write_text(f"{MANIFEST}[profile.dev]\n{settings}\n")
    assert examine(root)["profile dev"]["state"] == "ok"


def test_a_machine_without_tools(root: Path, tmp_path: Path) -> None:
    """Everything that is missing is an error with a fix, and the doctor goes on to the end."""
    rows = examine(root, {**os.environ, "PATH": str(tmp_path / "nothing")})
    for name in ("rustc", "cargo", "linker", "workspace"):
        assert rows[name]["state"] == "error"
        assert rows[name]["fix"]


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("rustc 1.76.0 (07dca489a 2024-02-04)", "error"),
        ("rustc 1.77.0 (aedd173a2 2024-03-17)", "ok"),
        ("rustc 1.98.0-nightly (1234567 2026-01-01)", "ok"),
    ],
)
def test_rustc_must_be_new_enough(root: Path, tmp_path: Path, version: str, state: str) -> None:
    """The version is compared by numbers; nightly and beta count like the release that they become."""
    program(tmp_path / "bin", "rustc", f"echo '{version}'")
    row = examine(root, {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})["rustc"]
    assert (row["state"], version in row["detail"]) == (state, True)


def test_a_program_that_answers_something_else_is_not_taken_for_rustc(root: Path, tmp_path: Path) -> None:
    """An answer without a version is an error row."""
    program(tmp_path / "bin", "rustc", "echo hello")
    rows = examine(root, {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert rows["rustc"]["state"] == "error"


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        ("echo 'GNU ld (GNU Binutils) 2.42'", "ok", "bfd"),
        ("echo 'LLD 19.1.0 (compatible with GNU linkers)'", "ok", "lld"),
        ("echo 'wild version 0.6'", "warning", "wild version 0.6"),
        ("exit 1", "error", "does not link"),
    ],
)
def test_the_linker_is_named(root: Path, tmp_path: Path, answer: str, state: str, said: str) -> None:
    """Known ones are fine, others are a warning, and none is an error."""
    program(tmp_path / "bin", "cc", answer)
    row = examine(root, {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})["linker"]
    assert (row["state"], said in row["detail"]) == (state, True)


def test_a_client_that_cannot_be_built_shows_what_cargo_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row has the message, cargo's output and the hint."""

    async def broken(*_: object) -> Path:
        raise BuildError("building the client failed", output="error: no network", hint="connect once")

    monkeypatch.setattr(doctor, "client_for", broken)
    row = examine(root)["client"]
    assert (row["state"], row["fix"]) == ("error", "connect once")
    assert row["detail"] == "building the client failed\nerror: no network"


def test_a_directory_without_a_workspace_is_an_error_row(tmp_path: Path) -> None:
    """What concerns the machine is told all the same."""
    rows = examine(tmp_path)
    assert rows["workspace"]["state"] == "error"
    assert rows["rustc"]["state"] == "ok"
    assert "daemon" not in rows
