"""Fixture programs as processes: their sources, their output, and waiting for what they print."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
AppLine = dict[str, str]

PROGRAMS = Path(__file__).resolve().parents[2] / "fixtures" / "programs"
PROGRAM_WITHIN_S = 20.0
STEADY_KEYS = ("tick", "heap", "tls_const", "tls_lazy")
"""State that a program moves by exactly one for each line it prints."""
GROWING_KEYS = ("work", "async", "calls", "slowest", "caught", "drops", "answered")


def wait_for(
    what: str,
    condition: Callable[[], T | None],
    *,
    within_s: float,
    diagnose: Callable[[], str] = lambda: "",
) -> T:
    """Returns the first true result of `condition`; `what` names it when `within_s` seconds pass."""
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s:g} s for {what}\n{diagnose()}")
        time.sleep(0.005)
    return result


class LineFile:
    """The complete lines of a text file that another process is writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._offset = 0

    def lines(self) -> list[str]:
        """All complete lines so far, oldest first."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._offset += len(complete)
            self._lines += complete.decode(errors="replace").splitlines()
        return self._lines

    def tail(self, count: int = 40) -> str:
        """The last lines, for a person, headed by the file's name."""
        return "\n".join([f"--- {self.path.name}", *self.lines()[-count:]])


class Program:
    """A process in a session of its own, with its output in files and its printed state parsed.

    Args:
        argv: the command.
        cwd: where it runs.
        log: path without suffix; `.out` and `.err` are added.
        env: its whole environment.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str]) -> None:
        self.stdout = LineFile(log.with_suffix(".out"))
        self.stderr = LineFile(log.with_suffix(".err"))
        with self.stdout.path.open("wb") as out, self.stderr.path.open("wb") as err:
            self.process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def app_lines(self) -> list[AppLine]:
        """What the program printed about itself: `key=value` words of each line that starts with `tick=`."""
        return [
            dict(word.partition("=")[::2] for word in line.split())
            for line in self.stdout.lines()
            if line.startswith("tick=")
        ]

    def wait_line(
        self,
        what: str,
        predicate: Callable[[AppLine], bool] = lambda _: True,
        *,
        within_s: float = PROGRAM_WITHIN_S,
    ) -> AppLine:
        """The first line printed from now on that satisfies `predicate`."""
        seen = len(self.app_lines())
        return wait_for(
            f"a line of the program: {what}",
            lambda: next((line for line in self.app_lines()[seen:] if predicate(line)), None),
            within_s=within_s,
            diagnose=self.diagnosis,
        )

    def wait_value(self, key: str, value: str) -> AppLine:
        """The next line that has `key=value`."""
        return self.wait_line(f"{key}={value}", lambda line: line.get(key) == value)

    def wait_next_lines(self, count: int) -> AppLine:
        """The last of the next `count` lines: a stretch of time measured by the program itself."""
        line = {}
        for number in range(count):
            line = self.wait_line(f"number {number + 1} of {count}")
        return line

    def wait_text(self, text: str, *, within_s: float = PROGRAM_WITHIN_S) -> str:
        """The first line on either output that contains `text`, also one that is there already."""
        return wait_for(
            f"{text!r} in the output",
            lambda: next((line for line in self.stderr.lines() + self.stdout.lines() if text in line), None),
            within_s=within_s,
            diagnose=self.diagnosis,
        )

    def wait_exit(self, *, within_s: float = PROGRAM_WITHIN_S) -> int:
        """The exit status, once it has one."""
        wait_for(
            "the process to end",
            lambda: self.process.poll() is not None,
            within_s=within_s,
            diagnose=self.diagnosis,
        )
        return self.process.returncode

    @property
    def output(self) -> str:
        """Both outputs so far."""
        return "\n".join([*self.stdout.lines(), *self.stderr.lines()])

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal the way a terminal does: to every process of the group."""
        os.killpg(self.process.pid, number)

    def diagnosis(self) -> str:
        """The end of both outputs and how the process stands."""
        state = self.process.poll()
        return "\n".join(
            [
                self.stderr.tail(),
                self.stdout.tail(12),
                f"--- exit status {state}" if state is not None else "--- running",
            ]
        )


def assert_continuous(lines: Sequence[AppLine]) -> None:
    """One process printed all these lines, and none of its state went back or jumped."""
    assert lines, "the program printed nothing"
    for before, after in pairwise(lines):
        assert after["instance"] == before["instance"], f"another process printed {after}"
        for key in STEADY_KEYS:
            if key in before:
                assert int(after[key]) == int(before[key]) + 1, f"{key} jumped:\n{before}\n{after}"
        for key in GROWING_KEYS:
            if key in before:
                assert int(after[key]) >= int(before[key]), f"{key} went back:\n{before}\n{after}"


class Project:
    """A private copy of a fixture program's sources.

    Args:
        source: a directory, taken as relative to `fixtures/programs`.
        root: where the copy goes; must not exist.
    """

    def __init__(self, source: str | Path, root: Path) -> None:
        self.root = shutil.copytree(PROGRAMS / source, root, ignore=shutil.ignore_patterns("target"))
        self._originals = {
            path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "Cargo.lock"
        }

    @property
    def target(self) -> Path:
        """Cargo's target directory."""
        return self.root / "target"

    @property
    def state(self) -> Path:
        """The daemon's state directory."""
        return self.target / "hotpatchd"

    def read(self, file: str) -> str:
        """The text of a source file."""
        return (self.root / file).read_text()

    def replaced(self, file: str, old: str, new: str) -> str:
        """The text of `file` with `old`, which must be there exactly once, replaced."""
        text = self.read(file)
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {self.root.name}/{file}"
        return text.replace(old, new)

    def line_of(self, file: str, text: str) -> int:
        """The number, from 1, of the first line that contains `text`."""
        return next(number for number, line in enumerate(self.read(file).splitlines(), 1) if text in line)

    def changed_files(self) -> list[Path]:
        """The files whose content is not that of the fixture."""
        return [path for path, content in self._originals.items() if not path.is_file() or path.read_bytes() != content]

    def restore(self) -> list[Path]:
        """Writes the fixture's content back; returns the files that had another."""
        changed = self.changed_files()
        for path in changed:
            path.write_bytes(self._originals[path])
        return changed
