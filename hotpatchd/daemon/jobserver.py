"""A jobserver that cargo, rustc and make share: the bytes in a pipe are the jobs that may begin.

Each process may run one job without asking; it takes a byte for every further one, and puts it back. So the pipe
holds one byte less than there may be jobs, and of two processes that start here the second one takes a byte as well.

Source: the GNU make manual, "Sharing Job Slots with GNU make"; the rustc book, "Jobserver".
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Literal, Self

Turn = Literal["tool", "build"]


class Jobserver:
    """A context manager.

    A process that is killed keeps the bytes that it had; they are made good when nobody is left who has any.

    Args:
        jobs: how many at once.

    Attributes:
        fds: of the pipe; for those who take part to inherit.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._running: dict[Turn, int] = {"tool": 0, "build": 0}
        self._waiting = 0
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self.fds = os.pipe()
        # Others would see it if these descriptors did not block.
        self._reader = os.open(f"/proc/self/fd/{self.fds[0]}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self.fds[1], b"+" * (self.jobs - 1))
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self.fds, self._reader):
            os.close(fd)

    def environ(self) -> dict[str, str]:
        """The variables by which the number is found.

        The first, the one that cargo and rustc look at before others, names the pipe. By the second cargo tells build
        scripts.
        """
        fds = ",".join(map(str, self.fds))
        # Makes before 4.2 know only the first spelling; a path instead of numbers is too new for many.
        flags = f"-j --jobserver-fds={fds} --jobserver-auth={fds}"
        return {"CARGO_MAKEFLAGS": flags, "CARGO_BUILD_JOBS": str(self.jobs)}

    @contextlib.asynccontextmanager
    async def turn(self, kind: Turn) -> AsyncIterator[None]:
        """Wait until one more process may run; the context is its run.

        The first of each kind runs at once: an edit does not wait for a build in the background.
        """
        taken = await self._take(kind)
        self._running[kind] += 1
        try:
            yield
        finally:
            self._running[kind] -= 1
            os.write(self.fds[1], taken)
            if not any(self._running.values()):
                self._make_good()
            self._changed.set()

    async def _take(self, kind: Turn) -> bytes:
        if not self._running[kind]:
            return b""
        loop = asyncio.get_running_loop()
        self._waiting += 1
        loop.add_reader(self._reader, self._changed.set)
        try:
            while self._running[kind]:
                self._changed.clear()
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._reader, 1)
                await self._changed.wait()
            return b""
        finally:
            self._waiting -= 1
            if not self._waiting:
                loop.remove_reader(self._reader)

    def _make_good(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, self.jobs)
        os.write(self.fds[1], b"+" * (self.jobs - 1))
