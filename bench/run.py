"""Measures what an edit costs, beside what it could cost at best; prints a table and writes `bench/results/*.json`.

    python -m bench.run

For a small program and for a large one, the same kind of edit is made again and again, and each time four ways of
bringing it to machine code are timed one after the other on the same source: the daemon, bare rustc with the
daemon's own arguments (what an edit costs at least), the single-object recipe, and `cargo build`. Taking turns keeps
a machine that slows down, or warms up, from favouring one of them. All figures are medians.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.generate import EDITED_FILE, EDITED_LINE, generate, symbols_assembly
from bench.graph import measure_graph, show_graph
from bench.kinds import measure_kinds, show_kinds
from bench.proof import measure_proof, show_proof
from bench.replay import Replay, run, time_ms
from bench.safe_point import measure_safe_point, show_safe_point
from hotpatchd.daemon.fatbuild import install_shim
from hotpatchd.objfile.host_index import host_index
from tests.e2e.harness import Session
from tests.e2e.program import Project

RESULTS = Path(__file__).resolve().parent / "results"
EDITS = 20
CARGO_BUILDS = 5
CLEAN_BUILDS = 3
INDEX_RUNS = 5
SYMBOLS = 150_000
IDLE_S = 10.0
LIMIT_RATIO, LIMIT_EXTRA_MS = 1.25, 60.0
"""An edit should cost at most this much more than bare rustc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditFigures:
    """Medians for one program, in ms; `stages_ms` are the daemon's own timings."""

    source_lines: int
    save_to_acknowledged_ms: float
    stages_ms: Mapping[str, float]
    bare_rustc_ms: float
    single_object_ms: float
    cargo_build_ms: float
    daemon_idle_cpu_percent: float
    daemon_memory_mib: float

    @property
    def limit_ms(self) -> float:
        """What the edit should cost at most."""
        return LIMIT_RATIO * self.bare_rustc_ms + LIMIT_EXTRA_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimFigures:
    """Medians of clean builds of the same program, in ms."""

    plain_build_ms: float
    wrapped_build_ms: float
    crates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFigures:
    """Medians of making and of loading the symbol index of one binary, in ms."""

    symbols: int
    cold_ms: float
    warm_ms: float


