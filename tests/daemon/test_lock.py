"""One daemon per state directory."""

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hotpatchd.core.errors import UsageError
from hotpatchd.daemon.lock import DaemonInfo, StateLock, read_daemon
from tests.daemon.holding import holding

HOLD = """
import sys
from pathlib import Path
from hotpatchd.daemon.lock import StateLock
with StateLock(Path(sys.argv[1])) as lock:
    lock.publish(url="ws://127.0.0.1:1/hotpatch/1", token="t")
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(state_dir: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input ends."""
    return holding(HOLD, state_dir)


def test_second_daemon_is_told_who_the_first_is(tmp_path: Path) -> None:
    """The error names the holder's process, command line and start."""
    with holder(tmp_path / "target/hotpatchd") as process:
        with pytest.raises(UsageError) as refused, StateLock(tmp_path / "target/hotpatchd"):
            pass
        assert str(tmp_path / "target") in refused.value.message
        assert f"process {process.pid} (`{sys.executable} -c" in refused.value.message
        assert "since 2" in refused.value.message
        assert "--target-dir" in refused.value.hint


def test_second_daemon_leaves_the_first_ones_file_alone(tmp_path: Path) -> None:
    """Coming second does not remove `daemon.json`."""
    with holder(tmp_path):
        with pytest.raises(UsageError), StateLock(tmp_path):
            pass
        assert read_daemon(tmp_path) is not None


def test_killed_holder_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """After SIGKILL the next daemon gets the lock, and the dead one's address is forgotten."""
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert read_daemon(tmp_path) is not None
        with StateLock(tmp_path):
            assert read_daemon(tmp_path) is None


def test_lock_can_be_taken_again_after_an_orderly_end(tmp_path: Path) -> None:
    """Leaving the context releases the lock and removes `daemon.json`."""
    for _ in range(2):
        with StateLock(tmp_path) as lock:
            lock.publish(url="ws://127.0.0.1:1/hotpatch/1", token="t")
        assert read_daemon(tmp_path) is None


def test_daemon_json_is_for_its_owner_only(tmp_path: Path) -> None:
    """The file with the token has mode 0600 and the documented content."""
    before = os.umask(0)
    try:
        with StateLock(tmp_path) as lock:
            lock.publish(url="ws://127.0.0.1:1/hotpatch/1", token="t")
            path = tmp_path / "daemon.json"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert json.loads(path.read_text()) == {
                "schema": 1,
                "url": "ws://127.0.0.1:1/hotpatch/1",
                "token": "t",
                "pid": os.getpid(),
                "library": None,
            }
            assert sorted(entry.name for entry in tmp_path.iterdir()) == ["daemon.json", "lock"]
    finally:
        os.umask(before)


def test_published_daemon_can_be_read(tmp_path: Path) -> None:
    """What is published is what commands find."""
    with StateLock(tmp_path) as lock:
        lock.publish(url="ws://127.0.0.1:1/hotpatch/1", token="t")
        assert read_daemon(tmp_path) == DaemonInfo(url="ws://127.0.0.1:1/hotpatch/1", token="t", pid=os.getpid())


@pytest.mark.parametrize("content", ["", "{", '{"schema": 2, "url": "u", "token": "t", "pid": 1}'])
def test_unreadable_daemon_json_means_no_daemon(tmp_path: Path, content: str) -> None:
    """A cut or foreign file is not a daemon."""
    (tmp_path / "daemon.json").write_text(content)
    assert read_daemon(tmp_path) is None


def test_lock_is_removed_with_its_directory_without_harm(tmp_path: Path) -> None:
    """`cargo clean` under a running daemon does not make its end fail."""
    state_dir = tmp_path / "hotpatchd"
    with StateLock(state_dir):
        (state_dir / "lock").unlink()
        state_dir.rmdir()
