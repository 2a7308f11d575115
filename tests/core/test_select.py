"""Which sections make up a patch: each rule, and each reason to refuse."""

from collections.abc import Mapping

import pytest

from hotpatchd.core.select import Selection, select
from hotpatchd.core.session import Redirect
from hotpatchd.core.unit import Definition, HostSymbol, NewThreadLocal, Reference, Unit
from tests.core.fakes import FakeArchives, FakeHost, FakeUnit, Section

ROOT = "_RNvCs_3app4root"
NEW = "_RNvCs_3app3new"
STATE = "_RNvCs_3app5STATE"
TLS = "_RNvCs_3app3TLS"

FUNCTION = HostSymbol(0x1000, 32, "function", 1)
DATA = HostSymbol(0x2000, 8, "data", 1)
THREAD_LOCAL = HostSymbol(-16, 8, "tls", 1)


def root(*to: str, inside: tuple[int, ...] = ()) -> Section:
    """The edited function."""
    return Section(kind="function", names=(ROOT,), to=to, inside=inside)


def function(name: str, *to: str) -> Section:
    """A function that other objects know."""
    return Section(kind="function", names=(name,), to=to)


def chosen(
    *units: Unit,
    members: tuple[Unit, ...] = (),
    baseline_state: frozenset[str] = frozenset(),
    host: Mapping[str, HostSymbol] | None = None,
    redirect: Redirect = "detours",
    shares_constants: bool = False,
) -> Selection:
    """Select for an edit of ROOT, in a program that has it and the symbols in `host`."""
    definitions: dict[str, Unit] = {name: unit for unit in reversed(units) for name in unit.exports}
    return select(
        roots=[ROOT],
        definitions=definitions,
        host=FakeHost({ROOT: FUNCTION, **(host or {})}),
        archives=FakeArchives(*members),
        baseline_state=baseline_state,
        redirect=redirect,
        shares_constants=shares_constants,
    )


def taken(selection: Selection) -> dict[str, set[int]]:
    """The sections that a patch takes, by object."""
    return {kept.unit.name: set(kept.sections) for kept in selection.units}


def places(selection: Selection) -> dict[int, Definition]:
    """Sections of the only object whose state is the program's."""
    (kept,) = selection.units
    return dict(kept.host_sections)


def reasons(selection: Selection) -> list[tuple[str | None, str]]:
    """What is refused, and why."""
    return [(refusal.symbol, refusal.reason) for refusal in selection.refusals]


def test_the_edited_function_alone() -> None:
    """Nothing that it does not lead to comes along."""
    selection = chosen(FakeUnit("a", root(), function("other")), FakeUnit("b", function("far")))
    assert taken(selection) == {"a": {1}}
    assert (selection.replaced, selection.added, selection.refusals) == ((ROOT,), (), ())


def test_edited_functions_are_called_where_the_program_has_them() -> None:
    """A patch is not bound to its own copy, so that a later jump is seen."""
    selection = chosen(FakeUnit("a", root(ROOT)))
    assert selection.host_names == {ROOT}


def test_functions_that_the_program_has_stay_there() -> None:
    """Although the build defines them, too."""
    selection = chosen(
        FakeUnit("a", root("helper", "far"), function("helper")),
        FakeUnit("b", function("far")),
        host={"helper": FUNCTION, "far": FUNCTION},
    )
    assert taken(selection) == {"a": {1}}
    assert selection.host_names == {ROOT, "helper", "far"}


def test_statics_that_the_program_has_stay_there() -> None:
    """The patch refers to the program's instance."""
    selection = chosen(FakeUnit("a", root(STATE), Section(kind="data", names=(STATE,))), host={STATE: DATA})
    assert taken(selection) == {"a": {1}}
    assert STATE in selection.host_names
    assert selection.new_state == ()


