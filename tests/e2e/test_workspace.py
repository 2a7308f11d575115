"""A workspace of many crates: an edit in any of them reaches the program, together with what depends on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import FindSession
from tests.e2e.harness import Session, Verdict
from tests.e2e.program import assert_continuous

BASE = "main/crates/base/src/lib.rs"
LEFT = "main/crates/left/src/lib.rs"
RIGHT = "main/crates/right/src/lib.rs"
MIDDLE = "main/crates/middle/src/lib.rs"
OUTSIDE = "outside/src/lib.rs"
SHARED = "main/crates/app/src/lib.rs"
TIP = "main/crates/app/src/main.rs"
EXTRA = '    String::from("plain")\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One replacement in one crate, and what must come of it.

    Args:
        kind: what is edited, for reports.
        file: the source file.
        old: text that is there exactly once.
        new: what takes its place.
        key: the word of the program's line that shows the edit.
        value: what `key` shows afterwards.
        patched: regular expression; the whole name of a function in `functions.patched`.
        compiled: the crates that may be compiled again, that of the file first: it, and those above it.
    """

    kind: str
    file: str
    old: str
    new: str
    key: str
    value: str
    patched: str
    compiled: tuple[str, ...]


def edit(kind: str, crate: str, old: str, new: str, shown: str, patched: str, compiled: str) -> Edit:
    """An edit of a crate's `src/lib.rs`; `shown` is `key=value`, `compiled` has a space between names."""
    key, _, value = shown.partition("=")
    return Edit(
        kind=kind,
        file=f"{crate}/src/lib.rs",
        old=old,
        new=new,
        key=key,
        value=value,
        patched=patched,
        compiled=tuple(compiled.split()),
    )


ABOVE_BASE = "base left middle right top app runner"
EDITS = (
    edit(
        "bottom_generic",
        "main/crates/base",
        "    left + right",
        "    left + right + right",
        "generic=11",
        r"base::combine(::<.*>)?",
        ABOVE_BASE,
    ),
    edit(
        "middle_generic",
        "main/crates/middle",
        "base::combine(sum, *value)",
        "base::combine(sum, base::combine(*value, *value))",
        "generic=11",
        r"middle::summed(::<.*>)?::\{+closure.*\}+",
        "middle app runner",
    ),
    edit("inline", "main/crates/base", "    3\n", "    4\n", "shifted=104", r"base::offset", ABOVE_BASE),
    edit("bottom", "main/crates/base", "    10\n", "    2000\n", "diamond=4006002", r"base::plain", ABOVE_BASE),
    edit(
        "side_of_the_diamond",
        "main/crates/left",
        "base::plain() + 1",
        "base::plain() + 5",
        "diamond=180",
        r"left::left",
        "left top app runner",
    ),
    edit(
        "top_of_the_diamond",
        "main/crates/top",
        "left::left() * right::right()",
        "left::left() + right::right()",
        "diamond=23",
        r"top::diamond",
        "top app runner",
    ),
    edit(
        "default_method",
        "main/crates/shapes",
        "self.side() * self.side()",
        "self.side() * 4",
        "area=20",
        r"(<.* as )?shapes::Shape>?::area",
        "shapes app runner",
    ),
    edit(
        "feature",
        "main/crates/featured",
        '    "loud"',
        '    "LOUD"',
        "voice=LOUD",
        r"featured::voice",
        "featured app runner",
    ),
    edit("renamed", "main/crates/origin", "    21", "    22", "alias=22", r"origin::called", "origin app runner"),
    edit("older_version", "main/crates/util", '"one"', '"uno"', "old=uno", r"util::version", "util app runner"),
    edit("newer_version", "main/vendor/util", '"two"', '"due"', "new=due", r"util::version", "util app runner"),
    edit("outside", "outside", "    31", "    32", "outside=32", r"outside::outside", "outside app runner"),
    edit(
        "beside_generated_code",
        "main/crates/generated",
        "{}:1",
        "{}:2",
        "label=label:2",
        r"generated::label",
        "generated app runner",
    ),
    edit(
        "beside_included_files",
        "main/crates/assets",
        ".len()",
        ".len() + 1",
        "bytes=6",
        r"assets::bytes",
        "assets app runner",
    ),
    edit("library_of_the_package", "main/crates/app", "    51", "    52", "shared=52", r"app::shared", "app runner"),
    edit(
        "trait_method",
        "main/crates/app",
        "        self.side\n",
        "        self.side + 1\n",
        "area=36",
        r"<app::Square as shapes::Shape>::side",
        "app runner",
    ),
    Edit(
        kind="program",
        file=TIP,
        old="    61",
        new="    62",
        key="own",
        value="62",
        patched=r"runner::own",
        compiled=("runner",),
    ),
)

