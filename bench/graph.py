"""Measures an edit at the bottom of a graph of crates, beside the compilers that have to run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.generate import module_text
from bench.replay import Replay
from tests.e2e.harness import Session
from tests.e2e.program import Project

GRAPH: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "codec": ("base",),
    "model": ("base",),
    "store": ("codec", "model"),
    "clock": ("base",),
    "events": ("clock",),
    "engine": ("store", "events"),
    "render": ("engine",),
    "network": ("engine",),
    "session": ("render", "network"),
    "reports": ("model",),
    "commands": ("session", "reports"),
    "app": ("commands", "events"),
}
"""Crate → what it depends on: two diamonds above each other, and some beside them."""

MODULES = 5
"""Modules of each library, of some 500 lines."""
EDITS = 8
LIMIT_RATIO, LIMIT_EXTRA_MS = 1.25, 80.0
"""An edit should cost at most this much more than the compilers on its critical path."""

KINDS: Mapping[str, Callable[[int], str]] = {
    "a function's body": lambda number: f"let version = {number};",
    "a generic function, used at the top": lambda number: f"let step = {number};",
}
"""What each edit changes in the crate at the bottom."""

_LIBRARY = """\
//! The crate `{name}`.

{modules}

{specials}pub fn fold<T: Into<u64> + Copy>(value: T) -> u64 {{
    {fold}
}}

pub fn run(seed: u64) -> u64 {{
    let mut total = seed % 7;
{calls}
    total
}}
"""

_SPECIALS = """\
pub fn edited(value: u64) -> u64 {
    let version = 0;
    value.wrapping_mul(1000) + version
}

"""

_APP = """\
//! Runs through all crates, and then prints one line every 20 ms.

