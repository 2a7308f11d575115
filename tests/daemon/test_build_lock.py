"""One build at a time of a source tree into a target directory: who comes second waits, and looks again."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from hotpatchd.core.freshness import StampFailed, TreeStamp
from hotpatchd.daemon.build_lock import BuildLock
from tests.daemon.holding import holding_build_lock, let_go
from tests.daemon.test_processes import until


class Tree:
    """A source tree of one number, which stamps of it show."""

    def __init__(self) -> None:
        self.size = 0

    def look(self) -> TreeStamp:
        """A stamp of the tree as it is now."""
        return TreeStamp(head=None, files={"a.rs": (self.size, 0)})


class Waiter:
    """A build of this process that wants the lock; ends when it has had it."""

    def __init__(self, state_dir: Path, root: Path) -> None:
        self.tree = Tree()
        self.told: list[str] = []
        self.entered = asyncio.Event()
        self.lock = BuildLock(state_dir, root, look=self.tree.look, waiting=self.told.append)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.lock:
            self.entered.set()

    async def until_waiting(self) -> None:
        """Until the kernel knows that it waits."""
        await until(lambda: any("->" in line for line in waits_of(helpers())))


def helpers() -> set[int]:
    """The child processes of this one."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for file in children for pid in file.read_text().split()}


def waits_of(pids: set[int]) -> list[str]:
    """The lines of `/proc/locks` about waiting processes."""
    lines = Path("/proc/locks").read_text().splitlines()
    return [line for line in lines if "->" in line and int(line.split()[5]) in pids]


async def test_free_lock_is_taken_without_a_look(tmp_path: Path) -> None:
    """Nobody is told to wait, and the tree is not looked at."""

    def look() -> TreeStamp:
        raise AssertionError

    told: list[str] = []
    async with BuildLock(tmp_path, tmp_path, look=look, waiting=told.append) as lock:
        assert (told, lock.news.news, lock.left_by) == ([], "nothing", None)


async def test_who_waits_is_told_of_the_holder_and_woken(tmp_path: Path) -> None:
    """Process, command line and time are named, once; the end of the holder is enough to go on."""
    with holding_build_lock(tmp_path / "state", tmp_path) as process:
        waiter = Waiter(tmp_path / "state", tmp_path)
        await waiter.until_waiting()
        assert len(waiter.told) == 1
        assert f"process {process.pid} (`{sys.executable} -c" in waiter.told[0]
        assert "since 2" in waiter.told[0]
        assert not waiter.entered.is_set()
        let_go(process)
        await asyncio.wait_for(waiter.task, 10)
        assert waiter.lock.news.news == "nothing"
        assert not helpers()


async def test_killed_holder_wakes_who_waits_and_is_known(tmp_path: Path) -> None:
    """The kernel gives the lock on; the file still names the dead process."""
    with holding_build_lock(tmp_path, tmp_path) as process:
        waiter = Waiter(tmp_path, tmp_path)
        await waiter.until_waiting()
        process.send_signal(signal.SIGKILL)
        process.wait()
        await asyncio.wait_for(waiter.task, 10)
        assert waiter.lock.left_by is not None
        assert waiter.lock.left_by.pid == process.pid


async def test_change_of_the_tree_while_waiting_is_told(tmp_path: Path) -> None:
    """The tree is looked at before and after."""
    with holding_build_lock(tmp_path, tmp_path) as process:
        waiter = Waiter(tmp_path, tmp_path)
        await waiter.until_waiting()
        waiter.tree.size = 1
        let_go(process)
        await asyncio.wait_for(waiter.task, 10)
        assert waiter.lock.news.message == "sources changed while waiting: a.rs"


async def test_failed_look_does_not_keep_the_lock_from_being_taken(tmp_path: Path) -> None:
    """A tree that cannot be looked at is news like others."""
    with holding_build_lock(tmp_path, tmp_path) as process:
        waiter = Waiter(tmp_path, tmp_path)
        waiter.lock._look = lambda: StampFailed(reason="no permission")
        await waiter.until_waiting()
        let_go(process)
        await asyncio.wait_for(waiter.task, 10)
        assert waiter.lock.news.news == "check_failed"


async def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    """Nobody waits for the lock any more then, and the holder still has it."""
    with holding_build_lock(tmp_path, tmp_path) as process:
        waiter = Waiter(tmp_path, tmp_path)
        await waiter.until_waiting()
        waiter.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiter.task
        assert helpers() == {process.pid}
        let_go(process)
        async with BuildLock(tmp_path, tmp_path, look=Tree().look, waiting=lambda text: None) as lock:
            assert lock.left_by is None


async def test_several_wait_in_turn(tmp_path: Path) -> None:
    """Each gets the lock, one at a time."""
    with holding_build_lock(tmp_path, tmp_path) as process:
        waiters = [Waiter(tmp_path, tmp_path) for _ in range(3)]
        for waiter in waiters:
            await waiter.until_waiting()
        let_go(process)
        await asyncio.wait_for(asyncio.gather(*(waiter.task for waiter in waiters)), 20)


@pytest.mark.parametrize("other", ["state", "root"])
async def test_other_trees_and_other_target_directories_do_not_wait(tmp_path: Path, other: str) -> None:
    """Both together are what the lock is for."""
    with holding_build_lock(tmp_path / "state", tmp_path / "root"):
        state_dir, root = tmp_path / "state", tmp_path / "root"
        if other == "state":
            state_dir = tmp_path / "other"
        else:
            root = tmp_path / "other"
        async with BuildLock(state_dir, root, look=Tree().look, waiting=pytest.fail):
            pass


async def test_tree_is_the_same_by_another_path(tmp_path: Path) -> None:
    """A symbolic link to the tree leads to the same lock."""
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    with holding_build_lock(tmp_path / "state", tmp_path / "root") as process:
        waiter = Waiter(tmp_path / "state", tmp_path / "link")
        await waiter.until_waiting()
        let_go(process)
        await asyncio.wait_for(waiter.task, 10)


async def test_lock_that_was_removed_by_cargo_clean_is_made_anew(tmp_path: Path) -> None:
    """Who waited for a file that is gone does not take it for the lock."""
    with holding_build_lock(tmp_path / "state", tmp_path) as process:
        waiter = Waiter(tmp_path / "state", tmp_path)
        await waiter.until_waiting()
        shutil.rmtree(tmp_path / "state")
        with holding_build_lock(tmp_path / "state", tmp_path) as second:
            let_go(process)
            await until(lambda: any("->" in line for line in waits_of(helpers())))
            assert not waiter.entered.is_set()
            let_go(second)
            await asyncio.wait_for(waiter.task, 10)