def test_functions_that_are_new_come_along_with_what_they_need() -> None:
    """From any object of the build."""
    units = (
        FakeUnit("a", root(NEW)),
        FakeUnit("b", function("far", "farther"), function(NEW, "far"), function("farther")),
    )
    selection = chosen(*units)
    assert taken(selection) == {"a": {1}, "b": {1, 2, 3}}
    assert selection.added == tuple(sorted((NEW, "far", "farther")))
    assert selection.host_names == {ROOT}


def test_functions_of_archives_come_along() -> None:
    """They are not counted among what the developer added; what their object has besides stays out."""
    member = FakeUnit("std", function("_RNvCs_3std3use", "own"), function("own"), function("rest"), from_archive=True)
    selection = chosen(FakeUnit("a", root("_RNvCs_3std3use")), members=(member,))
    assert taken(selection) == {"a": {1}, "std": {1, 2}}
    assert selection.added == ()


def test_the_build_comes_before_archives() -> None:
    """An archive may hold the same function as it was."""
    member = FakeUnit("old", function(NEW), from_archive=True)
    selection = chosen(FakeUnit("a", root(NEW)), FakeUnit("b", function(NEW)), members=(member,))
    assert taken(selection) == {"a": {1}, "b": {1}}


def test_an_object_prefers_its_own_definition() -> None:
    """Of a generic function, each object may have an instance."""
    units = FakeUnit("first", function(NEW)), FakeUnit("a", root(NEW), function(NEW))
    assert taken(chosen(*units)) == {"a": {1, 2}}


def test_what_nobody_defines_is_an_import() -> None:
    """The C library is not among the archives."""
    selection = chosen(FakeUnit("a", root("memcpy", "memcpy")))
    assert selection.imports == {"memcpy"}
    assert selection.refusals == ()


def test_a_rust_function_that_nobody_defines_is_refused() -> None:
    """No shared library exports it."""
    selection = chosen(FakeUnit("a", root(NEW)))
    assert (reasons(selection), selection.imports) == ([(NEW, "unresolved")], frozenset())


@pytest.mark.parametrize(
    ("shares_constants", "host", "is_taken"),
    [
        (True, DATA, False),
        (False, DATA, True),
        (True, DATA._replace(homonyms=2), True),
        (True, DATA._replace(size=4), True),
    ],
)
def test_named_constant_of_a_library_is_the_programs(shares_constants: bool, host: HostSymbol, is_taken: bool) -> None:
    """What tells things apart by the address of a constant goes on doing so, where the constant is surely the same."""
    constant = Section(kind="constant", names=(STATE,), local=True)
    member = FakeUnit("m", Section(kind="function", names=(NEW,), inside=(2,)), constant, from_archive=True)
    selection = chosen(
        FakeUnit("a", root(NEW)), members=(member,), host={STATE: host}, shares_constants=shares_constants
    )
    assert taken(selection)["m"] == ({1, 2} if is_taken else {1})
    assert (STATE in selection.host_names) is not is_taken
    assert selection.refusals == ()


def test_local_functions_and_constants_come_along() -> None:
    """Also when the program has something of that name."""
    local = Section(kind="function", names=("helper",), local=True, inside=(3,))
    selection = chosen(FakeUnit("a", root(inside=(2,)), local, Section(kind="constant")), host={"helper": FUNCTION})
    assert taken(selection) == {"a": {1, 2, 3}}
    assert selection.host_names == {ROOT}
    assert selection.added == ()


def test_local_functions_that_other_objects_share() -> None:
    """One that the program has is the program's, by its place; a new one comes along and is counted."""
    shared = Section(kind="function", names=(NEW,), local=True, shared=True)
    there = chosen(FakeUnit("a", root(NEW), shared), host={NEW: FUNCTION})
    assert taken(there) == {"a": {1}}
    assert [definition.name for definition in places(there).values()] == [NEW]
    new = chosen(FakeUnit("a", root(NEW), shared))
    assert (taken(new), new.added, places(new)) == ({"a": {1, 2}}, (NEW,), {})


