"""What on this machine and in this workspace will or will not work, and the fix."""

import difflib
import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from hotpatchd.core.argv import codegen, parse_argv
from hotpatchd.core.errors import ArgvError, BuildError, HotpatchdError
from hotpatchd.core.linkplan import identify_linker
from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.targets import SUPPORTED, ClientStart, PatchKind, TargetSupport, describe_target
from hotpatchd.daemon.cargo_config import target_variable, user_linker, user_runner, user_rustflags
from hotpatchd.daemon.fatbuild import Workspace, load_workspace
from hotpatchd.daemon.lock import read_daemon
from hotpatchd.daemon.program import client_for, native_triple, target_support
from hotpatchd.daemon.report import Terminal

MIN_RUSTC = (1, 77)
"""The first rustc with `--print=link-args=FILE` on stable."""

MIN_FREE_BYTES = 1 << 30
MIN_WATCHES = 8192

_PATCHES: dict[PatchKind, str] = {
    "image": "images, copied into the program",
    "dylib": "shared libraries, which the program loads",
}

_CLIENTS: dict[ClientStart, str] = {
    "preload": "preloaded when the program starts; the program needs no preparation",
    "linked": "linked into the program by the build; the program needs no preparation",
    "dependency": "a dependency of the program, which starts it: `hotpatch_client::start()`, or subsecond's devtools",
}

# Where rustc does not link with `cc`. Source: its target specifications, `linker`.
_LINKERS: dict[str, str] = {"windows-gnu": "x86_64-w64-mingw32-gcc", "windows-msvc": "link.exe"}

_RUNNERS: dict[str, str] = {
    "linux": "an emulator such as `qemu-aarch64 -L /usr/aarch64-linux-gnu`",
    "windows-gnu": "`wine`",
    "windows-msvc": "`wine`",
}

_Check = dict[str, Any]


def _check(name: str, state: Literal["ok", "warning", "error"], detail: str, fix: str = "") -> _Check:
    return {"name": name, "state": state, "detail": detail, "fix": fix}


async def examine(selection: CargoSelection, cwd: Path, environ: Mapping[str, str]) -> list[_Check]:
    """Look at everything that an edit needs.

    Returns:
        Rows of `name`, `state` (`ok`, `warning`, `error`), `detail`, `fix`.
    """
    if selection.target is None or selection.target == native_triple():
        machine = [_platform(), *_toolchain(environ), _linker(environ), await _client(environ)]
    else:
        try:
            support = await target_support(selection.target, cwd=cwd, environ=environ)
        except BuildError:
            support = describe_target(selection.target)
        machine = [*_toolchain(environ), *_target(support, cwd, environ)]
    checks = [*machine, _watches()]
    try:
        workspace = await load_workspace(selection, cwd=cwd, environ=environ)
    except HotpatchdError as error:
        return [*checks, _check("workspace", "error", error.message, error.hint)]
    checks.append(_check("workspace", "ok", str(workspace.root)))
    return [*checks, *_profiles(workspace), _disk(workspace), _daemon(workspace)]


def _platform() -> _Check:
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and describe_target(native_triple()).patch != "none":
        return _check("platform", "ok", f"{system} {machine}: programs are patched in place")
    return _check("platform", "error", f"{system} {machine} is not supported", "use Linux on x86-64 or aarch64")


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


def _target(support: TargetSupport, cwd: Path, environ: Mapping[str, str]) -> Iterator[_Check]:
    """What can be done for programs of another target, and whether what it takes is there."""
    triple = support.triple
    known = (_answer(["rustc", "--print", "target-list"], environ) or "").split()
    if known and triple not in known:
        near = difflib.get_close_matches(triple, known)
        fix = f"did you mean {' or '.join(near)}?" if near else "`rustc --print target-list` names those that it knows"
        yield _check("target", "error", f"rustc knows no target {triple}", fix)
        return
    if support.patch == "none":
        yield _check("target", "error", support.reason, f"supported are {SUPPORTED}")
        return
    yield _check("target", "ok", f"{triple} ({support.env})" if support.env.startswith("musl") else triple)
    if support.runs:
        yield _check("tested", "ok", support.runs)
    else:
        yield _check("tested", "warning", "no program for this target has been patched yet")
    yield _check("patches", "ok", f"{_PATCHES[support.patch]}: {support.reason}")
    yield _check("client", "ok", _CLIENTS[support.client])
    if support.limits:
        yield _check("limits", "ok", "; ".join(support.limits))
    yield _std(triple, environ)
    yield _target_linker(support, user_rustflags(triple, cwd=cwd, environ=environ), cwd, environ)
    yield _runner(support, cwd, environ)


def _std(triple: str, environ: Mapping[str, str]) -> _Check:
    place = (_answer(["rustc", "--print", "target-libdir", "--target", triple], environ) or "").strip()
    if place and any(Path(place).glob("libstd-*")):
        return _check("std", "ok", place)
    return _check(
        "std", "error", f"the toolchain has no standard library for {triple}", f"`rustup target add {triple}`"
    )


def _is_native(support: TargetSupport) -> bool:
    """Whether this machine's compiler makes, and its kernel runs, programs of the target."""
    return (support.os, support.arch) == ("linux", platform.machine())


def _target_linker(support: TargetSupport, flags: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> _Check:
    variable = target_variable(support.triple, "linker")
    chosen = codegen(parse_argv(flags), "linker") or user_linker(support.triple, cwd=cwd, environ=environ)
    if chosen is None and support.os not in _LINKERS and not _is_native(support):
        return _check(
            "linker",
            "error",
            f"none is set, and rustc would link with `cc`, which makes programs for Linux on {platform.machine()}",
            f"install a cross compiler, and set {variable} to it",
        )
    linker = chosen or _LINKERS.get(support.os, "cc")
    if shutil.which(linker, path=environ.get("PATH")) is None:
        return _check("linker", "error", f"`{linker}` is not on PATH", f"install it, or set {variable} to another one")
    return _check("linker", "ok", linker)


def _runner(support: TargetSupport, cwd: Path, environ: Mapping[str, str]) -> _Check:
    runner = user_runner(support.triple, cwd=cwd, environ=environ)
    variable = target_variable(support.triple, "runner")
    if runner:
        if shutil.which(runner[0], path=environ.get("PATH")) is None:
            return _check("runner", "error", f"`{runner[0]}` is not on PATH", f"install it, or change {variable}")
        return _check("runner", "ok", " ".join(runner))
    if _is_native(support):
        return _check("runner", "ok", "none is needed")
    if fix := _RUNNERS.get(support.os):
        detail = f"none is set; without one this machine does not run programs for {support.triple}"
        return _check("runner", "warning", detail, f"set {variable}, to {fix}")
    return _check("runner", "warning", "this machine cannot run the program", "use `serve`, and start it elsewhere")


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
            detail = "fat LTO leaves few functions that can be replaced; programs are built without it here"
            fix = f"set `lto = false` in [profile.{name}] if they are to be built as elsewhere"
            yield _check(f"profile {name}", "warning", detail, fix)
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
    daemon = read_daemon(workspace.state_dir)
    return _check("daemon", "ok", f"process {daemon.pid} at {daemon.url}" if daemon else "none is running")
