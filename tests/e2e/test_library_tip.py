"""Programs that have the client as a dependency and are patched by libraries which the system's loader loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Session, SharedSession
from tests.e2e.program import PROGRAMS, Project, assert_continuous

MAIN = "src/main.rs"
CLIENT = PROGRAMS.parents[1] / "client"


def device(root: Path) -> Project:
    """A copy of the program `device`, with the client where it is."""
    source = shutil.copytree(PROGRAMS / "device", root / "source")
    manifest = source / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace("../../../client", str(CLIENT)))
    # Cargo tells copies apart by their age alone, where they share a target directory.
    (source / MAIN).touch()
    return Project(source, root / "device")


def start_device(config: pytest.Config, root: Path, kind: str) -> Session:
    """The program under `hotpatchd run`, its dependencies built in a cache that outlives the run.

    Args:
        config: pytest's.
        root: where its sources go.
        kind: what its client takes: `dylib`, or `calls` for one that does not write into the program's code.
    """
    assert config.cache
    env = {"HOTPATCHD_KIND": kind, "CARGO_TARGET_DIR": str(config.cache.mkdir(f"device-{kind}"))}
    return Session(device(root), env=env)


@pytest.fixture(scope="module")
def shared_device(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSession]:
    """The program with a client that writes into its code, for all tests that ask for it."""
    shared = SharedSession(lambda: start_device(pytestconfig, tmp_path_factory.mktemp("device"), "dylib"))
    yield shared
    shared.end()


@pytest.fixture
def session(shared_device: SharedSession) -> Iterator[Session]:
    """That program, its sources as in the fixture."""
    with shared_device.borrow() as session:
        yield session


def test_three_edits_keep_the_state(session: Session) -> None:
    """Edits on top of each other all take effect in one process, whose statics and thread-locals go on."""
    start = len(session.daemon.app_lines())
    first = session.apply(MAIN, "    left + right", "    left * right")
    assert (first.patched, first.added, first.notes) == (("device::sum",), (), ())
    session.daemon.wait_value("sum", "60")
    second = session.apply(MAIN, "self.side * self.side", "self.side * 4")
    assert second.patched == ("<device::Square as device::Shape>::area",)
    session.daemon.wait_value("trait", "20")
    session.apply(MAIN, "Ordering::Relaxed) + step", "Ordering::SeqCst) + 1")
    line = session.daemon.wait_next_lines(5)
    assert (line["sum"], line["trait"]) == ("60", "20")
    assert_continuous(session.daemon.app_lines()[start:])


def test_reverted_edit_brings_the_old_code_back(session: Session) -> None:
    """Going back is an edit: what another edit changed stays in force."""
    session.apply(MAIN, 'String::from("plain")', 'String::from("other")')
    session.apply(MAIN, "    left + right", "    left - right")
    session.apply(MAIN, "    left - right", "    left + right")
    line = session.daemon.wait_value("sum", "23")
    assert line["extra"] == "other"


def test_edit_that_changes_no_code_is_unchanged(session: Session) -> None:
    """A comment is no patch, also while patches are in force."""
    session.apply(MAIN, "    left + right", "    left * right")
    verdict = session.wait_verdict(session.edit(MAIN, "fn extra()", "// Nothing.\nfn extra()"))
    assert verdict.verdict == "unchanged"
    assert session.daemon.wait_next_lines(2)["sum"] == "60"


def test_thread_local_is_reached_by_the_programs_accessor(session: Session) -> None:
    """Edited code that uses a thread-local goes on with its value."""
    before = int(session.daemon.wait_next_lines(1)["tls_const"])
    session.apply(MAIN, "SEEN.set(SEEN.get() + 1);", "SEEN.with(|seen| seen.set(seen.get() + 1000));")
    line = session.daemon.wait_line("with the edit", lambda line: int(line["tls_const"]) >= before + 1000)
    assert 0 < int(line["tls_const"]) % 1000 - before % 1000 < 900


def test_statics_of_the_program_are_shared(session: Session) -> None:
    """New code reads and writes the program's own instances, and an edited initialiser is named."""
    original = session.project.read(MAIN)
    edited = original.replace("AtomicU64::new(100)", "AtomicU64::new(900)").replace(
        'format!("limit:{}", LIMIT.load', 'format!("raised:{}", LIMIT.fetch_add(1, Ordering::Relaxed) - LIMIT.load'
    )
    edited = edited.replace("- LIMIT.load(Ordering::Relaxed)", "- 50")
    verdict = session.wait_verdict(session.save(MAIN, edited))
    assert verdict.verdict == "applied", verdict
    assert verdict.noted("initialiser_kept") == ["device::LIMIT"]
    line = session.daemon.wait_line("with the edit", lambda line: line["limit"].startswith("raised:"))
    assert 50 <= int(line["limit"].partition(":")[2]) < 150


