"""A watcher at work, and what it says."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hotpatchd.daemon.watcher import Batch, Watcher

BOUND_S = 20


class Observed:
    """A running watcher of `root`, with what it says."""

    def __init__(self, root: Path, watcher: Watcher, notices: list[str]) -> None:
        self.root = root
        self.watcher = watcher
        self.notices = notices
        self._batches = watcher.batches()

    async def batch(self) -> Batch:
        """The next batch."""
        return await asyncio.wait_for(anext(self._batches), BOUND_S)

    async def files(self) -> set[str]:
        """The files of the next batch, relative to the root."""
        return {os.path.relpath(file, self.root) for file in (await self.batch()).files}

    async def files_after_marker(self) -> set[str]:
        """What is reported up to a marker that is written now: shows that nothing else was."""
        (self.root / "src/marker").write_text(os.urandom(8).hex())
        files: set[str] = set()
        while "src/marker" not in files:
            files |= await self.files()
        return files - {"src/marker"}


@asynccontextmanager
async def observing(root: Path, **options: Any) -> AsyncIterator[Observed]:
    """Runs a watcher of `root` without `root/target`."""
    notices: list[str] = []
    async with Watcher([root], excluded=[root / "target"], notice=notices.append, **options) as watcher:
        yield Observed(root, watcher, notices)
