"""A build of a project that goes on until a test ends it, for all that a daemon can see of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.program import Project

HOLD = """
import asyncio, sys
from pathlib import Path
from hotpatchd.core.freshness import TreeStamp
from hotpatchd.daemon.build_lock import BuildLock

async def main():
    look = lambda: TreeStamp(head=None, files={})
    async with BuildLock(Path(sys.argv[1]), Path(sys.argv[2]), look=look, waiting=print):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@contextmanager
def held_build_lock(project: Project) -> Iterator[subprocess.Popen[str]]:
    """A process that has the right to build the project."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project.state), str(project.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[str]) -> None:
    """Has the process end as a build does."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
