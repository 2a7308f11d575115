"""Many files, or one file many times: as few edits as possible, and none that nobody meant."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.harness import Saved, Session
from tests.e2e.program import Project

MAIN = "src/main.rs"
FILES = 500
SAVING_S = 6.0
SAVE_EVERY_S = 0.03
AT_LEAST_EVERY_S = 4.0


def git(root: Path, *arguments: str) -> None:
    """Runs git in the project."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Session]:
    """A running program with five hundred modules, in a repository whose branch `other` changes each of them."""
    project = Project("single", tmp_path / "single")
    (project.root / "src/many").mkdir()
    names = [f"m{number}" for number in range(FILES)]
    (project.root / "src/many/mod.rs").write_text("".join(f"pub mod {name};\n" for name in names))
    (project.root / MAIN).write_text(project.read(MAIN) + "\n#[allow(dead_code)]\nmod many;\n")
    git(project.root, "init", "--quiet", "--initial-branch=main")
    (project.root / ".gitignore").write_text("target\nCargo.lock\n")
    for branch, value in (("main", 1), ("other", 2)):
        if branch == "other":
            git(project.root, "checkout", "--quiet", "-b", branch)
            changed = project.replaced(MAIN, 'String::from("first")', 'String::from("second")')
            (project.root / MAIN).write_text(changed)
        for name in names:
            (project.root / f"src/many/{name}.rs").write_text(f"pub fn value() -> u32 {{\n    {value}\n}}\n")
        git(project.root, "add", ".")
        git(project.root, "commit", "--quiet", "--message", branch)
    git(project.root, "checkout", "--quiet", "main")
    with Session(project) as session:
        yield session.wait_started()


def test_branch_switch_of_500_files_is_one_edit(modules: Session) -> None:
    """A checkout has one verdict, and the program runs the other branch."""
    for branch, shown in (("other", "second"), ("main", "first")):
        saved = Saved(file=modules.project.root / MAIN, mark=len(modules.events()))
        git(modules.project.root, "checkout", "--quiet", branch)
        verdict = modules.wait_verdict(saved)
        assert verdict.verdict == "applied", verdict
        modules.daemon.wait_value("public", shown)
        settled = [event for event in modules.events()[saved.mark :] if event["event"] == "edit.settled"]
        assert [len(event["files"]) for event in settled] == [FILES + 1]


def test_constant_saving_is_applied_again_and_again(session: Session) -> None:
    """Who saves every few milliseconds still sees something new every few seconds."""
    mark = len(session.events())
    started = time.time()
    text = session.project.read(MAIN)
    number = 0
    while time.time() < started + SAVING_S:
        number += 1
        session.save(MAIN, text.replace('String::from("first")', f'String::from("save{number}")'))
        time.sleep(SAVE_EVERY_S)
    stopped = time.time()
    session.daemon.wait_value("public", f"save{number}")
    applied = [
        event["ts"]
        for event in session.events()[mark:]
        if event["event"] == "edit.verdict" and event["verdict"] == "applied"
    ]
    moments = [started, *(at for at in applied if at < stopped), stopped]
    assert max(later - earlier for earlier, later in pairwise(moments)) < AT_LEAST_EVERY_S


def test_saving_by_truncation_is_never_judged_empty(session: Session) -> None:
    """The moment between truncation and write, longer than the quiet time, makes no edit."""
    mark = len(session.events())
    text = session.project.read(MAIN)
    for number in range(5):
        saved = Saved(file=session.project.root / MAIN, mark=len(session.events()))
        with saved.file.open("w") as file:
            os.fsync(file.fileno())
            time.sleep(0.05)
            file.write(text.replace('String::from("first")', f'String::from("cut{number}")'))
        assert session.wait_verdict(saved).verdict == "applied"
        session.daemon.wait_value("public", f"cut{number}")
    verdicts = [event["verdict"] for event in session.events()[mark:] if event["event"] == "edit.verdict"]
    assert verdicts == ["applied"] * 5
