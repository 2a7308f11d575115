"""Types whose layout an edit changes: refused where a value of the old layout may be alive, applied elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import FindSession
from tests.e2e.harness import Session, Verdict

MAIN = "src/main.rs"


@pytest.fixture
def layouts(shared: FindSession) -> Iterator[Session]:
    """The program `layouts` under `hotpatchd run`, its sources as in the fixture."""
    with shared("layouts").borrow() as session:
        yield session


def rewrite(session: Session, *edits: tuple[str, str], file: str = MAIN) -> Verdict:
    """Replaces texts that are there exactly once, saves, and waits for the verdict."""
    content = session.project.read(file)
    for old, new in edits:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    return session.wait_verdict(session.save(file, content))


def assert_refused(session: Session, verdict: Verdict, type_: str, *said: str) -> None:
    """The verdict names the type and says all this of it, and the program runs on as it was."""
    assert verdict.verdict == "refused", f"{verdict}\n{session.diagnosis()}"
    found = [refusal for refusal in verdict.refusals if refusal["symbol"] == type_]
    assert found, verdict
    assert found[0]["reason"] == "layout", verdict
    assert {refusal["reason"] for refusal in verdict.refusals} <= {"layout", "static_changed"}, verdict
    for text in said:
        assert text in found[0]["detail"], found[0]
    assert session.daemon.wait_line("after the refusal")["extra"] == "plain"


def assert_applied(session: Session, verdict: Verdict) -> None:
    """The verdict is `applied`."""
    assert verdict.verdict == "applied", f"{verdict}\n{session.diagnosis()}"


def test_field_added_to_a_type_in_a_static(layouts: Session) -> None:
    """The refusal names the type, the new field, the static and a function that uses it."""
    verdict = rewrite(
        layouts,
        ("    second: u32,\n", "    second: u32,\n    third: u64,\n"),
        ("Kept { first: 1, second: 2 }", "Kept { first: 1, second: 2, third: 3 }"),
        ("kept.first * 10 + kept.second", "kept.first * 10 + kept.second + kept.third as u32"),
    )
    assert_refused(layouts, verdict, "layouts::Kept", "field third added", "layouts::KEPT", "layouts::kept")


def test_fields_reordered_in_the_source(layouts: Session) -> None:
    """Where the compiler moves the fields, the refusal says from where to where."""
    verdict = rewrite(
        layouts,
        ("    first: u32,\n    second: u32,\n", "    second: u32,\n    first: u32,\n"),
        ("kept.first * 10", "kept.first * 20"),
    )
    assert_refused(layouts, verdict, "layouts::Kept", "field first moved from byte 0 to 4")


def test_fields_reordered_in_the_source_of_a_type_in_a_static(layouts: Session) -> None:
    """Where the compiler puts them where they were, the static keeps its value, though it has another symbol."""
    verdict = rewrite(
        layouts,
        ("    value: T,\n    next: Option<Box<Node<T>>>,\n", "    next: Option<Box<Node<T>>>,\n    value: T,\n"),
        ("node.value + node", "100 + node.value + node"),
    )
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("listed", "107")


def test_widened_field_of_a_generic_type_on_the_heap(layouts: Session) -> None:
    """An instance of a generic type is a type of its own, and what a pointer leads to counts."""
    verdict = rewrite(
        layouts,
        ("    value: T,\n", "    value: (T, T),\n"),
        ("value: 4, next", "value: (4, 4), next"),
        ("value: 3, next", "value: (3, 3), next"),
        ("node.value + node", "node.value.0 + node"),
        ("|next| next.value", "|next| next.value.0"),
    )
    assert_refused(layouts, verdict, "layouts::Node<u32>", "field value: u32 → (u32, u32)", "layouts::LIST")


def test_variant_added_to_an_enum_in_a_thread_local(layouts: Session) -> None:
    """The refusal names the enum and the variant."""
    verdict = rewrite(
        layouts,
        ("    Loud { level: u32 },\n", "    Loud { level: u32 },\n    Grim(u64),\n"),
        ("        Mood::Loud { level } => *level,\n", "        Mood::Loud { level } => *level,\n        _ => 7,\n"),
    )
    assert_refused(layouts, verdict, "layouts::Mood", "variant Grim added", "MOOD")


def test_type_of_a_dependency(layouts: Session) -> None:
    """A type whose fields only another crate knows is named by that crate's path."""
    verdict = rewrite(
        layouts,
        ("    level: u32,\n", "    level: u64,\n"),
        ("Gauge { level }", "Gauge { level: level.into() }"),
        ("        self.level\n", "        self.level as u32 + 1\n"),
        file="part/src/lib.rs",
    )
    assert_refused(layouts, verdict, "part::Gauge", "field level: u32 → u64", "layouts::GAUGE")


