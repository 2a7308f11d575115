"""The captures on disk: which can be used, and what is wrong with the others."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hotpatchd.core.capture import Capture, Output, decode_capture
from hotpatchd.core.errors import CaptureError


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureProblem:
    """A capture that cannot be used.

    Args:
        path: its file.
        reason: one sentence, which names the file.
    """

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureListing:
    """Every capture of a directory, by file name: each is in one of the two."""

    captures: tuple[Capture, ...]
    problems: tuple[CaptureProblem, ...]


class CaptureStore:
    """A directory of captures, which the shim writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load_all(self) -> CaptureListing:
        """Reads every capture. One that is corrupt, cut short, of another version or stale is a problem."""
        captures, problems = [], []
        toolchain_of = cache(_ask_toolchain)
        for path in sorted(self.directory.glob("[!.]*.json")):
            try:
                captures.append(_load(path, toolchain_of))
            except CaptureError as error:
                problems.append(CaptureProblem(path=path, reason=error.message))
        return CaptureListing(captures=tuple(captures), problems=tuple(problems))


def _load(path: Path, toolchain_of: Callable[[str, str, str | None], str | None]) -> Capture:
    try:
        capture = decode_capture(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"capture {path.name} cannot be read: {error}") from error
    if capture.key.file_name != path.name:
        raise CaptureError(f"capture {path.name} is that of another crate: {capture.key.file_name}")
    if staleness := _staleness(capture, toolchain_of):
        raise CaptureError(f"capture {path.name} is stale: {staleness}")
    return capture


def _staleness(capture: Capture, toolchain_of: Callable[[str, str, str | None], str | None]) -> str | None:
    """Why what is on disk is not what this compile left; None where it is."""
    toolchain = toolchain_of(capture.rustc, capture.cwd, dict(capture.env).get("RUSTUP_TOOLCHAIN"))
    if toolchain is None:
        return f"{capture.rustc} is gone or does not run"
    if toolchain != capture.toolchain:
        return f"{capture.rustc} is another version now"
    if not capture.outputs:
        return "it names no output"
    return next((reason for output in capture.outputs if (reason := _difference(output))), None)


def _difference(output: Output) -> str | None:
    try:
        stat = os.stat(output.path)
    except OSError:
        return f"{output.path} is gone"
    if (stat.st_size, stat.st_mtime_ns) != (output.size, output.mtime_ns):
        return f"{output.path} was written by another compile"
    return None


def _ask_toolchain(rustc: str, cwd: str, rustup_toolchain: str | None) -> str | None:
    """`rustc -vV`; None where it does not answer.

    A rustup proxy chooses the toolchain by the directory and by `RUSTUP_TOOLCHAIN`.
    """
    env = dict(os.environ)
    env.pop("RUSTUP_TOOLCHAIN", None)
    if rustup_toolchain is not None:
        env["RUSTUP_TOOLCHAIN"] = rustup_toolchain
    try:
        answer = subprocess.run(
            [rustc, "-vV"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=cwd, env=env
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return os.fsdecode(answer.stdout)