STAYING = ("bottom_generic", "inline", "side_of_the_diamond", "default_method", "newer_version", "outside", "program")
"""Edits that do not change what each other shows."""


def compiled_for(session: Session, verdict: Verdict) -> list[str]:
    """The crates that an edit had compiled, in order; two versions of one crate have one name here."""
    finished = session.wait_event("rebuild.finished", lambda event: event["edit"] == verdict.edit)
    return [crate.partition(" ")[0] for crate in finished["crates"]]


def with_parameter(session: Session) -> str:
    """The crate at the bottom with a parameter more at a function that two crates call."""
    changed = session.project.replaced(BASE, "pub fn plain() -> u64 {", "pub fn plain(more: u64) -> u64 {")
    return changed.replace("    10\n", "    10 + more\n")


def reversed_edit(session: Session, made: Edit) -> Verdict:
    """Takes an edit back and waits until the program shows it."""
    return session.apply(made.file, made.new, made.old)


@pytest.mark.parametrize("made", [pytest.param(made, id=made.kind) for made in EDITS])
def test_edit_in_any_crate_applies_and_reverts(made: Edit, workspace: Session) -> None:
    """The program shows the edit and then its reverse; nothing but the crate and those above it is compiled."""
    before = workspace.daemon.wait_line("before the edit")
    start = len(workspace.daemon.app_lines()) - 1

    verdict = workspace.apply(made.file, made.old, made.new)
    line = workspace.daemon.wait_value(made.key, made.value)
    assert any(re.fullmatch(made.patched, name) for name in verdict.patched), verdict
    compiled = compiled_for(workspace, verdict)
    assert compiled[0] == made.compiled[0]
    assert set(compiled) <= set(made.compiled)
    unaffected = {"old", "new", "outside", "shared", "own", "voice", "alias"} - {made.key}
    assert {key: line[key] for key in unaffected} == {key: before[key] for key in unaffected}

    reversed_edit(workspace, made)
    workspace.daemon.wait_value(made.key, before[made.key])
    assert_continuous(workspace.daemon.app_lines()[start:])


def test_new_function_at_the_bottom_used_by_the_program(workspace: Session) -> None:
    """A public function and its first use, saved together, are one edit, which applies."""
    saved, _ = workspace.save_together(
        {
            BASE: workspace.project.read(BASE) + "\npub fn fresh() -> u64 {\n    71\n}\n",
            TIP: workspace.project.replaced(TIP, EXTRA, "    base::fresh().to_string()\n"),
        }
    )
    verdict = workspace.wait_verdict(saved)
    assert verdict.verdict == "applied", verdict
    assert verdict.added == ("base::fresh",)
    workspace.daemon.wait_value("extra", "71")


def test_new_function_before_its_first_use(workspace: Session) -> None:
    """A new function that nothing calls yet changes nothing; it comes along with its first use."""
    defined = workspace.save(BASE, workspace.project.read(BASE) + "\npub fn awaited() -> u64 {\n    72\n}\n")
    assert workspace.wait_verdict(defined).verdict == "unchanged"
    verdict = workspace.apply(TIP, EXTRA, "    base::awaited().to_string()\n")
    assert verdict.added == ("base::awaited",)
    workspace.daemon.wait_value("extra", "72")


def test_first_use_before_the_new_function(workspace: Session) -> None:
    """The use alone does not compile, and the program goes on; when the function is there too, both apply."""
    used = workspace.edit(TIP, EXTRA, "    base::missed().to_string()\n")
    assert workspace.wait_verdict(used).verdict == "failed"
    assert workspace.daemon.wait_line("after the failure")["extra"] == "plain"
    defined = workspace.save(BASE, workspace.project.read(BASE) + "\npub fn missed() -> u64 {\n    73\n}\n")
    assert workspace.wait_verdict(defined).verdict == "applied"
    workspace.daemon.wait_value("extra", "73")


