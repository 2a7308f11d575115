"""What a killed daemon leaves to its guardian, with real processes in the daemon's place."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.daemon.guardian import Guardian, start_time
from tests.daemon.test_processes import is_running, until

DAEMON = """
import os, signal, subprocess, sys
from hotpatchd.daemon.guardian import Guardian

with Guardian() as guardian:
    print(guardian._helper.pid, flush=True)
    for line in sys.stdin:
        {body}
        print("done", flush=True)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
POLITE = """
import signal, sys, time
from pathlib import Path

def end(*_):
    Path(sys.argv[1]).write_text("told")
    sys.exit()

signal.signal(signal.SIGTERM, end)
print(flush=True)
time.sleep(600)
"""


class Daemon:
    """A process with a guardian; each line sent to it makes it run a statement with the line's words in `words`."""

    def __init__(self, body: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON.format(body=f"words = line.split(); {body}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.guardian = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def send(self, *words: object) -> None:
        """Sends a line and waits until it was dealt with."""
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        assert self._line() == "done\n"

    async def kill(self) -> None:
        """Kills the daemon, and waits for its guardian's end."""
        self.process.kill()
        self.process.communicate()
        await until(lambda: not is_running(self.guardian))


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def sleeper(*argv: str, stdin: int | None = None, own_session: bool = False) -> subprocess.Popen[bytes]:
    """A process that sleeps; one that runs Python code has begun to."""
    is_python = argv[:1] == (sys.executable,)
    process = subprocess.Popen(
        argv or ("sleep", "600"),
        stdin=stdin,
        stdout=subprocess.PIPE if is_python else None,
        start_new_session=own_session,
    )
    if is_python:
        assert process.stdout is not None
        process.stdout.readline()
    return process


async def test_killed_daemon_takes_a_group_with_it(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """The leader and what it started are killed; a process that is not registered lives."""
    script = f"sleep 600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    group, other = sleeper("sh", "-c", script, own_session=True), sleeper(own_session=True)
    started += group, other
    await until((tmp_path / "pid").exists)
    child = int((tmp_path / "pid").read_text())
    daemon = Daemon('guardian.add(int(words[0]), reach="group", signal=signal.SIGKILL)')
    daemon.send(group.pid)
    await daemon.kill()
    assert group.wait(10) == -signal.SIGKILL
    await until(lambda: not is_running(child))
    assert is_running(other.pid)


async def test_group_whose_leader_is_gone_is_killed(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A linker may outlive the compiler that started it."""
    script = f"sleep 600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; read line"
    group = sleeper("sh", "-c", script, stdin=subprocess.PIPE, own_session=True)
    started.append(group)
    await until((tmp_path / "pid").exists)
    child = int((tmp_path / "pid").read_text())
    daemon = Daemon('guardian.add(int(words[0]), reach="group", signal=signal.SIGKILL)')
    daemon.send(group.pid)
    group.communicate(b"\n")
    assert is_running(child)
    await daemon.kill()
    await until(lambda: not is_running(child))


async def test_process_alone_is_told_by_its_signal(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A program that is asked to end can put its things in order."""
    program = sleeper(sys.executable, "-c", POLITE, str(tmp_path / "said"))
    started.append(program)
    daemon = Daemon('guardian.add(int(words[0]), reach="process", signal=signal.SIGTERM)')
    daemon.send(program.pid)
    await daemon.kill()
    assert program.wait(10) == 0
    assert (tmp_path / "said").read_text() == "told"


async def test_process_that_does_not_follow_is_killed(started: list[subprocess.Popen[bytes]]) -> None:
    """After a while the guardian insists."""
    program = sleeper(sys.executable, "-c", STUBBORN)
    started.append(program)
    daemon = Daemon('guardian.add(int(words[0]), reach="process", signal=signal.SIGTERM)')
    daemon.send(program.pid)
    await daemon.kill()
    assert program.wait(10) == -signal.SIGKILL


async def test_forgotten_process_lives(started: list[subprocess.Popen[bytes]]) -> None:
    """What has ended is not looked for under its old number."""
    program = sleeper(own_session=True)
    started.append(program)
    daemon = Daemon('guardian.add(int(words[0]), reach="group", signal=signal.SIGKILL); guardian.remove(int(words[0]))')
    daemon.send(program.pid)
    await daemon.kill()
    assert is_running(program.pid)


async def test_later_process_of_the_same_number_lives(started: list[subprocess.Popen[bytes]]) -> None:
    """A process that started at another time is another process."""
    program = sleeper(own_session=True)
    started.append(program)
    daemon = Daemon('guardian._tell(f"add {words[0]} 1 group 9"); guardian._tell(f"add {words[0]} 1 process 15")')
    daemon.send(program.pid)
    await daemon.kill()
    assert is_running(program.pid)


async def test_orderly_end_harms_nobody(started: list[subprocess.Popen[bytes]]) -> None:
    """The daemon has ended what it wanted to end by itself."""
    program = sleeper(own_session=True)
    started.append(program)
    with Guardian() as guardian:
        guardian.add(program.pid, reach="group", signal=signal.SIGKILL)
        helper = guardian._helper
    assert helper.returncode == 0
    assert is_running(program.pid)


async def test_guardian_outlives_ctrl_c_and_hangup() -> None:
    """It has no part in the terminal of the daemon, and holds none of its files open."""
    daemon = Daemon("pass")
    assert os.getsid(daemon.guardian) == daemon.guardian
    fds = f"/proc/{daemon.guardian}/fd"
    await until(
        lambda: {os.readlink(f"{fds}/{fd}").partition(":")[0] for fd in os.listdir(fds)} <= {"pipe", "/dev/null"}
    )
    assert os.readlink(f"/proc/{daemon.guardian}/cwd") == "/"
    await daemon.kill()


async def test_dead_guardian_does_not_stop_the_daemon() -> None:
    """Registering goes on without effect."""
    with Guardian() as guardian:
        guardian._helper.kill()
        guardian._helper.wait()
        for _ in range(2):
            guardian.add(os.getpid(), reach="process", signal=signal.SIGTERM)


def test_start_time_of_a_process_with_a_strange_name(tmp_path: Path) -> None:
    """Parentheses and spaces in the name do not move the fields."""
    program = tmp_path / "a) b (c 1 2"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        own = start_time(os.getpid())
        found = start_time(process.pid)
        assert own is not None
        assert found is not None
        assert 0 <= found - own < 1_000_000
    assert start_time(process.pid) is None


async def test_process_that_was_being_started_is_found(tmp_path: Path) -> None:
    """A daemon that is killed before it knows the number of its child leaves nothing either."""
    body = (
        'start = guardian.starting(reach="group", signal=signal.SIGKILL); mark = start.__enter__();'
        ' child = subprocess.Popen(["sleep", "600"], env=os.environ | mark, stdout=2, start_new_session=True);'
        ' open(words[0], "w").write(str(child.pid))'
    )
    daemon = Daemon(body)
    daemon.send(tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    await daemon.kill()
    # The guardian does not wait for those that it kills.
    await until(lambda: not is_running(pid))


async def test_start_that_ended_is_not_looked_for(tmp_path: Path) -> None:
    """What became of it is known then: a process that has its mark, and is not registered, lives."""
    body = (
        'start = guardian.starting(reach="group", signal=signal.SIGKILL); mark = start.__enter__();'
        " start.__exit__(None, None, None);"
        ' child = subprocess.Popen(["sleep", "600"], env=os.environ | mark, stdout=2, start_new_session=True);'
        ' open(words[0], "w").write(str(child.pid))'
    )
    daemon = Daemon(body)
    daemon.send(tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    await daemon.kill()
    try:
        assert is_running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
