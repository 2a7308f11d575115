"""What a program runs after patches and undos, against a program that is played through."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.session import (
    LiveSymbols,
    after_applied,
    after_nothing,
    after_undo,
    earlier_copies,
    is_newer,
    undo_target,
)
from hotpatchd.core.unit import Fingerprint, HostSymbol
from tests.core.fakes import FakeHost, content, fingerprint, session

HOST_FUNCTIONS = ["a", "b"]
PATCHED = st.frozensets(st.sampled_from([*HOST_FUNCTIONS, "new", "newer"]), min_size=1)


class Program:
    """A program: what code stands at each function's address, and the jumps to other code written over it."""

    def __init__(self) -> None:
        self.at_address: dict[str, Fingerprint | None] = dict.fromkeys(HOST_FUNCTIONS)
        self.jumps: list[dict[str, Fingerprint]] = []

    def apply(self, functions: dict[str, Fingerprint]) -> tuple[str, ...]:
        """Returns the functions that are new."""
        added = tuple(functions.keys() - self.at_address.keys())
        self.jumps.append({name: code for name, code in functions.items() if name in self.at_address})
        self.at_address |= {name: functions[name] for name in added}
        return added

    def runs(self) -> dict[str, Fingerprint]:
        """The code that each function runs, where it is not the binary's own."""
        code = dict(self.at_address)
        for jumps in self.jumps:
            code |= jumps
        return {name: found for name, found in code.items() if found is not None}


@given(st.lists(st.one_of(PATCHED, st.integers(1, 4)), max_size=12))
def test_the_session_knows_what_the_program_runs(happenings: list[frozenset[str] | int]) -> None:
    """Whatever is applied and taken back: sets are functions that a patch defines, numbers are undos."""
    known, program = session(1), Program()
    for number, happening in enumerate(happenings):
        if isinstance(happening, int):
            left = known.history[: max(len(known.history) - happening, 0)]
            known = after_undo(known, undo_target(known, left[-1].edit if left else 0))
            del program.jumps[max(len(program.jumps) - happening, 0) :]
        else:
            functions = {name: fingerprint(f"{name}{number}") for name in happening}
            added = program.apply(functions)
            known = after_applied(known, content(f"p{number}", functions, added, edit=number + 1), number)
        assert known.running == program.runs()
        assert len(known.history) == len(program.jumps)


@given(st.lists(PATCHED, max_size=4), PATCHED)
def test_undo_is_the_opposite_of_apply(earlier: list[frozenset[str]], last: frozenset[str]) -> None:
    """For functions of the binary, what runs is what ran before."""
    before = session(1)
    for number, names in enumerate(earlier, 1):
        functions = {name: fingerprint(f"{name}{number}") for name in names}
        before = after_applied(before, content(f"p{number}", functions, edit=number), 0)
    after = after_applied(before, content("last", {name: fingerprint("last") for name in last}, edit=9), 0)
    undone = after_undo(after, undo_target(after, len(earlier)))
    assert (undone.running, undone.history, undone.edits) == (before.running, before.history, before.edits)


def test_a_patch_leaves_its_symbols_and_its_place_taken() -> None:
    """Also when it is taken back: pointers may lead there."""
    patch = replace(content("p1", {"new": fingerprint("n")}, ["new"]), thread_locals=24)
    applied = after_applied(session(1), patch, 0x30000)
    undone = after_undo(applied, None)
    for known in (applied, undone):
        assert known.next_addr == 0x30000
        assert known.thread_locals == 24
        assert known.symbols == patch.symbols
        assert known.running == {"new": fingerprint("n")}


def test_the_target_of_an_undo() -> None:
    """The newest patch that brought nothing newer than the edit; none where each did."""
    known = session(1)
    for edit in (1, 2, 4):
        known = after_applied(known, content(f"p{edit}", edit=edit), 0)
    assert [undo_target(known, edit) for edit in (5, 4, 3, 2, 1, 0)] == ["p4", "p4", "p2", "p2", "p1", None]
    assert undo_target(session(1), 0) is None


def test_an_edit_that_brought_nothing_is_no_reason_to_take_a_patch_back() -> None:
    """The patch before it stays, whichever of the two edits is gone back to."""
    known = after_nothing(after_applied(session(1), content("p1", edit=1), 0), 2)
    known = after_applied(known, content("p3", edit=3), 0)
    assert [undo_target(known, edit) for edit in (2, 1, 0)] == ["p1", "p1", None]
    assert after_undo(known, "p1").edits == (1, 2)


