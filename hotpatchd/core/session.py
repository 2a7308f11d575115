"""What one running program runs now: the host binary's code, less what patches replaced, plus what they added.

Everything is told from here: an edit, a client that comes late, one that refused an earlier patch, a revert. The next
patch is always "what the sources say now, where this program runs something else".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hotpatchd.core.client import Hello
from hotpatchd.core.unit import Fingerprint, Host, HostSymbol

Redirect = Literal["detours", "jump_table"]
"""How a program is made to enter new code: its functions begin with a jump, or it looks up what it calls itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchContent:
    """What a patch brings, from the daemon's side.

    Args:
        patch: its identity.
        edit: number of the edit that it carries out.
        functions: functions that it defines → fingerprint.
        symbols: symbols that are new to the program, addresses at link time.
        thread_locals: bytes of the reserve of thread-local storage that are in use once it is applied.
        copies: new code of functions that the program had, addresses at link time, where callers are bound to it: with
            detours they are bound to the old place, which leads to the newest code.
    """

    patch: str
    edit: int
    functions: Mapping[str, Fingerprint]
    symbols: Mapping[str, HostSymbol]
    thread_locals: int
    copies: Mapping[str, HostSymbol] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPatch:
    """A patch in force, and the fingerprints of its functions before it (None: the host binary's own)."""

    patch: str
    edit: int
    before: Mapping[str, Fingerprint | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client.

    Args:
        client: its number.
        hello: who it is.
        next_addr: first free address of its region, run time.
        running: functions whose code is not the host binary's → fingerprint.
        symbols: what patches added, addresses at link time.
        thread_locals: bytes in use of its reserve of thread-local storage.
        history: patches in force, oldest first.
        redirect: how it enters new code.
        copies: functions that patches brought anew → link-time addresses of the copies, oldest first.
    """

    client: int
    hello: Hello
    next_addr: int
    redirect: Redirect = "detours"
    copies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    running: Mapping[str, Fingerprint] = field(default_factory=dict)
    symbols: Mapping[str, HostSymbol] = field(default_factory=dict)
    thread_locals: int = 0
    history: tuple[AppliedPatch, ...] = ()


def after_applied(session: Session, content: PatchContent, next_addr: int) -> Session:
    """The session once the client acknowledged a patch."""
    before = {name: session.running.get(name) for name in content.functions}
    copies = {name: (*earlier_copies(session, name), copy.addr) for name, copy in content.copies.items()}
    return replace(
        session,
        next_addr=next_addr,
        running={**session.running, **content.functions},
        symbols={**session.symbols, **content.symbols, **content.copies},
        copies={**session.copies, **copies},
        thread_locals=content.thread_locals,
        history=(*session.history, AppliedPatch(patch=content.patch, edit=content.edit, before=before)),
    )


def earlier_copies(session: Session, name: str) -> tuple[int, ...]:
    """Link-time addresses at which patches brought a function, oldest first."""
    added = session.symbols.get(name)
    return session.copies.get(name) or ((added.addr,) if added else ())


def undo_target(session: Session, count: int) -> str | None:
    """Identity of the patch that is the newest after taking back `count` of them; None for the host's own code."""
    left = session.history[: max(len(session.history) - count, 0)]
    return left[-1].patch if left else None


def after_undo(session: Session, to: str | None) -> Session:
    """The session once the client acknowledged an undo.

    What the patches added stays mapped and known: statics keep their values, and a function that was new runs, at its
    address, the code with which it came.
    """
    running = dict(session.running)
    history = list(session.history)
    while history and history[-1].patch != to:
        for name, fingerprint in history.pop().before.items():
            if fingerprint is not None:
                running[name] = fingerprint
            elif name not in session.symbols:
                running.pop(name, None)
    return replace(session, running=running, history=tuple(history))


@dataclass(frozen=True, slots=True)
class LiveSymbols:
    """The symbols of a running program: those of its binary, and those that patches added."""

    binary: Host
    added: Mapping[str, HostSymbol]

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name."""
        return self.added.get(name) or self.binary.find(name)
