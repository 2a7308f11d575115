"""What a person reads on the terminal: one line for an edit, in the manner of cargo."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from hotpatchd.core.crash import Crash
from hotpatchd.core.events import (
    BuildFinished,
    BuildStarted,
    EditsUndone,
    EditVerdict,
    Event,
    PatchRan,
    ProgramEnded,
    ProgramPanicked,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Verdict,
)
from hotpatchd.core.lifecycle import PANICKED

_VERB_WIDTH = 12
_SHOWN_FUNCTIONS = 4
_SHOWN_FRAMES = 12
_STAGES = ("settle", "compile", "select", "link", "send", "apply")
_HEADLINES = {
    "applied": ("Patched", "bold green"),
    "unchanged": ("Unchanged", "bold cyan"),
    "failed": ("Failed", "bold red"),
    "refused": ("Refused", "bold yellow"),
    "restart": ("Restart", "bold yellow"),
}


class Terminal:
    """Prints to standard error, if that is a terminal; otherwise it stays silent and the log tells.

    Args:
        console: where to.
        live: whether the terminal is ours alone, so that a line may be redrawn while work goes on.
    """

    def __init__(self, console: Console, *, live: bool = False) -> None:
        self.console = console
        self.live = live
        self._newest_ran = 0

    def working(self, text: str) -> AbstractContextManager[object]:
        """Show that something goes on, until the context ends."""
        return self.console.status(text) if self.live else nullcontext()

    def say(self, verb: str, text: str, style: str = "bold green") -> None:
        """One line: a right-aligned verb and what it is about."""
        if self.console.is_terminal:
            line = Text(f"{verb:>{_VERB_WIDTH}} ", style=style)
            line.append(text, style="default not bold")
            self.console.print(line, soft_wrap=True)

    def raw(self, lines: Iterable[str]) -> None:
        """Text that brings its own colours, such as rustc's diagnostics."""
        if self.console.is_terminal:
            for line in lines:
                self.console.print(Text.from_ansi(line), soft_wrap=True)

    def show(self, event: Event) -> None:
        """Tell a person of an event, if it is one that people wait for."""
        match event:
            case RebuildFailed() | RebuildFinished():
                self.raw(event.diagnostics)
            case EditVerdict():
                self._show_verdict(event.verdict)
            case PatchRan(since_save_ms=float(since_save_ms)) if event.edit > self._newest_ran:
                # Once for an edit: whoever waits for it wants to know that it is there.
                self._newest_ran = event.edit
                self.say("Ran", f"{_names(event.functions)} {since_save_ms:.0f} ms after the save")
            case EditsUndone():
                numbers = ", ".join(map(str, sorted(event.edits)))
                rest = f"the code of edit {event.edit}" if event.edit else "the program's own code"
                self.say("Undone", f"edit {numbers}; {rest} runs again, until the next edit")
            case BuildStarted(reason="restart"):
                self.say("Building", "the program goes on until this is done")
            case BuildFinished(problem=problem) if problem:
                self.say("Failed", f"{problem}; the program goes on", "bold red")
            case ProgramPanicked():
                self.say("Panicked", _describe_panic(event), "bold red")
            case ProgramEnded() if event.signal or event.crash or event.status == PANICKED:
                self.say("Ended", _describe_crash(event), "bold red")
                for frame in _told_frames(event.crash):
                    self.say("", frame)

    def _show_verdict(self, verdict: Verdict) -> None:
        verb, style = _HEADLINES[verdict.verdict]
        self.say(verb, describe(verdict), style)
        for line in describe_refusals(verdict.refusals):
            self.say("", line)
        for note in verdict.notes:
            self.say("note", f"{note.symbol}: {note.detail}", "bold cyan")


def _describe_crash(event: ProgramEnded) -> str:
    fault = event.crash.signal if event.crash and event.crash.signal != "panic" else None
    cause = event.signal or (f"{fault}, with status {event.status}," if fault else "a panic")
    if event.edit is None:
        return f"by {cause}, unpatched"
    failed = event.crash.patched if event.crash else None
    if event.crash and failed:
        how = "its stack was used up" if event.crash.stack_overflow else event.crash.signal
        told = f" ({how})" if event.signal else ""
        return f"by {cause} in the code of edit {failed.edit}, on thread {event.crash.thread}{told}"
    changed = f", which replaced {_names(event.functions)}" if event.functions else ""
    return f"by {cause}; the last patch was that of edit {event.edit}{changed}"


