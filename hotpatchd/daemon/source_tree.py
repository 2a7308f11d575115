"""Stamps of a source tree: what git has checked out, and what its files look like. Git itself is not needed.

Source: git's documentation, gitrepository-layout(5), gitglossary(7) and gitformat-packed-refs.
"""

import os
import string
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from hotpatchd.core.freshness import Head, StampFailed, TreeStamp
from hotpatchd.core.settle import IGNORED_DIRS

SOURCE_SUFFIXES = (".rs", ".toml", ".lock")
"""What the files are called that cargo and rustc read by themselves."""
_MOST_SYMBOLIC = 5
"""As many references that name a reference does git follow."""


class _Unreadable(Exception):
    """Something of git's is not as expected; the text says what."""


def source_files(roots: Iterable[Path], excluded: Container[Path]) -> Iterator[str]:
    """The files below some directories that cargo and rustc read, by their names; for when nothing was built yet.

    Args:
        roots: of packages and workspaces.
        excluded: directories not to look into, such as the target directory.
    """
    for root in roots:
        for directory, subdirectories, names in os.walk(root):
            subdirectories[:] = [
                name for name in subdirectories if name not in IGNORED_DIRS and Path(directory, name) not in excluded
            ]
            yield from (os.path.join(directory, name) for name in names if name.endswith(SOURCE_SUFFIXES))


def git_dir_of(root: str) -> Path | None:
    """The directory of the index of a source tree; linked worktrees and submodules have one of their own.

    Args:
        root: of the tree; the repository is this directory's, or that of the nearest one above it.

    Source: gitrepository-layout(5): a `.git` file holds `gitdir: ` and a path.
    """
    for directory in (Path(root), *Path(root).parents):
        found = directory / ".git"
        if found.is_dir():
            return found
        if found.is_file():
            path = found.read_text(errors="replace").partition("gitdir:")[2].strip()
            return Path(os.path.normpath(directory / path))
    return None


def take_stamp(root: Path, files: Iterable[str | Path]) -> TreeStamp | StampFailed:
    """Look at a source tree.

    Args:
        root: of the tree.
        files: what is built from.

    Returns:
        the stamp, or why it cannot be taken.
    """
    try:
        return TreeStamp(head=_head(root), files={str(file): _look(file) for file in files})
    except _Unreadable as error:
        return StampFailed(reason=str(error))
    except OSError as error:
        return StampFailed(reason=f"{error.filename}: {error.strerror}")
    except UnicodeDecodeError as error:
        return StampFailed(reason=f"a file of git's is not text: {error.reason}")


def _look(file: str | Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns


def _head(root: Path) -> Head | None:
    git_dir = git_dir_of(os.path.realpath(root))
    if git_dir is None:
        return None
    common = git_dir / "commondir"
    common_dir = git_dir / common.read_text().strip() if common.exists() else git_dir
    if (common_dir / "reftable").exists():
        raise _Unreadable(f"{common_dir} keeps its references in a reftable, which cannot be read here")
    content, ref = (git_dir / "HEAD").read_text().strip(), None
    for _ in range(_MOST_SYMBOLIC):
        if not content.startswith("ref: "):
            break
        ref = content.removeprefix("ref: ").strip()
        content = _find_ref(git_dir, common_dir, ref)
    # The ids of SHA-1 and SHA-256 repositories.
    if content and (len(content) not in {40, 64} or not set(content) <= set(string.hexdigits)):
        raise _Unreadable(f"{git_dir / 'HEAD'} leads to {content!r}, which is no commit")
    return Head(ref=ref, commit=content or None)


def _find_ref(git_dir: Path, common_dir: Path, ref: str) -> str:
    """What a reference refers to; empty where there is no such reference yet."""
    for directory in (git_dir, common_dir):
        try:
            return (directory / ref).read_text().strip()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            continue
    try:
        packed = (common_dir / "packed-refs").read_text()
    except FileNotFoundError:
        return ""
    return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {ref}")), "")
