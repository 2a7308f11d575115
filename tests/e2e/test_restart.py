"""Restarts that keep going, crashes that are told, and a program's file that follows the edits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import AppLine, Project

MAIN = "src/main.rs"
HARMLESS = ('String::from("plain")', 'String::from("patched")')
CRASHING = ('String::from("plain")', "std::process::abort()")
TERMINAL = Path(__file__).with_name("terminal.py")


def wait_fresh(session: Session, old: AppLine, **values: str) -> None:
    """Waits for a line of another process than the one that printed `old`, with these values."""
    session.daemon.wait_line(
        f"another process with {values}",
        lambda line: line["instance"] != old["instance"] and values.items() <= line.items(),
    )


def wait_ready_again(session: Session, *, after: int) -> int:
    """Waits until a restarted program can be edited; returns its process."""
    pid = session.wait_event("program.started", after=after, within_s=START_WITHIN_S)["pid"]
    session.wait_event("client.connected", lambda event: event["pid"] == pid, after=after, within_s=START_WITHIN_S)
    session.wait_event("daemon.ready", after=after, within_s=START_WITHIN_S)
    assert isinstance(pid, int)
    return pid


def test_a_restart_begins_anew_with_the_edits_built_in(single: Project) -> None:
    """The program starts from zero, from a build of the newest source, and is patched as before."""
    with Session(single) as session:
        session.wait_started()
        first = session.wait_event("program.started")["pid"]
        session.apply(MAIN, *HARMLESS)
        old = session.daemon.wait_value("extra", "patched")
        mark = len(session.events())
        assert session.cli("restart").stdout == "restarted\n"
        assert wait_ready_again(session, after=mark) != first
        wait_fresh(session, old, extra="patched")
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        wait_fresh(session, old, public="second", extra="patched")
        assert not Path(f"/proc/{first}").exists()


def test_restarts_do_not_pile_up_open_files(single: Project) -> None:
    """The daemon has as many files open after several restarts as after one."""
    with Session(single) as session:
        session.wait_started()

        def open_after_restart() -> int:
            mark = len(session.events())
            assert session.cli("restart").returncode == 0
            wait_ready_again(session, after=mark)
            files = Path(f"/proc/{session.cli_json('status')['pid']}/fd")
            return sum(os.readlink(file).endswith(".rlib") for file in files.iterdir() if file.is_symlink())

        first = open_after_restart()
        assert min(open_after_restart() for _ in range(3)) <= first


def test_a_restart_that_does_not_build_leaves_the_program(single: Project) -> None:
    """The command fails with cargo's exit status, the program goes on, and the next edit is applied."""
    with Session(single) as session:
        session.wait_started()
        pid = session.wait_event("program.started")["pid"]
        saved = session.edit(MAIN, 'String::from("plain")', "no_such_function()")
        assert session.wait_verdict(saved).verdict == "failed"
        answer = session.cli("restart")
        assert answer.returncode == 1
        assert "cargo build failed" in answer.stderr
        session.apply(MAIN, "no_such_function()", 'String::from("mended")')
        session.daemon.wait_value("extra", "mended")
        assert Path(f"/proc/{pid}").exists()


def test_what_is_saved_while_a_restart_builds_is_not_lost(single: Project) -> None:
    """It is in the new program, by its build or by a patch."""
    with Session(single) as session:
        session.wait_started()
        restart = session.start("restart")
        session.wait_event("build.started", lambda event: event["reason"] == "restart")
        session.edit(MAIN, *HARMLESS)
        restart.wait_exit()
        session.daemon.wait_value("extra", "patched")


def test_an_edit_that_needs_a_full_build_restarts_where_that_is_wanted(single: Project) -> None:
    """With `--auto-restart` the verdict `restart` is carried out at once."""
    with Session(single, options=["--auto-restart"]) as session:
        session.wait_started()
        mark = len(session.events())
        saved = session.edit("Cargo.toml", "[package]", "[profile.dev]\noverflow-checks = false\n\n[package]")
        assert session.wait_verdict(saved).verdict == "restart"
        wait_ready_again(session, after=mark)
        session.apply(MAIN, *HARMLESS)
        session.daemon.wait_value("extra", "patched")


def test_a_package_that_is_new_after_a_restart_is_patched(single: Project) -> None:
    """Edits in it have their consequence as in any other."""
    with Session(single) as session:
        session.wait_started()
        mark = len(session.events())
        helper = single.root / "helper"
        (helper / "src").mkdir(parents=True)
        (helper / "Cargo.toml").write_text('[package]\nname = "helper"\nversion = "0.1.0"\nedition = "2021"\n')
        (helper / "src" / "lib.rs").write_text('pub fn word() -> String {\n    String::from("new")\n}\n')
        saved = session.save(
            "Cargo.toml", single.read("Cargo.toml") + '\n[dependencies]\nhelper = { path = "helper" }\n'
        )
        assert session.wait_verdict(saved).verdict == "restart"
        single.root.joinpath(MAIN).write_text(single.replaced(MAIN, 'String::from("plain")', "helper::word()"))
        assert session.cli("restart", within_s=START_WITHIN_S).returncode == 0
        wait_ready_again(session, after=mark)
        session.daemon.wait_value("extra", "new")
        session.apply("helper/src/lib.rs", '"new"', '"newer"')
        session.daemon.wait_value("extra", "newer")


