"""Which crates are compiled, and when."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.schedule import (
    Graph,
    Schedule,
    begin,
    crates_of,
    ended,
    finished_tips,
    new_schedule,
    outdated,
    ready,
    started,
    told,
)

CHAIN: Graph = {"leaf": (), "mid": ("leaf",), "app": ("mid", "leaf")}
DIAMOND: Graph = {"bottom": (), "left": ("bottom",), "right": ("bottom",), "app": ("left", "right")}
TWO_TIPS: Graph = {"shared": (), "broken": ("shared",), "app": ("shared",), "demo": ("broken",)}


def compiled(schedule: Schedule, *crates: str, metadata: bytes = b"1") -> Schedule:
    """The schedule after these crates were compiled, one after the other."""
    for crate in crates:
        schedule = ended(told(started(schedule, crate), crate, metadata), crate, ok=True)
    return schedule


def all_compiled(graph: Graph, *tips: str) -> Schedule:
    """A schedule in which everything is up to date."""
    return compiled(new_schedule(graph, tips), *graph)


def test_at_first_everything_is_outdated() -> None:
    """Nothing was compiled, so nothing can be relied on."""
    schedule = new_schedule(CHAIN, ["app"])
    assert (outdated(schedule), finished_tips(schedule)) == (frozenset(CHAIN), frozenset())


def test_a_build_of_nothing_begins_nothing() -> None:
    """All is up to date, and the program is whole."""
    schedule = begin(all_compiled(CHAIN, "app"), ())
    assert (ready(schedule, 8), finished_tips(schedule)) == ((), frozenset({"app"}))


def test_crates_wait_for_their_dependencies() -> None:
    """Only the one at the bottom can begin."""
    assert ready(begin(new_schedule(CHAIN, ["app"]), ()), 8) == ("leaf",)


def test_crates_that_do_not_depend_on_each_other_run_at_once() -> None:
    """Both sides of a diamond, once its bottom is there."""
    assert ready(compiled(new_schedule(DIAMOND, ["app"]), "bottom"), 8) == ("left", "right")


def test_no_more_crates_run_than_are_allowed() -> None:
    """Those that run already count."""
    schedule = compiled(new_schedule(DIAMOND, ["app"]), "bottom")
    assert ready(schedule, 1) == ("left",)
    assert ready(started(schedule, "left"), 1) == ()
    assert ready(started(schedule, "left"), 2) == ("right",)


def test_the_longest_way_to_a_tip_comes_first() -> None:
    """It decides when the build ends."""
    graph = {"short": (), "low": (), "high": ("low",), "app": ("short", "high")}
    assert ready(new_schedule(graph, ["app"]), 1) == ("low",)


def test_a_dependent_begins_as_soon_as_the_metadata_is_there() -> None:
    """It does not wait for the dependency's objects."""
    schedule = started(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf")
    assert ready(schedule, 8) == ()
    assert ready(told(schedule, "leaf", b"2"), 8) == ("mid",)


def test_a_dependent_is_left_alone_where_the_metadata_stayed() -> None:
    """The build ends early."""
    schedule = told(started(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf"), "leaf", b"1")
    assert ready(schedule, 8) == ()
    assert finished_tips(ended(schedule, "leaf", ok=True)) == {"app"}


def test_a_dependent_that_is_wanted_itself_is_compiled_though_the_metadata_stayed() -> None:
    """It waits for the metadata all the same."""
    schedule = started(begin(all_compiled(CHAIN, "app"), ["leaf", "mid"]), "leaf")
    assert ready(schedule, 8) == ()
    assert ready(told(schedule, "leaf", b"1"), 8) == ("mid",)


def test_a_crate_waits_for_those_between_it_and_what_changed() -> None:
    """The tip uses the bottom directly, and must not be compiled before the middle is."""
    schedule = compiled(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf", metadata=b"2")
    assert ready(schedule, 8) == ("mid",)


def test_nothing_is_begun_after_a_failure() -> None:
    """With one program, nothing that is left could be used."""
    schedule = compiled(begin(all_compiled(DIAMOND, "app"), ["bottom"]), "bottom", metadata=b"2")
    schedule = ended(started(schedule, "left"), "left", ok=False)
    assert ready(schedule, 8) == ()
    assert outdated(schedule) == {"left", "right"}


def test_a_failure_stops_only_the_programs_that_have_the_crate() -> None:
    """The other program can be patched meanwhile."""
    schedule = compiled(begin(all_compiled(TWO_TIPS, "app", "demo"), ["shared"]), "shared", metadata=b"2")
    schedule = ended(started(schedule, "broken"), "broken", ok=False)
    assert ready(schedule, 8) == ("app",)
    assert finished_tips(compiled(schedule, "app")) == {"app"}


def test_a_failed_crate_is_compiled_by_the_next_build() -> None:
    """Whatever that build was asked for."""
    schedule = ended(started(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf"), "leaf", ok=False)
    assert ready(begin(schedule, ()), 8) == ("leaf",)


def test_a_dependent_that_was_not_begun_is_compiled_by_the_next_build() -> None:
    """Though the metadata does not change again."""
    schedule = compiled(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf", metadata=b"2")
    schedule = compiled(begin(schedule, ["leaf"]), "leaf", metadata=b"2")
    assert ready(schedule, 8) == ("mid",)


def test_a_dependent_is_left_alone_where_the_metadata_returned_to_what_it_saw() -> None:
    """An edit that was taken back before anybody compiled against it."""
    schedule = compiled(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf", metadata=b"2")
    schedule = compiled(begin(schedule, ["leaf"]), "leaf", metadata=b"1")
    assert (ready(schedule, 8), outdated(schedule)) == ((), frozenset())


def test_what_ran_when_a_build_was_cancelled_is_compiled_by_the_next_one() -> None:
    """Its files may be half written, also where its metadata was told already."""
    schedule = told(started(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf"), "leaf", b"1")
    schedule = begin(schedule, ())
    assert ready(schedule, 8) == ("leaf",)
    assert finished_tips(schedule) == frozenset()


def test_a_cancelled_dependent_is_compiled_though_the_metadata_returned_to_what_it_saw() -> None:
    """Its own metadata may be on disk already, made from what was taken back."""
    schedule = compiled(begin(all_compiled(CHAIN, "app"), ["leaf"]), "leaf", metadata=b"2")
    schedule = compiled(begin(started(schedule, "mid"), ["leaf"]), "leaf", metadata=b"1")
    assert ready(schedule, 8) == ("mid",)


def test_the_crates_of_a_program_are_what_its_tip_depends_on() -> None:
    """Those of other programs are not."""
    assert crates_of(TWO_TIPS, "app") == {"app", "shared"}
    assert crates_of(TWO_TIPS, "demo") == {"demo", "broken", "shared"}


@dataclass
class Model:
    """What is on disk: sources, and what each crate's objects and metadata were made from.

    A source is a pair: its interface, which shows in the metadata, and the rest, which does not.
    """

    graph: Graph
    sources: dict[str, tuple[int, int]]
    objects: dict[str, object] = field(default_factory=dict)

    def metadata(self, crate: str) -> bytes:
        """Of the newest sources; it depends on that of the dependencies."""
        return repr((crate, self.sources[crate][0], [self.metadata(name) for name in self.graph[crate]])).encode()

    def compile(self, crate: str) -> object:
        """Objects of the newest sources."""
        return self.sources[crate], [self.metadata(name) for name in self.graph[crate]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some crates, each depending on some of those before it."""
    graph: dict[str, tuple[str, ...]] = {}
    for number in range(draw(st.integers(1, 6))):
        graph[f"c{number}"] = tuple(sorted(draw(st.sets(st.sampled_from(sorted(graph)))))) if graph else ()
    return graph


@given(graphs(), st.data())
def test_finished_programs_are_those_of_the_newest_sources(graph: Graph, data: st.DataObject) -> None:
    """However crates end and builds are cancelled, what counts as finished is what compiling everything would give."""
    roots = [crate for crate in graph if not any(crate in used for used in graph.values())]
    model = Model(graph, dict.fromkeys(graph, (0, 0)))
    schedule = new_schedule(graph, roots)
    for _ in range(4):
        edits = data.draw(st.dictionaries(st.sampled_from(sorted(graph)), st.tuples(*[st.integers(0, 1)] * 2)))
        model.sources.update(edits)
        schedule = begin(schedule, edits)
        ends = data.draw(st.sampled_from(["well", "well", "badly", "cancelled"]))
        runs = 0
        while True:
            for crate in ready(schedule, data.draw(st.integers(1, 3))):
                schedule = started(schedule, crate)
                runs += 1
            if not schedule.running or (ends == "cancelled" and data.draw(st.booleans())):
                break
            crate = data.draw(st.sampled_from(sorted(schedule.running)))
            against = tuple(model.metadata(name) for name in graph[crate])
            assert schedule.running[crate] == against
            if crate not in schedule.told and data.draw(st.booleans()):
                schedule = told(schedule, crate, model.metadata(crate))
                continue
            ok = ends != "badly" or data.draw(st.booleans())
            if ok:
                schedule = told(schedule, crate, model.metadata(crate))
                model.objects[crate] = model.compile(crate)
            schedule = ended(schedule, crate, ok=ok)
        assert runs <= len(graph)
        for tip in finished_tips(schedule):
            for crate in crates_of(graph, tip):
                assert model.objects[crate] == model.compile(crate)
        if ends == "well":
            assert finished_tips(schedule) == frozenset(roots)
