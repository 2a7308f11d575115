"""A program with `subsecond::call`: patches, state, several processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.e2e.harness import EDIT_WITHIN_S, START_WITHIN_S, Session
from tests.e2e.program import Program
from tests.ecosystem.conftest import Start

MAIN = "src/main.rs"
LINE = re.compile(r"(\w+) turns=(\d+) here=(\d+) kept=(\d+)")


def assert_state_kept(program: Program) -> None:
    """A static, a thread-local and the heap count on, whichever code counts."""
    lines = [tuple(map(int, match.groups()[1:])) for line in program.stdout.lines() if (match := LINE.match(line))]
    assert lines[0] == (1, 1, 1)
    assert all(after == tuple(value + 1 for value in before) for before, after in pairwise(lines))


def test_three_patches_keep_all_state(start: Start, protocol: str) -> None:
    """A function that a hot call leads to, one below it, and again the first; the program is not started again."""
    with start("hot-loop", "run", "--protocol", protocol) as session:
        session.daemon.wait_text("hello turns=", within_s=START_WITHIN_S)
        session.wait_event("client.connected", within_s=START_WITHIN_S)
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        session.apply(MAIN, '"hello"', '"moin"')
        session.daemon.wait_text("moin turns=")
        session.apply(MAIN, 'println!("{} turns', 'println!("{}2 turns')
        session.daemon.wait_text("moin2 turns=")
        session.apply(MAIN, '"moin"', '"servus"')
        session.daemon.wait_text("servus2 turns=")
        assert_state_kept(session.daemon)


def test_what_the_program_gets_is_said(start: Start, protocol: str) -> None:
    """A library for its jump table, or an image in place."""
    with start("hot-loop", "run", "--protocol", protocol) as session:
        session.wait_event("client.connected", within_s=START_WITHIN_S)
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        session.apply(MAIN, '"hello"', '"moin"')
        assert session.wait_event("patch.sent")["kind"] == {"dioxus": "dylib", "auto": "image"}[protocol]


@pytest.fixture
def serving(start: Start) -> Iterator[Session]:
    """A daemon beside programs that are patched by their jump tables."""
    with start("hot-loop", "serve", "--protocol", "dioxus") as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        yield session


def test_two_processes_and_one_that_joins_late(serving: Session, target_dir: Path) -> None:
    """Each gets tables with its own addresses; the late one catches up with all changes since the build."""
    program = target_dir / "debug" / "hot-loop"
    first, second = (serving.attach(program, options=("--protocol", "dioxus")) for _ in range(2))
    serving.apply(MAIN, '"hello"', '"moin"')
    serving.apply(MAIN, 'println!("{} turns', 'println!("{}2 turns')
    late = serving.attach(program, options=("--protocol", "dioxus"))
    for running in (first, second, late):
        running.wait_text("moin2 turns=")
    serving.apply(MAIN, '"moin"', '"servus"')
    for running in (first, second, late):
        running.wait_text("servus2 turns=")
        assert_state_kept(running)
    sent = [event for event in serving.events() if event["event"] == "patch.sent"]
    assert len(sent) == 2 + 2 + 1 + 3
    assert len([event for event in serving.events() if event["event"] == "rebuild.finished"]) == 3


def test_reverting_an_edit_is_an_edit(serving: Session, target_dir: Path) -> None:
    """The code of the build comes back by a patch, and another function's patch stays."""
    program = serving.attach(target_dir / "debug" / "hot-loop", options=("--protocol", "dioxus"))
    serving.apply(MAIN, '"hello"', '"moin"')
    serving.apply(MAIN, 'println!("{} turns', 'println!("{}2 turns')
    program.wait_text("moin2 turns=")
    serving.apply(MAIN, '"moin"', '"hello"')
    program.wait_text("hello2 turns=")
    assert_state_kept(program)


def test_a_new_thread_local_is_refused_by_name(serving: Session, target_dir: Path) -> None:
    """A library has no room for it in threads that run already; the program goes on as it was."""
    program = serving.attach(target_dir / "debug" / "hot-loop", options=("--protocol", "dioxus"))
    fresh = "thread_local! { static FRESH: Cell<u8> = const { Cell::new(1) }; }"
    saved = serving.edit(MAIN, '    "hello"\n}', f'    FRESH.set(2);\n    "moin"\n}}\n{fresh}')
    verdict = serving.wait_verdict(saved)
    assert verdict.verdict == "refused"
    assert ["FRESH" in refusal["symbol"] for refusal in verdict.refusals] == [True]
    seen = len(program.stdout.lines())
    program.wait_text("hello turns=")
    assert not any("moin" in line for line in program.stdout.lines()[seen:])


async def test_changed_assets_and_the_course_of_builds_are_told(serving: Session) -> None:
    """Whoever speaks the dialect hears of assets, of an edit that does not compile, and of one that needs a restart."""
    url = serving.wait_event("daemon.ready")["url"].replace("/hotpatch/1", "/_dioxus")
    async with connect(f"{url}?aslr_reference=0&build_id=7&pid={os.getpid()}") as socket:
        assets = serving.project.root / "assets"
        assets.mkdir()
        (assets / "main.css").write_text("a {}")
        message = json.loads(await asyncio.wait_for(socket.recv(), EDIT_WITHIN_S))["HotReload"]
        assert (message["assets"], message["for_build_id"]) == ([str(assets / "main.css")], 7)
        serving.edit(MAIN, '"hello"', '"hello')
        manifest = serving.project.root / "Cargo.toml"
        told = [json.loads(await asyncio.wait_for(socket.recv(), EDIT_WITHIN_S)) for _ in range(2)]
        manifest.write_text(manifest.read_text() + "\n[profile.dev]\noverflow-checks = false\n")
        told += [json.loads(await asyncio.wait_for(socket.recv(), EDIT_WITHIN_S)) for _ in range(2)]
        assert told == ["HotPatchStart", "FullReloadFailed", "HotPatchStart", "FullReloadStart"]
