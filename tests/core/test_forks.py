"""Which closures and task states are other ones than before, and which functions a patch brings beside the old."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from hotpatchd.core.forks import (
    Forks,
    OldValues,
    find_forks,
    find_kept,
    find_old_values,
    find_renumbered,
    is_new_again,
    note_stays,
)
from hotpatchd.core.layout import FunctionTypes, TraitObject, Uses

MAKE = "app::make::{#0}"
ENV = "app::make::{closure_env#0}"
BODY = "_ZN3app4make28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE"
GLUE = "_ZN4core3ptr13drop_in_place17h0123456789abcdefE"


def function(*signature: str, path: str = "app::f", generic: Iterable[str] = ()) -> FunctionTypes:
    """A function by its path, and by the types of its parameters and those for which it was instantiated."""
    return FunctionTypes(
        path=path,
        signature=frozenset(signature),
        generic=frozenset(generic),
        all=frozenset({*signature, *generic}),
    )


def numbered(*codes: str, inside: str = "app::f") -> dict[str, dict[str, bytes]]:
    """The closures of a function, by their codes in order of their numbers."""
    return {f"{inside}::{{#{n}}}": {f"{inside}{n}": code.encode()} for n, code in enumerate(codes) if code}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["a", "b"], ["new", "a", "b"]),
        (["a", "b"], ["b"]),
        (["a", "b"], ["b", "a"]),
        (["a", "b"], ["edited b", "new"]),
    ],
)
def test_closures_that_have_the_number_of_another_are_found(before: list[str], now: list[str]) -> None:
    """One is inserted above, one is removed, two change places, one makes room: all of the function count."""
    old, new = numbered(*before), numbered(*now)
    assert find_renumbered(old, new) == old.keys() | new.keys()


@pytest.mark.parametrize(
    ("before", "now"),
    [(["a", "b"], ["a", "b", "new"]), (["a", "b"], ["a", "c"]), (["a", "b"], ["b", "b"])],
)
def test_edited_and_appended_closures_keep_their_numbers(before: list[str], now: list[str]) -> None:
    """Each is taken for the one that had its number."""
    assert not find_renumbered(numbered(*before), numbered(*now))


def test_what_is_inside_a_renumbered_closure_has_other_numbers_too() -> None:
    """Two closures with one call each are told apart by the closures that they hand over."""
    old = numbered("call", "call") | numbered("x", inside="app::f::{#0}") | numbered("y", inside="app::f::{#1}")
    new = numbered("call") | numbered("y", inside="app::f::{#0}")
    assert find_renumbered(old, new) == old.keys()
    assert not find_renumbered(numbered("call", "call"), numbered("call"))


def test_instances_that_come_and_go_renumber_nothing() -> None:
    """A generic function's closure has as many symbols as there are instances."""
    old = {"app::f::{#0}": {"u8": b"a", "u16": b"b"}, "app::f::{#1}": {"u8": b"c"}}
    new = {"app::f::{#0}": {"u16": b"b", "u32": b"d"}}
    assert not find_renumbered(old, new)


def test_what_holds_an_old_value_counts_as_one() -> None:
    """A task that awaits another holds its state; a type that says so in its path needs no list."""
    outer = "app::outer::{async_fn_env#0}"
    parts = {
        f"{outer}::Suspend0": frozenset({"app::inner::{async_fn_env#0}"}),
        outer: frozenset({f"{outer}::Suspend0"}),
        "app::Held": frozenset({outer}),
    }
    old = find_old_values([], ["app::inner::{async_fn_env#0}"], [Uses(parts=parts)])
    assert old.closures == {"app::inner::{#0}", "app::outer::{#0}"}
    assert old.are_in("alloc::boxed::Box<app::outer::{async_fn_env#0}>")
    assert old.are_in("app::Held")
    assert not old.are_in("app::other::{async_fn_env#0}")


def test_closures_inside_an_old_one_are_old() -> None:
    """A closure that keeps its old code keeps that of the closures inside it, and a task that waits does so, too."""
    inner, awaited = "app::make::{closure#0}::{closure#1}", "app::outer::{async_fn#0}::{closure#0}"
    functions = {
        name: function(path=path)
        for name, path in {
            "a": "app::make::{closure#0}",
            "b": inner,
            "c": awaited,
            "d": "app::make::{closure#2}",
        }.items()
    }
    parts = {"app::outer::{async_fn_env#0}": frozenset({ENV})}
    old = find_old_values([], [ENV], [Uses(parts=parts, functions=functions)])
    assert old.closures == {MAKE, f"{MAKE}::{{#1}}", "app::outer::{#0}", "app::outer::{#0}::{#0}"}


