"""Two builds of the same sources at the same time: each has its turn, and neither harms the other."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from tests.daemon.holding import holding_build_lock, let_go
from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Project, assert_continuous

MAIN = "src/main.rs"


def git(project: Project, *args: str) -> None:
    """Runs git in the project, without anybody's configuration."""
    env = {"PATH": os.environ["PATH"], "HOME": str(project.root), "GIT_CONFIG_NOSYSTEM": "1"}
    settings = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *settings, *args], cwd=project.root, env=env, capture_output=True, check=True)


def test_second_daemon_of_a_target_directory_is_refused(single: Project) -> None:
    """It is told who the first one is, which goes on patching."""
    with Session(single) as session:
        session.wait_started()
        second = session.cli("run", within_s=START_WITHIN_S)
        assert second.returncode == 2
        assert f"process {session.daemon.process.pid} (`" in second.stderr
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        session.daemon.wait_value("public", "second")


def test_two_daemons_with_their_own_target_directories(single: Project) -> None:
    """Both apply the same edit, each to its own program."""
    with Session(single) as one, Session(single, options=("--target-dir", "other")) as other:
        one.wait_started()
        other.wait_started()
        mark = len(other.events())
        one.apply(MAIN, 'String::from("first")', 'String::from("second")')
        verdict = other.wait_event("edit.verdict", after=mark)
        assert verdict["verdict"] == "applied", other.diagnosis()
        for session in (one, other):
            session.daemon.wait_value("public", "second")
            assert_continuous(session.daemon.app_lines())


@contextmanager
def building_all_the_time(project: Project) -> Iterator[list[int]]:
    """Plain `cargo build`s, one after another; gives their exit statuses, of which there is one at least."""
    statuses: list[int] = []
    ending, first = threading.Event(), threading.Event()
    env = os.environ | {"CARGO_TARGET_DIR": str(project.target)}

    def build() -> None:
        while not ending.is_set():
            ran = subprocess.run(["cargo", "build"], cwd=project.root, env=env, capture_output=True, check=False)
            statuses.append(ran.returncode)
            first.set()

    thread = threading.Thread(target=build)
    thread.start()
    try:
        yield statuses
        assert first.wait(60)
    finally:
        ending.set()
        thread.join()


def test_daemon_and_cargo_at_the_same_time(single: Project) -> None:
    """From the daemon's start over several edits, cargo builds the same target directory again and again."""
    with building_all_the_time(single) as statuses, Session(single) as session:
        session.wait_started()
        start = len(session.daemon.app_lines())
        names = ["first", *(f"name{number}" for number in range(5))]
        for old, new in pairwise(names):
            session.apply(MAIN, f'String::from("{old}")', f'String::from("{new}")')
            session.daemon.wait_value("public", new)
        assert_continuous(session.daemon.app_lines()[start:])
        built = len(statuses)
    assert built
    assert set(statuses) == {0}


def test_wait_for_another_build_is_told(single: Project) -> None:
    """By process; the program starts when the other build has ended."""
    with holding_build_lock(single.state, single.root) as holder, Session(single) as session:
        session.daemon.wait_text(f"process {holder.pid} ", within_s=START_WITHIN_S)
        let_go(holder)
        session.wait_started()


def test_sources_that_change_while_waiting_are_built(single: Project) -> None:
    """The change is told, and is in the program from its start."""
    with holding_build_lock(single.state, single.root) as holder, Session(single) as session:
        session.daemon.wait_text(f"process {holder.pid} ", within_s=START_WITHIN_S)
        session.edit(MAIN, 'String::from("first")', 'String::from("second")')
        let_go(holder)
        session.daemon.wait_text("sources changed while waiting", within_s=START_WITHIN_S)
        session.wait_started()
        assert session.daemon.app_lines()[0]["public"] == "second"


def test_branch_that_is_switched_while_waiting_is_built(single: Project) -> None:
    """From where to where `HEAD` moved is told, and the program is that of the new branch."""
    git(single, "init")
    git(single, "add", MAIN, "Cargo.toml")
    git(single, "commit", "-m", "first")
    git(single, "checkout", "-b", "feature")
    (single.root / MAIN).write_text(single.replaced(MAIN, 'String::from("first")', 'String::from("feature")'))
    git(single, "commit", "-a", "-m", "second")
    git(single, "checkout", "main")
    with holding_build_lock(single.state, single.root) as holder, Session(single) as session:
        session.daemon.wait_text(f"process {holder.pid} ", within_s=START_WITHIN_S)
        git(single, "checkout", "feature")
        let_go(holder)
        line = session.daemon.wait_text("HEAD moved while waiting", within_s=START_WITHIN_S)
        assert "from main (" in line
        assert "to feature (" in line
        session.wait_started()
        assert session.daemon.app_lines()[0]["public"] == "feature"


def test_tree_that_cannot_be_checked_is_built_as_if_all_had_changed(single: Project) -> None:
    """The reason is told."""
    (single.root / ".git").mkdir()
    with holding_build_lock(single.state, single.root) as holder, Session(single) as session:
        session.daemon.wait_text(f"process {holder.pid} ", within_s=START_WITHIN_S)
        let_go(holder)
        line = session.daemon.wait_text("cannot tell what changed while waiting", within_s=START_WITHIN_S)
        assert ".git/HEAD" in line
        session.wait_started()


def test_wait_for_cargo_is_told(single: Project) -> None:
    """Also where cargo's own message does not reach a terminal; the holder and its lock are named."""
    lock = single.target / "debug/.cargo-lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with Session(single) as session:
            line = session.daemon.wait_text("cargo waits for the lock", within_s=START_WITHIN_S)
            assert str(lock) in line
            assert f"process {os.getpid()} (`" in line
            fcntl.flock(file, fcntl.LOCK_UN)
            session.wait_started()


def test_limit_that_this_machine_cannot_hold_is_refused(single: Project) -> None:
    """The message says how many processors there are."""
    with Session(single, "build", options=("--cpus", "100000")) as session:
        assert session.daemon.wait_exit() == 2
        assert "cannot have 100000 processors" in session.daemon.output


def test_limited_daemon_patches(single: Project) -> None:
    """With one processor for builds an edit is applied like any other."""
    with Session(single, options=("--cpus", "1")) as session:
        session.wait_started()
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        session.daemon.wait_value("public", "second")
