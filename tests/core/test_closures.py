"""How closures are told from symbols and from paths of debug information."""

import pytest

from hotpatchd.core.closures import (
    closure_of_function,
    closure_of_state,
    closures_in,
    owner_of_closure,
    without_results,
)


@pytest.mark.parametrize(
    ("type_path", "closures"),
    [
        ("&mut app::make::{closure_env#0}", {"app::make::{#0}"}),
        (
            "core::iter::Map<core::ops::Range<u32>, app::{impl#3}::run::{async_fn#0}::{closure_env#2}>",
            {"app::{impl#3}::run::{#0}::{#2}"},
        ),
        ("(app::f::{async_block_env#1}, [app::g::{async_closure_env#0}; 2])", {"app::f::{#1}", "app::g::{#0}"}),
        ("app::f::{async_fn_env#0}::Suspend1", {"app::f::{#0}"}),
        ("dyn core::ops::function::Fn<(u8), Output=app::f::{async_fn_env#0}>", {"app::f::{#0}"}),
        ("app::make::{closure#0}::Local", set()),
        ("app::Shape", set()),
    ],
)
def test_closures_are_found_in_the_paths_of_types(type_path: str, closures: set[str]) -> None:
    """Whatever kind they are of, since rustc counts all kinds together."""
    assert closures_in(type_path) == closures


def test_states_and_code_have_the_path_of_their_closure() -> None:
    """Parts of a state count as the state, and instances of generic functions have one closure."""
    assert closure_of_state("app::f::{async_fn_env#0}<u8>::Suspend0") == "app::f::{#0}"
    assert closure_of_state("&app::make::{closure_env#0}") is None
    assert closure_of_function("app::f::{async_fn#0}<u8>") == "app::f::{#0}"
    assert closure_of_function("app::f::{closure#0}::inner") is None


@pytest.mark.parametrize(
    ("symbol", "owner"),
    [
        ("_ZN3app4make28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE", "app::make"),
        ("_RNCNvCscAEuU5ehQ2G_3app4mains_0B3_", "app::main"),
        ("_RNCNCNvCscAEuU5ehQ2G_3app4main00B5_", "app::main::{closure#0}"),
        ("_RINvNtCsgEmfK2I1SDS_4core3ptr13drop_in_placeNCNvCscAEuU5ehQ2G_3app4make0EBK_", None),
        ("_ZN3app4make17h0123456789abcdefE", None),
    ],
)
def test_owner_of_a_closure_is_in_its_symbol(symbol: str, owner: str | None) -> None:
    """In both manglings; glue for a closure is no closure."""
    assert owner_of_closure(symbol) == owner


@pytest.mark.parametrize(
    ("type_path", "without"),
    [
        ("app::Handler<fn(u32) -> app::report::{async_fn_env#0}, app::App>", "app::Handler<fn(u32), app::App>"),
        ("fn(fn(u8) -> (u8, u16), u32) -> Box<dyn Fn(u8) -> u8>", "fn(fn(u8), u32)"),
        ('(unsafe extern "C" fn() -> u8, [fn(&str); 2])', '(unsafe extern "C" fn(), [fn(&str); 2])'),
        ("alloc::boxed::Box<dyn core::Fn<(u8), Output=u8>>", "alloc::boxed::Box<dyn core::Fn<(u8), Output=u8>>"),
        ("app::my_fn(u8) -> u8", "app::my_fn(u8) -> u8"),
    ],
)
def test_results_of_functions_are_taken_out_of_paths(type_path: str, without: str) -> None:
    """Of those inside others too, and whatever brackets the result has."""
    assert without_results(type_path) == without
