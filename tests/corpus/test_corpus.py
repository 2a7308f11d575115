"""Each edit of the corpus has the one outcome that is allowed, and so has its reverse."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.corpus.__main__ import README, readme
from tests.corpus.cases import BUILDS, Case, read_cases
from tests.corpus.program import CorpusSession, write_program
from tests.e2e.harness import SharedSession
from tests.e2e.program import Project

CASES = read_cases()
DEPENDENCIES = {
    "crates": {"ctor": "0.4", "inventory": "0.3", "lazy_static": "1", "linkme": "0.3", "once_cell": "1"},
    "first_uses": {"regex": "1", "serde_json": "1"},
    "linking": {},
    "statics": {},
}
"""Kinds that are a program of their own, with the crates that it needs: they are many, or nothing else in the program
may use what they use for the first time."""

WANTED = os.environ.get("HOTPATCHD_CORPUS_BUILDS", "")
"""The builds to run; where none are named, 0, and others for some kinds of cases."""

IN_ANY_CASE = {"v0": {"signatures"}, "3": {"bodies", "control", "signatures"}}
"""Build → the kinds that run with it in any case."""

FindProgram = Callable[[str, str], SharedSession]


def runs(build: str, case: Case) -> bool:
    """Whether a case that can run with a build does so this time."""
    if WANTED:
        return build in WANTED.split(",")
    return build == "0" or case.kind in IN_ANY_CASE.get(build, ())


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FindProgram]:
    """Finds or starts the program of a kind of cases, built in one of the ways."""
    sessions: dict[tuple[str, str], SharedSession] = {}

    def find(kind: str, build: str) -> SharedSession:
        alone = kind if kind in DEPENDENCIES else ""

        def start() -> CorpusSession:
            directory = tmp_path_factory.mktemp("corpus")
            cases = [
                case
                for case in CASES
                if build in case.builds and (case.kind == alone if alone else case.kind not in DEPENDENCIES)
            ]
            write_program(cases, build, directory / "sources", DEPENDENCIES.get(kind, {}))
            return CorpusSession(Project(directory / "sources", directory / "program"), build)

        return sessions.setdefault((alone, build), SharedSession(start))

    yield find
    for session in sessions.values():
        session.end()


@pytest.mark.parametrize(
    ("build", "case"),
    [
        pytest.param(build, case, id=f"{case.kind}-{case.name}-{build}")
        for build in BUILDS
        for case in CASES
        if build in case.builds and runs(build, case)
    ],
)
def test_edit_has_its_outcome(build: str, case: Case, programs: FindProgram) -> None:
    """The verdict is the allowed one and says why, and the same process shows what the case allows."""
    with programs(case.kind, build).borrow() as session:
        assert isinstance(session, CorpusSession)
        before = session.show(case)
        verdict = session.make(case)
        after = session.show(case)
        back = session.make(case, reverse=True)
        reverted = session.show(case)
        told = f"{verdict.refusals} {verdict.notes}"
        seen = (verdict.verdict, tuple(word for word in case.told if word in told), (before, after, reverted))
        assert seen == (case.verdict, case.told, case.values), verdict
        assert back.verdict == ("applied" if case.verdict == "applied" else "unchanged"), back


def test_readme_is_current() -> None:
    """The table in the corpus's README is that of the cases: `python -m tests.corpus` writes it."""
    assert README.read_text() == readme(CASES)


@pytest.mark.parametrize("header", ["0 | perhaps", "4 | applied"], ids=["verdict", "build"])
def test_broken_case_is_told(header: str, tmp_path: Path) -> None:
    """A case whose verdict or build does not exist is named."""
    (tmp_path / "kind.txt").write_text(f"== name | {header} | 1 -> 2\nIt is.\n fn f() {{}}\n")
    with pytest.raises(ValueError, match="kind/name"):
        read_cases(tmp_path)