def _describe_panic(event: ProgramPanicked) -> str:
    place = f" at {event.file}:{event.line}" if event.file else ""
    times = f"{event.count:,} times, last " if event.count > 1 else ""
    return f"{times}in {event.function or 'the code'}{place} (edit {event.edit}), on thread {event.thread}"


def _told_frames(crash: Crash | None) -> list[str]:
    """The calls that led to a fault or panic; a call that is repeated is told once."""
    if crash is None:
        return []
    frames, patched = crash.frames, crash.patched
    if crash.signal == "panic" and patched:
        # What is inside of it has made the panic's message and goes about unwinding.
        frames = frames[frames.index(patched) :]
    told: list[str] = []
    for frame in frames:
        place = f" at {frame.file}:{frame.line}" if frame.file else ""
        edit = f" (edit {frame.edit})" if frame.edit else ""
        line = f"in {frame.function}{place}{edit}"
        if frame.function and line not in told[-1:]:
            told.append(line)
    return told[:_SHOWN_FRAMES]


def describe(verdict: Verdict) -> str:
    """The rest of an edit's line: what changed, how long, stage by stage."""
    functions, timings = verdict.functions, verdict.timings_ms
    parts = []
    if verdict.verdict == "applied":
        parts.append(_names(functions.patched))
        if functions.added:
            parts.append(f"added {_names(functions.added)}")
    elif verdict.verdict == "unchanged":
        count = len(functions.moved)
        moved = f" ({count} function{'s' if count > 1 else ''} moved)" if count else ""
        parts.append(f"the program runs this code already{moved}")
    elif verdict.verdict == "failed":
        parts.append("the program goes on with the code that it has")
    else:
        parts.append("the program was left as it is")
    if timings.total is not None:
        stages = " + ".join(
            f"{stage} {value:.0f}" for stage in _STAGES if (value := getattr(timings, stage)) is not None
        )
        parts.append(f"in {timings.total:.0f} ms ({stages})")
    return " ".join(parts)


def describe_refusals(refusals: Iterable[Refusal]) -> list[str]:
    """A line for each cause: what is refused, why, and the reason's name."""
    symbols: dict[str, list[str]] = {}
    for refusal in refusals:
        symbols.setdefault(f"{refusal.detail} [{refusal.reason}]", []).extend(filter(None, [refusal.symbol]))
    return [f"{_names(tuple(found))}: {cause}" if found else cause for cause, found in symbols.items()]


def describe_record(record: Mapping[str, Any]) -> str:
    """The line of a verdict, as it is found in an events file; of several causes of a refusal it has the first."""
    verdict = msgspec.convert(record, Verdict)
    causes = describe_refusals(verdict.refusals)
    more = f"; and {len(causes) - 1} more" if causes[1:] else ""
    return f"{verdict.verdict}: {causes[0]}{more}" if causes else f"{verdict.verdict}: {describe(verdict)}"


def describe_proof(row: Mapping[str, Any]) -> str:
    """Whether the new code of an applied edit has run, and when; empty where that is not known.

    Args:
        row: of the edit, with `ran` and `waiting` of `hotpatchd.daemon.proof.Proofs.row`.
    """
    if row["ran"] is None:
        return ""
    parts = []
    if row["ran"]:
        first = min((time for time in row["ran"].values() if time is not None), default=None)
        parts.append("ran" if first is None else f"ran {first:.0f} ms after the save")
    if row["waiting"]:
        waiting = f"{_names(tuple(row['waiting']))} not yet" if row["ran"] else "not run yet"
        parts.append(waiting)
    return f"; {', '.join(parts)}" if parts else ""


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN_FUNCTIONS])
    more = len(names) - _SHOWN_FUNCTIONS
    return f"{shown} and {more} more" if more > 0 else shown
