"""The programs that are connected, or were: one that comes back goes on where it was."""

import shutil
from collections.abc import Collection
from pathlib import Path

from hotpatchd.core.session import Session

KEPT_INSTANCES = 256
"""How many programs are remembered that are not connected any more."""


class Instances:
    """What each program ran when it was last heard of.

    Args:
        state_dir: the daemon's directory; what is in it of a program that is forgotten is deleted.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._sessions: dict[str, Session] = {}

    def note(self, connected: Collection[Session]) -> None:
        """Remember the connected programs; of others those that were connected last."""
        for session in connected:
            self._sessions.pop(session.hello.instance, None)
            self._sessions[session.hello.instance] = session
        while len(self._sessions) > KEPT_INSTANCES + len(connected):
            oldest = next(iter(self._sessions))
            del self._sessions[oldest]
            for place in ("link", "patches"):
                shutil.rmtree(self._state_dir / place / oldest, ignore_errors=True)

    def get(self, instance: str) -> Session | None:
        """A program as it was last; None for one that is not known, or not any more."""
        return self._sessions.get(instance)