def test_type_behind_a_trait_object(layouts: Session) -> None:
    """A value behind a `Box<dyn Debug>` may be anywhere."""
    verdict = rewrite(
        layouts,
        ("    weight: u32,\n", "    weight: u32,\n    color: u64,\n"),
        ("Boxed { weight: 7 }", "Boxed { weight: 7, color: 1 }"),
    )
    assert_refused(layouts, verdict, "layouts::Boxed", "field color added", "dyn core::fmt::Debug")


def test_state_of_a_task_in_flight(layouts: Session) -> None:
    """A task that waits in the old state of an async function ends with the old code; the next one has the new."""
    verdict = rewrite(
        layouts,
        (
            "    thread_turn().await;\n    text.len() as u32",
            "    let more = text.repeat(2);\n    thread_turn().await;\n    (text.len() + more.len()) as u32",
        ),
    )
    assert_applied(layouts, verdict)
    assert verdict.noted("old_code_kept") == ["layouts::waiting"]
    layouts.daemon.wait_value("task", "21")
    verdict = rewrite(layouts, ("(text.len() + more.len()) as u32", "(text.len() + more.len() * 2) as u32"))
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("task", "35")


def test_state_of_a_task_is_taken_back(layouts: Session) -> None:
    """New calls have the old state again; tasks of the undone edit end with its code."""
    keeping = "    let more = text.repeat(2);\n    thread_turn().await;\n    (text.len() + more.len()) as u32"
    assert_applied(layouts, rewrite(layouts, ("    thread_turn().await;\n    text.len() as u32", keeping)))
    layouts.daemon.wait_value("task", "21")
    layouts.cli("undo")
    layouts.daemon.wait_value("task", "7")
    less = "    let more = 1000;\n    thread_turn().await;\n    text.len() as u32 + more"
    verdict = rewrite(layouts, (keeping, less))
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("task", "1007")


def test_type_in_a_function_that_runs_on(layouts: Session) -> None:
    """`main` holds a value and never returns: the refusal names `main`, and its thread."""
    verdict = rewrite(
        layouts,
        ("    count: u64,\n", "    step: u64,\n    count: u64,\n"),
        ("Owned { count: 0 }", "Owned { count: 0, step: 2 }"),
        ("owned.count += 1", "owned.count += owned.step"),
    )
    assert_refused(layouts, verdict, "layouts::Owned", "field step added", "layouts::main is running", "thread main")


def test_type_in_functions_that_return(layouts: Session) -> None:
    """A value that ends with the functions that handle it is no hindrance, and neither is its next change."""
    verdict = rewrite(
        layouts,
        ("    x: u32,\n", "    before: u64,\n    x: u32,\n"),
        ("Passing { x: 8 }", "Passing { before: 1, x: 8 }"),
    )
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("passing", "Passing{before:1,x:8}/16")
    verdict = rewrite(
        layouts,
        ("    before: u64,\n", "    before: u64,\n    other: u64,\n"),
        ("Passing { before: 1, x: 8 }", "Passing { before: 1, x: 9, other: 2 }"),
    )
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("passing", "Passing{before:1,other:2,x:9}/18")


def test_captures_of_a_closure_that_is_used_up(layouts: Session) -> None:
    """A closure that lives in one function may capture something else."""
    verdict = rewrite(
        layouts,
        ("    let base = 9;\n", "    let base = 9;\n    let more = 100;\n"),
        ("|value: &u32| value + base", "|value: &u32| value + base + more"),
    )
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("captured", "221")


def test_new_types(layouts: Session) -> None:
    """Types that the program never had are no change of any layout."""
    verdict = rewrite(
        layouts,
        (
            '    String::from("plain")\n',
            "    struct Fresh(u64);\n    enum Kind {\n        One(Fresh),\n    }\n"
            '    let Kind::One(fresh) = Kind::One(Fresh(1));\n    format!("fresh{}", fresh.0)\n',
        ),
    )
    assert_applied(layouts, verdict)
    layouts.daemon.wait_value("extra", "fresh1")


def test_refused_layout_is_refused_again(layouts: Session) -> None:
    """What counts is what the program runs, not what was compiled last."""
    added = ("    second: u32,\n", "    second: u32,\n    third: u64,\n")
    made = ("Kept { first: 1, second: 2 }", "Kept { first: 1, second: 2, third: 3 }")
    assert_refused(layouts, rewrite(layouts, added, made), "layouts::Kept", "field third added")
    verdict = rewrite(layouts, ('String::from("plain")', 'String::from("other")'))
    assert_refused(layouts, verdict, "layouts::Kept", "field third added")
