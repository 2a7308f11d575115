"""Which changes of a layout are refused, and which functions must be idle."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest

from hotpatchd.core.layout import (
    Field,
    FunctionTypes,
    Judgement,
    KeptCode,
    Layout,
    TraitObject,
    Uses,
    Variant,
    find_changed,
    judge_layouts,
)

OLD = Layout(size=8, align=4, fields=(Field(name="a", offset=0, type="u32"), Field(name="b", offset=4, type="u32")))
NEW = Layout(size=12, align=4, fields=(*OLD.fields, Field(name="c", offset=8, type="u32")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """An object by what is said of it."""

    layouts: Mapping[str, frozenset[Layout]]
    uses: Uses = field(default_factory=Uses)


def unit(layouts: Mapping[str, Layout], uses: Uses | None = None) -> Unit:
    """An object with one layout for each type."""
    return Unit(layouts={path: frozenset({layout}) for path, layout in layouts.items()}, uses=uses or Uses())


def function(*signature: str, local: Iterable[str] = (), generic: Iterable[str] = ()) -> FunctionTypes:
    """A function by the types of its parameters, its variables, and those for which it was instantiated."""
    return FunctionTypes(
        signature=frozenset(signature), generic=frozenset(generic), all=frozenset({*signature, *local, *generic})
    )


def judge(
    before: Unit, now: Unit, *, dead: Iterable[str] = (), callers: Mapping[str, Iterable[str]] | None = None
) -> Judgement:
    """The judgement of one object; the program has all that is not `dead`."""
    return judge_layouts(
        [before],
        [now],
        is_live=lambda symbol: symbol not in dead,
        callers=lambda symbol: (callers or {}).get(symbol, ()),
    )


def told(old: Layout, new: Layout) -> str:
    """How the refusal describes a change."""
    uses = Uses(statics={"HELD": "app::T"})
    [refusal] = judge(unit({"app::T": old}, uses), unit({"app::T": new})).refusals
    return refusal.detail.partition("(")[2].partition(")")[0]


def test_nothing_is_asked_of_an_object_whose_layouts_stay() -> None:
    """What holds which types is read only when a layout changed."""

    class Unread:
        @property
        def layouts(self) -> Mapping[str, frozenset[Layout]]:
            return {"app::T": frozenset({OLD})}

        @property
        def uses(self) -> Uses:
            raise AssertionError

    found = judge_layouts([Unread()], [Unread()], is_live=lambda _: True, callers=lambda _: ())
    assert found == Judgement()


def test_a_type_in_a_static_is_refused_by_name() -> None:
    """The refusal has the type, the change, the static, and who uses it."""
    uses = Uses(
        statics={"HELD": "app::T"},
        functions={"app::get": function("&app::T")},
        parts={"&app::T": frozenset({"app::T"})},
    )
    [refusal] = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals
    assert (refusal.symbol, refusal.reason) == ("app::T", "layout")
    assert refusal.detail == (
        "its layout changed (field c added), and the static HELD may hold values of it; used by app::get; restart"
    )


def test_a_static_that_the_program_does_not_have_holds_nothing() -> None:
    """What nothing uses is not in the program."""
    uses = Uses(statics={"HELD": "app::T"})
    assert judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW}), dead=["HELD"]) == Judgement()


def test_a_type_that_a_static_leads_to_is_refused() -> None:
    """Containers and pointers count like the type itself."""
    uses = Uses(
        statics={"HELD": "Vec<app::T>"},
        parts={"Vec<app::T>": frozenset({"*mut app::T"}), "*mut app::T": frozenset({"app::T"})},
    )
    assert judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals


@pytest.mark.parametrize("layouts", [{}, {"app::T": OLD}], ids=["new", "same"])
def test_new_and_unchanged_types_are_no_hindrance(layouts: dict[str, Layout]) -> None:
    """Only a type that has another layout than before counts."""
    uses = Uses(statics={"HELD": "app::T"})
    assert judge(unit(layouts, uses), unit({"app::T": OLD})) == Judgement()


def test_one_of_two_types_of_the_same_path_is_told_from_the_other() -> None:
    """Two versions of a crate have types of one path; neither is the changed form of the other."""
    both = Unit(layouts={"app::T": frozenset({OLD, NEW})}, uses=Uses(statics={"HELD": "app::T"}))
    assert judge(both, unit({"app::T": NEW})) == Judgement()


def test_functions_that_hand_a_value_on_must_be_idle() -> None:
    """Those that name the type, and those that call them, which may have a value without a name."""
    uses = Uses(functions={"make": function("app::T"), "other": function("u32")})
    found = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW}), callers={"make": ["run"], "other": ["main"]})
    assert (found.refusals, set(found.idle)) == ((), {"make", "run"})
    assert found.idle["run"].detail == (
        "its layout changed (field c added), and run is running, which may hold values of it; restart"
    )


def test_functions_that_hand_a_value_on_are_refused_where_nobody_can_wait_for_them() -> None:
    """A client that does not look at stacks may have a thread in any function."""
    uses = Uses(functions={"make": function("app::T"), "other": function("u32")})
    found = judge_layouts(
        [unit({"app::T": OLD}, uses)],
        [unit({"app::T": NEW})],
        is_live=lambda _: True,
        callers=lambda _: (),
        can_wait=False,
    )
    assert [(refusal.symbol, refusal.detail) for refusal in found.refusals] == [
        (
            "app::T",
            "its layout changed (field c added), and make hands values of it around, which may be alive in functions"
            " that run; restart",
        )
    ]
    assert found.idle == {}


def test_glue_that_is_known_by_what_it_was_instantiated_for_must_be_idle() -> None:
    """Drop glue has no parameters in debug information."""
    uses = Uses(functions={"drop_in_place": function(generic=["app::T"])})
    found = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW}), callers={"drop_in_place": ["run"]})
    assert set(found.idle) == {"drop_in_place", "run"}


def test_a_function_that_keeps_its_values_to_itself_may_run() -> None:
    """Its old code ends with its old values."""
    uses = Uses(functions={"alone": function(local=["app::T"])})
    assert judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW}), callers={"alone": ["main"]}) == Judgement()


@pytest.mark.parametrize("path", ["app::run::{async_fn_env#0}", "app::run::{async_block_env#2}"])
def test_the_state_of_a_task_is_refused(path: str) -> None:
    """It may be waiting anywhere."""
    [refusal] = judge(unit({path: OLD}), unit({path: NEW})).refusals
    assert "it is the state of a task" in refusal.detail


def test_a_type_in_the_state_of_a_task_is_refused() -> None:
    """The state of an async function contains its variables."""
    uses = Uses(parts={"app::run::{async_fn_env#0}": frozenset({"app::T"})})
    [refusal] = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals
    assert "tasks may hold values of it" in refusal.detail


def test_a_type_behind_a_trait_object_is_refused() -> None:
    """Whoever has the object does not name the type."""
    uses = Uses(trait_objects=frozenset({TraitObject(type="app::T", trait="app::Shape")}))
    [refusal] = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals
    assert "a trait object (dyn app::Shape) may hold a value of it" in refusal.detail


@pytest.mark.parametrize(("size", "is_refused"), [(0, False), (8, True)])
def test_an_object_without_bytes_holds_nothing(size: int, is_refused: bool) -> None:
    """`PhantomData` names a type and has no value of it."""
    visitor = Layout(size=size, align=1)
    uses = Uses(
        parts={"app::Visitor": frozenset({"app::T"})},
        trait_objects=frozenset({TraitObject(type="app::Visitor", trait="app::Visits")}),
    )
    judged = judge(unit({"app::T": OLD, "app::Visitor": visitor}, uses), unit({"app::T": NEW, "app::Visitor": visitor}))
    assert bool(judged.refusals) == is_refused


def test_an_object_that_gets_its_first_field_is_refused() -> None:
    """The old value has no bytes that the new code could read."""
    uses = Uses(trait_objects=frozenset({TraitObject(type="app::T", trait="app::Shape")}))
    assert judge(unit({"app::T": Layout(size=0, align=1)}, uses), unit({"app::T": NEW})).refusals


@pytest.mark.parametrize(
    ("holder", "is_refused"), [("&[&dyn core::fmt::Debug]", False), ("alloc::boxed::Box<dyn core::fmt::Debug>", True)]
)
def test_an_object_for_formatting_counts_where_something_holds_it(holder: str, is_refused: bool) -> None:
    """Formatting borrows such objects for one call; what owns one may keep it."""
    uses = Uses(
        trait_objects=frozenset({TraitObject(type="app::T", trait="core::fmt::Debug")}),
        parts={
            holder: frozenset({"&dyn core::fmt::Debug"}),
            "&dyn core::fmt::Debug": frozenset({"dyn core::fmt::Debug"}),
        },
    )
    assert bool(judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals) == is_refused


def test_a_value_that_comes_back_through_an_untyped_pointer_is_refused() -> None:
    """A library that calls back with `*mut c_void` keeps values whose type it does not know."""
    uses = Uses(functions={"callback": function("*mut core::ffi::c_void", local=["app::T"])})
    [refusal] = judge(unit({"app::T": OLD}, uses), unit({"app::T": NEW})).refusals
    assert "callback gets it through an untyped pointer" in refusal.detail


def test_only_the_type_that_was_edited_is_named() -> None:
    """What holds it changes its size, too, and is no cause."""
    outer = Layout(size=16, align=8, fields=(Field(name="t", offset=8, type="app::T"),))
    grown = Layout(size=24, align=8, fields=(Field(name="t", offset=8, type="app::T"),))
    uses = Uses(statics={"HELD": "app::Outer"}, parts={"app::Outer": frozenset({"app::T"})})
    before, now = unit({"app::T": OLD, "app::Outer": outer}, uses), unit({"app::T": NEW, "app::Outer": grown})
    assert [refusal.symbol for refusal in judge(before, now).refusals] == ["app::T"]


def test_a_field_that_was_only_renamed_is_where_it_was() -> None:
    """Its name is not part of any value."""
    renamed = Layout(size=8, align=4, fields=(Field(name="z", offset=0, type="u32"), OLD.fields[1]))
    assert judge(unit({"app::T": OLD}, Uses(statics={"HELD": "app::T"})), unit({"app::T": renamed})) == Judgement()


def test_changes_are_told_in_the_words_of_the_source() -> None:
    """Fields added, removed, retyped, moved; sizes."""
    a, b = OLD.fields
    assert told(NEW, OLD) == "field c removed"
    assert (
        told(OLD, Layout(size=16, align=8, fields=(a, Field(name="b", offset=8, type="u64")))) == "field b: u32 → u64"
    )
    swapped = Layout(
        size=8, align=4, fields=(Field(name="a", offset=4, type="u32"), Field(name="b", offset=0, type="u32"))
    )
    assert told(OLD, swapped) == "field a moved from byte 0 to 4, field b moved from byte 4 to 0"
    assert told(OLD, Layout(size=16, align=16, fields=(a, b))) == "size 8 → 16, alignment 4 → 16"


def test_changes_of_enums_are_told_by_variant() -> None:
    """Variants added and removed, and their tags."""
    one, two = Variant(name="One", tag=0), Variant(name="Two", tag=1)
    assert (
        told(Layout(size=1, align=1, variants=(one,)), Layout(size=1, align=1, variants=(one, two)))
        == "variant Two added"
    )
    assert (
        told(Layout(size=1, align=1, variants=(one, two)), Layout(size=1, align=1, variants=(two,)))
        == "variant One removed"
    )
    moved = Variant(name="Two", tag=2)
    assert told(Layout(size=1, align=1, variants=(one, two)), Layout(size=1, align=1, variants=(one, moved))) == (
        "tag of variant Two: 1 → 2"
    )


def test_trait_objects_whose_methods_moved_are_values_of_another_layout() -> None:
    """Whatever holds one, in whichever pointer, holds a table in the old order."""
    box = "alloc::boxed::Box<dyn app::Shape, alloc::alloc::Global>"
    uses = Uses(statics={"HELD": "app::List"}, parts={"app::List": frozenset({box})}, functions={"f": function(box)})
    found = judge_layouts(
        [unit({}, uses)],
        [unit({})],
        is_live=lambda _: True,
        callers=lambda _: (),
        tables={"app::Shape": "method area moved", "app::Shap": "method other moved"},
    )
    assert [(refusal.symbol, refusal.detail) for refusal in found.refusals] == [
        (
            "dyn app::Shape",
            "its layout changed (method area moved), and the static HELD may hold values of it; used by f; restart",
        )
    ]


def test_values_that_are_left_to_the_old_code_are_no_hindrance() -> None:
    """Their type's new layout is another type's."""
    uses = Uses(statics={"HELD": "app::T"})
    found = judge_layouts(
        [unit({"app::T": OLD}, uses)],
        [unit({"app::T": NEW})],
        is_live=lambda _: True,
        callers=lambda _: (),
        is_apart=lambda path: path == "app::T",
    )
    assert found == Judgement()


def test_another_name_of_a_field_is_another_layout_where_it_is_asked() -> None:
    """Of a closure, it is another variable that is captured."""
    renamed = Layout(size=8, align=4, fields=(Field(name="z", offset=0, type="u32"), OLD.fields[1]))
    before, now = unit({"app::T": OLD, "app::U": OLD}), unit({"app::T": renamed, "app::U": OLD})
    assert find_changed([before], [now], is_wanted=lambda _: True) == {"app::T"}
    assert not find_changed([before], [now], is_wanted=lambda path: path == "app::U")


SHIM = "core::ops::function::FnOnce::call_once"


CATCH = "std::panicking::catch_unwind::do_call"


def judge_kept(
    *, pointed: Iterable[str], callers: Mapping[str, Iterable[str]] | None = None, name: str = "kept"
) -> Judgement:
    """The judgement of a type that one function, which stays as it is, uses within itself."""
    uses = Uses(functions={name: function("u32", local=["app::T"])})
    return judge_layouts(
        [unit({"app::T": OLD}, uses)],
        [unit({"app::T": NEW})],
        is_live=lambda _: True,
        callers=lambda _: (),
        kept=KeptCode(
            is_kept=lambda name: name in {"kept", SHIM, CATCH},
            is_pointed=lambda name: name in set(pointed),
            callers=lambda name: (callers or {}).get(name, ()),
        ),
    )


def test_code_that_stays_behind_a_pointer_uses_the_old_layout() -> None:
    """The new code calls it by the pointer, and it calls new code with old values."""
    [refusal] = judge_kept(pointed=["kept"]).refusals
    assert refusal.symbol == "app::T"
    assert "kept goes on with its old code for whoever has a pointer to it" in refusal.detail


def test_a_pointer_may_lead_to_code_that_stays_by_way_of_other_such_code() -> None:
    """A pointer to a closure is one to the shim that calls it; the closure is named, which the developer wrote."""
    [refusal] = judge_kept(pointed=[SHIM], callers={"kept": [SHIM]}).refusals
    assert "kept goes on" in refusal.detail


def test_code_that_stays_and_that_nobody_points_to_must_not_be_entered() -> None:
    """Only old code that is running calls it, directly or by way of other code that stays."""
    judged = judge_kept(pointed=[], callers={"kept": [SHIM], SHIM: ["main"]})
    assert (judged.refusals, set(judged.idle)) == ((), {"kept", SHIM, "main"})


def test_code_that_stays_and_is_lent_to_catch_unwind_must_not_be_entered() -> None:
    """Nobody has its address for longer than the call takes."""
    judged = judge_kept(pointed=[CATCH], callers={CATCH: ["main"]}, name=CATCH)
    assert (judged.refusals, set(judged.idle)) == ((), {CATCH, "main"})
