"""Programs that have the client as a dependency and are patched by libraries which the system's loader loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Session, SharedSession
from tests.e2e.program import PROGRAMS, Project, assert_continuous

MAIN = "src/main.rs"
CLIENT = PROGRAMS.parents[1] / "client"


def device(root: Path) -> Project:
    """A copy of the program `device`, with the client where it is."""
    project = Project("device", root / "device")
    manifest = project.root / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace("../../../client", str(CLIENT)))
    return project


@pytest.fixture(scope="module", params=["dylib"])
def shared_device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSession]:
    """The program under `hotpatchd run`, taking libraries, for all tests of the module."""
    kind = {"HOTPATCHD_KIND": request.param}
    shared = SharedSession(lambda: Session(device(tmp_path_factory.mktemp("device")), env=kind))
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
    assert first.patched == ("device::sum",)
    session.daemon.wait_value("sum", "60")
    session.apply(MAIN, "self.side * self.side", "self.side * 4")
    session.daemon.wait_value("trait", "20")
    session.apply(MAIN, "TICKS.fetch_add(step, Ordering::Relaxed) + step", "TICKS.fetch_add(step, Ordering::SeqCst) + 1")
    line = session.daemon.wait_next_lines(5)
    assert (line["sum"], line["trait"]) == ("60", "20")
    assert_continuous(session.daemon.app_lines()[start:])
