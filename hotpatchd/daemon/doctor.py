"""What on this machine and in this workspace will or will not work, and the fix."""

import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from hotpatchd.core.errors import ArgvError, BuildError, HotpatchdError
from hotpatchd.core.linkplan import identify_linker
from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon.fatbuild import Workspace, load_workspace
from hotpatchd.daemon.lock import read_daemon
from hotpatchd.daemon.program import client_for
from hotpatchd.daemon.report import Terminal
from hotpatchd.daemon.supervisor import state_dir_of

MIN_RUSTC = (1, 77)
"""The first rustc with `--print=link-args=FILE` on stable."""

MIN_FREE_BYTES = 1 << 30
MIN_WATCHES = 8192

_Check = dict[str, Any]


def _check(name: str, state: Literal["ok", "warning", "error"], detail: str, fix: str = "") -> _Check:
    return {"name": name, "state": state, "detail": detail, "fix": fix}


async def examine(selection: CargoSelection, cwd: Path, environ: Mapping[str, str]) -> list[_Check]:
    """Look at everything that an edit needs.

    Returns:
        Rows of `name`, `state` (`ok`, `warning`, `error`), `detail`, `fix`.
    """
    checks = [_platform(), *_toolchain(environ), _linker(environ), await _client(environ), _watches()]
    try:
        workspace = await load_workspace(selection, cwd=cwd, environ=environ)
    except HotpatchdError as error:
        return [*checks, _check("workspace", "error", error.message, error.hint)]
    checks.append(_check("workspace", "ok", str(workspace.root)))
    return [*checks, *_profiles(workspace), _disk(workspace), _daemon(workspace)]


def _platform() -> _Check:
    system, machine = platform.system(), platform.machine()
    if (system, machine) == ("Linux", "x86_64"):
        return _check("platform", "ok", f"{system} {machine}: programs are patched in place")
    return _check("platform", "error", f"{system} {machine} is not supported yet", "use Linux on x86-64")


def _answer(argv: list[str], environ: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=dict(environ))
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout + done.stderr


def _toolchain(environ: Mapping[str, str]) -> Iterator[_Check]:
    for tool in ("rustc", "cargo"):
        version = _answer([tool, "--version"], environ) or ""
        found = re.match(rf"{tool} (\d+)\.(\d+)", version)
        if found is None:
            yield _check(tool, "error", "not found on PATH, or it does not run", "install Rust from https://rustup.rs")
            continue
        if tuple(map(int, found.groups())) < MIN_RUSTC:
            wanted = ".".join(map(str, MIN_RUSTC))
            yield _check(tool, "error", f"{version.strip()} is too old", f"update to Rust {wanted} or newer")
        else:
            yield _check(tool, "ok", version.strip())


async def _client(environ: Mapping[str, str]) -> _Check:
    try:
        return _check("client", "ok", str(await client_for(None, environ, Terminal(Console(stderr=True)))))
    except HotpatchdError as error:
        output = f"\n{error.output}" if isinstance(error, BuildError) else ""
        return _check("client", "error", f"{error.message}{output}", error.hint)


def _linker(environ: Mapping[str, str]) -> _Check:
    version = _answer(["cc", "-Wl,--version"], environ)
    if version is None:
        return _check("linker", "error", "`cc` does not link", "install gcc or clang, and a linker")
    try:
        return _check("linker", "ok", f"cc runs {identify_linker(version)} unless rustc chooses another")
    except ArgvError as error:
        return _check("linker", "warning", error.message, error.hint)


def _watches() -> _Check:
    setting = "fs.inotify.max_user_watches"
    try:
        limit = int(Path("/proc/sys/" + setting.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return _check("file events", "warning", f"{setting} cannot be read", "use --poll if edits go unnoticed")
    if limit < MIN_WATCHES:
        return _check("file events", "warning", f"{setting} is {limit}", f"sysctl {setting}=524288")
    return _check("file events", "ok", f"{setting} is {limit}")


def _profiles(workspace: Workspace) -> Iterator[_Check]:
    try:
        manifest = tomllib.loads((workspace.root / "Cargo.toml").read_text("utf-8"))
    except (OSError, ValueError) as error:
        yield _check("profiles", "error", f"{workspace.root / 'Cargo.toml'} cannot be read: {error}")
        return
    for name, profile in sorted(manifest.get("profile", {}).items()):
        if profile.get("strip") not in (None, False, "none", "debuginfo"):
            fix = f"set `strip = false` in [profile.{name}]"
            yield _check(f"profile {name}", "error", "it strips the symbols that patching needs", fix)
        elif profile.get("lto") in (True, "fat"):
            fix = f'set `lto = "thin"` or `lto = false` in [profile.{name}]'
            yield _check(f"profile {name}", "warning", "fat LTO leaves few functions that can be replaced", fix)
        else:
            yield _check(f"profile {name}", "ok", "nothing in it prevents patching")


def _disk(workspace: Workspace) -> _Check:
    place = workspace.target_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return _check("target directory", "error", f"{place} cannot be written to", "choose one with --target-dir")
    if free < MIN_FREE_BYTES:
        return _check("target directory", "warning", f"{place} has {free >> 20} MiB free", "make room")
    return _check("target directory", "ok", f"{workspace.target_dir}, {free >> 30} GiB free")


def _daemon(workspace: Workspace) -> _Check:
    daemon = read_daemon(state_dir_of(workspace))
    return _check("daemon", "ok", f"process {daemon.pid} at {daemon.url}" if daemon else "none is running")
