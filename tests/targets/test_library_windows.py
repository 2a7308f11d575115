"""`hotpatchd run` for Windows: a program that has the client as a dependency is patched by libraries, under Wine."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.harness import Session, SharedSession
from tests.e2e.program import assert_continuous
from tests.e2e.test_library_tip import MAIN, device
from tests.targets.toolchains import Name, Toolchain

TARGET: Name = "x86_64-pc-windows-gnu"


@pytest.fixture(scope="module")
def shared_device(
    toolchain: Callable[[Name], Toolchain], pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedSession]:
    """The program under Wine, whose server and services run already: those that it starts would outlive the session."""
    assert pytestconfig.cache
    windows = toolchain(TARGET)
    env = {**windows.environ, "CARGO_TARGET_DIR": str(pytestconfig.cache.mkdir("device-windows"))}
    null = subprocess.DEVNULL
    argv = ("wineserver", "-f", "-p")
    with subprocess.Popen(argv, env=windows.environ, stdin=null, stdout=null, stderr=null) as server:
        try:
            subprocess.run(("wine", "cmd", "/c", "exit"), env=windows.environ, stdin=null, stdout=null, check=True)
            shared = SharedSession(
                lambda: Session(device(tmp_path_factory.mktemp("device")), selection=("--target", TARGET), env=env)
            )
            yield shared
            shared.end()
        finally:
            server.terminate()


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
    session.apply(MAIN, "self.side * self.side", "self.side * 4")
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
    assert session.daemon.wait_value("sum", "23")["extra"] == "other"


def test_edit_that_changes_no_code_is_unchanged(session: Session) -> None:
    """A comment is no patch, though objects differ in their line numbers."""
    verdict = session.wait_verdict(session.edit(MAIN, "fn extra()", "// Nothing.\nfn extra()"))
    assert verdict.verdict == "unchanged", verdict


def test_new_function_and_static_come_along(session: Session) -> None:
    """What the program does not have is in the library, and the verdict names the state that is in it alone."""
    verdict = session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        "    fresh()\n}\n\nstatic FRESH: AtomicU64 = AtomicU64::new(40);\n\n"
        'fn fresh() -> String {\n    format!("new{}", FRESH.fetch_add(1, Ordering::Relaxed))\n}\n',
    )
    assert verdict.added == ("device::fresh",)
    assert verdict.noted("own_instance") == ["device::FRESH"]
    line = session.daemon.wait_line("with the static", lambda line: line["extra"].startswith("new"))
    assert int(line["extra"][3:]) >= 40


def test_panic_in_new_code_is_caught(session: Session) -> None:
    """The system unwinds through a library's frames, by the unwind tables in it."""
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


def test_changed_initialiser_keeps_the_value(session: Session) -> None:
    """A static of the program keeps what it holds, and the verdict says so."""
    original = session.project.read(MAIN)
    edited = original.replace("AtomicU64::new(100)", "AtomicU64::new(900)").replace('"limit:{}"', '"bound:{}"')
    verdict = session.wait_verdict(session.save(MAIN, edited))
    assert (verdict.verdict, verdict.noted("initialiser_kept")) == ("applied", ["device::LIMIT"])
    session.daemon.wait_value("limit", "bound:100")


def test_static_of_another_type_is_named(session: Session) -> None:
    """It is another static, also where no sizes tell: the program's keeps its value, and the library has its own."""
    original = session.project.read(MAIN)
    old, new = "Mutex<Vec<u64>> = Mutex::new(Vec::new())", "Mutex<Big> = Mutex::new(Big(Vec::new(), [0; 64]))"
    edited = original.replace(old, new)
    edited = edited.replace("history.push(tick)", "history.0.push(tick)").replace("history.len()", "history.0.len()")
    verdict = session.wait_verdict(session.save(MAIN, edited + "\nstruct Big(Vec<u64>, #[allow(unused)] [u64; 64]);\n"))
    assert (verdict.verdict, verdict.noted("own_instance")) == ("applied", ["device::HISTORY"])
