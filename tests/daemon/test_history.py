"""What is remembered of edits: texts, verdicts, patches, and no more than there is room for."""

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotpatchd.core.client import Anchor, Detour, DylibPatch
from hotpatchd.core.errors import UsageError
from hotpatchd.core.events import (
    EditSettled,
    EditsUndone,
    EditVerdict,
    Functions,
    PatchSent,
    ProgramPanicked,
    RebuildFailed,
    RebuildFinished,
    Verdict,
)
from hotpatchd.daemon import history as module
from hotpatchd.daemon.history import KEPT_EDITS, LARGEST_TEXT, MOST_TEXTS, History
from hotpatchd.objfile.symbols import read_symbols
from tests.core.fakes import session


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A history of a workspace in which nothing happened yet."""
    return History(tmp_path, tmp_path / "patches")


def settle(history: History, edit: int, *files: Path) -> None:
    """These files settled as an edit."""
    names = tuple(map(str, files))
    history.take(EditSettled(edit=edit, files=names, classes=dict.fromkeys(names, "code")))


def write(file: Path, content: str | bytes) -> Path:
    """A file with this content."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def show(history: History, edit: int) -> dict[str, Any]:
    """Everything about an edit."""
    return asyncio.run(history.show(edit))


def test_an_edit_without_a_verdict_is_listed(history: History, tmp_path: Path) -> None:
    """It has its number and its files; what is not known yet is null."""
    settle(history, 1, tmp_path / "a.rs")
    (row,) = history.rows()
    assert (row["edit"], row["files"], row["verdict"], row["functions"]) == (1, (str(tmp_path / "a.rs"),), None, None)


def test_a_row_has_the_verdict_and_the_largest_patch(history: History, tmp_path: Path) -> None:
    """Two clients got patches; one that came later, after the verdict, does not count."""
    settle(history, 1, tmp_path / "a.rs")
    for client, size in ((1, 10), (2, 30)):
        history.take(PatchSent(edit=1, client=client, kind="image", bytes=size))
    history.take(EditVerdict(edit=1, verdict=Verdict(verdict="applied", functions=Functions(patched=("f",)))))
    history.take(PatchSent(edit=1, client=3, kind="image", bytes=99))
    (row,) = history.rows()
    assert (row["verdict"], row["functions"]["patched"], row["bytes"]) == ("applied", ("f",), 30)


def test_undone_edits_are_marked(history: History, tmp_path: Path) -> None:
    """The others are not."""
    for edit in (1, 2, 3):
        settle(history, edit, tmp_path / "a.rs")
    history.take(EditsUndone(edits=(3, 2), edit=1))
    assert [row["undone"] for row in history.rows()] == [False, True, True]


def test_panics_are_counted_with_their_edit(history: History, tmp_path: Path) -> None:
    """Those of an edit that is not kept any more are nobody's."""
    for edit in (1, 2):
        settle(history, edit, tmp_path / "a.rs")
    told = ProgramPanicked(pid=7, edit=2, function="f", file=None, line=None, thread="main", count=1, frames=())
    for panicked in (told, replace(told, edit=9), replace(told, count=3)):
        history.take(panicked)
    assert [row["panics"] for row in history.rows()] == [0, 4]


def test_each_diff_is_against_the_edit_before(history: History, tmp_path: Path) -> None:
    """The first is against the source that the program was built from."""
    file = tmp_path / "a.rs"
    history.know({str(file): b"one\nkept\n"})
    settle(history, 1, write(file, "two\nkept\n"))
    settle(history, 2, write(file, "three\nkept\n"))
    head = "--- a/a.rs\n+++ b/a.rs\n@@ -1,2 +1,2 @@\n"
    assert show(history, 1)["diff"] == f"{head}-one\n+two\n kept\n"
    assert show(history, 2)["diff"] == f"{head}-two\n+three\n kept\n"


def test_files_that_come_and_go_are_all_added_and_all_removed(history: History, tmp_path: Path) -> None:
    """A last line without an end is marked as other tools mark it."""
    file = write(tmp_path / "new.rs", "fn f() {}")
    settle(history, 1, file)
    file.unlink()
    settle(history, 2, file)
    end = "\\ No newline at end of file\n"
    assert show(history, 1)["diff"].endswith(f"@@ -0,0 +1 @@\n+fn f() {{}}\n{end}")
    assert show(history, 2)["diff"].endswith(f"@@ -1 +0,0 @@\n-fn f() {{}}\n{end}")


def test_a_file_that_a_build_reads_for_the_first_time_is_part_of_its_edit(history: History, tmp_path: Path) -> None:
    """Whoever adds a module edits the file that names it; the next edit of the module is against its first text."""
    module_file = write(tmp_path / "b.rs", "fn f() {}\n")
    settle(history, 1, write(tmp_path / "a.rs", "mod b;\n"))
    history.include(1, [str(module_file), str(tmp_path / "b" / "mod.rs"), str(tmp_path / "a.rs")])
    assert history.rows()[0]["files"] == (str(tmp_path / "a.rs"), str(module_file))
    assert show(history, 1)["diff"].endswith("+++ b/b.rs\n@@ -0,0 +1 @@\n+fn f() {}\n")
    settle(history, 2, write(module_file, "fn g() {}\n"))
    assert show(history, 2)["diff"].endswith("@@ -1 +1 @@\n-fn f() {}\n+fn g() {}\n")


