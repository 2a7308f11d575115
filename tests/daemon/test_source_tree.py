"""Stamps of real repositories, made with git, and read without it."""

import os
import subprocess
from pathlib import Path

import pytest

from hotpatchd.core.freshness import StampFailed, TreeStamp, judge
from hotpatchd.daemon.source_tree import source_files, take_stamp


def git(where: Path, *args: str) -> str:
    """Runs git, without the configuration of whoever runs the tests; returns what it prints."""
    settings = {
        "user.name": "A",
        "user.email": "a@example.org",
        "init.defaultBranch": "main",
        "commit.gpgSign": "false",
        "advice.detachedHead": "false",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(where)}
    ran = subprocess.run(["git", *options, *args], cwd=where, env=env, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit on `main`."""
    root = tmp_path / "work"
    root.mkdir()
    git(root, "init")
    (root / "a.rs").write_text("1")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


def head_of(root: Path) -> tuple[str | None, str | None]:
    """What is checked out, by a stamp."""
    stamp = take_stamp(root, [])
    assert isinstance(stamp, TreeStamp)
    assert stamp.head is not None
    return stamp.head.ref, stamp.head.commit


def test_branch_and_commit_are_those_that_git_names(repository: Path) -> None:
    """Also after the references were packed, and from a directory below."""
    commit = git(repository, "rev-parse", "HEAD")
    assert head_of(repository) == ("refs/heads/main", commit)
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git/refs/heads/main").exists()
    assert head_of(repository) == ("refs/heads/main", commit)
    (repository / "crates/one").mkdir(parents=True)
    assert head_of(repository / "crates/one") == ("refs/heads/main", commit)


def test_loose_reference_goes_before_a_packed_one(repository: Path) -> None:
    """A commit after packing leaves the old id in the packed file."""
    git(repository, "pack-refs", "--all")
    git(repository, "commit", "--allow-empty", "-m", "second")
    assert head_of(repository) == ("refs/heads/main", git(repository, "rev-parse", "HEAD"))


def test_detached_head_is_a_commit_alone(repository: Path) -> None:
    """There is no branch then."""
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "--detach")
    assert head_of(repository) == (None, commit)


def test_branch_without_a_commit(tmp_path: Path) -> None:
    """A repository that was just made."""
    git(tmp_path, "init")
    assert head_of(tmp_path) == ("refs/heads/main", None)


def test_worktree_has_a_head_of_its_own(repository: Path) -> None:
    """It is read through the file `.git`, its references in the repository that the worktree belongs to."""
    tree = repository.parent / "tree"
    git(repository, "worktree", "add", "-b", "side", str(tree))
    git(tree, "commit", "--allow-empty", "-m", "second")
    commit = git(tree, "rev-parse", "HEAD")
    assert head_of(tree) == ("refs/heads/side", commit)
    git(tree, "pack-refs", "--all")
    assert head_of(tree) == ("refs/heads/side", commit)
    assert head_of(repository) == ("refs/heads/main", git(repository, "rev-parse", "HEAD"))


def test_reference_that_names_a_reference_is_followed(repository: Path) -> None:
    """The branch that is checked out may be a name for another."""
    git(repository, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    git(repository, "symbolic-ref", "HEAD", "refs/heads/alias")
    assert head_of(repository) == ("refs/heads/main", git(repository, "rev-parse", "HEAD"))


def test_sha256_repository(tmp_path: Path) -> None:
    """Ids of 64 digits are ids, too."""
    git(tmp_path, "init", "--object-format=sha256")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    assert head_of(tmp_path) == ("refs/heads/main", git(tmp_path, "rev-parse", "HEAD"))


def test_tree_outside_git_has_no_head(tmp_path: Path) -> None:
    """That is no failure."""
    stamp = take_stamp(tmp_path, [])
    assert stamp == TreeStamp(head=None, files={})


def test_files_are_told_by_size_and_time(tmp_path: Path) -> None:
    """A rewritten file differs, a missing one is known to be missing."""
    file = tmp_path / "a.rs"
    file.write_text("1")
    missing = tmp_path / "b.rs"
    before = take_stamp(tmp_path, [file, missing])
    assert isinstance(before, TreeStamp)
    assert before.files[str(missing)] is None
    os.utime(file, ns=(0, 7))
    after = take_stamp(tmp_path, [file, missing])
    assert judge(before, after).files == (str(file),)


def test_switch_of_branches_is_told(repository: Path) -> None:
    """From branch and commit to branch and commit."""
    before = take_stamp(repository, [repository / "a.rs"])
    git(repository, "checkout", "-b", "feature")
    git(repository, "commit", "--allow-empty", "-m", "second")
    found = judge(before, take_stamp(repository, [repository / "a.rs"]))
    assert found.news == "head_moved"
    assert "from main (" in found.message
    assert "to feature (" in found.message


def test_unreadable_repository_is_a_failed_check(repository: Path) -> None:
    """The reason names the file."""
    (repository / ".git/HEAD").unlink()
    stamp = take_stamp(repository, [])
    assert stamp == StampFailed(reason=f"{repository}/.git/HEAD: No such file or directory")


@pytest.mark.parametrize("content", [b"nonsense", b"\xff\xfe"])
def test_nonsense_in_head_is_a_failed_check(repository: Path, content: bytes) -> None:
    """What is not understood is not taken for a commit."""
    (repository / ".git/HEAD").write_bytes(content)
    assert isinstance(take_stamp(repository, []), StampFailed)


def test_reftable_is_a_failed_check(repository: Path) -> None:
    """A repository whose references are in another format says so."""
    (repository / ".git/reftable").mkdir()
    stamp = take_stamp(repository, [])
    assert isinstance(stamp, StampFailed)
    assert "reftable" in stamp.reason


def test_source_files_are_found_by_name(tmp_path: Path) -> None:
    """Manifests and lock files count; version control, results and other files do not."""
    names = ("Cargo.toml", "Cargo.lock", "src/main.rs", "notes.txt", "target/debug/a.rs", ".git/b.toml")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = sorted(source_files([tmp_path], {tmp_path / "target"}))
    assert found == [f"{tmp_path}/{name}" for name in sorted(names[:3])]
