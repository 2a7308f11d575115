"""One full build at a time of a source tree into a target directory."""

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from hotpatchd.core.errors import BuildError
from hotpatchd.core.freshness import Judgement, StampFailed, TreeStamp, judge
from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon import logs
from hotpatchd.daemon.fatbuild import FatBuild, Workspace, fat_build, load_workspace
from hotpatchd.daemon.lock import Holder, LockFile
from hotpatchd.daemon.processes import run_process
from hotpatchd.daemon.source_tree import source_files, take_stamp
from hotpatchd.daemon.tracing import Tracer

# An `flock` lock belongs to the open file, not to the process: a helper that was given the file waits for all who
# have it, and can be killed, which a thread that waits cannot.
_WAIT = "import fcntl; fcntl.flock(0, fcntl.LOCK_EX)"
_log = structlog.get_logger()


async def build_in_turn(
    selection: CargoSelection,
    workspace: Workspace,
    state_dir: Path,
    *,
    cwd: Path,
    environ: Mapping[str, str],
    tip_args: Sequence[str] = (),
    tracer: Tracer | None,
    tell: Callable[[str], None],
) -> FatBuild:
    """Build when no other daemon does; what changed while waiting for one is taken into account.

    Args:
        selection: what is built.
        workspace: of `load_workspace`, for the same selection.
        state_dir: the daemon's directory.
        cwd: where cargo runs.
        environ: cargo's environment.
        tip_args: as for `fat_build`.
        tracer: as for `fat_build`.
        tell: is told who is waited for, and what changed meanwhile.

    Returns:
        the build; its workspace is the one that was built.

    Raises:
        BuildError: the build, or waiting for it, fails.
    """
    excluded = {*workspace.output_dirs, state_dir.parent}
    roots = set(workspace.source_dirs)

    def look() -> TreeStamp | StampFailed:
        return take_stamp(workspace.root, source_files(roots, excluded))

    def waiting(holder: str) -> None:
        tell(f"waiting for another build of {workspace.root}: {holder}")

    async with BuildLock(state_dir, workspace.root, look=look, waiting=waiting) as lock:
        if lock.left_by:
            _log.info(logs.BUILD_ABANDONED, holder=str(lock.left_by))
        if lock.news.message:
            tell(lock.news.message)
        if lock.news.may_change_workspace:
            workspace = await load_workspace(selection, cwd=cwd, environ=environ)
        return await fat_build(
            selection,
            workspace,
            state_dir,
            cwd=cwd,
            environ=environ,
            tip_args=tip_args,
            waiting=tell,
            tracer=tracer,
        )


class BuildLock:
    """The right to build a source tree into a target directory, as an asynchronous context manager.

    Who comes second waits, and the kernel wakes it.

    Args:
        state_dir: the daemon's directory, in the target directory.
        root: of the source tree.
        look: takes a stamp of the source tree, before and after waiting.
        waiting: is told who has the lock, once, where it has to be waited for.

    Attributes:
        news: what happened to the source tree while this waited.
        left_by: a process that died while it built, where that is what was found.

    Raises:
        BuildError: on entering, when the lock cannot be waited for.
    """

    def __init__(
        self,
        state_dir: Path,
        root: Path,
        *,
        look: Callable[[], TreeStamp | StampFailed],
        waiting: Callable[[str], None],
    ) -> None:
        tree = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
        self._lock = LockFile(state_dir / f"build-{tree}.lock")
        self._look = look
        self._waiting = waiting
        self.news = Judgement(news="nothing")
        self.left_by: Holder | None = None

    async def __aenter__(self) -> Self:
        try:
            if not self._lock.try_lock():
                before = await asyncio.to_thread(self._look)
                self._waiting(str(self._lock.holder() or "a build that is starting"))
                while not self._lock.try_lock():
                    await self._wait()
                self.news = judge(before, await asyncio.to_thread(self._look))
        except BaseException:
            self._lock.close()
            raise
        self.left_by = self._lock.holder()
        self._lock.sign()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    async def _wait(self) -> None:
        finished = await run_process([sys.executable, "-ISE", "-c", _WAIT], stdin=self._lock.fd, takes_turn=False)
        if finished.status:
            raise BuildError(f"waiting for {self._lock.path} failed", output=finished.stderr.decode(errors="replace"))
