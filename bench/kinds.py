"""Measures the two kinds of patches beside each other, and what further processes of one program cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import Project

PROGRAM = Path(__file__).resolve().parents[1] / "fixtures" / "ecosystem" / "hot-loop"
PROTOCOLS = {"image": "native", "dylib": "dioxus"}
EDITS = 10
PROCESSES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFigures:
    """Medians of one-function edits for one kind of patch; `processes_ms` by how many run the program at once."""

    bytes: float
    link_ms: float
    apply_ms: float
    total_ms: float
    processes_ms: Mapping[int, float]

    @property
    def further_process_ms(self) -> float:
        """What each process after the first adds to an edit."""
        first, last = min(self.processes_ms), max(self.processes_ms)
        return (self.processes_ms[last] - self.processes_ms[first]) / (last - first)


def measure_kinds(scratch: Path) -> dict[str, KindFigures]:
    """Edits of a program with hot calls, which takes both kinds of patches.

    The first edit after each change in the number of processes fills caches, and does not count.
    """
    return {kind: _measure(kind, protocol, scratch) for kind, protocol in PROTOCOLS.items()}


def _measure(kind: str, protocol: str, scratch: Path) -> KindFigures:
    project = Project(PROGRAM, scratch / kind)
    number = 0
    processes_ms: dict[int, float] = {}
    single: list[Mapping[str, float]] = []
    with Session(project, "serve", options=["--protocol", protocol]) as session:
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        for count in PROCESSES:
            for _ in range(count - len(session.cli_json("clients"))):
                session.attach(project.target / "debug" / "hot-loop", options=["--protocol", protocol])
            timings = []
            for _ in range(EDITS + 1):
                verdict = session.apply("src/main.rs", f'"hello{number or ""}"', f'"hello{number + 1}"')
                number += 1
                timings.append(verdict.timings_ms)
            processes_ms[count] = median(timing["total"] for timing in timings[1:])
            single = single or timings[1:]
        sizes = [event["bytes"] for event in session.events() if event["event"] == "patch.sent"]
    return KindFigures(
        bytes=median(sizes),
        link_ms=median(timing["link"] for timing in single),
        apply_ms=median(timing["apply"] for timing in single),
        total_ms=median(timing["total"] for timing in single),
        processes_ms=processes_ms,
    )


def show_kinds(console: Console, figures: Mapping[str, KindFigures]) -> None:
    """One table, the two kinds side by side."""
    image, dylib = figures["image"], figures["dylib"]
    table = Table(
        "what", "image", "dylib", "ratio", title=f"kinds of patches, medians of {EDITS}", title_justify="left"
    )
    rows = [
        ("bytes", image.bytes, dylib.bytes),
        ("link, ms", image.link_ms, dylib.link_ms),
        ("apply, ms", image.apply_ms, dylib.apply_ms),
        *(
            (f"edit of {count} processes, ms", image.processes_ms[count], dylib.processes_ms[count])
            for count in PROCESSES
        ),
        ("each further process, ms", image.further_process_ms, dylib.further_process_ms),
    ]
    for what, first, second in rows:
        table.add_row(what, f"{first:.1f}", f"{second:.1f}", f"{second / first:.2f}")
    console.print(table)
