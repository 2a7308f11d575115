"""What is built for the foreign targets is complete or not there, and is built once."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.targets import prepare

# One part in place of all; zig is taken to be there.
ONE_PART = """
import sys, time
from pathlib import Path
from tests.targets import prepare

def build(made):
    with Path(sys.argv[1]).open("a") as log:
        log.write("built ")
    time.sleep(0.5)
    (made / "file").touch()

prepare.zig().parents[1].mkdir(parents=True, exist_ok=True)
prepare._parts = lambda: {prepare.entry() / "part": build}
prepare.prepare()
assert (prepare.entry() / "part" / "file").exists()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare.cache_root().mkdir(parents=True)
    return prepare.cache_root()


def test_preparing_again_builds_nothing_and_takes_no_time(toolchain: Callable[[str], object]) -> None:
    """What is complete is left as it is."""
    started = time.monotonic()
    command = (sys.executable, "-m", "tests.targets.prepare")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert time.monotonic() - started < 3


def test_part_that_fails_to_build_leaves_nothing_behind(cache: Path) -> None:
    """Neither at its place nor beside it, so the next run builds it anew."""

    def build(made: Path) -> None:
        (made / "half").touch()
        raise prepare.PreparationError("no more")

    with pytest.raises(prepare.PreparationError):
        prepare._make(cache / "part", build)
    assert list(cache.iterdir()) == []


def test_runs_at_the_same_time_build_once(cache: Path, tmp_path: Path) -> None:
    """The second one waits, and finds what the first one has built."""
    log = tmp_path / "log"
    runs = [subprocess.Popen([sys.executable, "-c", ONE_PART, log]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert log.read_text() == "built "


def test_leftovers_of_a_run_that_was_killed_are_removed(cache: Path, tmp_path: Path) -> None:
    """A directory that was being filled is nobody's once the next run holds the lock."""
    (cache / "making-part" / "half").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", ONE_PART, tmp_path / "log"], check=True)
    assert not (cache / "making-part").exists()


def test_tests_are_told_to_prepare_first(cache: Path) -> None:
    """The message names the command."""
    with pytest.raises(prepare.PreparationError, match="make test-targets"):
        prepare.prepared()


def test_command_that_fails_says_what_it_printed() -> None:
    """Whoever reads the message can act on it."""
    with pytest.raises(prepare.PreparationError, match=r"(?s)no luck: `sh .*status 3.*said so"):
        prepare._run(["sh", "-c", "echo said so >&2; exit 3"], "no luck")
