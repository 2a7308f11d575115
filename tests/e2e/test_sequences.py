"""Edits that follow one another: each stands on the ones before it."""

from __future__ import annotations

from tests.e2e.harness import Session
from tests.e2e.program import assert_continuous

MAIN = "src/main.rs"


def test_later_edits_keep_earlier_ones(session: Session) -> None:
    """After edits of three functions the program shows all three, and not only the last."""
    start = len(session.daemon.app_lines())
    session.apply(MAIN, "    left + right", "    left * right")
    session.apply(MAIN, 'String::from("first")', 'String::from("second")')
    session.apply(MAIN, "    value + value", "    value + value + value")
    line = session.daemon.wait_value("generic", "63")
    assert (line["private"], line["public"]) == ("60", "second")
    assert_continuous(session.daemon.app_lines()[start:])


def test_one_function_many_times(session: Session) -> None:
    """Each edit of the same function takes the place of the one before."""
    start = len(session.daemon.app_lines())
    for number in range(10):
        old = "first" if number == 0 else f"name{number - 1}"
        session.apply(MAIN, f'String::from("{old}")', f'String::from("name{number}")')
        session.daemon.wait_value("public", f"name{number}")
    assert_continuous(session.daemon.app_lines()[start:])


def test_callee_alone_after_caller_and_callee_together(session: Session) -> None:
    """A caller that came with a patch calls the newest version of its callee, not the one it came with."""
    content = session.project.replaced(MAIN, "private_sum(20, 3),", "private_sum(20, 4),")
    together = session.save(MAIN, content.replace("    left + right", "    left * right"))
    assert session.wait_verdict(together).verdict == "applied"
    session.daemon.wait_value("private", "80")
    session.apply(MAIN, "    left * right", "    left * right + 1")
    session.daemon.wait_value("private", "81")


def test_edit_of_a_function_that_an_edit_added(session: Session) -> None:
    """A function that came with a patch can be edited like one of the program's own."""
    session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        '    newcomer()\n}\n\nfn newcomer() -> String {\n    String::from("one")\n}\n',
    )
    session.daemon.wait_value("extra", "one")
    verdict = session.apply(MAIN, 'String::from("one")', 'String::from("two")')
    session.daemon.wait_value("extra", "two")
    assert any(name.endswith("::newcomer") for name in verdict.patched), verdict


def test_static_that_an_edit_added_keeps_its_value(session: Session) -> None:
    """A static that came with a patch is state like any other: the next patch uses the same one."""
    session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        '    format!("a{}", FRESH.fetch_add(1, Ordering::Relaxed))\n}\n\n'
        "static FRESH: AtomicU64 = AtomicU64::new(0);\n",
    )
    first = session.daemon.wait_line("the new counter", lambda line: line["extra"].startswith("a"))
    session.apply(MAIN, 'format!("a{}"', 'format!("b{}"')
    second = session.daemon.wait_line("the next patch's", lambda line: line["extra"].startswith("b"))
    passed = int(second["tick"]) - int(first["tick"])
    assert int(second["extra"][1:]) == int(first["extra"][1:]) + passed


def test_a_type_that_a_static_had_once_is_another_type(session: Session) -> None:
    """Its value of then is there, but another one is in use; without that, the static comes back with it."""
    original = session.project.read(MAIN)
    declared = "static LIMIT: AtomicU64 = AtomicU64::new(100);\n"
    used = "LIMIT.load(Ordering::Relaxed)"
    without = original.replace(declared, "").replace(used, "0")
    narrow = original.replace(
        declared, "static LIMIT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(7);\n"
    )
    for text, value in ((without, "limit:0"), (narrow, "limit:7")):
        assert session.wait_verdict(session.save(MAIN, text)).verdict == "applied"
        session.daemon.wait_value("limit", value)
    verdict = session.wait_verdict(session.save(MAIN, original))
    assert (verdict.verdict, [refusal["reason"] for refusal in verdict.refusals]) == ("refused", ["static_changed"])
    assert session.wait_verdict(session.save(MAIN, without)).verdict == "applied"
    assert session.wait_verdict(session.save(MAIN, original)).verdict == "applied"
    session.daemon.wait_value("limit", "limit:100")


def test_two_files_saved_together_are_one_edit(stateful: Session) -> None:
    """Files that are saved within the quiet time settle together and get one verdict."""
    content = stateful.project.replaced("src/executor.rs", "MARK.store(5,", "MARK.store(8,")
    saved = stateful.edit(MAIN, "    left + right", "    left * right")
    stateful.save("src/executor.rs", content)
    verdict = stateful.wait_verdict(saved)
    assert verdict.verdict == "applied"
    line = stateful.daemon.wait_value("async_mark", "8")
    assert line["private"] == "60"


def test_edit_during_a_build_is_built_next(session: Session) -> None:
    """A save that comes while the compiler runs is not lost: the program ends up with the newest source."""
    first = session.edit(MAIN, "    left + right", "    left * right")
    session.wait_event("edit.settled", after=first.mark)
    second = session.edit(MAIN, "    left * right", "    left * right * 2")
    assert session.wait_verdict(second).verdict == "applied"
    session.daemon.wait_value("private", "120")


def test_edit_after_a_failed_build_during_the_build(session: Session) -> None:
    """A good save that comes while a broken one is being compiled is built afterwards."""
    broken = session.edit(MAIN, "    left + right", "    left +")
    session.wait_event("edit.settled", after=broken.mark)
    good = session.edit(MAIN, "    left +\n", "    left + right + 1\n")
    assert session.wait_verdict(good).verdict == "applied"
    session.daemon.wait_value("private", "24")


def test_every_edit_gets_exactly_one_verdict(session: Session) -> None:
    """Over all that happened in this session, no settled edit has two verdicts, and none is without one."""
    session.apply(MAIN, "    left + right", "    left * right")
    events = session.events()
    settled = [event["edit"] for event in events if event["event"] == "edit.settled"]
    verdicts = [event["edit"] for event in events if event["event"] == "edit.verdict"]
    assert sorted(settled) == sorted(verdicts)
    assert len(set(settled)) == len(settled)
