"""A control group (cgroup v2) for builds, where the system lets the user make one.

The user must own a group above the daemon's that is given the `cpu` controller, has no processes in it itself, and so
may hand the controller on to groups below it. A user's systemd manager has such groups.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "Delegation", "No Internal Process Constraint", "CPU".
"""

import contextlib
import os
import subprocess
from pathlib import Path, PurePosixPath

from hotpatchd.daemon.guardian import remove_control_group, start_time

_PREFIX = "hotpatchd-"
_PERIOD_US = 100_000


def mount_point(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """Where the unified hierarchy is mounted."""
    for line in mounts.read_text().splitlines():
        _, directory, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(directory)
    return None


def delegated_group(mount: Path, membership: Path = Path("/proc/self/cgroup")) -> Path | None:
    """The nearest group above the daemon's own in which the user may make a group with a limit; None without one.

    Args:
        mount: where the hierarchy is mounted.
        membership: the daemon's `/proc/PID/cgroup`.
    """
    lines = (line.split(":", 2) for line in membership.read_text().splitlines())
    own = next((path for hierarchy, _, path in lines if hierarchy == "0"), "/")
    # Of the top, which is the system's, no more is ours than of the daemon's own group.
    above = [mount / parent for parent in PurePosixPath(own.lstrip("/")).parents if parent.name]
    return next(filter(_hands_on_processors, above), None)


def _hands_on_processors(group: Path) -> bool:
    try:
        if "cpu" in (group / "cgroup.subtree_control").read_text().split():
            return _is_ours(group)
        is_offered = "cpu" in (group / "cgroup.controllers").read_text().split()
        return is_offered and not (group / "cgroup.procs").read_text().strip() and _is_ours(group)
    except OSError:
        return False


def _is_ours(group: Path) -> bool:
    # Also the one file by which processes are moved from the daemon's group to its sibling.
    return all(os.access(place, os.W_OK) for place in (group, group / "cgroup.procs", group / "cgroup.subtree_control"))


class BuildGroup:
    """The group of one daemon's builds.

    Args:
        parent: of `delegated_group`.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        pid = os.getpid()
        self.directory = parent / f"{_PREFIX}{pid}-{start_time(pid)}"

    def create(self, cpus: int) -> None:
        """Make the group, and remove those of daemons that died.

        Raises:
            OSError: the system does not let the user do it; nothing is left of it.
        """
        for left in self._parent.glob(f"{_PREFIX}*-*"):
            pid, _, started = left.name.removeprefix(_PREFIX).partition("-")
            if pid.isdecimal() and str(start_time(int(pid))) != started:
                remove_control_group(left)
        subtree = self._parent / "cgroup.subtree_control"
        if "cpu" not in subtree.read_text().split():
            subtree.write_text("+cpu")
        self.directory.mkdir(exist_ok=True)
        try:
            (self.directory / "cpu.max").write_text(f"{cpus * _PERIOD_US} {_PERIOD_US}")
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as probe:
                self.take(probe.pid)
        except OSError:
            self.remove()
            raise

    def take(self, pid: int) -> None:
        """Move a process into the group, with those that it has started; later ones are born there.

        Raises:
            OSError: the system does not let the user do it.
        """
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            (self.directory / "cgroup.procs").write_text(str(pid))
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    self.take(int(child))

    def remove(self) -> None:
        """Kill what is in the group, and remove it."""
        remove_control_group(self.directory)
