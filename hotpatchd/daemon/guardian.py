"""Ends what a daemon has started when the daemon itself is killed.

A helper process, in a session of its own, reads from a pipe which processes begin and end. The pipe ends when the
daemon does, however that happens; the helper then signals what is still registered. It is this file, run by itself:
nothing but the standard library is imported here.
"""

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Reach = Literal["process", "group"]

_GRACE_S = 3.0
_REMOVE_WITHIN_S = 5.0
_FIND_WITHIN_S = 1.0
_MARK = "HOTPATCHD_STARTED"
_START_TIME = 19  # of the fields after the command's name, counted from 0


@dataclass(frozen=True, slots=True)
class _Ward:
    """A registered process: by its start time a later one with the same number is told apart."""

    pid: int
    started: int
    reach: Reach
    signal: int

    def send(self, number: int) -> bool:
        """Send a signal; False where there is nobody left to get it."""
        started = start_time(self.pid)
        if started not in {self.started, None}:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.reach == "group":  # Its number stays taken while anyone is in it.
                os.killpg(self.pid, number)
                return True
            if started is not None:
                os.kill(self.pid, number)
                return True
        return False


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None where there is no such process.

    Source: proc_pid_stat(5), field 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[_START_TIME])


class Guardian:
    """The daemon's side: a context manager that starts the helper, and ends it without harm to anyone."""

    def __enter__(self) -> Self:
        self._helper = subprocess.Popen(
            [sys.executable, "-ISE", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._starts = itertools.count()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("end")
        assert self._helper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._helper.stdin.close()
        self._helper.wait()

    @contextlib.contextmanager
    def starting(self, *, reach: Reach, signal: int) -> Iterator[dict[str, str]]:
        """The context in which a child is started and registered: it is found, too, if this process dies in between.

        Args:
            reach: as for `add`.
            signal: as for `add`.

        Returns:
            an addition to the child's environment.
        """
        mark = f"{self._helper.pid}.{next(self._starts)}"
        self._tell(f"begin {mark} {reach} {int(signal)}")
        try:
            yield {_MARK: mark}
        finally:
            self._tell(f"begun {mark}")

    def add(self, pid: int, *, reach: Reach, signal: int) -> None:
        """Register a child that has not been waited for.

        Args:
            pid: its number.
            reach: whether the process alone, or the group of that number, is to be ended.
            signal: that ends it; whoever does not follow is killed after a while.
        """
        started = start_time(pid)
        if started is not None:
            self._tell(f"add {pid} {started} {reach} {int(signal)}")

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._tell(f"remove {pid}")

    def add_control_group(self, directory: Path) -> None:
        """Register a control group, of which nothing is to be left: neither processes nor directory."""
        self._tell(f"add-control-group {directory}")

    def _tell(self, line: str) -> None:
        assert self._helper.stdin is not None
        # Without the helper everything works but this.
        with contextlib.suppress(BrokenPipeError):
            self._helper.stdin.write(os.fsencode(line) + b"\n")
            self._helper.stdin.flush()


def remove_control_group(directory: Path) -> bool:
    """Kill all that is in a control group, and remove it.

    Returns:
        whether it is gone; ended processes leave it only when they have been waited for.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "cgroup.kill" (5.14 and later).
    """
    with contextlib.suppress(OSError), open(os.open(directory / "cgroup.kill", os.O_WRONLY), "w") as kill:
        kill.write("1")
    deadline = time.monotonic() + _REMOVE_WITHIN_S
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)  # The kernel tells of emptiness by inotify, but not of the last zombie's end.
        else:
            return True


def _end(wards: Iterable[_Ward]) -> None:
    """Signal all; those that were asked politely are killed if they stay."""
    asked = []
    for ward in wards:
        watch = None
        with contextlib.suppress(OSError):
            watch = os.pidfd_open(ward.pid)
        if ward.send(ward.signal) and ward.signal != signal.SIGKILL and watch is not None:
            asked.append((ward, watch))
    deadline = time.monotonic() + _GRACE_S
    for ward, watch in asked:
        ended, _, _ = select.select([watch], [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            ward.send(signal.SIGKILL)


def _find(starts: Mapping[str, tuple[Reach, int]]) -> Iterator[_Ward]:
    """The children that were being started; they show their marks once they run what they were started for."""
    wanted = {f"{_MARK}={mark}".encode(): start for mark, start in starts.items()}
    deadline = time.monotonic() + _FIND_WITHIN_S
    while wanted and time.monotonic() < deadline:
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                marks = wanted.keys() & set(Path("/proc", entry, "environ").read_bytes().split(b"\0"))
                started = start_time(int(entry)) if marks else None
                if started is not None:
                    yield _Ward(int(entry), started, *wanted.pop(marks.pop()))
        time.sleep(0.01)


def _main() -> None:
    wards: dict[int, _Ward] = {}
    starts: dict[str, tuple[Reach, int]] = {}
    control_groups = []
    for line in sys.stdin.buffer:
        match os.fsdecode(line.rstrip(b"\n")).split(" "):
            case ["begin", mark, ("process" | "group") as reach, number]:
                starts[mark] = reach, int(number)
            case ["begun", mark]:
                del starts[mark]
            case ["add", pid, started, ("process" | "group") as reach, number]:
                wards[int(pid)] = _Ward(int(pid), int(started), reach, int(number))
            case ["remove", pid]:
                wards.pop(int(pid), None)
            case ["add-control-group", *words]:
                control_groups.append(Path(" ".join(words)))
            case ["end"]:
                return
    _end([*wards.values(), *_find(starts)])
    for directory in control_groups:
        remove_control_group(directory)


if __name__ == "__main__":
    _main()