def test_new_generic_function_through_three_crates(workspace: Session) -> None:
    """A new generic function, used by another one in the crate above, is instantiated where the program calls that."""
    saved, *_ = workspace.save_together(
        {
            BASE: workspace.project.read(BASE)
            + "\npub fn thrice<T: Copy + Add<Output = T>>(value: T) -> T {\n    value + value + value\n}\n",
            MIDDLE: workspace.project.read(MIDDLE) + "\npub fn sixfold<T: Copy + Add<Output = T>>(value: T) -> T {\n"
            "    base::combine(base::thrice(value), base::thrice(value))\n}\n",
            TIP: workspace.project.replaced(TIP, EXTRA, "    middle::sixfold(7_u16).to_string()\n"),
        }
    )
    assert workspace.wait_verdict(saved).verdict == "applied"
    workspace.daemon.wait_value("extra", "42")
    workspace.apply(BASE, "    value + value + value", "    value + value")
    workspace.daemon.wait_value("extra", "28")


def test_generic_instance_that_moves_to_another_crate(workspace: Session) -> None:
    """A crate below begins to use the same instance as the program, which then shares it, and ends to: all stay new."""
    start = len(workspace.daemon.app_lines())
    workspace.apply(LEFT, "base::plain() + 1", "base::combine(base::plain(), 1)")
    workspace.apply(BASE, "    left + right", "    left + right + right")
    line = workspace.daemon.wait_value("generic", "11")
    assert line["diamond"] == str(12 * 12)
    workspace.apply(LEFT, "base::combine(base::plain(), 1)", "base::plain() + 1")
    line = workspace.daemon.wait_value("diamond", "132")
    assert line["generic"] == "11"
    workspace.apply(BASE, "    left + right + right", "    left + right")
    workspace.daemon.wait_value("generic", "6")
    assert_continuous(workspace.daemon.app_lines()[start:])


def test_constant_of_another_crate(workspace: Session) -> None:
    """A constant is part of the code that uses it, in whatever crate that is."""
    saved, _ = workspace.save_together(
        {
            BASE: workspace.project.read(BASE) + "\npub const STEP: u64 = 5;\n",
            LEFT: workspace.project.replaced(LEFT, "base::plain() + 1", "base::plain() + base::STEP"),
        }
    )
    assert workspace.wait_verdict(saved).verdict == "applied"
    workspace.daemon.wait_value("diamond", str(15 * 12))
    verdict = workspace.apply(BASE, "STEP: u64 = 5", "STEP: u64 = 6")
    assert verdict.patched == ("left::left",)
    workspace.daemon.wait_value("diamond", str(16 * 12))


def test_edits_in_several_crates_are_one_patch(workspace: Session) -> None:
    """Files of three crates that are saved together settle as one edit, with one patch and one verdict."""
    saved, *_ = workspace.save_together(
        {
            RIGHT: workspace.project.replaced(RIGHT, "base::plain() + 2", "base::plain() + 10"),
            OUTSIDE: workspace.project.replaced(OUTSIDE, "    31", "    32"),
            TIP: workspace.project.replaced(TIP, "    61", "    62"),
        }
    )
    verdict = workspace.wait_verdict(saved)
    assert verdict.patched == ("outside::outside", "right::right", "runner::own")
    line = workspace.daemon.wait_value("own", "62")
    assert (line["diamond"], line["outside"]) == (str(11 * 20), "32")
    workspace.wait_quiet()
    assert workspace.verdicts(after=saved.mark) == ["applied"]
    sent = [event for event in workspace.events()[saved.mark :] if event["event"] == "patch.sent"]
    assert len(sent) == 1


def test_changed_signature_and_all_its_callers(workspace: Session) -> None:
    """A function that takes an argument more, and its callers in two other crates, saved together, apply."""
    saved, *_ = workspace.save_together(
        {
            BASE: workspace.project.replaced(
                BASE, "pub fn plain() -> u64 {", "pub fn plain(more: u64) -> u64 {"
            ).replace("    10\n", "    10 + more\n"),
            LEFT: workspace.project.replaced(LEFT, "base::plain()", "base::plain(7)"),
            RIGHT: workspace.project.replaced(RIGHT, "base::plain()", "base::plain(8)"),
        }
    )
    assert workspace.wait_verdict(saved).verdict == "applied"
    workspace.daemon.wait_value("diamond", str(18 * 20))


