"""Fixtures of the end-to-end tests: fresh projects, and sessions that the tests of a module share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Session, SharedSession
from tests.e2e.program import Project

FindSession = Callable[..., SharedSession]


@pytest.fixture
def single(tmp_path: Path) -> Project:
    """A fresh copy of the program `single`."""
    return Project("single", tmp_path / "single")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FindSession]:
    """Finds or starts the module's session of a program: `shared(name, cargo's selection, directory)`."""
    sessions: dict[tuple[str, tuple[str, ...]], SharedSession] = {}

    def find(name: str, selection: tuple[str, ...] = (), directory: str = "") -> SharedSession:
        def start() -> Session:
            project = Project(name, tmp_path_factory.mktemp(name) / name)
            return Session(project, selection=selection, directory=directory)

        return sessions.setdefault((name, selection), SharedSession(start))

    yield find
    for session in sessions.values():
        session.end()


@pytest.fixture
def session(shared: FindSession) -> Iterator[Session]:
    """The program `single` under `hotpatchd run`, its sources as in the fixture."""
    with shared("single").borrow() as session:
        yield session


@pytest.fixture
def stateful(shared: FindSession) -> Iterator[Session]:
    """The program `stateful` under `hotpatchd run`, its sources as in the fixture."""
    with shared("stateful").borrow() as session:
        yield session


@pytest.fixture
def workspace(shared: FindSession) -> Iterator[Session]:
    """The program `runner` of the workspace under `hotpatchd run`, its sources as in the fixture."""
    with shared("workspace", directory="main").borrow() as session:
        yield session
