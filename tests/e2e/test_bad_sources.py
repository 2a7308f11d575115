"""Sources that cannot be compiled: the program is untouched, the reason is shown, the next good save applies."""

from __future__ import annotations

from tests.e2e.harness import Saved, Session
from tests.e2e.program import assert_continuous

MAIN = "src/main.rs"


def assert_failed(session: Session, saved: Saved, reason: str) -> None:
    """The edit failed, and the diagnostics in the event and on the screen give the reason."""
    verdict = session.wait_verdict(saved)
    assert verdict.verdict == "failed"
    failure = session.wait_event("rebuild.failed", lambda event: event["edit"] == verdict.edit)
    assert reason in str(failure["diagnostics"])
    session.daemon.wait_text(reason)


def assert_untouched(session: Session, lines_before: int) -> None:
    """The program runs on and shows what it showed."""
    assert session.daemon.wait_next_lines(2)["private"] == "23"
    assert_continuous(session.daemon.app_lines()[lines_before:])


def test_syntax_error_then_fix(session: Session) -> None:
    """rustc's own message is shown, and the save that repairs the file applies."""
    start = len(session.daemon.app_lines())
    broken = session.edit(MAIN, "    left + right", "    left + right }")
    assert_failed(session, broken, "unexpected closing delimiter")
    assert_untouched(session, start)
    session.apply(MAIN, "    left + right }", "    left * right")
    session.daemon.wait_value("private", "60")


def test_type_error_then_fix(session: Session) -> None:
    """An error found later than by the parser is shown as well, with its code."""
    start = len(session.daemon.app_lines())
    broken = session.edit(MAIN, "    left + right", "    left + String::new()")
    assert_failed(session, broken, "E0277")
    assert_untouched(session, start)
    session.apply(MAIN, "    left + String::new()", "    left * right")
    session.daemon.wait_value("private", "60")


def test_deleted_file_then_written_again(session: Session) -> None:
    """A file that is gone leaves the program alone; when it is back, edited, the edit applies."""
    start = len(session.daemon.app_lines())
    content = session.project.replaced(MAIN, "    left + right", "    left * right")
    mark = len(session.events())
    (session.project.root / MAIN).unlink()
    session.wait_event("edit.verdict", lambda event: event["verdict"] == "failed", after=mark)
    assert_untouched(session, start)
    assert session.wait_verdict(session.save(MAIN, content)).verdict == "applied"
    session.daemon.wait_value("private", "60")


def test_renamed_module_then_named_again(stateful: Session) -> None:
    """A module's file that is renamed is missed; renamed back, it serves the next edit."""
    start = len(stateful.daemon.app_lines())
    path = stateful.project.root / "src/places.rs"
    mark = len(stateful.events())
    path.rename(path.with_name("spots.rs"))
    stateful.wait_event("edit.verdict", lambda event: event["verdict"] == "failed", after=mark)
    assert_untouched(stateful, start)
    path.with_name("spots.rs").rename(path)
    stateful.apply("src/places.rs", '"old:', '"new:')
    stateful.daemon.wait_line("the edit", lambda line: line["state"].startswith("new:"))


def test_file_emptied_for_a_moment_is_one_edit(session: Session) -> None:
    """Editors that truncate and then write leave a file empty for a while; that is no source to compile."""
    content = session.project.replaced(MAIN, "    left + right", "    left * right")
    emptied = session.save(MAIN, "")
    session.daemon.wait_next_lines(2)
    session.save(MAIN, content)
    assert session.wait_verdict(emptied).verdict == "applied"
    assert not [event for event in session.events()[emptied.mark :] if event["event"] == "rebuild.failed"]
    session.daemon.wait_value("private", "60")


def test_file_that_is_not_utf8(session: Session) -> None:
    """Bytes that are no text are rustc's to complain about."""
    start = len(session.daemon.app_lines())
    original = (session.project.root / MAIN).read_bytes()
    broken = session.save(MAIN, original + b"// \xff\xfe\n")
    assert_failed(session, broken, "UTF-8")
    assert_untouched(session, start)
    good = session.save(MAIN, original.replace(b"    left + right", b"    left * right"))
    assert session.wait_verdict(good).verdict == "applied"
    session.daemon.wait_value("private", "60")
