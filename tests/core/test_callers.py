"""Which functions lead to changed ones."""

import pytest

from hotpatchd.core.callers import find_leading, is_hot_call

USERS = {
    "draw": ["frame"],
    "frame": ["call_it"],
    "call_it": ["main"],
    "fresh": ["frame"],
    "even": ["odd"],
    "odd": ["even"],
}


def leading(*changed: str, known: str = "draw frame call_it main even odd") -> tuple[str, ...]:
    """In a program that has the functions in `known`."""
    return find_leading(changed, users=lambda name: USERS.get(name, ()), is_replaceable=known.split().__contains__)


def test_everything_on_the_way_to_a_changed_function_is_found() -> None:
    """Whichever of them the program enters by a hot call, it gets to the new code."""
    assert leading("draw") == ("call_it", "frame", "main")


def test_what_the_program_does_not_have_is_looked_through() -> None:
    """It cannot be replaced, and what uses it can."""
    assert leading("draw", known="draw call_it main") == ("call_it", "main")


def test_a_new_function_is_led_to_by_what_uses_it() -> None:
    """An absent function starts the search as well."""
    assert leading("fresh") == ("call_it", "frame", "main")


def test_functions_that_use_each_other_end_the_search() -> None:
    """A circle is walked once, and a changed function is not among those that lead to it."""
    assert leading("even") == ("odd",)


@pytest.mark.parametrize(
    ("symbol", "is_hot"),
    [
        (
            "_ZN83_$LT$T$u20$as$u20$subsecond..HotFunction$LT$$LP$$RP$$C$subsecond..Fn0Marker$GT$$GT$"
            "7call_it17hbdc3991c56a0bb5eE",
            True,
        ),
        ("_RNvXCs_3appNCNvCs_3app4main0INtCs_9subsecond11HotFunctionuNtCs_9subsecond9Fn0MarkerE7call_it", True),
        ("_ZN3app7call_it17hbdc3991c56a0bb5eE", False),
        ("main", False),
    ],
)
def test_what_a_hot_call_enters_is_known_by_its_name(symbol: str, is_hot: bool) -> None:
    """In both manglings."""
    assert is_hot_call(symbol) == is_hot
