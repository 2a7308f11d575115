"""The daemon's whole state, as `hotpatchd.core.step` keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hotpatchd.core.events import Functions, Note, Refusal
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.messages import Command, Prepared, Settled, UndoAsked
from hotpatchd.core.session import Session
from hotpatchd.core.unit import Fingerprint

Phase = Literal["waiting", "idle", "building", "applying", "undoing", "restarting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the developer chose.

    Args:
        starts: the daemon starts the program itself.
        auto_restart: start the program anew where an edit needs it, and after a crash.
        stays: go on after a crash of the program, since somebody can have it started again.
        background: bring the program's file up to date while nothing happens.
    """

    starts: bool = True
    auto_restart: bool = False
    stays: bool = False
    background: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known so far of the edit in hand. `edit` 0 stands for "no edit": a client catches up.

    `not_connected` names the programs that it brings other code, and that are not there to take it.
    """

    edit: int
    last_write: float = 0.0
    compile_ms: float | None = None
    settle_ms: float | None = None
    select_ms: float = 0.0
    judge_ms: float = 0.0
    link_ms: float = 0.0
    send_ms: float = 0.0
    apply_ms: float = 0.0
    total_ms: float = 0.0
    applied: int = 0
    failed: bool = False
    functions: Functions = Functions()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    not_connected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentEdit:
    """An edit that was sent to programs.

    Args:
        edit: its number.
        before: the edit whose objects programs ran before it.
        functions: what its patch replaced.
        code: of these, symbol → fingerprint.
    """

    edit: int
    before: int
    functions: tuple[str, ...]
    code: Mapping[str, Fingerprint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """An undo in hand.

    Args:
        request: who waits for its answer.
        edits: what it takes back, newest first.
        target: the edit whose code is to run again.
        clients: for each client that takes something back, the patch it goes back to.
    """

    request: int
    edits: tuple[int, ...]
    target: int
    clients: Mapping[int, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A restart that is wanted, or in hand: who waits for it, and whether the last edit is left out."""

    requests: tuple[int, ...] = ()
    without_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The daemon's whole state.

    Args:
        policy: what the developer chose.
        phase: see the picture in `hotpatchd.core.step`.
        edit: number of the newest edit.
        inputs: what the program is made from.
        sessions: clients, by number.
        late: clients to be looked at once the phase is idle.
        undos: those asked for while the daemon was busy, oldest first.
        pending: batches that settled while the daemon was busy.
        due: what a restart is needed for: files whose edit needs a full build, and what they are.
        dirty: crates whose source is newer than their objects (they did not compile).
        building: the crates that a thin rebuild was asked for.
        cancelling: whether that was told to end.
        target: the edit whose objects programs are to run; 0 stands for the program's own code.
        previous: `target` before the newest build.
        target_differs: whether programs run other code with these objects than with those of the edits in force.
        sent: what a restart without the last edit leaves out, with all that came later: the newest edit that was sent
            to any program and not taken back, or the one whose code failed.
        in_force: the edits that any program applied, and that were not taken back, oldest first.
        undone: edits that were taken back, or left out after a crash, and that the source may still have.
        awaited: clients whose preparation or answer is outstanding, with what was prepared.
        outcome: of the edit in hand.
        carried: edits that share the verdict of the one in hand.
        carried_since: when the first of these was written, in Unix seconds.
        undo: the undo in hand; None while a single client catches up with an earlier one.
        program: the process that the daemon started; 0 where it started none, or that ended.
        crashed: whether it ended by a signal and was not started again.
        wish: a restart that comes as soon as nothing else is in hand.
        restart: the restart in hand.
        background: what becomes of the program's file, which is older than its source: nothing yet, a build is due when
            nothing happens for a while, or it runs.
        outdated: whether edits were applied that the program's file does not have.
    """

    policy: Policy = Policy()
    phase: Phase = "waiting"
    edit: int = 0
    inputs: BuildInputs = BuildInputs(crates_of={}, full_build={})
    sessions: Mapping[int, Session] = field(default_factory=dict)
    late: frozenset[int] = frozenset()
    undos: tuple[UndoAsked, ...] = ()
    pending: tuple[Settled, ...] = ()
    due: Mapping[str, str] = field(default_factory=dict)
    dirty: frozenset[str] = frozenset()
    building: frozenset[str] = frozenset()
    cancelling: bool = False
    target: int = 0
    previous: int = 0
    target_differs: bool = True
    sent: SentEdit | None = None
    in_force: tuple[SentEdit, ...] = ()
    undone: tuple[SentEdit, ...] = ()
    awaited: Mapping[int, Prepared | None] = field(default_factory=dict)
    outcome: Outcome = Outcome(edit=0)
    carried: tuple[int, ...] = ()
    carried_since: float = 0.0
    undo: Undo | None = None
    program: int = 0
    crashed: bool = False
    wish: Restart | None = None
    restart: Restart | None = None
    background: Literal["none", "scheduled", "running"] = "none"
    outdated: bool = False


Result = tuple[State, tuple[Command, ...]]


def then(first: Result, after: Result) -> Result:
    """One result after another: the later state, and the commands of both."""
    return after[0], (*first[1], *after[1])