def test_sections_that_are_never_loaded_stay_out() -> None:
    """Debug info, for instance."""
    assert taken(chosen(FakeUnit("a", root(inside=(2,)), Section(kind="other")))) == {"a": {1}}


def test_places_outside_of_all_sections_lead_nowhere() -> None:
    """An absolute value needs nothing."""
    unit = FakeUnit("a", root(), frames=[Reference("", -1, local=True), Reference("", 0, local=True)])
    assert taken(chosen(unit)) == {"a": {1}}


def test_local_statics_that_the_program_has_stay_there() -> None:
    """The place in the object is given the program's name for it."""
    static = Section(kind="data", names=(STATE,), local=True)
    selection = chosen(FakeUnit("a", root(inside=(2,)), static), host={STATE: DATA})
    assert taken(selection) == {"a": {1}}
    assert places(selection)[2].name == STATE
    assert STATE in selection.host_names


def test_a_static_reached_by_its_place_is_known_by_its_name() -> None:
    """Other objects know it, so the program may; if not, it comes along."""
    unit = FakeUnit("a", root(inside=(2,)), Section(kind="data", names=(STATE,)))
    there = chosen(unit, host={STATE: DATA})
    assert (taken(there), places(there)[2].name) == ({"a": {1}}, STATE)
    new = chosen(unit)
    assert (taken(new), places(new), new.new_state) == ({"a": {1, 2}}, {}, (STATE,))


def test_a_static_that_other_languages_know_is_reached_by_its_place() -> None:
    """A plain name is enough where the linker lets only one object have it."""
    unit = FakeUnit("a", root(inside=(2,)), Section(kind="data", names=("counter",)))
    selection = chosen(unit, host={"counter": DATA})
    assert selection.refusals == ()
    assert places(selection)[2].name == "counter"


def test_new_statics_come_along() -> None:
    """Named or not, from the build or from an archive that the program has nothing of."""
    member = FakeUnit("c", function("c_new"), Section(kind="data", names=("c_state",), local=True), from_archive=True)
    member.sections[1] = Section(kind="function", names=("c_new",), inside=(2,))
    unit = FakeUnit("a", root(STATE, "c_new", inside=(3,)), Section(kind="data", names=(STATE,)), Section(kind="data"))
    selection = chosen(unit, members=(member,))
    assert taken(selection) == {"a": {1, 2, 3}, "c": {1, 2}}
    assert (selection.new_state, selection.refusals) == ((STATE,), ())


@pytest.mark.parametrize(
    ("section", "before", "told"),
    [
        (Section(kind="data", names=(STATE,), size=16), DATA, "8 bytes and 16 bytes"),
        (Section(kind="tls", names=(STATE,), size=16), THREAD_LOCAL, "8 bytes and 16 bytes"),
        (Section(kind="tls", names=(STATE,)), DATA, "a static and is a thread-local"),
        (Section(kind="data", names=(STATE,)), THREAD_LOCAL, "a thread-local and is a static"),
        (Section(kind="constant", names=(STATE,)), FUNCTION, "a function and is a static"),
        (Section(kind="function", names=(STATE,)), DATA, "a static and is a function"),
    ],
)
def test_a_static_that_became_another_is_refused(section: Section, before: HostSymbol, told: str) -> None:
    """By name, saying what it was and is."""
    selection = chosen(FakeUnit("a", root(STATE), section), host={STATE: before})
    assert reasons(selection) == [(STATE, "static_changed")]
    assert told in selection.refusals[0].detail


def test_a_size_that_is_not_known_is_no_difference() -> None:
    """Not every object says how large a symbol is."""
    unit = FakeUnit("a", root(STATE), Section(kind="data", names=(STATE,), size=0))
    assert chosen(unit, host={STATE: DATA}).refusals == ()


def weakly(*names: str, strongly: tuple[str, ...] = ()) -> Section:
    """The edited function, which refers to some names that need not exist."""
    return Section(kind="function", names=(ROOT,), to=(*names, *strongly), weak=names)


