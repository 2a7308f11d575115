"""COFF objects as graphs of atoms: compared over edits, and cut for a patch library."""

import contextlib
from pathlib import Path

import lief
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.select import KeptUnit, Selection
from hotpatchd.core.unit import Fingerprint
from hotpatchd.objfile.atoms import AtomUnit
from hotpatchd.objfile.library_object import prepare_object
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX
from hotpatchd.objfile.units import open_unit
from tests.objfile.bare import bare_object

TARGET = "x86_64-pc-windows-gnu"
SOURCE = """
unsafe extern "C" { fn outside(x: i32) -> i32; }
#[no_mangle] pub static total: i32 = 7;
#[no_mangle] pub extern "C" fn one() -> i32 { 1 }
#[no_mangle] pub extern "C" fn calls(x: i32) -> i32 { unsafe { outside(x) } }
#[no_mangle] pub extern "C" fn nested() -> i32 { calls(one()) }
#[no_mangle] pub extern "C" fn constant() -> *const i32 { &5 }
"""


def unit_of(root: Path, source: str) -> AtomUnit:
    """The object of a source, compiled without optimisation."""
    path = bare_object(root, TARGET, source, "-Copt-level=0", "-Ccodegen-units=1")
    return AtomUnit(path.read_bytes(), "unit", origin="unit", from_archive=False)


def fingerprints(unit: AtomUnit) -> dict[str, Fingerprint]:
    """Of all that the object exports."""
    return {name: unit.fingerprint(definition.section) for name, definition in unit.exports.items()}


def test_exports_have_their_kinds(tmp_path: Path) -> None:
    """Functions in one section are told apart, and constants are no functions."""
    exports = unit_of(tmp_path, SOURCE).exports
    kinds = {name: exports[name].kind for name in ("one", "calls", "nested", "constant", "total")}
    assert kinds == {**dict.fromkeys(("one", "calls", "nested", "constant"), "function"), "total": "constant"}
    assert len({exports[name].section for name in kinds}) == len(kinds)


def test_references_are_those_of_one_function(tmp_path: Path) -> None:
    """Of all relocations of the section, an atom has its own."""
    unit = unit_of(tmp_path, SOURCE)

    def named(function: str) -> list[str]:
        return [reference.name for reference in unit.references(unit.exports[function].section)]

    assert (named("one"), named("calls")) == ([], ["outside"])
    assert sorted(named("nested")) == ["calls", "one"]
    [constant] = unit.references(unit.exports["constant"].section)
    assert (constant.local, unit.kind(constant.section)) == (True, "constant")


def test_other_functions_around_it_change_nothing(tmp_path: Path) -> None:
    """A function is the same wherever in its section it lies, and whatever pads it."""
    before = fingerprints(unit_of(tmp_path, SOURCE))
    added = '#[no_mangle] pub extern "C" fn {}(x: i32) -> i32 {{ nested(); nested(); x }}\n'
    edited = added.format("first") + SOURCE.replace("{ 1 }", "{ last(1) }") + added.format("last")
    after = fingerprints(unit_of(tmp_path, edited))
    assert {name for name in before if before[name] != after[name]} == {"one"}


def test_padding_behind_a_function_is_none_of_it(tmp_path: Path) -> None:
    """The last function of a section is followed by nothing, the others by what aligns the next one."""
    functions = (
        '#[no_mangle] pub extern "C" fn one() -> i32 { 1 }',
        '#[no_mangle] pub extern "C" fn two() -> i32 { 2 }',
    )
    alone = [fingerprints(unit_of(tmp_path, function)) for function in functions]
    together = unit_of(tmp_path, "\n".join(functions))
    assert {name: both for part in alone for name, both in part.items()} == fingerprints(together)
    extents = [together.extent(name) for name in ("one", "two")]
    assert max(extents) > min(extents)


def test_anonymous_constant_counts_by_its_content(tmp_path: Path) -> None:
    """A function that refers to another value is another function, though its code is the same."""
    before, after = (fingerprints(unit_of(tmp_path, SOURCE.replace("&5", value))) for value in ("&5", "&6"))
    assert {name for name in before if before[name] != after[name]} == {"constant"}


def test_cut_object_wants_nothing_for_what_is_left_out(tmp_path: Path) -> None:
    """Relocations of functions that a library does not take are gone, and those that it takes are there."""
    unit = unit_of(tmp_path, SOURCE)
    kept = KeptUnit(unit=unit, sections=frozenset({unit.exports["nested"].section}), host_sections={})
    cut = AtomUnit(prepared(unit, kept), "cut", origin="cut", from_archive=False)
    wanted = {
        cut.file.symbols[reloc.symbol].name
        for section in cut.file.sections.values()
        if section.name == ".text"
        for reloc in cut.file.relocs(section)
    }
    assert wanted == {"calls", "one"}


def test_functions_of_the_program_are_left_to_it(tmp_path: Path) -> None:
    """They become undefined, and the new code of a replaced one has a name of its own, at the same place."""
    unit = unit_of(tmp_path, SOURCE)
    kept = KeptUnit(unit=unit, sections=frozenset({unit.exports["nested"].section}), host_sections={})
    parsed = lief.COFF.parse(list(prepared(unit, kept)))
    assert parsed
    symbols = {str(symbol.name): symbol for symbol in parsed.symbols}
    assert [symbols[name].section_idx for name in ("nested", "one", "calls")] == [0, 0, 0]
    new = symbols[f"nested{NEW_CODE_SUFFIX}"]
    assert new.section_idx > 0
    old = next(symbol for symbol in unit.file.symbols.values() if symbol.name == "nested")
    assert (new.section_idx, new.value) == (old.section, old.value)


def prepared(unit: AtomUnit, kept: KeptUnit) -> bytes:
    """The copy for a library that replaces `nested`, in a program that has all functions."""
    selection = Selection(
        units=(kept,),
        host_names=frozenset({"nested", "one", "calls"}),
        imports=frozenset(),
        weak_imports=frozenset(),
        replaced=("nested",),
        added=(),
        new_state=(),
        thread_locals=(),
        refusals=(),
    )
    return prepare_object(kept, selection=selection, replaced=frozenset({"nested"}), data={})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An object."""
    return bytes(unit_of(tmp_path_factory.mktemp("whole"), SOURCE).file.data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_object_that_was_cut_short_is_an_error(whole: bytes, data: st.DataObject) -> None:
    """It is read as far as it goes, or refused; no other error comes of it."""
    size = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    with contextlib.suppress(ObjectError):
        fingerprints(AtomUnit(whole[:size], "short", origin="short", from_archive=False))


def test_mach_o_object_is_refused_for_what_it_is(tmp_path: Path) -> None:
    """The error says which format cannot be compared."""
    path = bare_object(tmp_path, "aarch64-apple-darwin", SOURCE)
    with pytest.raises(ObjectError, match="a Mach-O object"):
        open_unit(path.read_bytes(), "unit", origin="patch.o", from_archive=False)
