"""Another process that holds a lock until a test has it let go."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD_BUILD = """
import asyncio, sys
from pathlib import Path
from hotpatchd.core.freshness import TreeStamp
from hotpatchd.daemon.build_lock import BuildLock

async def main():
    look = lambda: TreeStamp(head=None, files={})
    async with BuildLock(Path(sys.argv[1]), Path(sys.argv[2]), look=look, waiting=lambda text: None):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@contextmanager
def holding(script: str, *args: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a script, which prints `held` once it holds what it is to hold."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holding_build_lock(state_dir: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the right to build a source tree, for all that others can see of it."""
    with holding(_HOLD_BUILD, state_dir, root) as process:
        yield process


def let_go(process: subprocess.Popen[str]) -> None:
    """Has the process end in an orderly way, as a build does."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
