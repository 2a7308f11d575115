"""The JSON shape of events is a promise."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from hotpatchd.core.crash import CrashFrame
from hotpatchd.core.events import (
    ClientConnected,
    ClientLost,
    DaemonReady,
    EditSettled,
    EditsUndone,
    EditVerdict,
    Event,
    Functions,
    Note,
    PatchRan,
    PatchSent,
    ProgramPanicked,
    RebuildFailed,
    RebuildFinished,
    Refusal,
    Timings,
    Verdict,
    to_record,
)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (DaemonReady(url="ws://h", pid=1), '{"event": "daemon.ready", "ts": 1.5, "url": "ws://h", "pid": 1}'),
        (
            ClientConnected(client=1, pid=2, target="t"),
            '{"event": "client.connected", "ts": 1.5, "client": 1, "pid": 2, "target": "t"}',
        ),
        (
            ClientLost(client=1, pid=2, target="t"),
            '{"event": "client.lost", "ts": 1.5, "client": 1, "pid": 2, "target": "t"}',
        ),
        (
            EditSettled(edit=1, files=("a",), classes={"a": "code"}),
            '{"event": "edit.settled", "ts": 1.5, "edit": 1, "files": ["a"], "classes": {"a": "code"}}',
        ),
        (
            RebuildFinished(edit=1, crates=("c",), diagnostics=()),
            '{"event": "rebuild.finished", "ts": 1.5, "edit": 1, "crates": ["c"], "diagnostics": []}',
        ),
        (
            RebuildFailed(edit=1, crates=("c",), diagnostics=("error",)),
            '{"event": "rebuild.failed", "ts": 1.5, "edit": 1, "crates": ["c"], "diagnostics": ["error"]}',
        ),
        (
            PatchSent(edit=1, client=2, kind="image", bytes=3),
            '{"event": "patch.sent", "ts": 1.5, "edit": 1, "client": 2, "kind": "image", "bytes": 3}',
        ),
        (
            PatchRan(edit=1, client=2, functions=("f",), waiting=("g",), since_save_ms=81.5, within_ms=1.0),
            '{"event": "patch.ran", "ts": 1.5, "edit": 1, "client": 2, "functions": ["f"], "waiting": ["g"],'
            ' "since_save_ms": 81.5, "within_ms": 1.0}',
        ),
        (
            ProgramPanicked(
                pid=7,
                edit=1,
                function="f",
                file="src/a.rs",
                line=3,
                thread="worker",
                count=2,
                frames=(CrashFrame(function="f", file="src/a.rs", line=3, edit=1),),
            ),
            '{"event": "program.panicked", "ts": 1.5, "pid": 7, "edit": 1, "function": "f", "file": "src/a.rs",'
            ' "line": 3, "thread": "worker", "count": 2,'
            ' "frames": [{"function": "f", "file": "src/a.rs", "line": 3, "edit": 1}]}',
        ),
        (
            EditsUndone(edits=(3, 2), edit=1),
            '{"event": "edits.undone", "ts": 1.5, "edits": [3, 2], "edit": 1}',
        ),
    ],
    ids=lambda value: value.event if not isinstance(value, str) else "",
)
def test_event_has_its_documented_name_and_fields(event: Event, text: str) -> None:
    """Names, fields and their order are those of the table of events."""
    assert json.dumps(to_record(event, 1.5)) == text


def test_verdict_is_one_flat_record() -> None:
    """The fields of a verdict stand beside `edit`, its parts under names of their own."""
    verdict = Verdict(
        verdict="applied",
        functions=Functions(patched=("app::f",), moved=("app::g",)),
        refusals=(Refusal(symbol=None, reason="r", detail="d"),),
        notes=(Note(symbol="app::f", note="on_stack", detail="main"),),
        timings_ms=Timings(settle=20.0, total=100.0),
    )
    record = to_record(EditVerdict(edit=7, verdict=verdict), 1.5)
    assert json.loads(json.dumps(record)) == {
        "event": "edit.verdict",
        "ts": 1.5,
        "edit": 7,
        "verdict": "applied",
        "functions": {"patched": ["app::f"], "added": [], "moved": ["app::g"]},
        "refusals": [{"symbol": None, "reason": "r", "detail": "d"}],
        "notes": [{"symbol": "app::f", "note": "on_stack", "detail": "main"}],
        "timings_ms": {
            "settle": 20.0,
            "compile": None,
            "select": None,
            "judge": None,
            "link": None,
            "send": None,
            "apply": None,
            "total": 100.0,
        },
    }


def test_every_event_is_described() -> None:
    """The page for those who read events has each event's name, with its fields in the same row."""
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for kind in get_args(Event):
        described = [row for row in rows if f"`{kind.event}`" in row.split("|")[1]]
        names = {field.name for field in fields(kind)}
        assert [name for name in names if not any(f"`{name}`" in row for row in described)] == []