def test_a_closure_made_for_an_old_one_is_told_by_it() -> None:
    """The library's closure for another closure of the program stays what it was."""
    of = "core::iter::map_fold::{{closure_env#0}}<{}>".format
    old = find_old_values([], [ENV, of(ENV)], [Uses()])
    assert old.closures == {MAKE}
    assert (old.are_in(of(ENV)), old.are_in(of("app::other::{closure_env#0}"))) == (True, False)


@pytest.mark.parametrize(
    ("types", "is_reached"),
    [
        (function(f"&{ENV}"), True),
        (function("u32", generic=[ENV]), True),
        (function("u32", path="app::make::{closure#0}"), True),
        (FunctionTypes(signature=frozenset(), generic=frozenset(), all=frozenset({ENV})), False),
    ],
    ids=["parameter", "glue", "own code", "variable"],
)
def test_functions_that_old_values_reach(types: FunctionTypes, is_reached: bool) -> None:
    """One that only has such values in variables makes them itself, so it is replaced."""
    assert OldValues(closures=frozenset({MAKE})).reach(types) == is_reached


def forks(
    changed: Iterable[str],
    users: Mapping[str, Iterable[str]],
    *,
    forked: Iterable[str],
    dead: Iterable[str] = (),
    stale: Mapping[str, str] | None = None,
) -> Forks:
    """What becomes of a program's functions; all but the `dead` are in it."""
    copies = stale or {}
    return find_forks(
        changed,
        is_forked=set(forked).__contains__,
        users=lambda name: users.get(name, ()),
        is_live=lambda name: name not in dead,
        stale=lambda names: {copies[name] for name in names if name in copies},
    )


def test_all_that_make_new_values_are_replaced() -> None:
    """Whoever refers to a forked function is forked or replaced, and so on, though its own code is as before."""
    users = {"body": ["make"], "make": ["hand_on", "main"], "hand_on": ["show"], "show": ["main"]}
    found = forks(["body"], users, forked=["body", "make", "hand_on", "unchanged"])
    assert found == Forks(replaced=("main", "show"), forked=frozenset({"body", "make", "hand_on"}))


def test_callers_of_a_replaced_function_stay() -> None:
    """They go to its place, where the jump is."""
    assert forks(["edited"], {"edited": ["main"]}, forked=[]) == Forks(replaced=("edited",))


def test_functions_with_a_copy_of_a_forked_one_are_treated_alike() -> None:
    """The optimiser may have put the code of a closure into the function that calls it."""
    found = forks(["body"], {"body": ["call"]}, forked=["body", "call"], stale={"call": "main"})
    assert found == Forks(replaced=("main",), forked=frozenset({"body", "call"}))


def test_what_the_program_does_not_have_is_neither() -> None:
    """It comes along as new, where something refers to it."""
    assert forks(["dead"], {"dead": ["main"]}, forked=["dead"], dead=["dead"]) == Forks(replaced=())


FUTURE = "core::future::future::Future<Output=u32>"
ONCE = "std::sync::once::{impl#2}::call_once_force::{closure_env#0}"


@pytest.mark.parametrize(
    ("uses", "stays"),
    [
        (Uses(trait_objects=frozenset({TraitObject(type=f"app::Button<{ENV}>", trait="app::Click")})), True),
        (Uses(trait_objects=frozenset({TraitObject(type=f"app::Timeout<{ENV}>", trait=FUTURE)})), False),
        (
            Uses(functions={GLUE: function(path=f"core::ops::function::FnOnce::call_once<{ENV}>", generic=[ENV])}),
            True,
        ),
        (
            Uses(functions={BODY: function("&mut app::make::{async_block_env#0}", path="app::make::{async_block#0}")}),
            False,
        ),
    ],
    ids=["trait object", "boxed future", "function pointer", "task"],
)
def test_closures_that_may_outlast_their_function_are_found(uses: Uses, stays: bool) -> None:
    """By the function that made them; a task ends, and what holds a closure may stay."""
    code = Uses(functions={BODY: function(path="app::make::{closure#0}")})
    assert find_kept(OldValues(closures=frozenset({MAKE})), [code, uses]) == {"app::make": stays}


