"""How builds are held to their part of the machine."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.control_group import BuildGroup, delegated_group, mount_point
from hotpatchd.daemon.guardian import start_time
from hotpatchd.daemon.limits import Limits, own_delegated_group
from hotpatchd.daemon.processes import caring, run_process
from tests.daemon.test_processes import is_running

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


@contextlib.contextmanager
def shell_with_children() -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A shell with two children, once both are there."""
    with subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True) as shell:
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        while len(pids := [int(pid) for pid in children.read_text().split()]) < 2:
            assert shell.poll() is None
        try:
            yield shell, pids
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def test_processes_that_a_process_has_started_are_taken_along(tmp_path: Path) -> None:
    """Each is written into the group by itself, as the kernel wants it, parents first."""
    group = BuildGroup(tmp_path)
    group.directory.mkdir()
    os.mkfifo(group.directory / "cgroup.procs")
    reader = os.open(group.directory / "cgroup.procs", os.O_RDONLY | os.O_NONBLOCK)
    with shell_with_children() as (shell, children):
        group.take(shell.pid)
        assert os.read(reader, 4096).decode() == "".join(map(str, (shell.pid, *children)))
    os.close(reader)


def test_hierarchy_without_limits_is_not_used(tmp_path: Path) -> None:
    """A note tells of it; nothing is left there."""
    with Limits(find_group=lambda: tmp_path) as limits:
        assert limits.group is None
        assert "no control group" in limits.note
    assert not list(tmp_path.iterdir())


def kernel_parent() -> Path | None:
    """A control group of the kernel's hierarchy in which this user can make others; None where there is none."""
    mount = mount_point()
    at_top = mount if mount and os.access(mount / "cgroup.procs", os.W_OK) else None
    return own_delegated_group() or at_top


@pytest.mark.skipif(kernel_parent() is None, reason="this user may make no control group here")
async def test_group_of_the_kernel_ends_what_is_in_it() -> None:
    """Removing it kills what was moved into it, children that were there before included."""
    parent = kernel_parent()
    assert parent is not None
    group = BuildGroup(parent)
    group.directory.mkdir()
    with shell_with_children() as (shell, children):
        group.take(shell.pid)
        pids = {shell.pid, *children}
        assert {int(pid) for pid in (group.directory / "cgroup.procs").read_text().split()} == pids
        # Only its parent can take a killed process out of the group.
        removing = asyncio.create_task(asyncio.to_thread(group.remove))
        await asyncio.to_thread(shell.wait)
        await removing
    assert not group.directory.exists()
    assert not any(is_running(pid) for pid in pids)


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
