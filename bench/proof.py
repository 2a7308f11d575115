"""Measures what it costs to be told of first executions: for each later call, and for each patch."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from hotpatchd.daemon.client_build import ensure_client
from tests.client.conftest import Stage
from tests.client.fake_daemon import FakeDaemon

PROGRAM = Path(__file__).with_name("hot.c")
TARGET = "x86_64-unknown-linux-gnu"
THREADS = (1, 2)
ROUNDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofFigures:
    """With and without it: the fastest of `ROUNDS` runs of a function's calls, and the median time of a patch."""

    call_ns: float
    patch_ms: float


@dataclass(slots=True)
class _Times:
    calls_ns: list[float] = field(default_factory=list)
    patches_ms: list[float] = field(default_factory=list)


def measure_proof(scratch: Path) -> dict[int, dict[bool, ProofFigures]]:
    """By how many threads call the function at once, and whether its first execution is told."""
    program = scratch / "hot"
    subprocess.run(["gcc", "-g", "-O1", "-pthread", PROGRAM, "-o", program], check=True)
    sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
    client = asyncio.run(ensure_client(Path(sysroot, "bin", "rustc"), TARGET, print))

    def measure(threads: int) -> dict[bool, ProofFigures]:
        directory = scratch / f"hot-{threads}"
        directory.mkdir()
        return asyncio.run(_call(Stage(directory, client, {"hot": program}), threads))

    return {threads: measure(threads) for threads in THREADS}


async def _call(stage: Stage, threads: int) -> dict[bool, ProofFigures]:
    """Taking turns, so that a machine that slows down favours neither."""
    times = {False: _Times(), True: _Times()}
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("hot", str(threads)) as program:
        peer = await daemon.welcome()
        image = stage.image("long replaced(long n) { return n + 2; }", peer.hello, program, answer="replaced")
        next_addr = first = peer.hello["region"]["next"]
        for number in range(2 * ROUNDS):
            proof = number % 2 == 1
            moved = image.moved(next_addr - first).with_changes(proof=proof)
            applied = await peer.apply(moved.message, moved.content)
            next_addr = applied["next"]
            times[proof].patches_ms.append(applied["timings_us"]["total"] / 1000)
            times[proof].calls_ns.append(float(await program.ask("")) / 1000)
            if proof:
                assert (await peer.receive())["type"] == "ran"
    return {
        proof: ProofFigures(call_ns=min(one.calls_ns), patch_ms=median(one.patches_ms)) for proof, one in times.items()
    }


def show_proof(console: Console, figures: dict[int, dict[bool, ProofFigures]]) -> None:
    """One row for each number of threads, with and without."""
    title = "first executions told or not"
    table = Table("threads", "told", "ns a call", "ms a patch", title=title, title_justify="left")
    for threads, by_proof in figures.items():
        for proof, one in by_proof.items():
            table.add_row(f"{threads}", "yes" if proof else "no", f"{one.call_ns:.2f}", f"{one.patch_ms:.2f}")
    console.print(table)