def test_callers_of_a_changed_signature_one_after_the_other(workspace: Session) -> None:
    """As long as one crate does not compile nothing applies; the last save brings everything since the first."""
    saved = workspace.save(BASE, with_parameter(workspace))
    assert workspace.wait_verdict(saved).verdict == "failed"
    saved = workspace.edit(LEFT, "base::plain()", "base::plain(7)")
    assert workspace.wait_verdict(saved).verdict == "failed"
    assert workspace.daemon.wait_line("after the failures")["diamond"] == "132"
    workspace.apply(RIGHT, "base::plain()", "base::plain(8)")
    workspace.daemon.wait_value("diamond", str(18 * 20))


def test_edit_of_a_program_that_failed_to_compile_with_another_crate(workspace: Session) -> None:
    """An edit that applies after a failed one in another crate does not bring that one's code."""
    broken = workspace.edit(OUTSIDE, "    31", "    missing()")
    assert workspace.wait_verdict(broken).verdict == "failed"
    mended, _ = workspace.save_together(
        {
            OUTSIDE: workspace.project.replaced(OUTSIDE, "    missing()", "    31"),
            TIP: workspace.project.replaced(TIP, "    61", "    62"),
        }
    )
    verdict = workspace.wait_verdict(mended)
    assert verdict.verdict == "applied"
    assert verdict.patched == ("runner::own",)
    workspace.daemon.wait_value("own", "62")


def test_edits_of_all_crates_stay_together(workspace: Session) -> None:
    """Later edits in some crates leave what earlier ones did in others as it is, and state goes on through all."""
    start = len(workspace.daemon.app_lines())
    made = [one for one in EDITS if one.kind in STAYING]
    for one in made:
        workspace.apply(one.file, one.old, one.new)
    workspace.daemon.wait_line("all edits", lambda line: all(line[one.key] == one.value for one in made))
    assert_continuous(workspace.daemon.app_lines()[start:])


def test_state_in_a_library_goes_on_where_its_user_is_replaced(workspace: Session) -> None:
    """The static of a crate at the bottom and the thread-local of another are the program's also for new code."""
    start = len(workspace.daemon.app_lines())
    workspace.apply(BASE, "CALLS.fetch_add(1,", "CALLS.fetch_add(100,")
    workspace.apply(LEFT, "    ROUNDS.get()\n", "    ROUNDS.get() + 0\n")
    first = workspace.daemon.wait_line("after both")
    second = workspace.daemon.wait_line("and the next one")
    assert int(second["calls"]) - int(first["calls"]) == 200 * (int(second["tick"]) - int(first["tick"]))
    assert_continuous(workspace.daemon.app_lines()[start:])


@pytest.mark.parametrize("file", ["main/crates/unused/src/lib.rs", "main/crates/fixtures/src/lib.rs"])
def test_crate_that_is_not_part_of_the_program(file: str, workspace: Session) -> None:
    """A member that the program does not depend on is nobody's edit: no verdict at all."""
    mark = len(workspace.events())
    workspace.save(file, workspace.project.read(file) + "\npub fn more() {}\n")
    workspace.wait_quiet()
    workspace.project.restore()
    workspace.wait_quiet()
    assert workspace.verdicts(after=mark) == []


def test_example_with_a_dev_dependency(shared: FindSession) -> None:
    """An example's own crate, its dev-dependency, and what it shares with the binary, are all edited in place."""
    with shared("workspace", ("-p", "app", "--example", "sample"), "main").borrow() as session:
        start = len(session.daemon.app_lines())
        session.apply("main/crates/fixtures/src/lib.rs", "    41", "    42")
        session.daemon.wait_value("sample", "42")
        session.apply("main/crates/app/examples/sample.rs", "app::shared(),", "app::shared() + 1,")
        session.apply(SHARED, "    51", "    61")
        session.daemon.wait_value("shared", "62")
        assert_continuous(session.daemon.app_lines()[start:])


@pytest.mark.parametrize("made", [pytest.param(made, id=made.kind) for made in EDITS])
def test_edit_in_any_crate_of_an_optimised_program(made: Edit, shared: FindSession) -> None:
    """Functions that were inlined across crates show the edit and its reverse, too."""
    with shared("workspace", ("-p", "app", "--release"), "main").borrow() as session:
        before = session.daemon.wait_line("before the edit")
        start = len(session.daemon.app_lines()) - 1
        session.apply(made.file, made.old, made.new)
        session.daemon.wait_value(made.key, made.value)
        reversed_edit(session, made)
        session.daemon.wait_value(made.key, before[made.key])
        assert_continuous(session.daemon.app_lines()[start:])
