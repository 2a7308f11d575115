"""What happened to a source tree while a build waited for another to end.

A stamp is taken before waiting and another one after it; `judge` compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_SHOWN_FILES = 3
_SHOWN_DIGITS = 9

News = Literal["nothing", "sources_changed", "head_moved", "check_failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is checked out.

    Args:
        ref: full name of the branch (`refs/heads/…`); None where a commit is checked out by itself.
        commit: its id; None on a branch that has no commit yet.
    """

    ref: str | None
    commit: str | None

    def __str__(self) -> str:
        commit = self.commit[:_SHOWN_DIGITS] if self.commit else "no commit"
        return f"{self.ref.removeprefix('refs/heads/')} ({commit})" if self.ref else commit


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeStamp:
    """A source tree at one moment.

    Args:
        head: None where the tree is not under git.
        files: path → size in bytes and time of the last write in nanoseconds; None for a file that is missing.
    """

    head: Head | None
    files: Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StampFailed:
    """The tree could not be looked at, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a build has to know after it waited.

    Args:
        news: the kind of what happened; where `HEAD` moved, sources may have changed too.
        files: those that changed, sorted.
        message: for people; empty where nothing happened.
    """

    news: News
    files: tuple[str, ...] = ()
    message: str = ""

    @property
    def may_change_workspace(self) -> bool:
        """Whether cargo has to be asked for the workspace again before it builds."""
        return self.news in {"head_moved", "check_failed"} or any(
            file.endswith((".toml", ".lock")) for file in self.files
        )


def judge(before: TreeStamp | StampFailed, after: TreeStamp | StampFailed) -> Judgement:
    """Tell what happened between two stamps of one tree."""
    for stamp in (before, after):
        if isinstance(stamp, StampFailed):
            message = f"cannot tell what changed while waiting: {stamp.reason}; building as if everything had"
            return Judgement(news="check_failed", message=message)
    assert isinstance(before, TreeStamp)
    assert isinstance(after, TreeStamp)
    paths = before.files.keys() | after.files.keys()
    changed = tuple(sorted(path for path in paths if before.files.get(path) != after.files.get(path)))
    if before.head != after.head:
        message = f"HEAD moved while waiting: from {before.head or 'no repository'} to {after.head or 'no repository'}"
        return Judgement(news="head_moved", files=changed, message=message)
    if changed:
        return Judgement(
            news="sources_changed", files=changed, message=f"sources changed while waiting: {_names(changed)}"
        )
    return Judgement(news="nothing")


def _names(files: tuple[str, ...]) -> str:
    more = len(files) - _SHOWN_FILES
    return ", ".join(files[:_SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")
