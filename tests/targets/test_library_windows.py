"""`hotpatchd run` for Windows: a program that has the client as a dependency is patched by libraries, under Wine."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import test_library_tip as on_linux
from tests.e2e.harness import Session, SharedSession
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


# These run here with this module's `session`.
test_three_edits_keep_the_state = on_linux.test_three_edits_keep_the_state
test_reverted_edit_brings_the_old_code_back = on_linux.test_reverted_edit_brings_the_old_code_back
test_edit_that_changes_no_code_is_unchanged = on_linux.test_edit_that_changes_no_code_is_unchanged
test_new_static_is_named = on_linux.test_new_static_is_named
test_panic_in_new_code_is_caught = on_linux.test_panic_in_new_code_is_caught
test_code_that_the_program_does_not_have_comes_along = on_linux.test_code_that_the_program_does_not_have_comes_along
test_changed_layout_is_refused = on_linux.test_changed_layout_is_refused
test_static_of_another_type_is_refused = on_linux.test_static_of_another_type_is_refused
test_undo_goes_back_to_the_code_before = on_linux.test_undo_goes_back_to_the_code_before


def test_changed_initialiser_keeps_the_value(session: Session) -> None:
    """A static of the program keeps what it holds, and the verdict says so."""
    original = session.project.read(MAIN)
    edited = original.replace("AtomicU64::new(100)", "AtomicU64::new(900)").replace('"limit:{}"', '"bound:{}"')
    verdict = session.wait_verdict(session.save(MAIN, edited))
    assert (verdict.verdict, verdict.noted("initialiser_kept")) == ("applied", ["device::LIMIT"])
    session.daemon.wait_value("limit", "bound:100")
