"""What is told of a source tree that may have changed while a build waited."""

import pytest

from hotpatchd.core.freshness import Head, Judgement, StampFailed, TreeStamp, judge

MAIN = Head(ref="refs/heads/main", commit="1" * 40)
FILES = {"/w/a.rs": (10, 1_000), "/w/b.rs": (20, 2_000)}
BEFORE = TreeStamp(head=MAIN, files=FILES)


def test_equal_stamps_are_no_news() -> None:
    """Nothing happened, nothing is said."""
    assert judge(BEFORE, BEFORE) == Judgement(news="nothing")
    assert not judge(BEFORE, BEFORE).may_change_workspace


@pytest.mark.parametrize("now", [(11, 1_000), (10, 1_001), None], ids=["size", "time", "removed"])
def test_a_changed_file_is_named(now: tuple[int, int] | None) -> None:
    """Another size, another time or no file at all is a change; the message names the file."""
    found = judge(BEFORE, TreeStamp(head=MAIN, files=FILES | {"/w/a.rs": now}))
    assert (found.news, found.files) == ("sources_changed", ("/w/a.rs",))
    assert found.message == "sources changed while waiting: /w/a.rs"
    assert not found.may_change_workspace


def test_a_file_that_came_is_a_change_and_one_that_stays_missing_is_none() -> None:
    """A file that one stamp does not mention is one that is missing."""
    found = judge(BEFORE, TreeStamp(head=MAIN, files=FILES | {"/w/c.rs": (1, 1), "/w/gone.rs": None}))
    assert found.files == ("/w/c.rs",)


def test_many_changed_files_are_counted() -> None:
    """Three are named."""
    files = {f"/w/{number}.rs": (1, 1) for number in range(5)}
    assert judge(TreeStamp(head=None, files={}), TreeStamp(head=None, files=files)).message == (
        "sources changed while waiting: /w/0.rs, /w/1.rs, /w/2.rs and 2 more"
    )


@pytest.mark.parametrize("file", ["/w/Cargo.toml", "/w/Cargo.lock", "/w/rust-toolchain.toml"])
def test_a_changed_manifest_may_change_the_workspace(file: str) -> None:
    """What cargo reads of the workspace has to be asked for again."""
    assert judge(BEFORE, TreeStamp(head=MAIN, files=FILES | {file: (1, 1)})).may_change_workspace


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (Head(ref="refs/heads/main", commit="2" * 40), "from main (111111111) to main (222222222)"),
        (Head(ref="refs/heads/x/y", commit="1" * 40), "from main (111111111) to x/y (111111111)"),
        (Head(ref=None, commit="1" * 40), "from main (111111111) to 111111111"),
        (Head(ref="refs/heads/new", commit=None), "from main (111111111) to new (no commit)"),
        (None, "from main (111111111) to no repository"),
    ],
    ids=["commit", "branch", "detached", "unborn", "removed"],
)
def test_a_moved_head_is_told_from_where_to_where(after: Head | None, said: str) -> None:
    """A commit, a switch, and a repository that went are all moves of `HEAD`; the files that changed come along."""
    found = judge(BEFORE, TreeStamp(head=after, files=FILES | {"/w/a.rs": (1, 1)}))
    assert (found.news, found.files) == ("head_moved", ("/w/a.rs",))
    assert found.message == f"HEAD moved while waiting: {said}"
    assert found.may_change_workspace


@pytest.mark.parametrize("failed_first", [True, False])
def test_a_failed_check_says_why_and_what_follows(failed_first: bool) -> None:
    """It does not matter which of the two stamps could not be taken."""
    failed = StampFailed(reason="/w/.git/HEAD: Permission denied")
    found = judge(failed, BEFORE) if failed_first else judge(BEFORE, failed)
    assert found.news == "check_failed"
    assert "/w/.git/HEAD: Permission denied; building as if everything had" in found.message
    assert found.may_change_workspace
