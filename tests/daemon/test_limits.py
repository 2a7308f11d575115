"""How builds are held to their part of the machine."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.control_group import BuildGroup, delegated_group, mount_point
from hotpatchd.daemon.guardian import start_time
from hotpatchd.daemon.limits import Limits
from hotpatchd.daemon.processes import caring, run_process
from tests.daemon.test_processes import is_running, until

PROCESSORS = len(os.sched_getaffinity(0))
OWN = "/user.slice/user@0.service/app.slice/editor.scope"


def no_group() -> None:
    """A machine on which the user may make no control group."""


def make_group(directory: Path, *, controllers: str = "cpu pids", handed_on: str = "pids", processes: str = "") -> Path:
    """The files of a control group that matter here."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text(handed_on)
    (directory / "cgroup.procs").write_text(processes)
    return directory


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A unified hierarchy as a user's systemd manager leaves it; the editor is in a group of its own."""
    top = tmp_path / "cgroup"
    for directory in (top, top / "user.slice", top / "user.slice/user@0.service", top / OWN[1:].rpartition("/")[0]):
        make_group(directory)
    make_group(top / OWN[1:], processes="1\n")
    (tmp_path / "membership").write_text(f"4:memory:/elsewhere\n0::{OWN}\n")
    (tmp_path / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {top} cgroup2 rw 0 0\n")
    return top


def find(mount: Path) -> Path | None:
    """The group that is found for the editor."""
    return delegated_group(mount, mount.parent / "membership")


def test_place_of_the_hierarchy_is_read_from_the_mounts(mount: Path) -> None:
    """A machine with only the old hierarchies has none."""
    assert mount_point(mount.parent / "mounts") == mount
    (mount.parent / "mounts").write_text("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n")
    assert mount_point(mount.parent / "mounts") is None


def test_nearest_group_above_is_taken(mount: Path) -> None:
    """The daemon's own has processes, and so cannot have groups with a limit below it."""
    assert find(mount) == (mount / OWN[1:]).parent


def test_group_that_hands_on_no_processors_is_passed_over(mount: Path) -> None:
    """Without the controller, or with processes of its own, a group can give none on."""
    slice_ = (mount / OWN[1:]).parent
    make_group(slice_, controllers="memory")
    assert find(mount) == slice_.parent
    make_group(slice_, processes="7\n")
    assert find(mount) == slice_.parent
    make_group(slice_, processes="7\n", handed_on="cpu")
    assert find(mount) == slice_


def test_no_delegation_is_no_group(mount: Path) -> None:
    """The top of the hierarchy does not count as above: a group there would be the system's."""
    make_group(mount / "user.slice", controllers="")
    (mount.parent / "membership").write_text("0::/user.slice\n")
    assert find(mount) is None
    (mount.parent / "membership").write_text("0::/\n")
    assert find(mount) is None
    (mount.parent / "membership").write_text("4:memory:/user.slice\n")
    assert find(mount) is None


def test_group_is_made_with_the_limit(mount: Path) -> None:
    """Two processors are twice the period; the controller is handed on first."""
    parent = (mount / OWN[1:]).parent
    group = BuildGroup(parent)
    group.create(2)
    assert (group.directory / "cpu.max").read_text() == "200000 100000"
    assert (parent / "cgroup.subtree_control").read_text() == "+cpu"
    assert group.directory.name == f"hotpatchd-{os.getpid()}-{start_time(os.getpid())}"


@pytest.mark.parametrize("name", ["hotpatchd-{pid}-1", "hotpatchd-4194304-1"], ids=["another's number", "no process"])
def test_groups_of_dead_daemons_are_removed(mount: Path, name: str) -> None:
    """Other groups, and those of daemons that run, stay."""
    parent = (mount / OWN[1:]).parent
    left = parent / name.format(pid=os.getpid())
    others = [parent / f"hotpatchd-{os.getppid()}-{start_time(os.getppid())}", parent / "hotpatchd-docs.scope"]
    for directory in (left, *others):
        directory.mkdir()
    BuildGroup(parent).create(1)
    assert not left.exists()
    assert all(directory.exists() for directory in others)


@pytest.fixture
def real_parent() -> Iterator[Path]:
    """A control group of the kernel's own hierarchy in which groups can be made; its `cpu` controller is not needed."""
    mount = mount_point()
    if mount is None or not os.access(mount / "cgroup.procs", os.W_OK):
        pytest.skip("this user may make no control group here")
    parent = mount / f"hotpatchd-test.{os.getpid()}"
    parent.mkdir()
    yield parent
    for left in (*parent.iterdir(), parent):
        if left.is_dir():
            left.rmdir()


async def test_kernel_group_has_what_was_started_and_takes_it_along(real_parent: Path) -> None:
    """Children that are there already are moved, too; removing the group ends all."""
    group = BuildGroup(real_parent)
    group.directory.mkdir()
    with subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"]) as shell:  # noqa: ASYNC220
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        await until(lambda: len(children.read_text().split()) == 2)
        pids = {shell.pid, *map(int, children.read_text().split())}
        group.take(shell.pid)
        assert {int(pid) for pid in (group.directory / "cgroup.procs").read_text().split()} == pids
        # Only its parent can take a killed process out of the group.
        removing = asyncio.create_task(asyncio.to_thread(group.remove))
        await asyncio.to_thread(shell.wait)
        await removing
    assert not group.directory.exists()
    assert not any(is_running(pid) for pid in pids)


async def test_kernel_group_without_a_limit_is_not_used(real_parent: Path) -> None:
    """A hierarchy that does not limit processors is told of in a note; nothing is left there."""
    if (real_parent / "cpu.stat").exists() and "cpu" in (real_parent / "cgroup.controllers").read_text().split():
        pytest.skip("this hierarchy limits processors")
    with Limits(find_group=lambda: real_parent) as limits:
        assert limits.group is None
        assert "no control group" in limits.note
    assert not [entry for entry in real_parent.iterdir() if entry.is_dir()]


@pytest.mark.parametrize("cpus", [0, -1, PROCESSORS + 1, 10_000])
def test_limit_that_cannot_be_is_an_error(cpus: int) -> None:
    """The message has the number of processors that there are."""
    with pytest.raises(UsageError, match=f"has {PROCESSORS}"):
        Limits(cpus)


def test_default_leaves_the_program_room_and_follows_cargo() -> None:
    """It is never more than the developer lets cargo take, and never less than one."""
    assert 1 <= Limits().cpus <= PROCESSORS
    assert Limits(most_jobs=1).cpus == 1
    assert Limits(PROCESSORS, most_jobs=1).cpus == PROCESSORS


async def test_explicit_limit_without_a_group_is_the_processors_that_may_be_used() -> None:
    """Whatever is started can use no more, also what starts itself; the daemon is not held to it."""
    before = os.sched_getaffinity(0)
    with caring(Limits(1, find_group=no_group)):
        finished = await run_process(["sh", "-c", "nproc; sh -c nproc"])
        assert finished.stdout == b"1\n1\n"
        assert os.sched_getaffinity(0) == before
    assert (await run_process(["nproc"])).stdout == b"%d\n" % len(before)


async def test_default_limit_pins_nothing() -> None:
    """A machine without control groups lets builds use what is idle."""
    with caring(Limits(most_jobs=1, find_group=no_group)):
        assert (await run_process(["nproc"])).stdout == b"%d\n" % PROCESSORS


async def test_builds_give_way_to_the_program() -> None:
    """They run with a lower priority than the daemon."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    script = "import os, time\nwhile os.getpriority(os.PRIO_PROCESS, 0) == {}: time.sleep(0.01)\n"
    with caring(Limits(find_group=no_group)):
        async with asyncio.timeout(20):
            await run_process(["python3", "-c", script.format(own)])
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


async def test_processes_take_turns(tmp_path: Path) -> None:
    """With one job, no process begins before another ended."""
    log = tmp_path / "log"
    with caring(Limits(most_jobs=1, find_group=no_group)):
        await asyncio.gather(*(run_process(["sh", "-c", f"echo + >> {log}; echo - >> {log}"]) for _ in range(8)))
    assert log.read_text() == "+\n-\n" * 8


async def test_what_is_no_work_takes_no_turn(tmp_path: Path) -> None:
    """A process that only waits does not keep a compiler from running."""
    os.mkfifo(gate := tmp_path / "gate")
    with caring(Limits(most_jobs=1, find_group=no_group)):
        waiting = asyncio.create_task(run_process(["cat", str(gate)], takes_turn=False))
        await asyncio.wait_for(run_process(["true"]), 10)
        assert not waiting.done()
        await asyncio.to_thread(gate.write_bytes, b"")
        await waiting
