"""Which functions differ from what runs, and which statics keep their value."""

from hotpatchd.core.compare import (
    Differences,
    find_changed_constants,
    find_differences,
    find_kept_initialisers,
    find_new_collected,
)
from hotpatchd.core.unit import HostSymbol
from tests.core.fakes import FakeHost, FakeUnit, Section, fingerprint

IN_HOST = FakeHost({name: HostSymbol(0x1000, 8, "function", 1) for name in ("f", "g")})
TABLE = f"_ZN4prog5TABLE17h{'0' * 16}E"
STATIC_IN_HOST = FakeHost({"S": HostSymbol(0x2000, 8, "data", 1)})


def _function(name: str, code: str, lines: str = "", *, local: bool = False) -> Section:
    return Section(kind="function", names=(name,), code=code, lines=lines, local=local)


def _compare(*sections: Section) -> Differences:
    running = {name: fingerprint("old", "line 1") for name in ("f", "g", "unused")}
    return find_differences([FakeUnit("cgu", *sections)], running.get, IN_HOST)


def test_new_entries_of_tables_that_the_linker_gathers() -> None:
    """Those that were there before are the program's already."""
    before = FakeUnit("cgu", collected=(".init_array",))
    now = FakeUnit("cgu", collected=("linkme_HOOKS", ".init_array"))
    assert find_new_collected([before], [now]) == ("linkme_HOOKS",)
    assert find_new_collected([], [now]) == (".init_array", "linkme_HOOKS")


def test_tables_that_went_to_another_object_are_not_new() -> None:
    """How rustc cuts a crate into objects depends on all that is in it."""
    before = FakeUnit("first", collected=(".init_array",)), FakeUnit("second", collected=("linkme_HOOKS",))
    assert find_new_collected(before, [FakeUnit("third", collected=("linkme_HOOKS", ".init_array"))]) == ()


def test_the_same_code_is_no_difference() -> None:
    """Neither is a function that the old source did not have."""
    nothing = Differences(changed=(), moved=(), absent=())
    assert _compare(_function("f", "old", "line 1"), _function("new", "new")) == nothing


def test_other_code_is_a_change() -> None:
    """Names come out sorted."""
    assert _compare(_function("g", "new"), _function("f", "new")).changed == ("f", "g")


def test_other_line_numbers_are_a_move() -> None:
    """Such a function does what it did."""
    assert _compare(_function("f", "old", "line 2")) == Differences(changed=(), moved=("f",), absent=())


def test_a_changed_function_that_the_program_lacks() -> None:
    """There is nothing to be replaced."""
    assert _compare(_function("unused", "new")) == Differences(changed=(), moved=(), absent=("unused",))


def test_object_local_functions_and_statics_are_not_compared() -> None:
    """Local names say nothing across builds, and state is not code."""
    sections = _function("f", "new", local=True), Section(kind="data", names=("g",), code="new")
    assert _compare(*sections) == Differences(changed=(), moved=(), absent=())


def test_all_objects_are_compared() -> None:
    """One edit can change several."""
    units = FakeUnit("a", _function("f", "new")), FakeUnit("b", _function("g", "new"))
    assert find_differences(units, lambda _: fingerprint("old"), IN_HOST).changed == ("f", "g")


def _static(value: str, lines: str = "") -> FakeUnit:
    return FakeUnit("cgu", Section(kind="data", names=("S",), code=value, lines=lines))


def _kept(
    before: FakeUnit, now: FakeUnit, host: FakeHost = STATIC_IN_HOST, *, replaced: tuple[str, ...] = ()
) -> tuple[str, ...]:
    return find_kept_initialisers([before], [now], host, replaced=replaced)


def test_a_static_whose_initialiser_changed_keeps_its_value() -> None:
    """It is told if the program has it."""
    assert _kept(_static("1"), _static("2")) == ("S",)
    assert _kept(_static("1"), _static("2"), FakeHost()) == ()


def test_a_static_with_the_same_initialiser_is_not_told() -> None:
    """Nor is one that did not exist before."""
    assert _kept(_static("1"), _static("1")) == ()
    assert find_kept_initialisers([], [_static("2")], STATIC_IN_HOST) == ()


def test_a_static_that_only_moved_is_not_told() -> None:
    """What it says of lines is for people."""
    assert _kept(_static("1", "line 1"), _static("1", "line 2")) == ()


def test_what_was_a_function_or_is_new_has_no_earlier_initialiser() -> None:
    """Only a static that was one keeps a value."""
    function = FakeUnit("cgu", _function("S", "1"))
    assert _kept(function, _static("2")) == ()
    assert _kept(_static("2"), function) == ()
    assert _kept(FakeUnit("cgu"), _static("2")) == ()


def test_a_static_with_another_symbol_has_an_earlier_initialiser() -> None:
    """It is looked up by the symbol that it had."""
    renamed = FakeUnit("other", Section(kind="data", names=("T",), code="2"))
    host = FakeHost({"T": HostSymbol(0x2000, 8, "data", 1)})
    assert find_kept_initialisers([_static("1")], [renamed], host, {"T": "S"}) == ("T",)


def test_a_static_that_a_patch_brings_anew_is_not_told() -> None:
    """One that leads to it and keeps its value is."""
    before, now = (
        FakeUnit(
            "cgu",
            Section(kind="constant", names=("C",), code=code),
            Section(kind="data", names=("S",), code="same", to=("C",)),
        )
        for code in ("1", "2")
    )
    assert _kept(before, now, replaced=("C",)) == ("S",)


def _constant(code: str, *, lines: str = "", local: bool = False) -> FakeUnit:
    return FakeUnit("cgu", Section(kind="constant", names=(TABLE,), code=code, lines=lines, local=local))


def test_constants_with_other_content_are_found() -> None:
    """Those that only differ in lines, that are new, or that are the object's own, are not."""
    running = {TABLE: fingerprint("1", "line 1")}.get
    assert find_changed_constants([_constant("2")], running) == (TABLE,)
    assert find_changed_constants([_constant("1", lines="line 2")], running) == ()
    assert find_changed_constants([_constant("2")], lambda _: None) == ()
    assert find_changed_constants([_constant("2", local=True)], running) == ()
