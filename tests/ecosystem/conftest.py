"""Projects of the ecosystem; they share a target directory, since they share most of what they are built from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project

ECOSYSTEM = Path(__file__).resolve().parents[2] / "fixtures" / "ecosystem"
PROTOCOLS = ("dioxus", "auto")

Start = Callable[..., Session]


@pytest.fixture(scope="session")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them are built."""
    return tmp_path_factory.mktemp("ecosystem") / "target"


@pytest.fixture
def start(target_dir: Path) -> Start:
    """Starts a daemon on a fresh copy of a project: `start(name, command, *options)`.

    The copy is always in the same place: cargo takes two of the same name that share a target directory for one.
    """

    def start(name: str, command: str, *options: str, **env: str) -> Session:
        root = target_dir.with_name(name)
        shutil.rmtree(root, ignore_errors=True)
        project = Project(ECOSYSTEM / name, root)
        (root / "src" / "main.rs").touch()
        return Session(project, command, options=options, env={"CARGO_TARGET_DIR": str(target_dir), **env})

    return start


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    """By the program's own jump table, or in place with word to its handlers."""
    return str(request.param)
