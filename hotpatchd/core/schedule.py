"""Which crates are compiled now, later, or not at all: where a graph of crates stands, and what an event makes of it.

A crate is up to date if its newest source was compiled against the newest metadata of its dependencies. For each crate
it is known which metadata that was. So a dependent that failed, was cancelled or was never begun is compiled next time,
also if the metadata does not change again; and one whose dependencies return to what it was compiled against is not.

rustc puts a hash of all code of the crate, with its places in the source, and of its dependencies' hashes into the
metadata, and refuses to mix crates with different ones. So an edit of any code of a library reaches all of its
dependents; an edit of a comment that moves no code reaches none.

Source: `rustc_middle::hir::map::crate_hash`, error E0460
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

Graph = Mapping[str, tuple[str, ...]]
"""Crate → the crates that it depends on, each after those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Where the compiling of some programs' crates stands.

    Args:
        graph: the crates.
        tips: those that the programs are linked from.
        stale: crates whose newest source is not compiled.
        metadata: crate → digest of its newest metadata.
        seen: crate → the metadata of its dependencies, in their order, that its objects were compiled against.
        running: crate that is being compiled → the metadata that it is compiled against.
        told: of these, those whose metadata is there already.
        failed: crates that did not compile in this build.
    """

    graph: Graph
    tips: frozenset[str]
    stale: frozenset[str]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    seen: Mapping[str, tuple[bytes | None, ...]] = field(default_factory=dict)
    running: Mapping[str, tuple[bytes | None, ...]] = field(default_factory=dict)
    told: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


def new_schedule(graph: Graph, tips: Iterable[str]) -> Schedule:
    """A schedule in which nothing is compiled yet."""
    return Schedule(graph=graph, tips=frozenset(tips), stale=frozenset(graph))


def begin(schedule: Schedule, wanted: Iterable[str]) -> Schedule:
    """A build begins: some crates have newer sources. What an earlier build left undone is still to be done."""
    return replace(schedule, stale=schedule.stale.union(wanted), running={}, told=frozenset(), failed=frozenset())


def ready(schedule: Schedule, jobs: int) -> tuple[str, ...]:
    """The crates to begin with now, those with the longest way to a tip first.

    A crate waits for the metadata of its dependencies, not for their objects. Once a crate failed, none is begun that
    only programs with that crate need.

    Args:
        schedule: as it stands.
        jobs: how many may run at once.
    """
    settled: set[str] = set()
    found = []
    needed = _needed(schedule)
    for crate, dependencies in schedule.graph.items():
        if not settled.issuperset(dependencies):
            continue
        if crate in schedule.told or not (crate in schedule.running or _is_outdated(schedule, crate)):
            settled.add(crate)
        elif crate in needed and crate not in schedule.running:
            found.append(crate)
    ways = _longest_ways(schedule.graph)
    found.sort(key=lambda crate: -ways[crate])
    return tuple(found[: max(0, jobs - len(schedule.running))])


def started(schedule: Schedule, crate: str) -> Schedule:
    """A crate's compile begins; until it ends well, nothing that the crate has on disk can be relied on."""
    running = {**schedule.running, crate: _offered(schedule, crate)}
    return replace(schedule, running=running, stale=schedule.stale | {crate})


def told(schedule: Schedule, crate: str, metadata: bytes) -> Schedule:
    """The metadata of a crate that is being compiled is on disk; its objects are not yet."""
    return replace(schedule, told=schedule.told | {crate}, metadata={**schedule.metadata, crate: metadata})


def ended(schedule: Schedule, crate: str, *, ok: bool) -> Schedule:
    """A crate's compile ended."""
    running = dict(schedule.running)
    seen = running.pop(crate)
    schedule = replace(schedule, running=running, told=schedule.told - {crate})
    if not ok:
        return replace(schedule, failed=schedule.failed | {crate})
    return replace(schedule, stale=schedule.stale - {crate}, seen={**schedule.seen, crate: seen})


def outdated(schedule: Schedule) -> frozenset[str]:
    """The crates whose objects are known not to be those of the newest sources."""
    return frozenset(crate for crate in schedule.graph if _is_outdated(schedule, crate))


def crates_of(graph: Graph, tip: str) -> frozenset[str]:
    """A tip and all that it depends on."""
    found = {tip}
    for crate in reversed(tuple(graph)):
        if crate in found:
            found.update(graph[crate])
    return frozenset(found)


def finished_tips(schedule: Schedule) -> frozenset[str]:
    """The tips of which all crates are up to date."""
    return _tips_without(schedule, outdated(schedule))


def _needed(schedule: Schedule) -> frozenset[str]:
    """The crates of programs that have no failed crate."""
    tips = _tips_without(schedule, schedule.failed)
    return frozenset().union(*(crates_of(schedule.graph, tip) for tip in tips))


def _tips_without(schedule: Schedule, crates: frozenset[str]) -> frozenset[str]:
    return frozenset(tip for tip in schedule.tips if crates.isdisjoint(crates_of(schedule.graph, tip)))


def _offered(schedule: Schedule, crate: str) -> tuple[bytes | None, ...]:
    return tuple(schedule.metadata.get(dependency) for dependency in schedule.graph[crate])


def _is_outdated(schedule: Schedule, crate: str) -> bool:
    return crate in schedule.stale or schedule.seen.get(crate) != _offered(schedule, crate)


def _longest_ways(graph: Graph) -> dict[str, int]:
    """For each crate, how many crates the longest chain of its dependents has."""
    ways = dict.fromkeys(graph, 0)
    for crate in reversed(tuple(graph)):
        for dependency in graph[crate]:
            ways[dependency] = max(ways[dependency], ways[crate] + 1)
    return ways