def test_a_patch_of_several_edits_is_newer_than_each_of_them() -> None:
    """It is taken back as a whole; a program without patches has nothing to take back."""
    known = after_applied(session(1), content("p3", edit=3), 0)
    assert [is_newer(known, edit) for edit in (3, 2, 0)] == [False, True, True]
    assert undo_target(known, 2) is None
    assert not is_newer(after_nothing(session(1), 3), 2)


def test_what_patches_added_counts_among_the_programs_symbols() -> None:
    """The newest definition of a name is the one that is found."""
    own, added = HostSymbol(1, 1, "function", 1), HostSymbol(2, 2, "function", 1)
    live = LiveSymbols(FakeHost({"both": own, "own": own}), {"both": added, "added": added})
    assert [live.find(name) for name in ("both", "own", "added", "none")] == [added, own, added, None]


def test_a_function_beside_the_old_one_has_its_name_until_it_is_taken_back() -> None:
    """Edits that follow replace the newest; with the undo, the name is the program's own again."""
    place, other = HostSymbol(16, 8, "function", 1), HostSymbol(32, 8, "function", 1)
    first, second = (
        replace(content(patch, {"a": fingerprint(patch)}, edit=edit), symbols={"a": symbol}, forked=frozenset({"a"}))
        for edit, (patch, symbol) in enumerate([("p1", place), ("p2", other)], 1)
    )
    once = after_applied(session(1), first, 0)
    twice = after_applied(once, second, 0)
    assert (twice.symbols, twice.running) == ({"a": other}, {"a": fingerprint("p2")})
    undone = after_undo(twice, "p1")
    assert (undone.symbols, undone.running) == (once.symbols, once.running)
    assert (after_undo(twice, None).symbols, after_undo(undone, None).running) == ({}, {})


def test_old_code_on_a_stack_is_known_until_the_function_is_replaced_again() -> None:
    """What a thread left meanwhile can only be told when its function is replaced the next time."""
    stays = after_applied(session(1), content("p1", {"a": fingerprint("p1")}, edit=1), 0, frozenset({"a", "b"}))
    other = after_applied(stays, content("p2", {"c": fingerprint("p2")}, edit=2), 0)
    again = after_applied(other, content("p3", {"a": fingerprint("p3")}, edit=3), 0)
    assert [sorted(known.lingering) for known in (stays, other, again)] == [["a", "b"], ["a", "b"], ["b"]]


def test_functions_without_a_source_are_known() -> None:
    """What a patch's source lacks is gone, and so is what it added once it is taken back."""
    first = replace(content("p1", {"new": fingerprint("n")}, ["new"]), gone=frozenset({"a"}))
    known = after_applied(session(1), first, 0)
    assert known.gone == {"a"}
    assert after_undo(known, None).gone == {"new"}
    again = after_applied(known, replace(content("p2", edit=2), gone=frozenset({"a", "new"})), 0)
    assert again.gone == {"a", "new"}
    assert after_undo(again, "p1").gone == {"a"}


def test_a_renamed_function_is_found_by_its_new_name_until_the_patch_is_taken_back() -> None:
    """It stays at its place, and by the old name it is known here."""
    patch = replace(content("p1", {"a": fingerprint("2")}), aliases={"z": "a"})
    known = after_applied(session(1), patch, 0)
    live = LiveSymbols(FakeHost({"a": HostSymbol(1, 1, "function", 1)}), known.symbols, aliases=known.aliases)
    assert (live.find("z"), known.running) == (HostSymbol(1, 1, "function", 1), {"a": fingerprint("2")})
    assert after_undo(known, None).aliases == {}


def test_copies_are_counted_from_the_first_that_a_patch_brought() -> None:
    """A function that was new with one patch and replaced by the next has two places, and the newest counts."""
    first = replace(
        content("p1", {"new": fingerprint("1")}, ("new",)), symbols={"new": HostSymbol(16, 8, "function", 1)}
    )
    second = replace(
        content("p2", {"new": fingerprint("2")}), symbols={}, copies={"new": HostSymbol(32, 8, "function", 1)}
    )

    known = after_applied(after_applied(session(1), first, 1), second, 2)

    assert earlier_copies(known, "new") == (16, 32)
    assert LiveSymbols(FakeHost({}), known.symbols).find("new") == HostSymbol(32, 8, "function", 1)


def test_the_programs_own_place_is_no_copy() -> None:
    """What no patch touched has none."""
    assert earlier_copies(session(1), "a") == ()
