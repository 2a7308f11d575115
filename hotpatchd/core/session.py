"""What one running program runs now: the host binary's code, less what patches replaced, plus what they added.

Everything is told from here: an edit, a client that comes late, one that refused an earlier patch, a revert. The next
patch is always "what the sources say now, where this program runs something else".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hotpatchd.core.client import Hello
from hotpatchd.core.demangle import demangle
from hotpatchd.core.unit import Fingerprint, Host, HostSymbol

Redirect = Literal["detours", "jump_table"]
"""How a program is made to enter new code: its functions begin with a jump, or it looks up what it calls itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchContent:
    """What a patch brings, from the daemon's side.

    Args:
        patch: its identity.
        edit: number of the edit that it carries out.
        functions: functions that it defines, and statics that nobody can write to → fingerprint.
        symbols: symbols that are new to the program, addresses at link time.
        thread_locals: bytes of the reserve of thread-local storage that are in use once it is applied.
        copies: new code of functions that the program had, addresses at link time, where callers are bound to it: with
            detours they are bound to the old place, which leads to the newest code.
        forked: functions among `symbols` that the program had before, too (`hotpatchd.core.forks`).
        gone: functions that the program has and the source of this patch does not define, or by which it means others.
        aliases: functions, as the source's objects call them → as they were called when the program got them.
        left: functions of which the program holds closures or tasks with older code from then on, as
            `hotpatchd.core.forks.find_kept` has them.
    """

    patch: str
    edit: int
    functions: Mapping[str, Fingerprint]
    symbols: Mapping[str, HostSymbol]
    thread_locals: int
    copies: Mapping[str, HostSymbol] = field(default_factory=dict)
    forked: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPatch:
    """A patch in force, and what the program ran before it.

    Args:
        patch: its identity.
        edit: number of the edit that it carries out.
        before: fingerprints of its functions (None: the host binary's own).
        edits_before: `Session.edits`.
        added: functions that it brought, and that were new to the program.
        forked_before: what `Session.symbols` had in place of those that it forked (None: the host binary's own).
        gone_before: `Session.gone`.
        aliases_before: `Session.aliases`.
    """

    patch: str
    edit: int
    before: Mapping[str, Fingerprint | None]
    edits_before: tuple[int, ...]
    added: frozenset[str]
    forked_before: Mapping[str, HostSymbol | None]
    gone_before: frozenset[str]
    aliases_before: Mapping[str, str]
    left_before: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client.

    Args:
        client: its number.
        hello: who it is.
        edits: the edits whose code it runs; several where some of them brought it nothing, 0 stands for no edit.
        next_addr: first free address of its region, run time.
        running: functions whose code is not the host binary's → fingerprint.
        symbols: what patches added, addresses at link time.
        thread_locals: bytes in use of its reserve of thread-local storage.
        history: patches in force, oldest first.
        gone: functions that it has and the source of what it runs does not define, or by which it means others.
        aliases: functions, as that source's objects call them → as they are called elsewhere here.
        lingering: functions, as the source spells them, of which a thread ran an old body when they were last replaced.
        redirect: how it enters new code.
        copies: functions that patches brought anew → link-time addresses of the copies, oldest first.
        left: functions of which it holds closures or tasks that edits no longer reach, as `PatchContent` has them.
    """

    client: int
    hello: Hello
    next_addr: int
    redirect: Redirect = "detours"
    edits: tuple[int, ...] = (0,)
    copies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    running: Mapping[str, Fingerprint] = field(default_factory=dict)
    symbols: Mapping[str, HostSymbol] = field(default_factory=dict)
    thread_locals: int = 0
    history: tuple[AppliedPatch, ...] = ()
    gone: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    lingering: frozenset[str] = frozenset()
    left: Mapping[str, bool] = field(default_factory=dict)


def after_applied(
    session: Session, content: PatchContent, next_addr: int, on_stack: frozenset[str] = frozenset()
) -> Session:
    """The session once the client acknowledged a patch.

    Args:
        session: the client.
        content: what the patch brought.
        next_addr: first free address of its region, run time.
        on_stack: functions, as the source spells them, of which some thread runs the body that the patch replaced.
    """
    before = {name: session.running.get(name) for name in content.functions}
    copies = {name: (*earlier_copies(session, name), copy.addr) for name, copy in content.copies.items()}
    return replace(
        session,
        edits=(content.edit,),
        next_addr=next_addr,
        running={**session.running, **content.functions},
        symbols={**session.symbols, **content.symbols, **content.copies},
        copies={**session.copies, **copies},
        thread_locals=content.thread_locals,
        gone=content.gone,
        aliases=content.aliases,
        left=content.left,
        lingering=session.lingering - {demangle(name) for name in content.functions} | on_stack,
        history=(
            *session.history,
            AppliedPatch(
                patch=content.patch,
                edit=content.edit,
                before=before,
                edits_before=session.edits,
                added=frozenset(name for name, found in content.symbols.items() if found.kind == "function")
                - content.forked,
                forked_before={name: session.symbols.get(name) for name in content.forked},
                gone_before=session.gone,
                aliases_before=session.aliases,
                left_before=session.left,
            ),
        ),
    )


def after_nothing(session: Session, edit: int) -> Session:
    """The session once it is known that an edit brings it nothing."""
    return session if edit in session.edits else replace(session, edits=(*session.edits, edit))


def earlier_copies(session: Session, name: str) -> tuple[int, ...]:
    """Link-time addresses at which patches brought a function, oldest first."""
    added = session.symbols.get(name)
    return session.copies.get(name) or ((added.addr,) if added else ())


def is_newer(session: Session, edit: int) -> bool:
    """Whether a program runs code of edits after this one, which it can take back."""
    return bool(session.history) and edit not in session.edits and min(session.edits) > edit


def undo_target(session: Session, edit: int) -> str | None:
    """Identity of the patch that is the newest once those after an edit are taken back; None for the host's own code.

    What the program runs then may be older than the edit: one patch may bring several edits.
    """
    left, edits = len(session.history), session.edits
    while left and edit not in edits and min(edits) > edit:
        left -= 1
        edits = session.history[left].edits_before
    return session.history[left - 1].patch if left else None


def after_undo(session: Session, to: str | None) -> Session:
    """The session once the client acknowledged an undo.

    What the patches added stays mapped and known: statics keep their values, and a function that was new runs, at its
    address, the code with which it came. A forked function's name is that of the one before it again.
    """
    running, symbols = dict(session.running), dict(session.symbols)
    edits, gone, aliases, left = session.edits, session.gone, session.aliases, session.left
    added: set[str] = set()
    history = list(session.history)
    while history and history[-1].patch != to:
        undone = history.pop()
        edits = undone.edits_before
        added |= undone.added
        gone, aliases, left = undone.gone_before | added, undone.aliases_before, undone.left_before
        for name, symbol in undone.forked_before.items():
            if symbol is not None:
                symbols[name] = symbol
            else:
                symbols.pop(name)
        for name, fingerprint in undone.before.items():
            if fingerprint is not None:
                running[name] = fingerprint
            elif name not in symbols:
                running.pop(name, None)
    return replace(
        session,
        edits=edits,
        running=running,
        symbols=symbols,
        gone=gone,
        aliases=aliases,
        left=left,
        history=tuple(history),
    )


@dataclass(frozen=True, slots=True)
class LiveSymbols:
    """The symbols of a running program: those of its binary, and those that patches added.

    `hidden` are those that a patch brings anew beside the program's; `aliases` are names → those that it has them by.
    """

    binary: Host
    added: Mapping[str, HostSymbol]
    hidden: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name."""
        if name in self.hidden:
            return None
        known = self.aliases.get(name, name)
        return self.added.get(known) or self.binary.find(known)
