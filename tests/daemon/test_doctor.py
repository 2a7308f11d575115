"""What the doctor finds on machines and in workspaces that are made up."""

import asyncio
import os
import shutil
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


def examine(
    root: Path, environ: Mapping[str, str] | None = None, target: str | None = None
) -> dict[str, dict[str, Any]]:
    """The doctor's rows, by name."""
    selection = CargoSelection(target=target)
    rows = asyncio.run(doctor.examine(selection, root, os.environ if environ is None else environ))
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
    """What is built is not what the manifest asks for."""
    (root / "Cargo.toml").write_text(f'{MANIFEST}[profile.release]\nlto = "fat"\n')
    row = examine(root)["profile release"]
    assert (row["state"], "lto = false" in row["fix"]) == ("warning", True)


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


FOREIGN = "aarch64-unknown-linux-gnu"
SETTING = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU"


@pytest.fixture
def cross(tmp_path: Path) -> dict[str, str]:
    """An environment with tools for another target: a compiler with its std, a linker and an emulator."""
    std = tmp_path / "std"
    std.mkdir()
    (std / "libstd-0.rlib").touch()
    tools = tmp_path / "tools"
    rustc = shutil.which("rustc")
    program(tools, "rustc", f'[ "$2" != target-libdir ] || {{ echo {std}; exit; }}\nexec {rustc} "$@"')
    for name in ("cross-cc", "emulator"):
        program(tools, name, "")
    settings = {f"{SETTING}_LINKER": "cross-cc", f"{SETTING}_RUNNER": "emulator -L /root"}
    return {**os.environ, **settings, "PATH": f"{tools}:{os.environ['PATH']}"}


def test_a_target_for_which_everything_is_there(root: Path, cross: dict[str, str]) -> None:
    """What concerns this machine's own programs only is left out."""
    rows = examine(root, cross, FOREIGN)
    assert {name: rows[name]["detail"] for name in ("target", "linker", "runner")} == {
        "target": FOREIGN,
        "linker": "cross-cc",
        "runner": "emulator -L /root",
    }
    assert {row["state"] for row in rows.values()} == {"ok"}
    assert "platform" not in rows


def test_kinds_of_patch_and_client_are_told(root: Path, cross: dict[str, str]) -> None:
    """With the reason, and what does not work."""
    rows = examine(root, cross, FOREIGN)
    assert "image" in rows["patches"]["detail"]
    assert "preloaded" in rows["client"]["detail"]
    assert "128 MiB" in rows["limits"]["detail"]
    rows = examine(root, cross, "x86_64-pc-windows-gnu")
    assert "shared libraries" in rows["patches"]["detail"]
    assert "dependency" in rows["client"]["detail"]


@pytest.mark.parametrize(("flags", "client"), [("", "linked into"), ("-C target-feature=-crt-static", "preloaded")])
def test_musl_depends_on_how_libc_is_linked(root: Path, flags: str, client: str) -> None:
    """Which rustc is asked, with the flags that it gets."""
    environ = {**os.environ, "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS": flags}
    assert client in examine(root, environ, "x86_64-unknown-linux-musl")["client"]["detail"]


def test_tools_that_a_target_lacks_are_named(root: Path, cross: dict[str, str], tmp_path: Path) -> None:
    """Each with what to install or set."""
    (tmp_path / "std" / "libstd-0.rlib").unlink()
    without = {name: value for name, value in cross.items() if not name.startswith(SETTING)}
    rows = examine(root, without, FOREIGN)
    assert [rows[name]["state"] for name in ("std", "linker", "runner")] == ["error", "error", "warning"]
    assert rows["std"]["fix"] == f"`rustup target add {FOREIGN}`"
    assert f"{SETTING}_LINKER" in rows["linker"]["fix"]
    assert f"{SETTING}_RUNNER" in rows["runner"]["fix"]


def test_tools_that_are_set_and_not_there_are_errors(root: Path, cross: dict[str, str]) -> None:
    """By the name that was set."""
    environ = {**cross, f"{SETTING}_LINKER": "absent-cc", f"{SETTING}_RUNNER": "absent-emulator -L /"}
    rows = examine(root, environ, FOREIGN)
    assert (rows["linker"]["state"], rows["runner"]["state"]) == ("error", "error")
    assert "`absent-cc`" in rows["linker"]["detail"]
    assert "`absent-emulator`" in rows["runner"]["detail"]


def test_a_linker_among_the_flags_counts(root: Path, cross: dict[str, str]) -> None:
    """It is stronger than the setting."""
    environ = {**cross, f"{SETTING}_LINKER": "absent-cc", f"{SETTING}_RUSTFLAGS": "-C linker=cross-cc"}
    assert examine(root, environ, FOREIGN)["linker"]["detail"] == "cross-cc"


@pytest.mark.parametrize("triple", ["x86_64-apple-darwin", "x86_64-linux-android"])
def test_the_same_processor_is_not_the_same_target(root: Path, triple: str) -> None:
    """This machine's `cc` does not link for another system, nor does it run its programs."""
    rows = examine(root, None, triple)
    assert (rows["linker"]["state"], rows["runner"]["state"]) == ("error", "warning")


def test_a_target_that_nobody_has_tried_is_a_warning(root: Path) -> None:
    """It may work."""
    assert examine(root, None, "aarch64-apple-darwin")["tested"]["state"] == "warning"


@pytest.mark.parametrize(
    ("triple", "detail", "fix"),
    [
        ("aarch64-apple-ios", "devices load signed code only", "simulator"),
        ("riscv64gc-unknown-linux-gnu", "`riscv64gc-unknown-linux-gnu`", "aarch64"),
        ("aarch64-linux-gnu", "knows no target aarch64-linux-gnu", "aarch64-unknown-linux-gnu"),
        ("my/board.json", "knows no target", "target-list"),
    ],
)
def test_a_target_without_support_is_an_error_with_the_reason(root: Path, triple: str, detail: str, fix: str) -> None:
    """What is said of tools for it would be of no use."""
    rows = examine(root, None, triple)
    assert (rows["target"]["state"], detail in rows["target"]["detail"]) == ("error", True)
    assert fix in rows["target"]["fix"]
    assert rows.keys().isdisjoint({"std", "linker", "runner", "client"})
