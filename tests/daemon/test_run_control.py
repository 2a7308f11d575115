"""The program of a daemon: started as often as it is wanted, and its end told once."""

import asyncio
import io
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hotpatchd.core import messages
from hotpatchd.daemon.crash_report import CrashReports
from hotpatchd.daemon.program import native_triple
from hotpatchd.daemon.report import Terminal
from hotpatchd.daemon.run_control import RunControl


class Place:
    """A directory in which a shell is the program, and what is told of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.told: asyncio.Queue[messages.StepEvent] = asyncio.Queue()
        self.tasks: list[asyncio.Task[None]] = []

    def control(self, script: str) -> RunControl:
        """Has a shell run a script."""
        return RunControl(
            args=("-c", script),
            triple=native_triple(),
            client=None,
            cwd=self.directory,
            state_dir=self.directory,
            takes_keys=False,
            crashes=CrashReports(self.directory, self.directory),
            terminal=Terminal(Console(file=io.StringIO())),
            dispatch=self.told.put_nowait,
            spawn=self.spawn,
            undo=self.nothing,
            leave=self.tasks.clear,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something beside the test."""
        self.tasks.append(asyncio.create_task(work))

    async def nothing(self) -> None:
        """Stands for an undo."""

    async def next(self) -> messages.StepEvent:
        """What is told next."""
        return await asyncio.wait_for(self.told.get(), 20)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty directory."""
    return Place(tmp_path)


async def run_to_its_end(place: Place, script: str) -> messages.ProgramEnded:
    """What is told of a program's end."""
    await place.control(script).start(Path("/bin/sh"), os.environ)
    started, ended = await place.next(), await place.next()
    assert isinstance(started, messages.ProgramStarted)
    assert isinstance(ended, messages.ProgramEnded)
    assert ended.pid == started.pid
    return ended


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -KILL $$", -9)])
async def test_end_is_told_with_its_status(place: Place, script: str, status: int) -> None:
    """A signal that ended it is a negative number."""
    ended = await run_to_its_end(place, script)
    assert ended.status == status


async def test_program_has_its_directory_and_environment(place: Place) -> None:
    """The client is told where the daemon is, and of which program it is."""
    await run_to_its_end(place, 'echo "$PWD" "$HOTPATCHD_STATE" "$HOTPATCHD_HOST" > said')
    said = (place.directory / "said").read_text().split()
    assert said == [str(place.directory), str(place.directory), os.path.realpath("/bin/sh")]


async def test_end_of_a_program_that_is_replaced_is_not_told(place: Place) -> None:
    """Whoever ended it knows; the next one is told of as the first was."""
    control = place.control("exec sleep 600")
    await control.start(Path("/bin/sh"), os.environ)
    first = await place.next()
    await control.end()
    await asyncio.wait_for(asyncio.gather(*place.tasks), 20)
    await control.start(Path("/bin/sh"), os.environ)
    second = await place.next()
    await control.end()
    assert isinstance(first, messages.ProgramStarted)
    assert isinstance(second, messages.ProgramStarted)
    assert first.pid != second.pid
    assert place.told.empty()
