"""Edits taken back and looked at, while programs come and go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.e2e.harness import Session
from tests.e2e.program import Project

MAIN = "src/main.rs"
TERMINAL = Path(__file__).with_name("terminal.py")
SUM = "    left + right"
PRODUCT = "    left * right"


def test_log_lists_files_functions_and_sizes(session: Session) -> None:
    """An applied edit has its file, its function, its verdict, its times and the size of its patch."""
    verdict = session.apply(MAIN, SUM, PRODUCT)
    (row,) = [row for row in session.cli_json("log") if row["edit"] == verdict.edit]
    assert row["files"] == [str(session.project.root / MAIN)]
    assert row["functions"]["patched"] == list(verdict.patched)
    assert (row["verdict"], row["undone"]) == ("applied", False)
    assert row["bytes"] > 0
    assert row["timings_ms"]["total"] > 0
    assert f"patch of {row['bytes']} bytes" in session.cli("log").stdout


def test_show_tells_what_an_edit_did(session: Session) -> None:
    """The lines that changed, the function that the patch brings, and its code before and after."""
    verdict = session.apply(MAIN, SUM, PRODUCT)
    shown = session.cli_json("show", str(verdict.edit))
    assert f"-{SUM}\n+{PRODUCT}\n" in shown["diff"]
    (code,) = shown["code"]
    assert code["name"] == verdict.patched[0]
    assert not any("mul" in line for line in code["before"])
    assert any("mul" in line for line in code["after"]), code["after"]
    replaced = [symbol["name"] for patch in shown["patches"] for symbol in patch["symbols"] if symbol["replaces"]]
    assert replaced == [verdict.patched[0]]
    assert shown["missing"] == []
    assert f"+{PRODUCT}" in session.cli("show", str(verdict.edit)).stdout


def test_show_compares_with_the_patch_before(session: Session) -> None:
    """Of a function that was patched twice, the code before is that of the first patch."""
    first = session.cli_json("show", str(session.apply(MAIN, SUM, PRODUCT).edit))
    second = session.cli_json("show", str(session.apply(MAIN, PRODUCT, "    left * right * 2").edit))
    assert second["code"][0]["before"] == first["code"][0]["after"]


def test_show_of_an_unknown_edit(session: Session) -> None:
    """It is an error that tells where edits are listed."""
    result = session.cli("show", "99999")
    assert result.returncode != 0
    assert "hotpatchd log" in result.stderr


def test_a_program_that_starts_after_an_undo_runs_what_the_others_run(single: Project) -> None:
    """The undone edit is still in the source, but in no program, until the next edit."""
    with Session(single, "serve") as serving:
        serving.wait_event("daemon.ready", within_s=180)
        program = single.target / "debug" / "single"
        first = serving.attach(program)
        serving.apply(MAIN, 'String::from("first")', 'String::from("second")')
        undone = serving.apply(MAIN, SUM, PRODUCT)
        first.wait_value("private", "60")
        late = serving.attach(program)
        late.wait_value("private", "60")

        assert serving.cli_json("undo")["edits"] == [undone.edit]
        newest = serving.attach(program)
        for running in (first, late, newest):
            line = running.wait_line("the first edit alone", lambda line: line["public"] == "second")
            assert line["private"] == "23" or running.wait_value("private", "23")["public"] == "second"
        assert [row["undone"] for row in serving.cli_json("log")] == [False, True]

        serving.apply(MAIN, 'String::from("second")', 'String::from("third")')
        for running in (first, late, newest):
            running.wait_line("both edits", lambda line: (line["public"], line["private"]) == ("third", "60"))


def test_an_undone_edit_that_the_source_still_has_comes_again_and_is_named(session: Session) -> None:
    """The next edit is of another function; its verdict names the one that it brings again as it was."""
    undone = session.apply(MAIN, SUM, PRODUCT)
    assert "the next edit brings it again" in session.cli("undo").stdout
    session.daemon.wait_value("private", "23")
    verdict = session.apply(MAIN, 'String::from("plain")', 'String::from("other")')
    assert verdict.patched == ("single::extra", "single::private_sum")
    assert [(note["symbol"], note["note"]) for note in verdict.notes] == [("single::private_sum", "still_in_source")]
    assert f"edit {undone.edit}" in verdict.notes[0]["detail"]
    session.daemon.wait_line("both", lambda line: (line["private"], line["extra"]) == ("60", "other"))


def test_undo_restores_every_byte_of_the_programs_code(session: Session) -> None:
    """After edits on top of each other, taken back in steps, the program's code is what it was before them."""

    def code() -> bytes:
        (client,) = session.cli_json("clients")
        found = b""
        with Path(f"/proc/{client['pid']}/mem").open("rb") as memory:
            for line in Path(f"/proc/{client['pid']}/maps").read_text().splitlines():
                span, protection, *_, name = line.split()
                if "x" in protection and name == client["exe"]:
                    start, end = (int(part, 16) for part in span.split("-"))
                    memory.seek(start)
                    found += memory.read(end - start)
        return found

    before = code()
    assert before
    session.apply(MAIN, SUM, PRODUCT)
    session.apply(MAIN, 'String::from("plain")', 'String::from("other")')
    session.apply(MAIN, PRODUCT, "    left * right + 1")
    assert code() != before
    for count in ("1", "2"):
        assert session.cli("undo", count).returncode == 0
    assert code() == before


COUNTING = """    static CALLS: AtomicU64 = AtomicU64::new(1000);
    CALLS.fetch_add(left + right - 22, std::sync::atomic::Ordering::Relaxed)"""


def test_the_statics_of_an_undone_edit_keep_their_values(session: Session) -> None:
    """A counter that came with an edit goes on counting when the edit is made again."""
    count = COUNTING.replace("AtomicU64", "std::sync::atomic::AtomicU64")
    session.apply(MAIN, SUM, count)
    session.daemon.wait_line("the count", lambda line: int(line["private"]) > 1000)
    assert session.cli("undo").returncode == 0
    session.daemon.wait_value("private", "23")
    counted = max(int(line["private"]) for line in session.daemon.app_lines())
    session.apply(MAIN, "left + right - 22", "right + left - 22")
    line = session.daemon.wait_line("the count", lambda line: int(line["private"]) > 23)
    assert int(line["private"]) > counted


def test_a_key_takes_the_last_edit_back(single: Project, tmp_path: Path) -> None:
    """The terminal says what runs again; with nothing left to take back, it says that."""
    os.mkfifo(keyboard := tmp_path / "keyboard")
    terminal = [sys.executable, str(TERMINAL), str(keyboard)]
    with Session(single, options=["--keys"], prefix=terminal) as session:
        session.wait_started()
        session.apply(MAIN, SUM, PRODUCT)
        session.daemon.wait_value("private", "60")
        keyboard.write_text("u")
        session.daemon.wait_value("private", "23")
        session.daemon.wait_text("the program's own code runs again")
        keyboard.write_text("u")
        session.daemon.wait_text("nothing to undo")
        keyboard.write_text("\x03")
        assert session.daemon.wait_exit() == 0
