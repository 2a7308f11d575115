"""Which functions have another symbol than before, and which virtual tables other methods."""

import pytest

from hotpatchd.core.layout import FunctionTypes, TraitObject, VirtualTable
from hotpatchd.core.renames import (
    Tables,
    find_changed_tables,
    find_dropped_otherwise,
    find_renamed,
    may_be_renamed,
    method_name,
)

MADE = TraitObject(type="app::Circle", trait="app::Shape")


def legacy(path: str, number: int = 0) -> str:
    """The legacy symbol of a path, with a hash of its own."""
    elements = path.replace("<", "_$LT$").replace(">", "$GT$").replace(" as ", "$u20$as$u20$")
    escaped = [element.replace("~", "..") for element in elements.replace(" for ", "$u20$for$u20$").split("::")]
    return f"_ZN{''.join(f'{len(element)}{element}' for element in escaped)}17h{number:016x}E"


AREA = "<app~Circle as app~Shape>::area"


def function(*parameters: str, generic: frozenset[str] = frozenset()) -> FunctionTypes:
    """A function by the types of its parameters and its result."""
    return FunctionTypes(parameters=parameters, signature=frozenset(parameters), generic=generic, all=frozenset())


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        (legacy(AREA), "area"),
        ("_RNvXs_Cs4fqI2P2rA04_3appNtB4_6CircleNtB4_5Shape4area", "area"),
        ("_RINvNtCsgEmfK2I1SDS_4core3ptr13drop_in_placeNCNvCscAEuU5ehQ2G_3app4make0EBK_", "drop_in_place"),
        ("", ""),
    ],
)
def test_methods_have_a_name(symbol: str, name: str) -> None:
    """In both manglings, without what they are instances for."""
    assert method_name(symbol) == name


@pytest.mark.parametrize(
    ("path", "may_be"),
    [
        (AREA, True),
        ("<alloc~vec~Vec<T> as app~Shape>::area", True),
        ("core::ptr::drop_in_place<u8>", False),
        ("app::make::_$u7b$$u7b$closure$u7d$$u7d$", False),
    ],
)
def test_methods_of_the_developers_types_may_be_renamed(path: str, may_be: bool) -> None:
    """Also those that a library's type has from the developer's trait; closures have rules of their own."""
    assert may_be_renamed(legacy(path), {"app"}) == may_be


def test_a_method_in_a_block_with_another_number_is_the_same() -> None:
    """Its path and its signature are what they were; the hash is not."""
    types = function("&app::Circle", "u64")
    assert find_renamed({legacy(AREA, 1): types}, {legacy(AREA, 2): types}) == {legacy(AREA, 2): legacy(AREA, 1)}


def test_a_method_with_another_signature_is_another() -> None:
    """Callers of the one must not reach the other."""
    before, now = function("&app::Circle", "u64"), function("&app::Circle", "u32")
    assert not find_renamed({legacy(AREA, 1): before}, {legacy(AREA, 2): now})


def test_a_type_s_own_form_of_a_method_follows_the_trait_s() -> None:
    """The legacy name of the trait's form does not say for which type it is; debug information does."""
    own, traits = legacy(AREA), legacy("app::Shape::area")
    types = function("&app::Circle", "u64")
    of_trait = function("&app::Circle", "u64", generic=frozenset({"app::Circle"}))
    assert find_renamed({traits: of_trait}, {own: types}) == {own: traits}
    assert find_renamed({own: types}, {traits: of_trait}) == {traits: own}


def test_a_block_in_another_module_is_the_same() -> None:
    """The legacy name then begins with the module."""
    types, moved = function("&app::Circle"), legacy("app::shapes::<impl app~Shape for app~Circle>::area")
    assert find_renamed({legacy(AREA): types}, {moved: types}) == {moved: legacy(AREA)}


def test_instances_for_several_types_are_told_apart() -> None:
    """By what they are made for; where that says nothing, none takes the place of another."""
    path = "<app~Holder<T> as app~Value>::value"
    bytes_, words = (function("u64", generic=frozenset({made})) for made in ("u8", "u64"))
    before, now = {legacy(path, 1): bytes_, legacy(path, 2): words}, {legacy(path, 3): bytes_, legacy(path, 4): words}
    assert find_renamed(before, now) == {legacy(path, 3): legacy(path, 1), legacy(path, 4): legacy(path, 2)}
    assert not find_renamed(before, {legacy(path, 3): bytes_, legacy(path, 4): bytes_})


def tables(*methods: str) -> Tables:
    """The table of a circle, by the names of its methods."""
    return {MADE: VirtualTable(methods=tuple(legacy(f"<app~Circle as app~Shape>::{method}") for method in methods))}


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (("area",), ("area", "edge"), "method edge added"),
        (("area", "edge"), ("edge",), "method area removed"),
        (("area", "edge"), ("edge", "area"), "method edge moved, method area moved"),
    ],
)
def test_methods_at_other_places_are_told(before: tuple[str, ...], now: tuple[str, ...], text: str) -> None:
    """Code calls the methods of a trait object by place."""
    assert find_changed_tables(tables(*before), tables(*now), {}, {}) == {"app::Shape": text}


def test_tables_that_lead_to_other_symbols_are_the_same_tables() -> None:
    """A block with another number, and a type's own form of a method, leave each method where it was."""
    now = {MADE: VirtualTable(methods=(legacy(AREA, 5), legacy("app::Shape::edge")))}
    assert not find_changed_tables(tables("area", "edge"), now, {}, {})


def test_a_method_with_another_signature_is_told() -> None:
    """Its place is the old one, and what is called there takes something else."""
    old, new = ({MADE: VirtualTable(methods=(legacy(AREA, block),))} for block in (1, 2))
    before, now = function("&app::Circle", "u64"), function("&app::Circle", "u64", "")
    found = find_changed_tables(old, new, {legacy(AREA, 1): before}, {legacy(AREA, 2): now})
    assert found == {"app::Shape": "method area: fn() -> u64 → fn(u64)"}


def test_a_method_that_is_told_its_caller_now_is_told() -> None:
    """Calls by an old table do not tell it; one that is not told any more does not mind."""
    plain, shim = (
        {MADE: VirtualTable(methods=(legacy(AREA + end),))} for end in ("", "$u7b$$u7b$reify.shim$u7d$$u7d$")
    )
    assert find_changed_tables(plain, shim, {}, {}) == {"app::Shape": "method area: told its caller"}
    assert not find_changed_tables(shim, plain, {}, {})


def test_the_table_of_another_type_tells_of_the_trait() -> None:
    """The type that the program has objects of may be gone from the source."""
    other = {TraitObject(type="app::Square", trait="app::Shape"): tables("edge", "area")[MADE]}
    assert find_changed_tables(tables("area", "edge"), other, {}, {})
    assert not find_changed_tables(tables("area", "edge"), {}, {}, {})


@pytest.mark.parametrize(("before", "text"), [(False, "added"), (True, "removed")])
def test_a_destructor_that_old_tables_do_not_have_is_told(before: bool, text: str) -> None:
    """A type that is made a trait object for the first time has no old table."""
    other = TraitObject(type="app::Square", trait="app::Shape")
    old, new = (VirtualTable(methods=(), drops=drops) for drops in (before, not before))
    assert find_dropped_otherwise({MADE: old}, {MADE: new, other: new}) == {
        "app::Shape": f"destructor of app::Circle {text}"
    }
    assert not find_dropped_otherwise({MADE: old}, {MADE: old, other: new})
