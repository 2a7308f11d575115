"""Objects compiled without optimisation: object-local functions that are the same wherever they have one name.

And what else selection asks of an object: who calls whom, what a linker collects, how thread-locals are laid out.
"""

from collections import Counter
from pathlib import Path

import pytest

from hotpatchd.core.select import Selection, select
from hotpatchd.core.unit import HostSymbol, NewThreadLocal, Reference
from hotpatchd.objfile.codeunit import CodeUnit
from tests.core.fakes import FakeArchives, FakeHost
from tests.objfile.build import assembled

LOCAL = "_ZN4demo5local17h0123456789abcdefE"
ROOT = "_ZN4demo4root17h0123456789abcdefE"
OTHER = "_ZN4demo5other17h0123456789abcdefE"


def function(name: str, *code: str, exported: bool = False) -> str:
    """A function in a section of its own."""
    visible = f".globl {name}\n" if exported else ""
    lines = (f'.section .text.{name},"ax",@progbits', f"{visible}.type {name},@function", f"{name}:", *code)
    return "\n".join((*lines, f".size {name}, . - {name}", ""))


def shared_unit(root: Path, source: str, name: str = "unit") -> CodeUnit:
    """An object of an unoptimised build."""
    return CodeUnit(assembled(root, source, name).obj, name, from_archive=False, shares_locals=True)


def section_of(unit: CodeUnit, name: str) -> int:
    """The section in which a symbol lies, local or not."""
    return next(symbol.shndx for symbol in unit.obj.symbols if symbol.name == name)


CALLING = function(LOCAL, "mov $1,%eax", "ret") + function(ROOT, f"call {LOCAL}", "ret", exported=True)


def test_a_shared_local_function_is_exported(tmp_path: Path) -> None:
    """It counts among the definitions that others know, and stays local."""
    unit = shared_unit(tmp_path, CALLING)
    assert set(unit.exports) == {LOCAL, ROOT}
    assert (unit.exports[LOCAL].local, unit.exports[ROOT].local) == (True, False)


def test_a_local_function_of_an_optimised_object_is_its_own_business(tmp_path: Path) -> None:
    """The optimiser may have given another one of that name another signature."""
    unit = assembled(tmp_path, CALLING)
    assert set(unit.exports) == {ROOT}
    assert list(unit.references(section_of(unit, ROOT))) == [Reference("", section_of(unit, LOCAL), local=True)]


def test_a_local_name_that_is_not_rusts_is_not_shared(tmp_path: Path) -> None:
    """A C compiler's `helper` is another function in every object."""
    unit = shared_unit(tmp_path, function("helper", "ret") + function(ROOT, "call helper", exported=True))
    assert set(unit.exports) == {ROOT}
    assert [reference.local for reference in unit.references(section_of(unit, ROOT))] == [True]


def test_local_data_is_not_shared(tmp_path: Path) -> None:
    """Only functions are the same wherever they have one name."""
    state = f'.section .data.s,"aw"\n.type {OTHER},@object\n{OTHER}: .long 1\n'
    assert set(shared_unit(tmp_path, CALLING + state).exports) == {LOCAL, ROOT}


def test_a_call_of_a_shared_local_function_is_a_reference_by_name(tmp_path: Path) -> None:
    """The assembler may have written it as a place in a section."""
    unit = shared_unit(tmp_path, CALLING)
    assert list(unit.references(section_of(unit, ROOT))) == [Reference(LOCAL, section_of(unit, LOCAL), local=False)]


def test_a_jump_within_a_shared_local_function_stays_inside(tmp_path: Path) -> None:
    """Its own code and its jump tables lead to places in it, not to the function by name."""
    table = f'.section .rodata.{LOCAL},"a"\n.Ltable: .quad .Lcase\n'
    unit = shared_unit(tmp_path, function(LOCAL, "jmp *.Ltable(%rip)", ".Lcase: ret") + table)
    code = section_of(unit, LOCAL)
    (to_table,) = unit.references(code)
    (to_code,) = unit.references(to_table.section)
    assert to_code == Reference("", code, local=True)


def test_a_section_with_two_functions_is_not_one_shared_function(tmp_path: Path) -> None:
    """A reference to its beginning says nothing about which is meant."""
    second = f".type {OTHER},@function\n{OTHER}: ret\n"
    unit = shared_unit(tmp_path, function(LOCAL, "ret") + second + function(ROOT, f"call {OTHER}", exported=True))
    assert [reference.local for reference in unit.references(section_of(unit, ROOT))] == [True]


@pytest.mark.parametrize(("shares", "equal"), [(True, True), (False, False)])
def test_the_code_of_a_shared_local_function_is_no_part_of_its_callers(
    tmp_path: Path, shares: bool, equal: bool
) -> None:
    """It is compared by itself, as an exported one; any other local function counts by its content."""
    prints = []
    for number in (1, 2):
        edited = assembled(tmp_path, CALLING.replace("$1", f"${number}"), f"unit{number}")
        unit = CodeUnit(edited.obj, "unit", from_archive=False, shares_locals=shares)
        prints.append((unit.fingerprint(section_of(unit, ROOT)), unit.fingerprint(section_of(unit, LOCAL))))
    (root_before, local_before), (root_after, local_after) = prints
    assert (root_before == root_after) == equal
    assert local_before != local_after


