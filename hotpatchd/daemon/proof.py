"""Which new code has run: what clients tell of first executions, by edit."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotpatchd.core.client import Applied, Ran
from hotpatchd.core.events import EditsUndone, Event, PatchRan

KEPT_PATCHES = 1000


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A patch in one program.

    Args:
        edit: that it carries out.
        instance: the program.
        names: of the functions that it replaces, by run-time address.
        last_write: when the edit was saved, in Unix seconds; None where the program got the patch later than others.
        in_force_ms: how long after that the program had it.
        ran: run-time addresses of what has run → how long after the save; None where that cannot be told.
    """

    edit: int
    instance: str
    names: Mapping[int, str]
    last_write: float | None
    in_force_ms: float | None = None
    ran: dict[int, float | None] = field(default_factory=dict)


class Proofs:
    """Patches of which first executions are told."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, str], _Watched] = OrderedDict()
        self._in_force: OrderedDict[tuple[str, str], _Watched] = OrderedDict()

    def sent(self, instance: str, patch: str, edit: int, names: Mapping[int, str], last_write: float | None) -> None:
        """Remember a patch that is about to be sent.

        Args:
            instance: the program.
            patch: its identity.
            edit: that it carries out.
            names: of the functions that it replaces, by run-time address.
            last_write: when the edit was saved, in Unix seconds; None where the program only catches up.
        """
        self._asked[instance, patch] = _Watched(edit=edit, instance=instance, names=names, last_write=last_write)
        _trim(self._asked)

    def applied(self, instance: str, patch: str, answer: Applied, now: float) -> None:
        """Take in that a program has a patch, at `now` in Unix seconds."""
        watched = self._asked.pop((instance, patch), None)
        if watched is None or not answer.proof:
            return
        if watched.last_write is not None:
            watched.in_force_ms = (now - watched.last_write) * 1000
        self._in_force[instance, patch] = watched
        self._in_force.move_to_end((instance, patch))
        _trim(self._in_force)

    def ran(self, client: int, instance: str, told: Ran) -> PatchRan | None:
        """Take in what a client found.

        Returns:
            the event that tells of it; None where it is known already, or was taken back meanwhile.
        """
        watched = self._in_force.get((instance, told.patch))
        if watched is None:
            return None
        before = _names(watched, watched.ran)
        since_save_ms = None if watched.in_force_ms is None else watched.in_force_ms + told.after_us / 1000
        for addr in told.from_addrs:
            watched.ran.setdefault(addr, since_save_ms)
        new = tuple(name for name in _names(watched, told.from_addrs) if name not in before)
        if not new:
            return None
        return PatchRan(
            edit=watched.edit,
            client=client,
            functions=new,
            waiting=self._waiting(watched),
            since_save_ms=since_save_ms,
            within_ms=told.within_us / 1000,
        )

    def take(self, event: Event) -> None:
        """Take in what happened: nobody waits for what was taken back."""
        if isinstance(event, EditsUndone):
            for place, watched in list(self._in_force.items()):
                if watched.edit in event.edits:
                    del self._in_force[place]

    def row(self, edit: int) -> dict[str, Any]:
        """What `hotpatchd log` shows of an edit.

        Returns:
            `ran`: functions whose new code has run in any program → milliseconds since the save (null where that cannot
            be told); `waiting`: those whose new code has not. Both null where nothing is told of first executions.
        """
        patches = [watched for watched in self._in_force.values() if watched.edit == edit]
        if not patches:
            return {"ran": None, "waiting": None}
        ran: dict[str, float | None] = {}
        for watched in patches:
            for addr, since_save_ms in watched.ran.items():
                for name in _names(watched, (addr,)):
                    times = [time for time in (ran.get(name), since_save_ms) if time is not None]
                    ran[name] = min(times, default=None)
        waiting = dict.fromkeys(name for watched in patches for name in self._waiting(watched) if name not in ran)
        return {"ran": ran, "waiting": list(waiting)}

    def _waiting(self, watched: _Watched) -> tuple[str, ...]:
        """What has not run, and no later patch has replaced."""
        patches = [other for other in self._in_force.values() if other.instance == watched.instance]
        later = patches[patches.index(watched) + 1 :]
        replaced = {addr for other in later for addr in other.names}
        ran = _names(watched, watched.ran)
        names = _names(watched, (addr for addr in watched.names if addr not in replaced))
        return tuple(name for name in names if name not in ran)


def _names(watched: _Watched, addrs: Iterable[int]) -> tuple[str, ...]:
    """The functions at these addresses; one that the program has several times is told once."""
    return tuple(dict.fromkeys(watched.names.get(addr, hex(addr)) for addr in addrs))


def _trim(patches: OrderedDict[tuple[str, str], _Watched]) -> None:
    if len(patches) > KEPT_PATCHES:
        patches.popitem(last=False)
