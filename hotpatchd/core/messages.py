"""What the daemon tells `hotpatchd.core.step` (events), and what that has it do (commands)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hotpatchd.core.client import Applied, Refused
from hotpatchd.core.crash import Crash, Panic
from hotpatchd.core.events import BuildReason, Event, Functions, Note, Refusal
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.session import PatchContent, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Files changed and are quiet now. `last_write` in Unix seconds.

    `harmless` says of manifests and the like why their change makes no difference.
    """

    files: tuple[str, ...]
    last_write: float
    settle_ms: float
    harmless: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReady:
    """The objects of the program's own source are there; from now on edits can be told."""

    inputs: BuildInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The thin rebuild ended.

    Args:
        crates: what was compiled.
        failed: the crates whose objects are older than their source.
        diagnostics: what the compiler said.
        compile_ms: how long it took.
        inputs: what the programs are made from now.
        programs: build id → name, of the programs that have other objects now.
        cancelled: whether it ended because of `CancelRebuild`.
    """

    crates: tuple[str, ...]
    failed: frozenset[str]
    diagnostics: tuple[str, ...]
    compile_ms: float
    inputs: BuildInputs
    programs: Mapping[str, str] = field(default_factory=dict)
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the edit means for one client: a patch to send, refusals, or nothing (`content` and `refusals` empty).

    `failed` says that the refusals are a tool's failure, not a judgement of the edit.
    """

    client: int
    content: PatchContent | None = None
    kind: Literal["image", "dylib"] = "image"
    bytes: int = 0
    functions: Functions = Functions()
    names: Mapping[int, str] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    failed: bool = False
    select_ms: float = 0.0
    judge_ms: float = 0.0
    link_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A client was welcomed."""

    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A client's connection ended."""

    client: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A client answered. `now` in Unix seconds; `since_sent_ms` since its patch was handed over."""

    client: int
    answer: Applied | Refused
    now: float
    since_sent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoAsked:
    """Somebody wants the last `count` edits taken back; `request` identifies the asker."""

    count: int
    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAsked:
    """Somebody wants the program started anew, from a full build of its source, or as it was before its last edit.

    `request` identifies the asker; None where nobody waits for an answer.
    """

    request: int | None = None
    without_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyBuilt:
    """The full build ended; `problem` is why it failed, empty where it did not.

    What it was made from is the source as it is now: what has settled until now is part of it.
    """

    reason: BuildReason
    seconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramStarted:
    """The daemon started the program."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnded:
    """A program ended by itself: exit status, or the negative number of a signal.

    `crash` is what is known of the fault, where the client has noted one. Without it, the end of a program that others
    started does not matter.
    """

    pid: int
    status: int
    crash: Crash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panicked:
    """Panics went through patched code of a program, which goes on."""

    pid: int
    panic: Panic


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundDue:
    """The daemon had nothing to do since edit `edit`, for as long as `ScheduleBackground` says."""

    edit: int


StepEvent = (
    Settled
    | BaselineReady
    | Rebuilt
    | Prepared
    | Joined
    | Left
    | Answered
    | UndoAsked
    | RestartAsked
    | FullyBuilt
    | ProgramStarted
    | ProgramEnded
    | Panicked
    | BackgroundDue
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Publish an event."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """Compile these crates, and answer with `Rebuilt`."""

    crates: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRebuild:
    """End the thin rebuild that runs; it answers with `Rebuilt` all the same, once nothing of it runs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make this client's patch, and answer with `Prepared`.

    Args:
        session: the client.
        edit: number of the edit that the patch goes by.
        objects: the edit whose objects the client is to run; 0 stands for the program's own.
        before: the edit whose objects were the newest before.
    """

    session: Session
    edit: int
    objects: int
    before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send the patch that was prepared for this client; it answers with `Answered`."""

    client: int
    patch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendUndo:
    """Tell this client to go back to `to`; it answers with `Answered`."""

    client: int
    to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answer a request for an undo or a restart."""

    request: int
    result: Mapping[str, object]
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFully:
    """Run cargo, while the program goes on; answer with `FullyBuilt`. `background` builds leave room for others."""

    reason: BuildReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelBuild:
    """End the full build that runs; it gives no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Replace the program by what was built, and compare with that from now on; answer with `BaselineReady`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAgain:
    """Replace the program by a new process of the same build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleBackground:
    """Answer with `BackgroundDue` if nothing happens for a while."""

    edit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRestart:
    """The program crashed: tell the developer how it can be started again.

    `leaves_out` is the edit that it can be started without, with all that came later.
    """

    leaves_out: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """End the daemon with this exit status."""

    status: int


Command = (
    Emit
    | Rebuild
    | CancelRebuild
    | Prepare
    | Send
    | SendUndo
    | Reply
    | BuildFully
    | CancelBuild
    | Adopt
    | StartAgain
    | ScheduleBackground
    | OfferRestart
    | End
)
