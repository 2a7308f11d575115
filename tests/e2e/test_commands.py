"""The commands that look at a running daemon, or act on it."""

from __future__ import annotations

import json

from tests.e2e.harness import Session
from tests.e2e.program import Project

MAIN = "src/main.rs"


def test_status_tells_that_the_daemon_runs(session: Session) -> None:
    """`status --json` names the daemon's process; without `--json` it is for a person."""
    pid = session.wait_event("daemon.ready")["pid"]
    assert session.cli_json("status")["pid"] == pid
    shown = session.cli("status")
    assert shown.returncode == 0
    assert str(pid) in shown.stdout


def test_status_without_a_daemon(single: Project) -> None:
    """Without a daemon the message says so and how to start one."""
    with Session(single, "build") as session:
        assert session.daemon.wait_exit(within_s=180) == 0
        result = session.cli("status")
    assert result.returncode != 0
    assert "hotpatchd run" in result.stderr


def test_clients_lists_the_program(session: Session) -> None:
    """`clients --json` has one entry, with the program's process and target."""
    connected = session.wait_event("client.connected")
    (client,) = session.cli_json("clients")
    assert client["pid"] == connected["pid"]
    assert client["target"].startswith("x86_64")


def test_captures_lists_the_crate(session: Session) -> None:
    """`captures --json` lists the program's crate as captured."""
    assert "single" in str(session.cli_json("captures"))
    assert "single" in session.cli("captures").stdout


def test_trigger_without_a_change(session: Session) -> None:
    """`trigger` with nothing to build says so and succeeds."""
    mark = len(session.events())
    assert session.cli("trigger").returncode == 0
    assert not [event for event in session.events()[mark:] if event["event"] == "edit.settled"]


def test_trigger_of_a_misspelt_file(session: Session) -> None:
    """`trigger FILE` fails for a file that is not there and never was, and names it."""
    triggered = session.cli("trigger", "src/mian.rs")
    assert triggered.returncode != 0
    assert "src/mian.rs" in triggered.stderr


def test_trigger_after_a_save(session: Session) -> None:
    """`trigger FILE` right after a save leads to one edit, not two."""
    saved = session.edit(MAIN, "    left + right", "    left * right")
    assert session.cli("trigger", str(saved.file)).returncode == 0
    assert session.wait_verdict(saved).verdict == "applied"
    session.daemon.wait_value("private", "60")
    settled = [event for event in session.events()[saved.mark :] if event["event"] == "edit.settled"]
    assert len(settled) == 1


def test_events_follows_the_daemon(session: Session) -> None:
    """`events` prints each event from then on as one JSON object a line, as `--events` does."""
    follower = session.start("events")
    expressions = ["    left + right", "    left * right"]
    # The follower does not say when it has begun to listen, so edits are made until one has reached it.
    for _ in range(50):
        session.apply(MAIN, *expressions)
        expressions.reverse()
        if any('"edit.verdict"' in line for line in follower.stdout.lines()):
            break
    followed = [json.loads(line) for line in follower.stdout.lines()]
    assert followed
    assert all(event in session.events() for event in followed)


def test_log_shows_the_edits(session: Session) -> None:
    """`log --json` has the verdicts of this daemon's edits."""
    verdict = session.apply(MAIN, "    left + right", "    left * right")
    assert any(entry.get("edit") == verdict.edit for entry in session.cli_json("log"))


def test_undo_takes_back_the_last_patch(session: Session) -> None:
    """`undo` brings back what was before the last edit, and no more than that."""
    session.apply(MAIN, 'String::from("first")', 'String::from("second")')
    session.apply(MAIN, "    left + right", "    left * right")
    session.daemon.wait_value("private", "60")
    assert session.cli("undo").returncode == 0
    line = session.daemon.wait_value("private", "23")
    assert line["public"] == "second"


def test_undo_takes_back_several(session: Session) -> None:
    """`undo N` takes back the last N patches."""
    session.apply(MAIN, 'String::from("first")', 'String::from("second")')
    session.apply(MAIN, "    left + right", "    left * right")
    session.daemon.wait_value("private", "60")
    assert session.cli("undo", "2").returncode == 0
    line = session.daemon.wait_value("private", "23")
    assert line["public"] == "first"


def test_edit_after_undo_applies(session: Session) -> None:
    """What was taken back can be patched again."""
    session.apply(MAIN, "    left + right", "    left * right")
    session.daemon.wait_value("private", "60")
    assert session.cli("undo").returncode == 0
    session.daemon.wait_value("private", "23")
    session.apply(MAIN, "    left * right", "    left * right * 2")
    session.daemon.wait_value("private", "120")


def test_explain_shows_both_command_lines(session: Session) -> None:
    """`explain CRATE --json` gives the captured and the edited command, and where they run."""
    explained = session.cli_json("explain", "single")
    assert "--crate-name" in explained["argv"]
    assert any(word.startswith("incremental=") for word in explained["edited_argv"])
    assert explained["cwd"] == str(session.project.root)
    assert explained["env"]["CARGO_PKG_NAME"] == "single"


def test_explain_of_the_other_recipe(session: Session) -> None:
    """`--recipe single-object` edits the same command the classic way: one object, at a given path."""
    edited = session.cli_json("explain", "single", "--recipe", "single-object")["edited_argv"]
    assert any(word.startswith("obj=") or word.startswith("--emit=obj=") for word in edited)


def test_explain_of_an_unknown_crate(session: Session) -> None:
    """A crate that was not captured is an error that names it."""
    result = session.cli("explain", "nosuchcrate")
    assert result.returncode != 0
    assert "nosuchcrate" in result.stderr


def test_doctor_finds_this_machine_fit(session: Session) -> None:
    """`doctor` names what it looked at and finds nothing wrong where all the other tests pass."""
    result = session.cli("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rustc" in result.stdout
