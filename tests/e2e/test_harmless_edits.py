"""Saves that change no code are recognised as such, and never reported as applied edits of a function."""

from __future__ import annotations

import os

from tests.e2e.harness import Session

MAIN = "src/main.rs"


def test_comment_is_unchanged(session: Session) -> None:
    """A comment at the end of a line makes no difference to code."""
    verdict = session.wait_verdict(session.edit(MAIN, "    left + right", "    left + right // both"))
    assert verdict.verdict == "unchanged"
    assert verdict.patched == ()


def test_line_above_moves_and_patches_nothing(session: Session) -> None:
    """A new line at the top moves everything below it, which is not an edit of any function."""
    saved = session.save(MAIN, "// A line more.\n" + session.project.read(MAIN))
    verdict = session.wait_verdict(saved)
    assert verdict.verdict in {"applied", "unchanged"}
    assert verdict.patched == ()
    assert verdict.added == ()


def test_edit_below_a_new_line_names_only_what_was_edited(session: Session) -> None:
    """Functions that merely moved are not among the patched ones."""
    content = "// A line more.\n" + session.project.replaced(MAIN, "    left + right", "    left * right")
    verdict = session.wait_verdict(session.save(MAIN, content))
    assert verdict.verdict == "applied"
    assert [name.rsplit("::", 1)[-1] for name in verdict.patched] == ["private_sum"]


def test_touched_file_is_no_edit(session: Session) -> None:
    """A file whose time changes and whose content does not starts no build."""
    mark = len(session.events())
    os.utime(session.project.root / MAIN)
    session.daemon.wait_next_lines(5)
    session.apply(MAIN, "    left + right", "    left * right")
    settled = [event for event in session.events()[mark:] if event["event"] == "edit.settled"]
    assert len(settled) == 1


def test_file_of_no_crate_is_no_edit(session: Session) -> None:
    """A file that no crate reads leads to no verdict other than `unchanged`."""
    mark = len(session.events())
    (session.project.root / "notes.txt").write_text("nothing to compile\n")
    session.daemon.wait_next_lines(5)
    session.apply(MAIN, "    left + right", "    left * right")
    verdicts = [event["verdict"] for event in session.events()[mark:] if event["event"] == "edit.verdict"]
    assert [verdict for verdict in verdicts if verdict != "unchanged"] == ["applied"]


def test_save_by_rename_applies(session: Session) -> None:
    """Editors that write a second file and rename it over the first are followed."""
    content = session.project.replaced(MAIN, "    left + right", "    left * right")
    verdict = session.wait_verdict(session.save_by_rename(MAIN, content))
    assert verdict.verdict == "applied"
    session.daemon.wait_value("private", "60")


def test_save_with_backup_file_applies(session: Session) -> None:
    """Editors that move the old file away first, and write a new one, are followed."""
    content = session.project.replaced(MAIN, "    left + right", "    left * right")
    path = session.project.root / MAIN
    path.rename(path.with_name("main.rs~"))
    verdict = session.wait_verdict(session.save(MAIN, content))
    assert verdict.verdict == "applied"
    session.daemon.wait_value("private", "60")


def test_manifest_edit_asks_for_a_restart(session: Session) -> None:
    """An edit of the manifest cannot be patched in: the verdict is `restart`, and the program goes on."""
    saved = session.edit("Cargo.toml", 'version = "0.1.0"', 'version = "0.1.1"')
    assert session.wait_verdict(saved).verdict == "restart"
    session.daemon.wait_line("after the verdict")
