"""When a burst of file changes has ended.

Editors and version control write in bursts: a temporary file, a rename, a second write by a formatter,
hundreds of files for a checkout. The changes of a burst become one batch once nothing has happened for the
quiet time. Two bounds modify that:

- A file that is *hollow*, that is missing or empty although it had content before, was most likely truncated
  or renamed to be written again. It holds the batch back, for the hollow time at most: then it is an edit.
- A burst that does not end is cut at the ceiling, counted from its first change.

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
    """How long to wait; the module's text says for what."""

    quiet_ms: float = 20
    ceiling_ms: float = 500
    hollow_ms: float = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Something happened to `paths`; those in `hollow`, a subset, are hollow now."""

    paths: frozenset[str]
    hollow: frozenset[str] = frozenset()


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


def step(
    state: Settling | None, event: Touched | Tick, now_ms: float, times: SettleTimes
) -> tuple[Settling | None, frozenset[str]]:
    """Take in one event.

    Returns:
        the new state, and the paths of the batch that settled by `now_ms`: empty if none did.
    """
    if isinstance(event, Touched):
        state = _extend(state or Settling(first_ms=now_ms, last_ms=now_ms), event, now_ms)
    if state is not None and now_ms >= deadline_ms(state, times):
        return None, state.paths
    return state, frozenset()


def deadline_ms(state: Settling, times: SettleTimes) -> float:
    """When the batch settles if nothing more happens: the time at which a `Tick` is due."""
    due_ms = state.last_ms + times.quiet_ms
    if state.hollow:
        due_ms = max(due_ms, state.hollow_since_ms + times.hollow_ms)
    return min(due_ms, state.first_ms + times.ceiling_ms)


def is_editor_temporary(name: str) -> bool:
    """Whether a file of this name (without directory) is one that editors leave beside the file they save."""
    return _EDITOR_TEMPORARY.fullmatch(name) is not None


def _extend(state: Settling, event: Touched, now_ms: float) -> Settling:
    return replace(
        state,
        last_ms=now_ms,
        paths=state.paths | event.paths,
        hollow=state.hollow - event.paths | event.hollow,
        hollow_since_ms=now_ms if event.hollow - state.hollow else state.hollow_since_ms,
    )