def test_what_is_referred_to_weakly_need_not_exist() -> None:
    """It is looked for by the client, and no archive brings it along."""
    member = FakeUnit("member", function("optional"), from_archive=True)
    selection = chosen(FakeUnit("a", weakly("optional", strongly=("memcpy",))), members=(member,))
    assert selection.imports == {"optional", "memcpy"}
    assert selection.weak_imports == {"optional"}
    assert taken(selection) == {"a": {1}}


def test_what_anything_refers_to_strongly_must_exist() -> None:
    """However often it is referred to weakly."""
    units = FakeUnit("a", weakly("wanted", NEW)), FakeUnit("b", function(NEW, "wanted"))
    selection = chosen(*units)
    assert selection.imports == {"wanted"}
    assert not selection.weak_imports


def test_a_weak_reference_leads_to_what_is_there() -> None:
    """To the program's, or to what the build defines."""
    units = FakeUnit("a", weakly("hosts", NEW)), FakeUnit("b", function(NEW))
    selection = chosen(*units, host={"hosts": FUNCTION})
    assert not selection.imports
    assert selection.host_names == {ROOT, "hosts"}
    assert taken(selection) == {"a": {1}, "b": {1}}


def test_a_function_written_in_assembler_stays_there() -> None:
    """Its symbol in the program has no type, so it looks like data, and no size."""
    selection = chosen(
        FakeUnit("a", root("memcpy_fast"), function("memcpy_fast")), host={"memcpy_fast": DATA._replace(size=0)}
    )
    assert selection.refusals == ()
    assert selection.host_names == {ROOT, "memcpy_fast"}


def test_a_local_static_that_changed_is_refused() -> None:
    """As one that other objects know."""
    static = Section(kind="data", names=(STATE,), local=True, size=16)
    assert reasons(chosen(FakeUnit("a", root(inside=(2,)), static), host={STATE: DATA})) == [(STATE, "static_changed")]


@pytest.mark.parametrize(
    ("name", "found"), [(STATE, HostSymbol(0x2000, 8, "data", 2)), ("counter", HostSymbol(0x2000, 8, "data", 1))]
)
def test_a_local_static_that_may_be_one_of_several_is_refused(name: str, found: HostSymbol) -> None:
    """The program has two of the name, or the name is a C compiler's."""
    static = Section(kind="data", names=(name,), local=True)
    selection = chosen(FakeUnit("a", root(inside=(2,)), static), host={name: found})
    assert reasons(selection) == [(name, "ambiguous_static")]


def test_a_static_that_lost_its_name_is_refused() -> None:
    """The source of the running program had it, and the program shows no trace of it."""
    unit = FakeUnit("a", root(STATE), Section(kind="data", names=(STATE,)))
    assert reasons(chosen(unit, baseline_state=frozenset({STATE}))) == [(STATE, "static_lost")]


def test_a_second_instance_of_an_archives_state_is_refused() -> None:
    """A member that the program has brings state that cannot be found in it."""
    state = Section(kind="data", names=("pool",), local=True)
    member = FakeUnit(
        "c", Section(kind="function", names=("c_new",), inside=(2,)), state, function("c_old"), from_archive=True
    )
    assert reasons(chosen(FakeUnit("a", root("c_new")), members=(member,), host={"c_old": FUNCTION})) == [
        ("pool", "second_instance")
    ]
    nameless = FakeUnit(
        "c",
        Section(kind="function", names=("c_new",), inside=(2,)),
        Section(kind="data"),
        function("c_old"),
        from_archive=True,
    )
    selection = chosen(FakeUnit("a", root("c_new")), members=(nameless,), host={"c_old": FUNCTION})
    assert reasons(selection) == [("a static of c", "second_instance")]


