"""Statics that an edit calls by another symbol, or gives another type."""

from hotpatchd.core.statics import (
    find_successors,
    item_name,
    names_its_type,
    note_fresh,
    refuse_other_places,
    refuse_other_types,
)


def legacy(path: str, digit: str) -> str:
    """A symbol of the legacy mangling; the digit makes its hash."""
    return f"_ZN{''.join(f'{len(part)}{part}' for part in path.split('::'))}17h{digit * 16}E"


OLD, NEW = legacy("app::COUNT", "0"), legacy("app::COUNT", "1")


def test_a_static_of_the_same_type_keeps_its_value() -> None:
    """Only its symbol changed, as one that is there under the same path and has the same type."""
    found = find_successors([NEW], [OLD, legacy("app::OTHER", "0")], {NEW: "app::Held"}, {OLD: "app::Held"})
    assert (dict(found.kept), dict(found.lost)) == ({NEW: OLD}, {})


def test_a_static_of_another_path_is_another_one() -> None:
    """Neither its value nor its loss is anybody's."""
    found = find_successors([NEW], [legacy("app::OTHER", "0")], {NEW: "app::Held"}, {})
    assert (dict(found.kept), dict(found.lost)) == ({}, {})


def test_a_static_of_another_type_loses_its_value() -> None:
    """Both types are told."""
    found = find_successors([NEW], [OLD], {NEW: "i64"}, {OLD: "u64"})
    assert not found.kept
    assert "was u64 and is i64 now" in found.lost[NEW]


def test_a_static_whose_type_is_not_known_loses_its_value() -> None:
    """There is nothing to tell by."""
    assert "definition of its type" in find_successors([NEW], [OLD], {}, {}).lost[NEW]


def test_a_static_that_nobody_can_write_to_any_more_loses_its_value() -> None:
    """Its code takes the initialiser for granted."""
    found = find_successors([NEW], [OLD], {NEW: "Held"}, {OLD: "Held"}, constants={NEW})
    assert (dict(found.kept), list(found.lost)) == ({}, [NEW])


def test_several_statics_of_one_path_are_told_apart_by_their_types() -> None:
    """`thread_local!` makes two for each, of which one is used."""
    storage = legacy("app::COUNT", "2")
    types = {NEW: "Cell<u8>", legacy("app::COUNT", "3"): "Storage<Cell<u8>>"}
    found = find_successors(types, [storage, OLD], types, {OLD: "Cell<u8>", storage: "Storage<Cell<u8>>"})
    assert dict(found.kept) == {NEW: OLD, legacy("app::COUNT", "3"): storage}


def test_several_statics_of_one_path_and_type_are_ambiguous() -> None:
    """Whichever value were taken, it might be another's."""
    other = legacy("app::COUNT", "2")
    found = find_successors([NEW], [OLD, other], {NEW: "u8"}, {OLD: "u8", other: "u8"})
    assert "several statics" in found.lost[NEW]


def test_a_symbol_that_says_nothing_of_the_type() -> None:
    """In v0 names, and in names of C, a static keeps its symbol whatever its type."""
    assert [names_its_type(name) for name in (OLD, "_RNvCs_3app5COUNT", "app_count")] == [True, False, False]
    (refusal,) = refuse_other_types(
        ["same", "unknown", "other"], {"same": "u8", "other": "u8"}, {"other": "i8"} | {"same": "u8"}
    )
    assert (refusal.symbol, refusal.reason) == ("other", "static_changed")


def test_a_thread_local_is_refused_once() -> None:
    """The macro makes two statics of it."""
    names = [f"_RNvNCNKNvCs6xxl1lAjzDf_1a4LAZY0{closure}023___RUST_STD_INTERNAL_VAL" for closure in ("", "s_")]
    refusals = refuse_other_types(names, dict.fromkeys(names, "u8"), dict.fromkeys(names, "i8"))
    assert [refusal.symbol for refusal in refusals] == names[:1]


def test_a_static_that_can_be_written_to_in_one_of_two_versions_is_refused() -> None:
    """Its value would be lost, or its place is one that the program cannot write to."""
    refusals = list(refuse_other_places([OLD, NEW], {NEW}))
    assert {(refusal.symbol, refusal.reason) for refusal in refusals} == {
        (OLD, "static_changed"),
        (NEW, "static_changed"),
    }
    assert [refusal.symbol for refusal in refusals if "lost" in refusal.detail] == [NEW]


def test_a_thread_local_is_named_as_in_the_source() -> None:
    """What the macro puts behind the name is not shown."""
    inner = "app::COUNT::_$u7b$$u7b$constant$u7d$$u7d$::_$u7b$$u7b$closure$u7d$$u7d$::__RUST_STD_INTERNAL_VAL"
    assert item_name(legacy(inner, "0")) == "app::COUNT"
    assert item_name("_RNvNCNKNvCs6xxl1lAjzDf_1a4LAZY0023___RUST_STD_INTERNAL_VAL") == "a::LAZY"
    assert item_name(OLD) == "app::COUNT"


def test_a_renamed_or_moved_static_is_noted() -> None:
    """It has the module of one that is gone, or its name; one that is like none is just new."""
    gone = [legacy("app::BEFORE", "0"), legacy("app::inner::MOVED", "0")]
    new = [legacy("app::AFTER", "0"), legacy("lib::MOVED", "0"), legacy("lib::FRESH", "0")]
    notes = note_fresh(new, gone)
    assert [(note.symbol, note.note) for note in notes] == [
        ("app::AFTER", "begins_anew"),
        ("lib::MOVED", "begins_anew"),
    ]
    assert "app::BEFORE" in notes[0].detail
