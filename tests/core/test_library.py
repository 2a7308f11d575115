"""What a patch library brings, decided over made-up symbols and objects."""

from collections.abc import Mapping
from typing import Literal

import pytest

from hotpatchd.core.library import (
    LibraryHost,
    ProgramSymbols,
    choose_roots,
    find_news,
    note_own_state,
    note_stale_copies,
    note_unjudged,
    refuse_grown,
    refuse_thread_locals,
    renamed,
)
from hotpatchd.core.select import Selection
from hotpatchd.core.symbols import FileFormat, Symbol, SymbolKind, SymbolTable
from hotpatchd.core.unit import Fingerprint, NewThreadLocal
from tests.core.fakes import FakeUnit, Section


def symbol(name: str, addr: int, kind: SymbolKind = "function", *, is_stub: bool = False) -> Symbol:
    """A symbol that a file defines, of 8 bytes."""
    return Symbol(name, addr, 8, kind, True, False, False, is_stub)


def program(
    *symbols: Symbol, format: FileFormat = "elf", sizes: Literal["stated", "derived"] = "stated"
) -> ProgramSymbols:
    """A program with these symbols."""
    return ProgramSymbols(
        SymbolTable(
            origin="app",
            format=format,
            type="executable",
            os="linux",
            arch="x86_64",
            build_id="00",
            image_base=0,
            position_independent=True,
            sizes=sizes,
            symbols=symbols,
        )
    )


def selection(
    *, host_names: frozenset[str] = frozenset(), new_state: tuple[str, ...] = (), new: tuple[NewThreadLocal, ...] = ()
) -> Selection:
    """A selection of nothing but these names."""
    return Selection(
        units=(),
        host_names=host_names,
        imports=frozenset(),
        weak_imports=frozenset(),
        replaced=(),
        added=(),
        new_state=new_state,
        thread_locals=new,
        refusals=(),
    )


def fingerprint(code: str, lines: str = "") -> Fingerprint:
    """A fingerprint of made-up code."""
    return Fingerprint((code + lines).encode(), code.encode())


def test_symbol_is_found_by_name() -> None:
    """The lowest comes first, and all places count."""
    host = program(symbol("twice", 16), symbol("twice", 32), symbol("once", 48, "data"))
    twice, once = host.find("twice"), host.find("once")
    assert twice is not None
    assert once is not None
    assert (twice.addr, twice.homonyms) == (16, 2)
    assert (once.addr, once.size, once.kind) == (48, 8, "data")
    assert host.find("never") is None


def test_derived_sizes_are_unknown() -> None:
    """A size with padding in it is not compared with any other."""
    found = program(symbol("f", 16, "data"), sizes="derived").find("f")
    assert found is not None
    assert found.size == 0


def test_thunks_count_in_pe_only() -> None:
    """Elsewhere the loader finds what a linker's stub leads to."""
    stub = symbol("memcpy", 16, is_stub=True)
    assert program(stub, format="pe", sizes="derived").find("memcpy") is not None
    assert program(stub).find("memcpy") is None


def test_constants_of_the_build_come_along() -> None:
    """A library has its own copy of what nobody writes, and shares what somebody may."""
    unit = FakeUnit("unit", Section(kind="constant", names=("TABLE",)), Section(kind="data", names=("COUNT",)))
    build: Mapping[str, FakeUnit] = {"TABLE": unit, "COUNT": unit}
    host = LibraryHost(program(symbol("TABLE", 16, "data"), symbol("COUNT", 32, "data")), build)
    assert host.find("TABLE") is None
    assert host.find("COUNT") is not None


def test_what_was_replaced_stays_replaced() -> None:
    """Functions of earlier patches are roots again, if the program has them and the source still does."""
    unit = FakeUnit("unit", Section(kind="function", names=("f", "g", "added")))
    build = {"f": unit, "g": unit, "added": unit}
    host = program(symbol("f", 16), symbol("g", 32), symbol("removed", 48))
    assert choose_roots(["f"], ["g", "added", "removed"], host, build) == ("f", "g")


def test_news_are_told_apart() -> None:
    """Other code is patched, unknown code added, and other line numbers are no news."""
    running = {"same": fingerprint("a"), "moved": fingerprint("b", "1"), "edited": fingerprint("c")}
    functions = {
        "same": fingerprint("a"),
        "moved": fingerprint("b", "2"),
        "edited": fingerprint("d"),
        "new": fingerprint("e"),
    }
    news = find_news(functions, running.get)
    assert (news.patched, news.added) == (("edited",), ("new",))


def test_thread_locals_are_refused_by_name() -> None:
    """Those of the program, where the format cannot share them, and new ones everywhere."""
    host = program(symbol("OWN", 16, "tls"), symbol("COUNT", 32, "data"))
    wanted = selection(
        host_names=frozenset({"OWN", "COUNT"}), new=(NewThreadLocal(name="FRESH", size=8, align=8, image=b""),)
    )
    refused = [(refusal.symbol, refusal.reason) for refusal in refuse_thread_locals(wanted, host, can_share=False)]
    assert refused == [("FRESH", "new_thread_local"), ("OWN", "thread_local")]
    assert [refusal.symbol for refusal in refuse_thread_locals(wanted, host, can_share=True)] == ["FRESH"]


def test_own_state_is_noted_by_name() -> None:
    """A static that is in the library alone is named as the source spells it."""
    [note] = note_own_state(selection(new_state=("_ZN3app5FRESH17h0123456789abcdefE",)))
    assert (note.symbol, note.note) == ("app::FRESH", "own_instance")


@pytest.mark.parametrize(
    ("target", "noted"), [("x86_64-pc-windows-msvc", ["not_judged"]), ("x86_64-pc-windows-gnu", [])]
)
def test_target_whose_layouts_are_not_read_is_noted(target: str, noted: list[str]) -> None:
    """Debug information in CodeView is not read, that in DWARF is."""
    assert [note.note for note in note_unjudged(target)] == noted


def test_renamed_keeps_what_has_the_suffix() -> None:
    """Only new code is left, under the name of the old."""
    table = program(symbol("f.new", 16), symbol("f", 32), symbol("g", 48)).table
    assert renamed(table, ".new").symbols == (symbol("f", 16),)


def test_static_that_outgrew_its_room_is_refused() -> None:
    """Where nothing states sizes, more bytes than there are to the next symbol are too many, if they were fewer."""
    host = program(symbol("GROWN", 16, "data"), symbol("PADDED", 32, "data"), symbol("FITS", 48, "data"))
    extents = {"GROWN": (8, 16), "PADDED": (16, 16), "FITS": (4, 8)}
    assert [(it.symbol, it.reason) for it in refuse_grown(extents, host)] == [("GROWN", "static_changed")]


def test_inlined_copies_are_noted() -> None:
    """An optimised program may have the edited function inside others."""
    [note] = note_stale_copies(["_ZN3app3one17h0123456789abcdefE"])
    assert (note.symbol, note.note) == ("app::one", "inlined_into")
