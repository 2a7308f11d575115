"""Compilers run apart from the daemon, to measure it against."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.e2e.harness import Session


def time_ms(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def run(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end; one that fails ends the benchmark with its output."""
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv[:3])} … failed in {cwd}\n{done.stderr}")


class Replay:
    """One of the daemon's rustc commands, run apart from the daemon with a cache of its own."""

    def __init__(self, session: Session, crate: str, output: Path, *options: str) -> None:
        explained = session.cli_json("explain", crate, *options)
        self.output = output
        self.cwd = Path(explained["cwd"])
        self.env: dict[str, str] = explained["env"]
        state = str(session.project.state)
        self.argv = [explained["rustc"], *(word.replace(state, str(output)) for word in explained["edited_argv"])]
        for word in self.argv:
            if f"={output}" in word or word.startswith(str(output)):
                path = Path(word.rpartition("=")[2])
                (path.parent if path.suffix in (".o", ".rmeta") else path).mkdir(parents=True, exist_ok=True)

    def time_ms(self) -> float:
        """How long the compiler takes, its output directory free of earlier objects."""
        for old in self.output.rglob("*.o"):
            if "incremental" not in old.parts:
                old.unlink()
        return time_ms(lambda: run(self.argv, cwd=self.cwd, env=self.env))
