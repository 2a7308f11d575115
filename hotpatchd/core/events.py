"""The events that `--events` files and `hotpatchd events` show, and the verdict of an edit.

Their names and fields are a promise to whoever reads them: `to_record` keeps both, and their order, stable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from hotpatchd.core.crash import Crash, CrashFrame

VerdictName = Literal["applied", "refused", "failed", "unchanged", "restart"]
NoteName = Literal[
    "on_stack",
    "initialiser_kept",
    "old_code_kept",
    "old_code_stays",
    "inlined_into",
    "not_in_host",
    "not_hot",
    "begins_anew",
    "collected",
    "own_instance",
    "no_difference",
    "not_judged",
    "still_in_source",
]

BuildReason = Literal["start", "restart", "background"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """Demangled names, without hash, of what an edit replaced, brought along anew, or only moved."""

    patched: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an edit could not be applied; `symbol` is the function, type or static at fault, if any."""

    symbol: str | None
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A limit of something that was applied."""

    symbol: str
    note: NoteName
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds by stage, None for a stage that an edit did not reach.

    `total` runs from the last write to a file until the client's acknowledgement.
    """

    settle: float | None = None
    compile: float | None = None
    select: float | None = None
    judge: float | None = None
    link: float | None = None
    send: float | None = None
    apply: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one edit."""

    verdict: VerdictName
    functions: Functions = Functions()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    timings_ms: Timings = Timings()


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonReady:
    """The daemon listens at `url`."""

    event: ClassVar = "daemon.ready"
    url: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConnected:
    """A client was welcomed; `target` is its target triple."""

    event: ClassVar = "client.connected"
    client: int
    pid: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLost:
    """A client's connection ended."""

    event: ClassVar = "client.lost"
    client: int
    pid: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSettled:
    """Files changed and have been quiet since; from here on the change goes by the number `edit`.

    `classes` tells what each file is to the program (`hotpatchd.core.inputs`).
    """

    event: ClassVar = "edit.settled"
    edit: int
    files: tuple[str, ...]
    classes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildFinished:
    """The crates of an edit compiled; `diagnostics` are warnings as rustc renders them."""

    event: ClassVar = "rebuild.finished"
    edit: int
    crates: tuple[str, ...]
    diagnostics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildFailed:
    """An edit does not compile; `diagnostics` are errors and warnings as rustc renders them."""

    event: ClassVar = "rebuild.failed"
    edit: int
    crates: tuple[str, ...]
    diagnostics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSent:
    """A patch of `bytes` bytes went to a client."""

    event: ClassVar = "patch.sent"
    edit: int
    client: int
    kind: Literal["image", "dylib"]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRan:
    """New code of an edit ran for the first time in a program.

    Args:
        edit: its number.
        client: the program.
        functions: what ran.
        waiting: what the same patch replaced and has not run yet.
        since_save_ms: from the last write to a file until the client found that it had run; None where the program got
            the patch later than others, because it connected or returned later.
        within_ms: how much earlier it may have run at most.
    """

    event: ClassVar = "patch.ran"
    edit: int
    client: int
    functions: tuple[str, ...]
    waiting: tuple[str, ...]
    since_save_ms: float | None
    within_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EditVerdict:
    """The end of an edit; every edit has exactly one."""

    event: ClassVar = "edit.verdict"
    edit: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class EditsUndone:
    """Edits were taken back.

    Args:
        edits: their numbers, newest first.
        edit: the edit whose code runs again; 0 for the program's own.
    """

    event: ClassVar = "edits.undone"
    edits: tuple[int, ...]
    edit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStarted:
    """Cargo runs: for the first time, for a restart, or to bring the program's file up to date in the background."""

    event: ClassVar = "build.started"
    reason: BuildReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFinished:
    """Cargo ended after `seconds`; `problem` is why it failed, empty where it did not."""

    event: ClassVar = "build.finished"
    reason: BuildReason
    seconds: float
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramStarted:
    """The daemon started the program."""

    event: ClassVar = "program.started"
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnded:
    """The program that the daemon started ended by itself, or another one ended by a fault that its client has noted.

    Args:
        pid: its process.
        status: exit status; negative: the number of the signal that ended it.
        signal: the name of that signal.
        edit: the edit whose code failed; where that cannot be told, the one whose patch was the last one sent to it.
            None where none was sent.
        functions: the function that failed, or those of that patch.
        crash: what is known of the fault; None where the client has noted none.
    """

    event: ClassVar = "program.ended"
    pid: int
    status: int
    signal: str | None
    edit: int | None
    functions: tuple[str, ...]
    crash: Crash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPanicked:
    """Panics went through patched code and were caught, if only by the end of their thread; the program goes on.

    Args:
        pid: its process.
        edit: the edit that brought the code.
        function: the innermost function of it that they went through; None where that cannot be told, as for its place.
        file: where it made the call, or panicked.
        line: of that file.
        thread: of the newest one; the first thread is called main.
        count: how many went there since the last such event.
        frames: all calls of patched code that they went through, innermost first.
    """

    event: ClassVar = "program.panicked"
    pid: int
    edit: int
    function: str | None
    file: str | None
    line: int | None
    thread: str
    count: int
    frames: tuple[CrashFrame, ...]


Event = (
    DaemonReady
    | ClientConnected
    | ClientLost
    | EditSettled
    | RebuildFinished
    | RebuildFailed
    | PatchSent
    | PatchRan
    | EditVerdict
    | EditsUndone
    | BuildStarted
    | BuildFinished
    | ProgramStarted
    | ProgramEnded
    | ProgramPanicked
)


def to_record(event: Event, ts: float) -> dict[str, Any]:
    """The JSON object of an event that happened at `ts` (Unix seconds): `event` and `ts`, then its fields."""
    fields = asdict(event)
    if isinstance(event, EditVerdict):
        fields |= fields["verdict"]
    return {"event": event.event, "ts": ts, **fields}
