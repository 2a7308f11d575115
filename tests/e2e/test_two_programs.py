"""A program and an example of one workspace, watched by one daemon while both run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Program, Project

SHARED = "main/crates/app/src/lib.rs"
BOTH = ("-p", "app", "--bin", "runner", "--example", "sample")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The daemon for both programs."""
    project = Project("workspace", tmp_path_factory.mktemp("workspace") / "workspace")
    with Session(project, "serve", selection=BOTH, directory="main") as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        yield session


@pytest.fixture
def both(serving: Session) -> Iterator[tuple[Program, Program]]:
    """The two programs, running."""
    programs = built(serving)
    runner, sample = (serving.attach(programs[name]) for name in ("runner", "sample"))
    yield runner, sample
    for program in (runner, sample):
        program.process.kill()
        program.process.wait()


def built(session: Session) -> dict[str, Path]:
    """The programs' files, by name."""
    return {Path(file).name: Path(file) for file in session.cli_json("status")["programs"]}


def test_an_edit_of_a_shared_crate_reaches_both_programs(serving: Session, both: tuple[Program, Program]) -> None:
    """One edit, one verdict; each program gets a patch linked for its own symbols."""
    old = serving.project.read(SHARED)
    verdict = serving.wait_verdict(serving.save(SHARED, old.replace("    51\n", "    61\n")))
    assert verdict.verdict == "applied"
    for program in both:
        program.wait_value("shared", "61")
    serving.wait_verdict(serving.save(SHARED, old))


def test_an_edit_of_a_program_that_does_not_run_says_so(serving: Session) -> None:
    """The program that runs has no such code, so nothing is unchanged by choice."""
    file = "main/crates/app/examples/sample.rs"
    runner = serving.attach(built(serving)["runner"])
    old = serving.project.read(file)
    verdict = serving.wait_verdict(serving.save(file, old.replace("top::diamond()", "top::diamond() + 1000")))
    assert (verdict.verdict, [refusal["reason"] for refusal in verdict.refusals]) == ("refused", ["no_client"])
    serving.wait_verdict(serving.save(file, old))
    runner.process.kill()
    runner.process.wait()


def test_an_edit_of_one_program_leaves_the_other(serving: Session, both: tuple[Program, Program]) -> None:
    """Its crate is compiled, and nothing is sent to the process of the other."""
    file = "main/crates/app/examples/sample.rs"
    old = serving.project.read(file)
    mark = len(serving.events())
    verdict = serving.wait_verdict(serving.save(file, old.replace("top::diamond()", "top::diamond() + 1000")))
    assert (verdict.verdict, verdict.patched) == ("applied", ("sample::line",))
    assert [event["event"] for event in serving.events()[mark:]].count("patch.sent") == 1
    both[1].wait_line("the changed example", lambda line: int(line["diamond"]) > 1000)
    serving.wait_verdict(serving.save(file, old))