def chosen(unit: CodeUnit, *host: str) -> Selection:
    """The patch that replaces ROOT in a program that has these functions as well."""
    symbols = {name: HostSymbol(0x1000, 16, "function", 1) for name in (ROOT, *host)}
    build = dict.fromkeys(unit.exports, unit)
    return select(roots=[ROOT], definitions=build, host=FakeHost(symbols), archives=FakeArchives())


def test_a_shared_local_function_of_the_program_stays_there(tmp_path: Path) -> None:
    """The patch refers to the program's, at the place where the object has its own."""
    unit = shared_unit(tmp_path, CALLING)
    selection = chosen(unit, LOCAL)
    (kept,) = selection.units
    assert kept.sections == {section_of(unit, ROOT)}
    assert kept.host_sections == {section_of(unit, LOCAL): unit.exports[LOCAL]}
    assert LOCAL in selection.host_names


def test_a_new_shared_local_function_comes_along(tmp_path: Path) -> None:
    """With what it needs, and it counts as added."""
    unit = shared_unit(tmp_path, CALLING)
    selection = chosen(unit)
    (kept,) = selection.units
    assert kept.sections == {section_of(unit, ROOT), section_of(unit, LOCAL)}
    assert (kept.host_sections, selection.added) == ({}, (LOCAL,))


def test_calls_count_how_often_a_function_is_referred_to(tmp_path: Path) -> None:
    """By exported functions, also where the callee is defined elsewhere."""
    unit = assembled(
        tmp_path,
        function("one", "call far", "call far", exported=True) + function("two", "call far", "call one", exported=True),
    )
    assert unit.calls == {"far": Counter(one=2, two=1), "one": Counter(two=1)}


def test_calls_from_local_functions_count_for_whoever_reaches_these(tmp_path: Path) -> None:
    """Through several of them, in a circle as well, and once for each reference."""
    unit = assembled(
        tmp_path,
        function("inner", "call outer", "call far")
        + function("outer", "call inner", "call inner")
        + function("one", "call outer", exported=True)
        + function("two", "ret", exported=True),
    )
    assert unit.calls == {"far": Counter(one=1)}


def test_calls_of_shared_local_functions_go_by_name(tmp_path: Path) -> None:
    """They are callers and callees of their own."""
    source = function(LOCAL, "call far") + function(ROOT, f"call {LOCAL}", exported=True)
    assert shared_unit(tmp_path, source).calls == {"far": Counter({LOCAL: 1}), LOCAL: Counter({ROOT: 1})}


@pytest.mark.parametrize("name", ["linkme_TABLE", ".init_array", ".init_array.00099", ".ctors", ".fini_array"])
def test_sections_that_a_linker_gathers_are_collected(tmp_path: Path, name: str) -> None:
    """Those with a name that C can spell, and those that run at the start and the end."""
    unit = assembled(tmp_path, f'.section {name},"aw"\nentry: .quad 1\n')
    assert list(unit.collected.values()) == [name]


@pytest.mark.parametrize(
    "section", ['.rodata.x,"a"', '.text.f,"ax"', '.data.s,"aw"', 'debug_notes,""', '.debug_info,""']
)
def test_other_sections_are_not_collected(tmp_path: Path, section: str) -> None:
    """Neither code and data of their own, nor what is never loaded."""
    assert assembled(tmp_path, f".section {section}\nentry: .quad 1\n").collected == {}


def test_collected_sections_are_told_apart_by_content(tmp_path: Path) -> None:
    """A changed entry is another one; the same entry in another build is the same."""
    source = '.section table,"a"\nentry: .quad {}\n'
    one, same, other = (assembled(tmp_path, source.format(value), f"u{n}") for n, value in enumerate((1, 1, 2)))
    assert one.collected == same.collected
    assert one.collected.keys().isdisjoint(other.collected)


@pytest.mark.parametrize(
    ("section", "content", "size", "align", "image"),
    [
        ('.tdata.x,"awT"', ".balign 16\n{}: .quad 7", 8, 16, (7).to_bytes(8, "little")),
        ('.tdata.x,"awT"', "{}: .byte 0", 1, 1, b""),
        ('.tbss.x,"awT",@nobits', ".balign 8\n{}: .zero 24", 24, 8, b""),
    ],
    ids=["initialised", "zeros", "uninitialised"],
)
def test_the_layout_of_a_thread_local(
    tmp_path: Path, section: str, content: str, size: int, align: int, image: bytes
) -> None:
    """Size and alignment of its section, and its content where that is not all zeros."""
    unit = assembled(tmp_path, f".section {section}\n.globl {OTHER}\n{content.format(OTHER)}\n")
    expected = NewThreadLocal(name=OTHER, size=size, align=align, image=image)
    assert unit.thread_local(unit.exports[OTHER]) == expected


def test_a_thread_local_that_holds_addresses_has_no_layout(tmp_path: Path) -> None:
    """Its content is known only once it is linked."""
    unit = assembled(tmp_path, f'.section .tdata.x,"awT"\n.globl {OTHER}\n{OTHER}: .quad far\n')
    assert unit.thread_local(unit.exports[OTHER]) is None
