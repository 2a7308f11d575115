"""Which unchanged functions of an optimised program hold old code of changed ones."""

from collections.abc import Mapping

from hotpatchd.core.inlining import find_stale_callers


def stale(
    changed: set[str],
    thin: Mapping[str, Mapping[str, int]],
    program: Mapping[str, Mapping[str, int]],
    replaced: frozenset[str] = frozenset(),
    copied: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """`thin` and `program`: function → how often it refers to which others."""

    def callers(callee: str) -> list[tuple[str, int]]:
        return [(caller, callees[callee]) for caller, callees in thin.items() if callee in callees]

    def references(caller: str, callee: str) -> int | None:
        return program[caller].get(callee, 0) if caller in program else None

    return find_stale_callers(
        changed,
        callers=callers,
        references_in_program=references,
        is_replaced=replaced.__contains__,
        may_be_copied=copied.__contains__,
    )


def test_a_caller_that_calls_as_often_as_its_thin_counterpart_is_left_alone() -> None:
    """It reaches the new code through the jump."""
    assert stale({"f"}, {"g": {"f": 2}}, {"g": {"f": 2}}) == ()


def test_a_caller_that_calls_less_often_holds_a_copy() -> None:
    """So it has to be replaced."""
    assert stale({"f"}, {"g": {"f": 2}}, {"g": {"f": 1}}) == ("g",)


def test_copies_of_copies_are_found() -> None:
    """What holds a copy of such a caller holds a copy of the changed function, too."""
    thin = {"g": {"f": 1}, "h": {"g": 1}, "main": {"h": 1}}
    assert stale({"f"}, thin, {"g": {}, "h": {}, "main": {"h": 1}}) == ("g", "h")


def test_a_caller_that_the_program_has_no_symbol_for_is_looked_through() -> None:
    """It was inlined wherever it was called."""
    assert stale({"f"}, {"g": {"f": 1}, "h": {"g": 1}}, {"h": {}}) == ("g", "h")


def test_a_function_that_a_patch_brought_calls_what_it_names() -> None:
    """Patches are compiled as the thin rebuild is: nothing else is inlined in them."""
    assert stale({"f"}, {"g": {"f": 1}}, {"g": {}}, frozenset({"g"})) == ()


def test_a_function_that_a_patch_brought_for_others_is_looked_through() -> None:
    """The program had no symbol for it, so those that the patch did not replace hold their old copies of it."""
    thin = {"g": {"f": 1}, "h": {"g": 1}, "i": {"g": 1}}
    assert stale({"f"}, thin, {"h": {}, "i": {}}, frozenset({"g", "i"}), frozenset({"g"})) == ("h",)


def test_functions_that_call_each_other_end_the_search() -> None:
    """A circle is walked once."""
    assert stale({"f"}, {"f": {"g": 1}, "g": {"f": 1}}, {"f": {}, "g": {}}) == ("g",)
