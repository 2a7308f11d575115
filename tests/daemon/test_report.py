"""What a person reads: the lines of verdicts and diagnostics."""

import io

import pytest
from rich.console import Console

from hotpatchd.core.crash import Crash, CrashFrame
from hotpatchd.core.events import (
    EditsUndone,
    EditVerdict,
    Event,
    Functions,
    Note,
    PatchRan,
    ProgramEnded,
    ProgramPanicked,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Timings,
    Verdict,
    to_record,
)
from hotpatchd.daemon.report import Terminal, describe, describe_proof, describe_record

TIMINGS = Timings(settle=20.4, compile=110.2, select=6.0, link=75.6, send=1.2, apply=0.4, total=213.8)


def shown(*events: Event) -> list[str]:
    """The lines that events put on a terminal, without colours."""
    console = Console(record=True, force_terminal=True, width=120, file=io.StringIO())
    terminal = Terminal(console)
    for event in events:
        terminal.show(event)
    return console.export_text().splitlines()


def edit(verdict: Verdict) -> EditVerdict:
    """The end of an edit."""
    return EditVerdict(edit=1, verdict=verdict)


def test_an_applied_edit_names_its_functions_and_times() -> None:
    """One line: the verb, what was replaced and added, the total, and the stages that it is made of."""
    verdict = Verdict(
        verdict="applied", functions=Functions(patched=("app::draw",), added=("app::pen",)), timings_ms=TIMINGS
    )
    assert shown(edit(verdict)) == [
        "     Patched app::draw added app::pen in 214 ms"
        " (settle 20 + compile 110 + select 6 + link 76 + send 1 + apply 0)"
    ]


def ran(edit: int, since_save_ms: float | None) -> PatchRan:
    """New code ran."""
    return PatchRan(
        edit=edit, client=1, functions=("app::draw",), waiting=(), since_save_ms=since_save_ms, within_ms=1.0
    )


def test_first_execution_is_one_line_for_each_edit() -> None:
    """The first program counts; one that came too late to have a time is passed over."""
    events = (ran(1, None), ran(1, 142.6), ran(1, 150.0), ran(2, 80.0))
    assert shown(*events) == [
        "         Ran app::draw 143 ms after the save",
        "         Ran app::draw 80 ms after the save",
    ]


@pytest.mark.parametrize(
    ("ran", "waiting", "text"),
    [
        (None, None, ""),
        ({}, ["f"], "; not run yet"),
        ({"f": 142.6, "g": 150.0}, [], "; ran 143 ms after the save"),
        ({"f": 142.6, "g": None}, ["h"], "; ran 143 ms after the save, h not yet"),
        ({"f": None}, [], "; ran"),
        ({}, [], ""),
    ],
    ids=["untold", "waiting", "ran", "partly", "late", "replaced"],
)
def test_log_says_whether_it_ran(ran: dict[str, float | None] | None, waiting: list[str] | None, text: str) -> None:
    """What ran first, and what has not run."""
    assert describe_proof({"ran": ran, "waiting": waiting}) == text


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (Verdict(verdict="unchanged"), "   Unchanged the program runs this code already"),
        (
            Verdict(verdict="unchanged", functions=Functions(moved=("a", "b"))),
            "   Unchanged the program runs this code already (2 functions moved)",
        ),
        (Verdict(verdict="failed"), "      Failed the program goes on with the code that it has"),
        (Verdict(verdict="refused"), "     Refused the program was left as it is"),
        (Verdict(verdict="restart"), "     Restart the program was left as it is"),
    ],
    ids=["unchanged", "moved", "failed", "refused", "restart"],
)
def test_a_verdict_without_a_patch_says_what_the_program_runs(verdict: Verdict, line: str) -> None:
    """Each verdict has its verb, aligned with cargo's."""
    assert shown(edit(verdict)) == [line]


def test_refusals_name_the_subject_the_detail_and_the_reason() -> None:
    """One line each below the verdict; without a subject just the detail."""
    refusals = (
        Refusal(symbol="app::LIMIT", reason="static_changed", detail="it grew"),
        Refusal(symbol=None, reason="region_full", detail="no room"),
    )
    _, first, second = shown(edit(Verdict(verdict="refused", refusals=refusals)))
    assert first.strip() == "app::LIMIT: it grew [static_changed]"
    assert second.strip() == "no room [region_full]"


def test_what_is_refused_for_one_cause_has_one_line() -> None:
    """A program that was optimised as a whole may lack dozens of functions."""
    refusals = tuple(Refusal(symbol=f"std::f{number}", reason="unresolved", detail="left out") for number in range(20))
    _, line = shown(edit(Verdict(verdict="refused", refusals=refusals)))
    assert line.strip().startswith("std::f0, std::f1, ")
    assert line.endswith(" more: left out [unresolved]")


def test_a_record_of_a_refusal_tells_the_cause() -> None:
    """Whoever looks into the log later sees why."""
    refusals = (
        Refusal(symbol="app::LIMIT", reason="static_changed", detail="it grew"),
        Refusal(symbol=None, reason="region_full", detail="no room"),
    )
    record = to_record(edit(Verdict(verdict="refused", refusals=refusals)), 1.0)
    assert describe_record(record) == "refused: app::LIMIT: it grew [static_changed]; and 1 more"