def test_rust_state_of_an_archive_that_the_program_lacks_is_new() -> None:
    """Its name would be in the program if it were there."""
    use = Section(kind="function", names=("_RNvCs_3std3use",), to=(STATE,))
    member = FakeUnit("std", use, Section(kind="data", names=(STATE,)), function("had"), from_archive=True)
    selection = chosen(FakeUnit("a", root("_RNvCs_3std3use")), members=(member,), host={"had": FUNCTION})
    assert (selection.refusals, selection.new_state) == ((), (STATE,))


def test_a_new_thread_local_gets_a_place_outside_of_the_patch() -> None:
    """Its section stays out, and the patch refers to it as it does to the program's."""
    unit = FakeUnit("a", root(TLS), Section(kind="tls", names=(TLS,), image=b"\1"))
    selection = chosen(unit)
    assert selection.thread_locals == (NewThreadLocal(name=TLS, size=8, align=8, image=b"\1"),)
    assert taken(selection) == {"a": {1}}
    assert TLS in selection.host_names
    assert (selection.new_state, selection.refusals) == ((), ())


@pytest.mark.parametrize("local", [True, False])
def test_a_new_thread_local_reached_by_its_place(local: bool) -> None:
    """Its place in the object is given its name."""
    selection = chosen(FakeUnit("a", root(inside=(2,)), Section(kind="tls", names=(TLS,), local=local, image=b"")))
    assert [found.name for found in selection.thread_locals] == [TLS]
    assert (taken(selection), places(selection)[2].name) == ({"a": {1}}, TLS)


def test_a_thread_local_that_the_program_has_stays_there() -> None:
    """It is not new."""
    selection = chosen(FakeUnit("a", root(TLS), Section(kind="tls", names=(TLS,))), host={TLS: THREAD_LOCAL})
    assert (selection.thread_locals, taken(selection)) == ((), {"a": {1}})
    assert TLS in selection.host_names


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (Section(kind="tls", names=(TLS,)), TLS),
        (Section(kind="tls", names=("errno_like",), image=b""), "errno_like"),
    ],
)
def test_a_new_thread_local_that_cannot_be_placed_is_refused(section: Section, name: str) -> None:
    """Its content holds addresses, or its name may mean several."""
    selection = chosen(FakeUnit("a", root(name), section))
    assert (reasons(selection), selection.thread_locals) == ([(name, "new_thread_local")], ())


def test_a_thread_local_without_a_name_is_refused() -> None:
    """The object is named instead."""
    selection = chosen(FakeUnit("a", root(inside=(2,)), Section(kind="tls", image=b"")))
    assert reasons(selection) == [("a static of a", "new_thread_local")]


def test_personality_routines_are_followed_once_an_object() -> None:
    """Those of objects that the patch takes nothing of are not."""
    frames = [Reference("personality", -1, local=False)]
    used = FakeUnit("a", root("helper", NEW), function("helper"), function(NEW), frames=frames)
    unused = FakeUnit("b", function("other"), frames=[Reference("other_personality", -1, local=False)])
    selection = chosen(used, unused)
    assert selection.imports == {"personality"}
    assert (used.frames_read, unused.frames_read) == (1, 0)


def test_a_symbol_is_refused_once() -> None:
    """However often it is referred to."""
    units = FakeUnit("a", root(NEW, "helper"), function("helper", NEW))
    assert reasons(chosen(units)) == [(NEW, "unresolved")]


def test_with_detours_calls_of_a_root_go_to_its_old_place() -> None:
    """The jump that stands there leads to the newest code."""
    assert ROOT in chosen(FakeUnit("a", root(ROOT))).host_names


def test_without_detours_calls_of_a_root_go_to_its_new_code() -> None:
    """Nothing at the old place would lead there, also for another object of the patch."""
    selection = chosen(FakeUnit("a", root(NEW)), FakeUnit("b", function(NEW, ROOT)), redirect="jump_table")
    assert ROOT not in selection.host_names
    assert taken(selection) == {"a": {1}, "b": {1}}
    assert selection.replaced == (ROOT,)
