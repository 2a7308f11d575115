"""How much of the machine builds may take, so that the program that is being worked on has room to run."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.control_group import BuildGroup, delegated_group, mount_point
from hotpatchd.daemon.jobserver import Jobserver

_NICE = 5
_ROOM_FROM = 3
"""From so many processors on one is left to the program; with fewer, builds would become far slower for it."""


def own_delegated_group() -> Path | None:
    """The group in which this process may make one with a limit."""
    try:
        mount = mount_point()
        return delegated_group(mount) if mount else None
    except OSError:
        return None


class Limits:
    """A limit for all builds of a daemon together, as a context manager.

    Cargo and rustc are told by a jobserver how many jobs to run, and run with a lower priority. Where the user may
    make a control group, that holds them to the limit whatever they do; else an explicit limit is held by letting them
    run on so many processors only.

    Args:
        cpus: an explicit limit; None takes a default.
        most_jobs: how many jobs the developer lets cargo run, which goes before a higher default.
        find_group: finds the group to make a control group in.

    Attributes:
        cpus: the limit.
        note: what does not work of a default limit; empty where all does.

    Raises:
        UsageError: an explicit limit cannot be held; on entering, too.
    """

    def __init__(
        self,
        cpus: int | None = None,
        *,
        most_jobs: int | None = None,
        find_group: Callable[[], Path | None] = own_delegated_group,
    ) -> None:
        processors = sorted(os.sched_getaffinity(0))
        if cpus is not None and not 1 <= cpus <= len(processors):
            raise UsageError(
                f"builds cannot have {cpus} processors: this process has {len(processors)}",
                hint=f"give a number from 1 to {len(processors)}",
            )
        default = len(processors) - (len(processors) >= _ROOM_FROM)
        self.cpus = cpus or min(default, most_jobs or default)
        self.jobserver = Jobserver(self.cpus)
        self.group: BuildGroup | None = None
        self.note = ""
        self._is_explicit = cpus is not None
        self._find_group = find_group
        self._all = frozenset(processors)
        # The last ones: interrupts tend to be served by the first.
        self._allowed = frozenset(processors[-self.cpus :])
        self._is_pinned = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.jobserver)
            self._make_group()
            if self._is_explicit and self.group is None and self._allowed != self._all:
                self._is_pinned = True
                with self._pinned():
                    pass
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self.group:
            self.group.remove()

    def _make_group(self) -> None:
        parent = self._find_group()
        if parent is None:
            return
        group = BuildGroup(parent)
        try:
            group.create(self.cpus)
        except OSError as error:
            self.note = f"builds get no control group of their own: {error.filename}: {error.strerror}"
        else:
            self.group = group

    @contextmanager
    def starting(self) -> Iterator[None]:
        """The context in which a process is to be started, by this thread; it inherits what processors it may use."""
        if not self._is_pinned:
            yield
            return
        with self._pinned():
            yield

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        try:
            os.sched_setaffinity(0, self._allowed)
        except OSError as error:
            raise UsageError(
                f"builds cannot be held to {self.cpus} processors: {error.strerror}", hint="leave out --cpus"
            ) from error
        try:
            yield
        finally:
            os.sched_setaffinity(0, self._all)

    def started(self, pid: int) -> None:
        """Hold a process, which leads a process group and has just begun, to the limit."""
        if self.group:
            self.group.take(pid)
        try:
            os.setpriority(os.PRIO_PGRP, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
        except ProcessLookupError:
            return
