"""When a burst of file changes has ended.

Editors, formatters and version control write in bursts: a temporary file, a rename, a second write, hundreds of files
for a checkout. The changes of a burst become one batch once nothing has happened for the quiet time. How long that is
depends on the burst: whoever saved one file waits for it, and whoever writes many files pauses between them. The
table `_PACES` has both times for bursts of every size. Three things modify them:

- A file that is *hollow*, that is missing or empty although it had content before, was most likely truncated
  or renamed to be written again. It holds the batch back, for the hollow time at most: then it is an edit.
- Version control takes a lock while it writes. What changes under the lock is complete when the lock is gone.
- A burst that does not end is cut at the ceiling, counted from its first change. So nobody can starve the others.

The state is a `Settling`, or None while nothing is pending. Times are milliseconds of one monotonic clock.
"""

import re
from dataclasses import dataclass, replace

IGNORED_DIRS = frozenset({".git", ".hg", ".jj", ".svn", "node_modules"})

_EDITOR_TEMPORARY = re.compile(
    r"""  .*~                            # backups of Vim, Emacs, Kate, gedit
        | \.\#.*  |  \#.*\#              # Emacs: lock and auto-save files
        | .*\.sw[a-z] | \..*\.kate-swp   # Vim and Kate: swap files
        | 4913                           # Vim: asks whether the directory can be written to
        | .*___jb_(tmp|old)___           # JetBrains: safe write
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleTimes:
    """How long to wait; the module's text says for what. The first two are those of a single saved file."""

    quiet_ms: float = 20
    ceiling_ms: float = 500
    hollow_ms: float = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Something happened to files.

    Args:
        paths: to which; none if only the lock was taken or left.
        hollow: those of them that are hollow now.
        fresh: those of them that were not there when last looked at, and are now.
        bulk: a tool is known to write many files: they changed while version control held its lock, or there were
            more changes than the kernel could tell.
        locked: version control holds its lock now.
    """

    paths: frozenset[str]
    hollow: frozenset[str] = frozenset()
    fresh: frozenset[str] = frozenset()
    bulk: bool = False
    locked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """A burst that has not ended yet; `hollow_since_ms` is when the last file became hollow."""

    first_ms: float
    last_ms: float
    paths: frozenset[str] = frozenset()
    hollow: frozenset[str] = frozenset()
    hollow_since_ms: float = 0
    fresh: frozenset[str] = frozenset()
    bulk: bool = False
    locked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """Quiet time and ceiling of a burst, as multiples of a single file's."""

    quiet: float
    ceiling: float


_PACES: tuple[tuple[int, _Pace], ...] = (
    # Version control's checkouts are microseconds from file to file, generators' pauses are up to tens of milliseconds.
    (50, _Pace(quiet=10, ceiling=6)),
    # A formatter parses each file before it writes it, and begins anew with each crate.
    (5, _Pace(quiet=5, ceiling=4)),
    # An editor that saves all its files, or a tool that has just begun.
    (2, _Pace(quiet=2, ceiling=2)),
    # One save: all its system calls come within a few milliseconds.
    (1, _Pace(quiet=1, ceiling=1)),
)
# No program uses a new file before another one names it: there is time to see whether more of them come.
_FRESH = _Pace(quiet=5, ceiling=2)
# A rebase leaves the lock between its steps, for longer where hooks run.
_BULK = _Pace(quiet=10, ceiling=20)


def step(
    state: Settling | None, event: Touched | Tick, now_ms: float, times: SettleTimes
) -> tuple[Settling | None, frozenset[str]]:
    """Take in one event.

    Returns:
        the new state, and the paths of the batch that settled by `now_ms`: empty if none did.
    """
    if isinstance(event, Touched) and (state or event.paths):
        state = _extend(state or Settling(first_ms=now_ms, last_ms=now_ms), event, now_ms)
    if state is not None and now_ms >= deadline_ms(state, times):
        return None, state.paths
    return state, frozenset()


def deadline_ms(state: Settling, times: SettleTimes) -> float:
    """When the batch settles if nothing more happens: the time at which a `Tick` is due."""
    paces = [next(pace for files, pace in _PACES if len(state.paths) >= files)]
    paces += [_FRESH] if state.fresh else []
    paces += [_BULK] if state.bulk else []
    ceiling_ms = state.first_ms + max(pace.ceiling for pace in paces) * times.ceiling_ms
    if state.locked:
        return ceiling_ms
    due_ms = state.last_ms + max(pace.quiet for pace in paces) * times.quiet_ms
    if state.hollow:
        due_ms = max(due_ms, state.hollow_since_ms + times.hollow_ms)
    return min(due_ms, ceiling_ms)


def is_editor_temporary(name: str) -> bool:
    """Whether a file of this name (without directory) is one that editors leave beside the file they save."""
    return _EDITOR_TEMPORARY.fullmatch(name) is not None


def _extend(state: Settling, event: Touched, now_ms: float) -> Settling:
    """A lock matters to a burst only if files changed under it: `git status` takes it as well, after any save."""
    bulk = state.bulk or event.bulk
    return replace(
        state,
        last_ms=now_ms if event.paths or bulk else state.last_ms,
        paths=state.paths | event.paths,
        hollow=state.hollow - event.paths | event.hollow,
        hollow_since_ms=now_ms if event.hollow - state.hollow else state.hollow_since_ms,
        fresh=state.fresh - event.paths | event.fresh,
        bulk=bulk,
        locked=bulk and event.locked,
    )