def test_new_static_is_named(session: Session) -> None:
    """State that a library brings belongs to that library alone, and the verdict says so."""
    verdict = session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        "    fresh()\n}\n\nstatic FRESH: AtomicU64 = AtomicU64::new(40);\n\n"
        'fn fresh() -> String {\n    format!("new{}", FRESH.fetch_add(1, Ordering::Relaxed))\n}\n',
    )
    assert verdict.added == ("device::fresh",)
    assert verdict.noted("own_instance") == ["device::FRESH"]
    line = session.daemon.wait_line("with the static", lambda line: line["extra"].startswith("new"))
    later = session.daemon.wait_next_lines(3)
    assert 40 <= int(line["extra"][3:]) < int(later["extra"][3:])


def test_panic_in_new_code_is_caught(session: Session) -> None:
    """The system unwinds through a library's frames."""
    session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        "    let caught = std::panic::catch_unwind(|| sum(u64::MAX, 1));\n"
        '    format!("caught:{}", caught.is_err())\n}\n',
    )
    session.daemon.wait_value("extra", "caught:true")


def test_code_that_the_program_does_not_have_comes_along(session: Session) -> None:
    """Functions of the standard library that nothing used before are taken from its archive."""
    session.apply(
        MAIN,
        '    String::from("plain")',
        "    let words: std::collections::BTreeMap<_, i32> = \"b a\".split(' ').zip(1..).collect();\n"
        '    format!("{}{}", words["a"], f64::from(words["b"]).to_string().len())',
    )
    session.daemon.wait_value("extra", "21")


def test_changed_layout_is_refused(session: Session) -> None:
    """A value of the old layout is on the heap of the program, which goes on with its code."""
    original = session.project.read(MAIN)
    edited = original.replace("    side: u64,\n", "    side: u64,\n    turned: u64,\n")
    edited = edited.replace("Square { side: 5 }", "Square { side: 5, turned: 1 }")
    edited = edited.replace("self.side * self.side", "self.side * self.turned")
    verdict = session.wait_verdict(session.save(MAIN, edited))
    refused = [(refusal["symbol"], refusal["reason"]) for refusal in verdict.refusals]
    assert (verdict.verdict, refused) == ("refused", [("device::Square", "layout")])
    assert session.daemon.wait_next_lines(2)["trait"] == "25"


def test_static_of_another_type_is_refused(session: Session) -> None:
    """It is another static, which would begin anew in place of the program's."""
    original = session.project.read(MAIN)
    old, new = "Mutex<Vec<u64>> = Mutex::new(Vec::new())", "Mutex<Big> = Mutex::new(Big(Vec::new(), [0; 64]))"
    edited = original.replace(old, new)
    edited = edited.replace("history.push(tick)", "history.0.push(tick)").replace("history.len()", "history.0.len()")
    verdict = session.wait_verdict(session.save(MAIN, edited + "\nstruct Big(Vec<u64>, #[allow(unused)] [u64; 64]);\n"))
    refused = [(refusal["symbol"], refusal["reason"]) for refusal in verdict.refusals]
    assert (verdict.verdict, refused) == ("refused", [("device::HISTORY", "static_changed")])


def test_undo_goes_back_to_the_code_before(session: Session) -> None:
    """`hotpatchd undo` takes the newest library back, and the next edit is made for what runs then."""
    session.apply(MAIN, "    left + right", "    left * right")
    session.apply(MAIN, 'String::from("plain")', 'String::from("other")')
    session.daemon.wait_value("extra", "other")
    result = session.cli("undo")
    assert result.returncode == 0, result.stderr
    assert session.daemon.wait_value("extra", "plain")["sum"] == "60"


def test_hot_calls_lead_to_new_code(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Where no code is written, the calls that go through the client reach what is edited below them, also by undo."""
    with start_device(pytestconfig, tmp_path, "calls").wait_started() as session:
        assert session.apply(MAIN, "    left + right", "    left * right").patched == ("device::sum",)
        session.daemon.wait_value("sum", "60")
        session.apply(MAIN, 'String::from("plain")', 'String::from("other")')
        assert session.daemon.wait_value("extra", "other")["sum"] == "60"
        assert session.cli("undo").returncode == 0
        assert session.daemon.wait_value("extra", "plain")["sum"] == "60"
        assert_continuous(session.daemon.app_lines())


def test_edit_outside_hot_calls_says_so(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """An edit of what no hot call leads to is noted by name."""
    with start_device(pytestconfig, tmp_path, "calls").wait_started() as session:
        verdict = session.apply(MAIN, "from_secs(600)", "from_secs(900)")
        assert verdict.noted("not_hot") == ["device::main"]
