"""Measures for how long a program's threads stand still while a patch is put in force."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from hotpatchd.daemon.client_build import ensure_client
from tests.client.conftest import Stage
from tests.client.fake_daemon import FakeDaemon

PROGRAM = Path(__file__).resolve().parents[1] / "tests" / "client" / "programs" / "threads.c"
TARGET = "x86_64-unknown-linux-gnu"
ACTS = {"read": "waiting in `read`", "malloc": "allocating without pause"}
THREADS = {"read": (1, 64, 500), "malloc": (1, 64)}
"""Of those that never rest only so many as leave the client, and who asks it, their turns."""
PATCHES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFigures:
    """How long threads stood still, in ms, over `PATCHES` patches, of which `refused` found them out of reach."""

    median_ms: float
    worst_ms: float
    refused: int


def measure_safe_point(scratch: Path) -> dict[str, dict[int, StopFigures]]:
    """For what threads do (a key of `ACTS`), and how many there are of them."""
    program = scratch / "threads"
    subprocess.run(["gcc", "-g", "-O1", "-pthread", PROGRAM, "-o", program], check=True)
    sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
    client = asyncio.run(ensure_client(Path(sysroot, "bin", "rustc"), TARGET, print))

    def measure(act: str, threads: int) -> StopFigures:
        directory = scratch / f"{act}-{threads}"
        directory.mkdir()
        return asyncio.run(_stop(Stage(directory, client, {"threads": program}), act, threads))

    return {act: {threads: measure(act, threads) for threads in THREADS[act]} for act in ACTS}


async def _stop(stage: Stage, act: str, threads: int) -> StopFigures:
    stopped_ms: list[float] = []
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("threads") as program:
        peer = await daemon.welcome()
        await program.ask(f"start {act} {threads}")
        image = stage.image("int replaced(int n) { return n + 1; }", peer.hello, program, answer="replaced")
        for number in range(PATCHES):
            moved = image.moved(number * peer.hello["region"]["slot_size"])
            answer = await peer.apply(moved.message, moved.content)
            if answer["type"] == "applied":
                stopped_ms.append(answer["timings_us"]["park"] / 1000)
            await program.ask("progress")
    return StopFigures(median_ms=median(stopped_ms), worst_ms=max(stopped_ms), refused=PATCHES - len(stopped_ms))


def show_safe_point(console: Console, figures: dict[str, dict[int, StopFigures]]) -> None:
    """One row for each kind and number of threads."""
    title = f"all threads stopped, {PATCHES} patches"
    table = Table("threads", "median ms", "worst ms", "refused", title=title, title_justify="left")
    for act, by_threads in figures.items():
        for threads, one in by_threads.items():
            table.add_row(f"{threads} {ACTS[act]}", f"{one.median_ms:.2f}", f"{one.worst_ms:.2f}", f"{one.refused}")
    console.print(table)