fn main() {{
    let total = {first}::run(1) ^ {second}::run(2);
    for tick in 0..180_000u64 {{
        println!("tick={{tick}} total={{total}} fold={{}} edited={{}}", {first}::fold(1u32), base::edited(1));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFigures:
    """Medians for one kind of edit, in ms.

    Args:
        source_lines: of all crates.
        crates: how many were compiled.
        critical_path: the crates of the chain of dependents that takes longest, bottom first.
        critical_path_ms: the sum of their bare rustc times.
        all_crates_ms: the sum over all that were compiled.
        save_to_acknowledged_ms: the daemon's whole way.
        stages_ms: the daemon's own timings.
    """

    source_lines: int
    crates: int
    critical_path: tuple[str, ...]
    critical_path_ms: float
    all_crates_ms: float
    save_to_acknowledged_ms: float
    stages_ms: Mapping[str, float]

    @property
    def limit_ms(self) -> float:
        """What the edit should cost at most."""
        return LIMIT_RATIO * self.critical_path_ms + LIMIT_EXTRA_MS


def generate_workspace(root: Path) -> int:
    """Write the workspace to `root`, which is created; its number of source lines."""
    members = ", ".join(f'"{name}"' for name in GRAPH)
    texts = {"Cargo.toml": f'[workspace]\nmembers = [{members}]\nresolver = "2"\n'}
    for number, (name, dependencies) in enumerate(GRAPH.items()):
        used = dependencies if name != "app" else (*dependencies, "base")
        texts[f"{name}/Cargo.toml"] = (
            f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\npublish = false\n[dependencies]\n'
            + "".join(f'{used_name} = {{ path = "../{used_name}" }}\n' for used_name in used)
        )
        if name == "app":
            texts["app/src/main.rs"] = _APP.format(first=dependencies[0], second=dependencies[1])
            continue
        modules = [f"m{number * MODULES + at:03}" for at in range(MODULES)]
        for at, module in enumerate(modules):
            texts[f"{name}/src/{module}.rs"] = module_text(100 + number * MODULES + at)
        below = " ^ ".join(f"{dependency}::fold(value)" for dependency in dependencies)
        texts[f"{name}/src/lib.rs"] = _LIBRARY.format(
            name=name,
            modules="\n".join(f"pub mod {module};" for module in modules),
            specials=_SPECIALS if name == "base" else "",
            fold=f"({below}).rotate_left({number})"
            if below
            else "let step = 0;\n    value.into().wrapping_mul(3) + step",
            calls="\n".join(
                f"    total = total.wrapping_add({callee}::run(total % 7));" for callee in (*modules, *dependencies)
            ),
        )
    for file, text in texts.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sum(text.count("\n") for file, text in texts.items() if file.endswith(".rs"))


def measure_graph(scratch: Path) -> dict[str, GraphFigures]:
    """Make edits of each kind, and time the daemon and bare rustc by turns on the same sources."""
    lines = generate_workspace(scratch / "graph-source")
    with Session(Project(scratch / "graph-source", scratch / "graph")) as session:
        session.wait_started()
        replays = {name: Replay(session, name, scratch / "graph-bare") for name in GRAPH}
        for replay in replays.values():
            replay.time_ms()
        return {kind: _measure(session, replays, line, lines) for kind, line in KINDS.items()}


def _measure(
    session: Session, replays: Mapping[str, Replay], line: Callable[[int], str], source_lines: int
) -> GraphFigures:
    timings: list[Mapping[str, float]] = []
    bare: dict[str, list[float]] = {name: [] for name in GRAPH}
    compiled: set[str] = set()
    # The first edit fills caches and does not count.
    for number in range(EDITS + 1):
        saved = session.edit("base/src/lib.rs", line(number), line(number + 1))
        verdict = session.wait_verdict(saved)
        compiled = set(session.wait_event("rebuild.finished", after=saved.mark)["crates"])
        times = {name: replay.time_ms() for name, replay in replays.items() if name in compiled}
        if number:
            timings.append(verdict.timings_ms)
            for name, time_ms in times.items():
                bare[name].append(time_ms)
    medians = {name: median(times) for name, times in bare.items() if times}
    path, path_ms = _longest_path(medians)
    return GraphFigures(
        source_lines=source_lines,
        crates=len(compiled),
        critical_path=path,
        critical_path_ms=path_ms,
        all_crates_ms=sum(medians.values()),
        save_to_acknowledged_ms=median(timing["total"] for timing in timings),
        stages_ms={
            stage: median(timing[stage] for timing in timings)
            for stage, value in timings[0].items()
            if value is not None
        },
    )


def _longest_path(times_ms: Mapping[str, float]) -> tuple[tuple[str, ...], float]:
    """The chain of crates, each depending on the one before, whose times have the largest sum."""
    best: dict[str, tuple[tuple[str, ...], float]] = {}
    for name, dependencies in GRAPH.items():
        below = max((best[d] for d in dependencies if d in best), key=lambda found: found[1], default=((), 0.0))
        if name in times_ms:
            best[name] = ((*below[0], name), below[1] + times_ms[name])
    return max(best.values(), key=lambda found: found[1])


def show_graph(console: Console, figures: Mapping[str, GraphFigures]) -> None:
    """One table: a row for each way of counting, a column for each kind of edit."""
    first = next(iter(figures.values()))
    title = f"{len(GRAPH)} crates, {first.source_lines:,} lines: edit at the bottom, ms, medians of {EDITS}"
    table = Table("what", *figures, title=title, title_justify="left")
    stages = [stage for stage in first.stages_ms if stage != "total"]
    rows: list[tuple[str, Callable[[GraphFigures], str]]] = [
        ("crates compiled", lambda f: str(f.crates)),
        ("save to acknowledged", lambda f: f"{f.save_to_acknowledged_ms:.1f}"),
        *((f"  {stage}", lambda f, stage=stage: f"{f.stages_ms.get(stage, 0.0):.1f}") for stage in stages),
        ("bare rustc, sum of the critical path", lambda f: f"{f.critical_path_ms:.1f}"),
        ("bare rustc, sum of all crates", lambda f: f"{f.all_crates_ms:.1f}"),
        ("÷ critical path", lambda f: f"{f.save_to_acknowledged_ms / f.critical_path_ms:.2f}"),
        (
            f"limit: {LIMIT_RATIO} x critical path + {LIMIT_EXTRA_MS:.0f}",
            lambda f: f"{f.limit_ms:.1f} ({'within' if f.save_to_acknowledged_ms <= f.limit_ms else 'ABOVE'})",
        ),
    ]
    for what, cell in rows:
        table.add_row(what, *(cell(kind) for kind in figures.values()))
    console.print(table)
    console.print(f"critical path: {' → '.join(first.critical_path)}\n")