def test_a_crash_is_told_with_the_last_patch(single: Project) -> None:
    """Signal, edit and functions; without a terminal the daemon ends as the program did."""
    with Session(single) as session:
        session.wait_started()
        session.apply(MAIN, *HARMLESS)
        session.edit(MAIN, 'String::from("patched")', "std::process::abort()")
        ended = session.wait_event("program.ended")
        assert (ended["signal"], ended["edit"], ended["functions"]) == ("SIGABRT", 2, ["single::extra"])
        assert session.daemon.wait_exit() == 128 + 6


def test_a_patch_that_crashed_the_program_is_left_out(single: Project) -> None:
    """With `--auto-restart` it comes back as it was before the last edit, and the next edit is applied to it."""
    with Session(single, options=["--auto-restart"]) as session:
        session.wait_started()
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        old = session.daemon.wait_value("public", "second")
        mark = len(session.events())
        session.edit(MAIN, *CRASHING)
        session.wait_event("program.ended")
        session.wait_event("client.connected", after=mark, within_s=START_WITHIN_S)
        wait_fresh(session, old, public="second", extra="plain")
        session.apply(MAIN, "std::process::abort()", 'String::from("mended")')
        wait_fresh(session, old, public="second", extra="mended")


def test_an_earlier_edit_that_crashed_the_program_is_left_out(single: Project) -> None:
    """The edit whose code failed counts, not the last one: the program comes back as it was before that edit."""
    with Session(single, options=["--auto-restart"]) as session:
        session.wait_started()
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        delayed = 'if LIMIT.load(Ordering::Relaxed) > 100 { std::process::abort() }; String::from("delayed")'
        session.apply(MAIN, 'String::from("plain")', delayed)
        old = session.daemon.wait_value("extra", "delayed")
        mark = len(session.events())
        session.edit(MAIN, 'format!("limit', 'LIMIT.store(200, Ordering::Relaxed);\n    format!("limit')
        assert session.wait_event("program.ended")["edit"] == 2
        session.wait_event("client.connected", after=mark, within_s=START_WITHIN_S)
        wait_fresh(session, old, public="second", extra="plain", limit="limit:100")
        verdict = session.apply(MAIN, delayed, 'String::from("mended")')
        assert verdict.noted("still_in_source") == ["single::limit"]
        wait_fresh(session, old, public="second", extra="mended", limit="limit:200")


def test_the_last_edit_is_left_out_on_request(single: Project) -> None:
    """No build is needed for that, and the edit stays in the source."""
    with Session(single) as session:
        session.wait_started()
        mark = len(session.events())
        session.apply(MAIN, *HARMLESS)
        old = session.daemon.wait_value("extra", "patched")
        assert session.cli("restart", "--without-last-edit").returncode == 0
        wait_fresh(session, old, extra="plain")
        assert [event["event"] for event in session.events()[mark:]].count("build.started") == 0
        session.wait_event("client.connected", after=mark)
        assert session.apply(MAIN, 'String::from("patched")', 'String::from("again")').patched == ("single::extra",)
        session.daemon.wait_value("extra", "again")


def test_nothing_can_be_left_out_before_an_edit(single: Project) -> None:
    """The answer says so, and the program goes on."""
    with Session(single) as session:
        session.wait_started()
        answer = session.cli("restart", "--without-last-edit")
        assert answer.returncode == 1
        assert "no edit was sent" in answer.stderr


def test_the_programs_file_follows_the_edits_in_the_background(single: Project) -> None:
    """Once nothing happens for a while; the running program is not disturbed, and still takes edits."""
    with Session(single, options=["--background-build"]) as session:
        session.wait_started()
        session.apply(MAIN, *HARMLESS)
        finished = session.wait_event("build.finished", lambda event: event["reason"] == "background")
        assert finished["problem"] == ""
        executable = single.target / "debug" / "single"
        with subprocess.Popen([executable], stdout=subprocess.PIPE, text=True) as fresh:
            assert fresh.stdout is not None
            assert "extra=patched" in fresh.stdout.readline()
            fresh.kill()
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        session.daemon.wait_value("public", "second")


def test_a_program_that_was_built_anew_is_watched_from_then_on(single: Project) -> None:
    """Beside `serve` somebody builds and starts the program again: the daemon takes the new build for its own."""
    with Session(single, "serve") as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        executable = single.target / "debug" / "single"
        first = session.attach(executable)
        session.apply(MAIN, *HARMLESS)
        first.process.kill()
        assert session.cli("build", within_s=START_WITHIN_S).returncode == 0
        second = session.attach(executable)
        session.apply(MAIN, 'String::from("first")', 'String::from("second")')
        second.wait_value("public", "second")


@pytest.mark.parametrize(("key", "extra"), [("d", "plain"), ("r", "mended")])
def test_a_crashed_program_is_started_again_by_a_key(single: Project, tmp_path: Path, key: str, extra: str) -> None:
    """The terminal offers it without the last edit, or built anew."""
    os.mkfifo(keyboard := tmp_path / "keyboard")
    with Session(single, prefix=[sys.executable, str(TERMINAL), str(keyboard)]) as session:
        old = session.wait_started().daemon.wait_line("any")
        mark = len(session.events())
        session.edit(MAIN, *CRASHING)
        session.wait_event("program.ended")
        session.daemon.wait_text("start it again as it was before edit 1")
        session.edit(MAIN, "std::process::abort()", 'String::from("mended")')
        session.wait_event("edit.verdict", lambda event: event["edit"] == 2)
        keyboard.write_text(key)
        pid = session.wait_event("program.started", after=mark, within_s=START_WITHIN_S)["pid"]
        session.wait_event("client.connected", lambda event: event["pid"] == pid, after=mark, within_s=START_WITHIN_S)
        wait_fresh(session, old, extra=extra)
        keyboard.write_text("\x03")
        assert session.daemon.wait_exit() == 0