@pytest.mark.parametrize(
    "uses", [Uses(), Uses(trait_objects=frozenset({TraitObject(type=f"{ONCE}<{ENV}>", trait="core::FnMut<()>")}))]
)
def test_closures_that_end_with_their_function_are_not_found(uses: Uses) -> None:
    """No value of theirs is left, nor is one of those that the library makes to call them once."""
    code = Uses(functions={BODY: function(path="app::make::{closure#0}")})
    assert not find_kept(OldValues(closures=frozenset({MAKE})), [code, uses])


@pytest.mark.parametrize(("stays", "what"), [(True, "closures"), (False, "futures")])
def test_an_edit_of_what_was_left_behind_is_noted(stays: bool, what: str) -> None:
    """For the function that made it, if one of its closures is edited."""
    edited = [BODY, "_ZN3app5other17h0123456789abcdefE"]
    [note] = note_stays({"app::make": stays, "app::other": True}, edited)
    assert (note.symbol, note.note, note.detail.split()[0]) == ("app::make", "old_code_stays", what)


HANDLER = "app::Handler<fn(u32) -> app::report::{async_fn_env#0}, app::App>"
"""What is made for a function, which debug information describes like a pointer to it."""


def test_a_type_that_is_only_made_for_a_value_does_not_hold_it() -> None:
    """Its path says so, but no field leads there; one whose fields are not known is taken for a holder."""
    service, boxed, unknown = f"app::Service<{ENV}>", f"app::Boxed<{ENV}>", f"dyn app::Call<Output={ENV}>"
    parts = {service: frozenset({ENV, "u8"}), boxed: frozenset({ENV}), unknown: frozenset[str](), ENV: frozenset[str]()}
    old = find_old_values([], [ENV], [Uses(parts=parts, made_for={service: frozenset({ENV})})])
    assert [old.are_in(path) for path in (service, boxed, unknown, f"app::Other<{ENV}>")] == [False, True, True, True]


def test_variants_without_content_belong_to_their_enum() -> None:
    """They are as large as the state or option that they are variants of."""
    option = f"core::option::Option<{ENV}>"
    parts = {
        option: frozenset({f"{option}::Some"}),
        f"{option}::Some": frozenset({ENV}),
        f"{option}::None": frozenset(),
    }
    old = find_old_values([], [ENV], [Uses(parts={**parts, ENV: frozenset[str]()})])
    assert old.are_in(f"{option}::None")


@pytest.mark.parametrize("is_pointed", [False, True])
def test_what_is_made_for_a_function_holds_nothing_of_what_it_returns(is_pointed: bool) -> None:
    """A router holds handlers, not their futures; unless it may hold pointers to them, which lead to old code."""
    state = "app::report::{async_fn_env#0}"
    parts = {"app::Router": frozenset({HANDLER}), HANDLER: frozenset({"app::App"})}
    functions = {"report": replace(function("u32", state), parameters=("u32", state))}
    old = find_old_values([], [state], [Uses(parts=parts, functions=functions)], lambda name: is_pointed)
    assert [old.are_in(one) for one in (HANDLER, "app::Router", state)] == [is_pointed, is_pointed, True]


@pytest.mark.parametrize(
    ("symbol", "types", "is_again"),
    [
        (BODY, function(path="app::make::{closure#0}"), True),
        (GLUE, function(generic=[ENV]), True),
        ("_RNvCscAEuU5ehQ2G_3app4main", function(), True),
        ("_ZN3app4make17h0123456789abcdefE", function("u32"), False),
        ("exported", function("u32"), False),
    ],
    ids=["closure", "glue", "v0", "legacy", "unmangled"],
)
def test_a_function_that_comes_back_may_be_another(symbol: str, types: FunctionTypes, is_again: bool) -> None:
    """A legacy name has the signature in its hash, but not what closures capture."""
    assert is_new_again(symbol, types, frozenset({symbol})) == is_again
    assert not is_new_again(symbol, types, frozenset())