def test_an_edit_that_did_not_compile_has_what_rustc_said(history: History, tmp_path: Path) -> None:
    """Of others, that is not kept."""
    settle(history, 1, tmp_path / "a.rs")
    history.take(RebuildFailed(edit=1, crates=("a",), diagnostics=("error: no",)))
    settle(history, 2, tmp_path / "a.rs")
    history.take(RebuildFinished(edit=2, crates=("a",), diagnostics=("warning: yes",)))
    assert [show(history, edit)["diagnostics"] for edit in (1, 2)] == [("error: no",), ()]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.rs", b"\xff\xfe", "a.rs: it is not text\n"),
        ("a.rs", b"x" * (LARGEST_TEXT + 1), "a.rs: its text is not kept\n"),
        ("Cargo.toml", b"[package]", "Cargo.toml: its text is not kept\n"),
    ],
    ids=["binary", "large", "unknown before"],
)
def test_a_file_without_a_diff_is_named(history: History, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """No lines are made up for it."""
    settle(history, 1, write(tmp_path / name, content))
    assert show(history, 1)["diff"] == said


def test_an_edit_of_very_many_files_is_kept_in_part(history: History, tmp_path: Path) -> None:
    """The others are named; what they had before counts as unknown afterwards."""
    files = [write(tmp_path / f"{number:03}.rs", "new\n") for number in range(MOST_TEXTS + 1)]
    settle(history, 1, *files)
    settle(history, 2, write(files[-1], "newer\n"))
    assert show(history, 1)["diff"].count("+new\n") == MOST_TEXTS
    assert show(history, 2)["diff"] == f"{files[-1].name}: its text is not kept\n"


def test_the_oldest_edits_are_forgotten(history: History, tmp_path: Path) -> None:
    """Asking for one says where those that are left are listed."""
    for edit in range(1, KEPT_EDITS + 3):
        settle(history, edit, tmp_path / "a.rs")
    assert [row["edit"] for row in history.rows()] == list(range(3, KEPT_EDITS + 3))
    with pytest.raises(UsageError, match="hotpatchd log"):
        show(history, 2)


def test_the_oldest_texts_go_first(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that do not shrink fill the room; the edit stays in the list, and `show` says what is not there."""
    monkeypatch.setattr(module, "KEPT_TEXT", 10_000)
    for edit in (1, 2, 3):
        settle(history, edit, write(tmp_path / f"{edit}.rs", os.urandom(2000).hex()))
    assert len(history.rows()) == 3
    assert show(history, 1)["missing"] == []
    settle(history, 4, write(tmp_path / "4.rs", os.urandom(4000).hex()))
    assert show(history, 1)["missing"] == ["the text of its files, of which newer edits have too much"]
    assert show(history, 4)["diff"] != ""


def compile_answer(directory: Path, name: str, answer: int) -> tuple[Path, int]:
    """A shared library whose function `answer` returns a number, and the function's address."""
    source, library = directory / f"{name}.c", directory / f"{name}.so"
    source.write_text(f"int answer(void) {{ return {answer}; }}\n")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    [(addr, _)] = read_symbols(library).functions("answer")
    return library, addr


@pytest.fixture
def patched(history: History, tmp_path: Path) -> Path:
    """Edit 1 replaced the function of a program by that of a library, which is returned."""
    program, before = compile_answer(tmp_path, "program", 17)
    library, after = compile_answer(tmp_path, "library", 34)
    patch = DylibPatch(
        patch="p1",
        edit=1,
        build_id="b1",
        size=1,
        file_name=library.name,
        anchor=Anchor(symbol="answer", addr=after),
        jumps=(Detour(from_addr=before, to_addr=after, size=6),),
    )
    settle(history, 1, tmp_path / "a.rs")
    history.take(PatchSent(edit=1, client=1, kind="dylib", bytes=1))
    history.sent(session(1), patch, library, {before: "answer"}, program)
    return library


def test_the_code_of_a_function_is_shown_before_and_after(history: History, patched: Path) -> None:
    """The first is found in the program, the second in what the linker wrote."""
    shown = show(history, 1)
    (code,) = shown["code"]
    assert code["name"] == "answer"
    assert any("$0x11," in line for line in code["before"])
    assert any("$0x22," in line for line in code["after"])
    assert "answer" in [symbol["name"] for symbol in shown["patches"][0]["symbols"]]
    assert shown["missing"] == []


def test_without_objdump_the_rest_is_shown(
    history: History, patched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it comes from is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = show(history, 1)
    assert (shown["code"], len(shown["patches"])) == ([], 1)
    assert "install binutils" in shown["missing"][0]


def test_a_patch_that_another_took_the_place_of_is_not_shown(history: History, patched: Path, tmp_path: Path) -> None:
    """The file has the same name, and is not the one that the edit led to."""
    compile_answer(tmp_path, patched.stem, 51)
    shown = show(history, 1)
    assert (shown["code"], shown["patches"]) == ([], [])
    assert shown["missing"] == [f"{patched} is not there any more"]


def test_a_new_build_has_none_of_the_earlier_code(history: History, patched: Path) -> None:
    """The program's file is another one by then."""
    history.know({})
    shown = show(history, 1)
    assert shown["code"] == []
    assert "earlier build" in shown["missing"][0]
