"""`hotpatchd run` for Linux programs of other processors and C libraries: edits of a program while it runs."""

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.harness import Session, SharedSession
from tests.e2e.program import Project, assert_continuous
from tests.targets.toolchains import Name, Toolchain

MAIN = "src/main.rs"
TARGETS: tuple[Name, ...] = (
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-musl",
    "x86_64-unknown-linux-musl dynamic",
)


@pytest.fixture(scope="module", params=TARGETS)
def shared_single(
    request: pytest.FixtureRequest,
    toolchain: Callable[[Name], Toolchain],
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SharedSession]:
    """The program `single`, built for one target."""
    assert pytestconfig.cache
    name: Name = request.param
    foreign = toolchain(name)
    target_dir = pytestconfig.cache.mkdir(f"single-{name.replace(' ', '-')}")
    env = {**foreign.environ, "CARGO_TARGET_DIR": str(target_dir)}
    selection = ("--target", name.partition(" ")[0])
    shared = SharedSession(
        lambda: Session(Project("single", tmp_path_factory.mktemp("single") / "single"), selection=selection, env=env)
    )
    yield shared
    shared.end()


@pytest.fixture
def session(shared_single: SharedSession) -> Iterator[Session]:
    """That program under `hotpatchd run`, its sources as in the fixture."""
    with shared_single.borrow() as session:
        yield session


def test_three_edits_keep_the_state(session: Session) -> None:
    """Edits on top of each other all take effect in one process, whose statics and thread-locals go on."""
    start = len(session.daemon.app_lines())
    first = session.apply(MAIN, "    left + right", "    left * right")
    assert first.patched == ("single::private_sum",)
    session.daemon.wait_value("private", "60")
    session.apply(MAIN, 'String::from("first")', 'String::from("second")')
    session.daemon.wait_value("public", "second")
    session.apply(MAIN, "    left * right", "    left * right + 1")
    assert session.daemon.wait_value("private", "61")["public"] == "second"
    assert_continuous(session.daemon.app_lines()[start:])


def test_undo_takes_an_edit_back(session: Session) -> None:
    """The program runs its own code again."""
    session.apply(MAIN, "    left + right", "    left * right")
    session.daemon.wait_value("private", "60")
    assert session.cli("undo").returncode == 0
    session.daemon.wait_value("private", "23")


def test_new_functions_and_statics_come_along(session: Session) -> None:
    """What the program does not have is in the patch, also what it imports or takes from the standard library."""
    verdict = session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        "    fresh()\n}\n\nstatic FRESH: AtomicU64 = AtomicU64::new(40);\n\n"
        'fn fresh() -> String {\n    format!("new{}", FRESH.fetch_add(1, Ordering::Relaxed))\n}\n',
    )
    assert verdict.added == ("single::fresh",)
    session.daemon.wait_value("extra", "new42")


def test_what_the_program_never_used_of_libc_comes_along(session: Session) -> None:
    """From the C library in a dynamic program, from its archive in a static one."""
    session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        '    extern "C" {\n        fn strcasecmp(left: *const u8, right: *const u8) -> i32;\n    }\n'
        '    format!("same{}", unsafe { strcasecmp(b"Ab\\0".as_ptr(), b"aB\\0".as_ptr()) })\n}\n',
    )
    session.daemon.wait_value("extra", "same0")
