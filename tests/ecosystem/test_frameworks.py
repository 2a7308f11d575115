"""Frameworks with hot patching of their own: three patches each, with their state kept and their handlers run."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import PROGRAM_WITHIN_S, Program, wait_for
from tests.ecosystem.conftest import Start

MAIN = "src/main.rs"


def wait_ready(session: Session) -> None:
    """The program is connected, and the daemon ready for edits."""
    session.wait_event("client.connected", within_s=START_WITHIN_S)
    session.wait_event("daemon.ready", within_s=START_WITHIN_S)


def get(server: Program, path: str, wanted: str) -> str:
    """What the newest server in a process answers, once it is `wanted`."""

    def ask() -> str | None:
        addresses = [line.split()[-1] for line in server.stdout.lines() if line.startswith("listening on")]
        try:
            with urllib.request.urlopen(f"http://{addresses[-1]}{path}", timeout=PROGRAM_WITHIN_S) as response:
                text: str = response.read().decode()
        except (OSError, IndexError):
            return None
        return text if wanted in text else None

    return wait_for(f"{wanted!r} at {path}", ask, within_s=PROGRAM_WITHIN_S, diagnose=server.diagnosis)


def test_a_web_server_gets_new_handlers_and_routes(start: Start, protocol: str) -> None:
    """The crate starts the server again for each patch: a route that is new is served, and visits count on."""
    with start("axum-server", "run", "--protocol", protocol) as session:
        wait_ready(session)
        server = session.daemon
        first = int(get(server, "/", "hello").split()[-1])
        session.apply(MAIN, '"hello"', '"moin"')
        second = int(get(server, "/", "moin").split()[-1])
        session.apply(MAIN, '.route("/", get(index))', '.route("/", get(index)).route("/new", get(index))')
        third = int(get(server, "/new", "moin").split()[-1])
        session.apply(MAIN, '{} {count}"', '{} and {count}"')
        assert first < second < third < int(get(server, "/", "moin and").split()[-1])


def test_bevy_systems_run_their_newest_code(start: Start, protocol: str) -> None:
    """Components and resources are kept over changes of a function, of a system, and of the function again."""
    with start("bevy-headless", "run", "--protocol", protocol) as session:
        wait_ready(session)
        session.daemon.wait_text("step=1")
        session.apply(MAIN, "    1\n}", "    10\n}")
        session.daemon.wait_text("step=10")
        session.apply(MAIN, 'println!("tick={}', 'println!("new tick={}')
        session.daemon.wait_text("new tick=")
        session.apply(MAIN, "    10\n}", "    100\n}")
        session.daemon.wait_text("step=100")
        lines = [
            tuple(map(int, re.findall(r"=(\d+)", line))) for line in session.daemon.stdout.lines() if "tick=" in line
        ]
        assert [tick for tick, _, _ in lines] == list(range(1, len(lines) + 1))
        positions = [position for _, position, _ in lines]
        assert positions == sorted(positions)


def test_a_terminal_interface_draws_with_its_newest_code(start: Start, protocol: str) -> None:
    """The model counts frames on over three changes of what is drawn."""
    with start("terminal-ui", "run", "--protocol", protocol) as session:
        wait_ready(session)
        session.daemon.wait_text("hello")
        session.apply(MAIN, '"hello"', '"moin"')
        session.daemon.wait_text("moin")
        session.apply(MAIN, '"frames={}"', '"pictures={}"')
        session.daemon.wait_text("pictures=")
        session.apply(MAIN, '"moin"', '"servus"')
        session.daemon.wait_text("servus")
        frames = [int(found) for found in re.findall(r"(?:frames|pictures)=(\d+)", session.daemon.output)]
        assert frames == list(range(1, len(frames) + 1))


def test_a_program_that_looks_for_cargo_hot_finds_it(start: Start, protocol: str) -> None:
    """It connects by itself, some seconds after its start, and is patched like the others."""
    with start("cargo-hot-loop", "run", "--protocol", protocol) as session:
        wait_ready(session)
        session.daemon.wait_text("hello turns=")
        session.apply(MAIN, '"hello"', '"moin"')
        session.daemon.wait_text("moin turns=")
        session.apply(MAIN, "{} turns={}", "{}2 turns={}")
        session.daemon.wait_text("moin2 turns=")
        session.apply(MAIN, '"moin"', '"servus"')
        session.daemon.wait_text("servus2 turns=")
        turns = [int(found) for found in re.findall(r"turns=(\d+)", session.daemon.output)]
        assert turns == list(range(1, len(turns) + 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "shown"),
    [
        ("axum-server", '"hello"', '"moin"', "moin"),
        ("bevy-headless", "    1\n}", "    10\n}", "step=10"),
        ("terminal-ui", '"hello"', '"moin"', "moin"),
    ],
)
def test_all_processes_of_a_program_are_patched(
    start: Start, target_dir: Path, name: str, old: str, new: str, shown: str
) -> None:
    """Two that run when the edit comes, and one that is started after it."""

    def wait_shown(program: Program) -> None:
        if name == "axum-server":
            get(program, "/", shown)
        else:
            program.wait_text(shown)

    with start(name, "serve", "--protocol", "dioxus") as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        binary, options = target_dir / "debug" / name, ("--protocol", "dioxus")
        early = [session.attach(binary, options=options) for _ in range(2)]
        session.apply(MAIN, old, new)
        for program in (*early, session.attach(binary, options=options)):
            wait_shown(program)