def idle_cpu_percent(pid: int) -> float:
    """The processor time that a process takes while nothing happens."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(IDLE_S)
    return 100 * (ticks() - before) / os.sysconf("SC_CLK_TCK") / IDLE_S


def memory_mib(pid: int) -> float:
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure_edits(project: Project, scratch: Path, crate: str, file: str, lines: Callable[[int], str]) -> EditFigures:
    """Makes `EDITS` edits, each replacing `lines(n)` by `lines(n + 1)`, and times all ways of building them."""
    samples: dict[str, list[float]] = {name: [] for name in ("bare", "single", "cargo")}
    timings: list[Mapping[str, float]] = []
    with Session(project) as session:
        session.wait_started()
        bare = Replay(session, crate, scratch / "bare")
        single = Replay(session, crate, scratch / "single", "--recipe", "single-object")

        def cargo() -> None:
            run(["cargo", "build"], cwd=project.root, env={"CARGO_TARGET_DIR": str(scratch / "cargo")})

        # The first round fills the caches of all four and does not count.
        for number in range(EDITS + 1):
            verdict = session.apply(file, lines(number), lines(number + 1))
            sample = {"bare": bare.time_ms(), "single": single.time_ms()}
            if number <= CARGO_BUILDS:
                sample["cargo"] = time_ms(cargo)
            if number:
                timings.append(verdict.timings_ms)
                for name, value in sample.items():
                    samples[name].append(value)
        pid = session.wait_event("daemon.ready")["pid"]
        sources = project.root.rglob("src/**/*.rs")
        return EditFigures(
            source_lines=sum(path.read_text().count("\n") for path in sources),
            save_to_acknowledged_ms=median(timing["total"] for timing in timings),
            stages_ms={
                stage: median(timing[stage] for timing in timings)
                for stage, value in timings[0].items()
                if value is not None
            },
            bare_rustc_ms=median(samples["bare"]),
            single_object_ms=median(samples["single"]),
            cargo_build_ms=median(samples["cargo"]),
            daemon_idle_cpu_percent=idle_cpu_percent(pid),
            daemon_memory_mib=memory_mib(pid),
        )


def measure_shim(scratch: Path) -> ShimFigures:
    """Clean builds of a program with some dependencies, without the shim and with it around every crate."""
    project = Project("popular", scratch / "popular")
    shim = install_shim(scratch)
    plain: list[float] = []
    wrapped: list[float] = []
    for number in range(CLEAN_BUILDS):
        captures = scratch / f"captures-{number}"
        target = scratch / f"clean-{number}"
        base = {"CARGO_TARGET_DIR": str(target)}
        through_shim = {"RUSTC_WRAPPER": str(shim), "HOTPATCHD_CAPTURE_DIR": str(captures)}
        for env, times in ((base, plain), (base | through_shim, wrapped)):
            times.append(time_ms(partial(run, ["cargo", "build"], cwd=project.root, env=env)))
            shutil.rmtree(target)
    return ShimFigures(
        plain_build_ms=median(plain),
        wrapped_build_ms=median(wrapped),
        crates=len(list(captures.glob("*.json"))),
    )


def measure_index(scratch: Path) -> IndexFigures:
    """The symbol index of a binary with `SYMBOLS` symbols: made from the file, and loaded from disk."""
    (scratch / "symbols.s").write_text(symbols_assembly(SYMBOLS))
    run(["cc", "-o", "symbols", "symbols.s"], cwd=scratch)
    cold: list[float] = []
    warm: list[float] = []
    for number in range(INDEX_RUNS):
        cache = scratch / f"index-{number}"
        for times in (cold, warm):
            times.append(time_ms(partial(host_index, scratch / "symbols", cache)))
    count = len(host_index(scratch / "symbols", cache))
    return IndexFigures(symbols=count, cold_ms=median(cold), warm_ms=median(warm))


def show_edits(console: Console, name: str, figures: EditFigures) -> None:
    """One table: each way of building the edit, beside bare rustc and beside the daemon."""
    total, bare = figures.save_to_acknowledged_ms, figures.bare_rustc_ms
    title = f"{name}: one-function edit, {figures.source_lines:,} lines, medians of {EDITS}"
    table = Table("what", "ms", "÷ bare rustc", "÷ hotpatchd", title=title, title_justify="left")
    for what, value in (
        ("save to acknowledged", total),
        *((f"  {stage}", value) for stage, value in figures.stages_ms.items() if stage != "total"),
        ("bare rustc, incremental, same flags", bare),
        (f"limit: {LIMIT_RATIO} x bare rustc + {LIMIT_EXTRA_MS:.0f}", figures.limit_ms),
        # It makes a library of a binary, which leaves out what is not `pub`: of a small program next to nothing.
        ("single-object recipe, rustc alone", figures.single_object_ms),
        ("cargo build", figures.cargo_build_ms),
    ):
        table.add_row(what, f"{value:.1f}", f"{value / bare:.2f}", f"{value / total:.2f}")
    console.print(table)
    console.print(
        f"daemon when idle: {figures.daemon_idle_cpu_percent:.2f} % CPU, {figures.daemon_memory_mib:.0f} MiB; "
        f"cgu recipe {figures.single_object_ms / bare:.2f} x faster than single-object; "
        f"{'within' if total <= figures.limit_ms else 'ABOVE'} the limit\n"
    )


def show_rest(console: Console, shim: ShimFigures, index: IndexFigures) -> None:
    """The figures that do not depend on an edit."""
    table = Table("what", "ms", "ratio", title="capturing and symbols", title_justify="left")
    extra_ms = (shim.wrapped_build_ms - shim.plain_build_ms) / shim.crates
    table.add_row("clean build", f"{shim.plain_build_ms:.0f}", "1.00")
    table.add_row(
        f"clean build, {shim.crates} crates through the shim ({extra_ms:.0f} ms each)",
        f"{shim.wrapped_build_ms:.0f}",
        f"{shim.wrapped_build_ms / shim.plain_build_ms:.2f}",
    )
    table.add_row(f"symbol index, cold, {index.symbols:,} symbols", f"{index.cold_ms:.1f}", "1.00")
    table.add_row("symbol index, warm", f"{index.warm_ms:.1f}", f"{index.warm_ms / index.cold_ms:.2f}")
    console.print(table)


def main() -> None:
    """Measures everything, prints it, and writes it down."""
    console = Console()
    record: dict[str, Any] = {
        "machine": {
            "rustc": subprocess.check_output(["rustc", "--version"], text=True).strip(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
        }
    }
    with tempfile.TemporaryDirectory(prefix="hotpatchd-bench-") as directory:
        scratch = Path(directory)
        index = measure_index(scratch)
        shim = measure_shim(scratch)
        small = measure_edits(
            Project("single", scratch / "single"),
            scratch / "small-builds",
            "single",
            "src/main.rs",
            lambda number: "    left + right" + f" + {number}" * bool(number) + "\n",
        )
        generate(scratch / "large-source")
        large = measure_edits(
            Project(scratch / "large-source", scratch / "large"),
            scratch / "large-builds",
            "large",
            EDITED_FILE,
            lambda number: EDITED_LINE.format(number=number),
        )
        graph = measure_graph(scratch)
        kinds = measure_kinds(scratch)
        safe_point = measure_safe_point(scratch)
        proof = measure_proof(scratch)
    for name, figures in (("small program", small), ("large crate", large)):
        show_edits(console, name, figures)
        record[name.replace(" ", "_")] = asdict(figures) | {"limit_ms": figures.limit_ms}
    show_rest(console, shim, index)
    show_graph(console, graph)
    show_kinds(console, kinds)
    show_safe_point(console, safe_point)
    show_proof(console, proof)
    record["graph"] = {kind: asdict(figures) | {"limit_ms": figures.limit_ms} for kind, figures in graph.items()}
    record["kinds"] = {kind: asdict(figures) for kind, figures in kinds.items()}
    record["safe_point"] = {
        act: {threads: asdict(figures) for threads, figures in by_threads.items()}
        for act, by_threads in safe_point.items()
    }
    record["proof"] = {
        threads: {"told" if told else "untold": asdict(figures) for told, figures in by_told.items()}
        for threads, by_told in proof.items()
    }
    record |= {"shim": asdict(shim), "symbol_index": asdict(index)}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    file.write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"written to {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