def test_notes_follow_the_verdict() -> None:
    """A limit of what was applied is a line of its own."""
    note = Note(symbol="app::main", note="on_stack", detail="it runs until it returns")
    _, line = shown(edit(Verdict(verdict="applied", notes=(note,))))
    assert line == "        note app::main: it runs until it returns"


def test_many_functions_are_counted_instead_of_named() -> None:
    """Four names are shown, and the number of the others."""
    names = tuple(f"app::f{number}" for number in range(6))
    assert describe(Verdict(verdict="applied", functions=Functions(patched=names[:4]))).endswith("app::f3")
    text = describe(Verdict(verdict="applied", functions=Functions(patched=names)))
    assert text == "app::f0, app::f1, app::f2, app::f3 and 2 more"


def test_names_with_brackets_are_shown_as_they_are() -> None:
    """What looks like the terminal library's markup is not taken for it."""
    verdict = Verdict(verdict="applied", functions=Functions(patched=("<[u8] as app::Draw>::draw", "[bold]")))
    assert shown(edit(verdict)) == ["     Patched <[u8] as app::Draw>::draw, [bold]"]


def test_a_crash_in_patched_code_shows_its_backtrace() -> None:
    """The edit, the thread and the cause; then the calls with a name, a repeated one once."""
    deeper = CrashFrame(function="app::deeper", file="src/main.rs", line=7, edit=3)
    frames = (deeper, deeper, CrashFrame(function=None, file=None, line=None, edit=None))
    main = CrashFrame(function="app::main", file=None, line=None, edit=None)
    crash = Crash(signal="SIGSEGV", ended_by="SIGABRT", stack_overflow=True, thread="worker", frames=(*frames, main))
    ended = ProgramEnded(pid=7, status=-6, signal="SIGABRT", edit=3, functions=("app::deeper",), crash=crash)
    assert shown(ended) == [
        "       Ended by SIGABRT in the code of edit 3, on thread worker (its stack was used up)",
        "             in app::deeper at src/main.rs:7 (edit 3)",
        "             in app::main",
    ]


def test_a_panic_in_patched_code_shows_its_calls_from_there_on() -> None:
    """What makes the message and unwinds is left out."""
    panicking = CrashFrame(function="core::panicking::panic_fmt", file=None, line=None, edit=None)
    own = CrashFrame(function="app::draw", file="src/main.rs", line=7, edit=3)
    crash = Crash(signal="panic", ended_by="panic", stack_overflow=False, thread="main", frames=(panicking, own))
    ended = ProgramEnded(pid=7, status=101, signal=None, edit=3, functions=("app::draw",), crash=crash)
    assert shown(ended) == [
        "       Ended by a panic in the code of edit 3, on thread main",
        "             in app::draw at src/main.rs:7 (edit 3)",
    ]


@pytest.mark.parametrize(
    ("count", "file", "line"),
    [
        (1, "src/main.rs", "    Panicked in app::draw at src/main.rs:7 (edit 3), on thread worker"),
        (1234, None, "    Panicked 1,234 times, last in app::draw (edit 3), on thread worker"),
    ],
)
def test_panics_of_a_place_are_one_line(count: int, file: str | None, line: str) -> None:
    """Function, place, edit and thread, and how many there were."""
    panicked = ProgramPanicked(
        pid=7, edit=3, function="app::draw", file=file, line=7, thread="worker", count=count, frames=()
    )
    assert shown(panicked) == [line]


def test_diagnostics_are_shown_as_rustc_coloured_them() -> None:
    """Escape sequences become colours, and the text is whole."""
    red = "\x1b[31merror\x1b[0m: no"
    failed = RebuildFailed(edit=1, crates=("app",), diagnostics=(red,))
    finished = RebuildFinished(edit=2, crates=("app",), diagnostics=("warning: unused",))
    assert shown(failed, finished) == ["error: no", "warning: unused"]


def test_long_lines_are_left_to_the_terminal() -> None:
    """Nothing is broken at the console's width, so that copied text stays whole."""
    long = "x" * 300
    assert shown(RebuildFailed(edit=1, crates=(), diagnostics=(long,))) == [long]


def test_nothing_is_printed_where_no_terminal_is() -> None:
    """The log tells there."""
    file = io.StringIO()
    terminal = Terminal(Console(file=file, force_terminal=False))
    terminal.say("Watching", "app")
    terminal.show(edit(Verdict(verdict="applied")))
    terminal.show(RebuildFailed(edit=1, crates=(), diagnostics=("error",)))
    assert file.getvalue() == ""


def test_a_record_is_described_like_the_verdict_that_it_was_made_from() -> None:
    """Commands that read records say the same as the terminal."""
    verdict = Verdict(verdict="applied", functions=Functions(patched=("app::draw",)), timings_ms=TIMINGS)
    record = to_record(edit(verdict), 1.0)
    assert describe_record(record) == f"applied: {describe(verdict)}"


@pytest.mark.parametrize(
    ("undone", "line"),
    [
        (
            EditsUndone(edits=(3, 2), edit=1),
            "      Undone edit 2, 3; the code of edit 1 runs again, until the next edit",
        ),
        (
            EditsUndone(edits=(1,), edit=0),
            "      Undone edit 1; the program's own code runs again, until the next edit",
        ),
    ],
)
def test_an_undo_tells_what_runs_again(undone: EditsUndone, line: str) -> None:
    """The edits that were taken back, and whose code is in force."""
    assert shown(undone) == [line]
