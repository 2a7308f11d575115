"""Which functions a patch library replaces, and how the `subsecond` crate is told."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.dioxus import DevtoolsTable
from hotpatchd.core.errors import ObjectError
from hotpatchd.core.jumptable import Jump, JumpTablePlan, devtools_table, find_main, plan_jump_table, slide_of
from hotpatchd.core.symbols import Symbol, SymbolTable

EDIT = "_RNvCs1_3app4edit"
OTHER = "_RNvCs1_3app5other"
LEGACY = "_ZN3app6legacy17h0123456789abcdefE"

PAGE = 4096


def function(
    name: str,
    addr: int,
    *,
    size: int = 16,
    is_defined: bool = True,
    is_local: bool = False,
    is_absolute: bool = False,
    is_stub: bool = False,
) -> Symbol:
    """A function's symbol."""
    return Symbol(name, addr, size, "function", is_defined, is_local, is_absolute, is_stub)


def table(*symbols: Symbol, origin: str = "patch.so", image_base: int = 0) -> SymbolTable:
    """The symbols of a file."""
    return SymbolTable(
        origin=origin,
        format="elf",
        type="library",
        os="linux",
        arch="x86_64",
        build_id="00",
        image_base=image_base,
        position_independent=True,
        sizes="stated",
        symbols=symbols,
    )


def reasons(plan: JumpTablePlan) -> dict[str | None, str]:
    """Why functions were refused, by name."""
    return {refusal.symbol: refusal.reason for refusal in plan.refusals}


@pytest.mark.parametrize("name", [EDIT, LEGACY])
def test_a_function_of_the_patch_takes_the_place_of_the_programs(name: str) -> None:
    """Names of both manglings lead from the old address to the new one."""
    plan = plan_jump_table(table(function(name, 0x1000, size=24)), table(function(name, 0x70)))
    assert plan.jumps == (Jump(0x1000, 0x70, 24, name),)
    assert plan.refusals == ()


def test_a_new_function_is_not_redirected() -> None:
    """What the program does not have needs no jump, and is no fault."""
    plan = plan_jump_table(table(function(EDIT, 0x1000)), table(function(EDIT, 0x70), function(OTHER, 0x90)))
    assert [jump.name for jump in plan.jumps] == [EDIT]
    assert plan.refusals == ()


@pytest.mark.parametrize("flaw", ["is_stub", "is_absolute", "is_undefined", "is_data"])
def test_only_code_of_the_patch_replaces_anything(flaw: str) -> None:
    """Stubs, absolute symbols, imports and data of a function's name are not its new code."""
    patch = function(
        EDIT, 0x70, is_stub=flaw == "is_stub", is_absolute=flaw == "is_absolute", is_defined=flaw != "is_undefined"
    )
    if flaw == "is_data":
        patch = patch._replace(kind="data")
    plan = plan_jump_table(table(function(EDIT, 0x1000)), table(patch), replaced={EDIT})
    assert plan.jumps == ()
    assert reasons(plan) == {EDIT: "not_in_patch"}


def test_a_function_that_the_program_lacks_cannot_be_replaced() -> None:
    """A function that was to be replaced and is not there is refused, not passed over."""
    plan = plan_jump_table(table(), table(function(EDIT, 0x70)), replaced={EDIT})
    assert reasons(plan) == {EDIT: "not_in_program"}


def test_functions_of_c_are_left_alone_unless_asked_for() -> None:
    """A library's `main` and C functions are its own; by name they can be redirected."""
    host, patch = table(function("main", 0x1000)), table(function("main", 0x70))
    assert plan_jump_table(host, patch).jumps == ()
    assert plan_jump_table(host, patch, replaced={"main"}).jumps == (Jump(0x1000, 0x70, 16, "main"),)


def test_only_wanted_functions_are_redirected() -> None:
    """What came along in the library unchanged stays where it is in the program."""
    names = (function(EDIT, 0x1000), function(OTHER, 0x2000))
    plan = plan_jump_table(table(*names), table(function(EDIT, 0x70), function(OTHER, 0x90)), replaced={EDIT})
    assert [jump.name for jump in plan.jumps] == [EDIT]


def test_all_copies_of_a_local_function_are_redirected() -> None:
    """Rust functions of one name are the same, so each copy leads to the new code."""
    host = table(function(EDIT, 0x1000, is_local=True), function(EDIT, 0x2000, size=8, is_local=True))
    plan = plan_jump_table(host, table(function(EDIT, 0x70)))
    assert plan.jumps == (Jump(0x1000, 0x70, 16, EDIT), Jump(0x2000, 0x70, 8, EDIT))


def test_several_new_copies_are_ambiguous() -> None:
    """With two pieces of new code, nothing says which one is meant."""
    patch = table(function(EDIT, 0x70, is_local=True), function(EDIT, 0x90, is_local=True))
    assert reasons(plan_jump_table(table(function(EDIT, 0x1000)), patch)) == {EDIT: "ambiguous"}


def test_local_c_functions_of_one_name_are_ambiguous() -> None:
    """C's static functions of one name need not be the same."""
    host = table(function("init", 0x1000, is_local=True), function("init", 0x2000, is_local=True))
    plan = plan_jump_table(host, table(function("init", 0x70)), replaced={"init"})
    assert reasons(plan) == {"init": "ambiguous"}


def test_two_symbols_at_one_address_are_one_copy() -> None:
    """The same name twice for the same code is not ambiguous."""
    patch = table(function(EDIT, 0x70), function(EDIT, 0x70, is_local=True))
    assert len(plan_jump_table(table(function(EDIT, 0x1000)), patch).jumps) == 1


@pytest.mark.parametrize("new_other", [None, 0x90])
def test_folded_functions_that_part_are_refused(new_other: int | None) -> None:
    """Redirecting shared code would give the other function the wrong code: all of them are named."""
    host = table(function(EDIT, 0x1000), function(OTHER, 0x1000))
    patch = [function(EDIT, 0x70), *([function(OTHER, new_other)] if new_other else [])]
    plan = plan_jump_table(host, table(*patch))
    assert plan.jumps == ()
    assert reasons(plan) == {symbol.name: "folded" for symbol in patch}
    assert "app::other" in plan.refusals[0].detail


def test_folded_functions_that_stay_folded_are_redirected_once() -> None:
    """Where both have the same new code, one jump serves both."""
    host = table(function(EDIT, 0x1000), function(OTHER, 0x1000))
    plan = plan_jump_table(host, table(function(EDIT, 0x70), function(OTHER, 0x70)))
    assert plan.jumps == (Jump(0x1000, 0x70, 16, EDIT),)


def test_folded_functions_that_agree_are_redirected_once() -> None:
    """The caller may know that two pieces of code do the same."""
    host = table(function(EDIT, 0x1000), function(OTHER, 0x1000))
    patch = table(function(EDIT, 0x70), function(OTHER, 0x90))
    plan = plan_jump_table(host, patch, agree=lambda one, other: {one, other} == {EDIT, OTHER})
    assert len(plan.jumps) == 1
    assert plan.refusals == ()


def test_a_function_folded_in_one_of_its_copies_is_not_redirected_in_part() -> None:
    """Either all copies of a function lead to the new code, or none."""
    host = table(function(EDIT, 0x1000), function(EDIT, 0x2000), function(OTHER, 0x2000))
    plan = plan_jump_table(host, table(function(EDIT, 0x70)))
    assert plan.jumps == ()
    assert reasons(plan) == {EDIT: "folded"}


def test_main_is_found_once() -> None:
    """A file without `main`, or with several, cannot be located by it."""
    assert find_main(table(function("main", 0x500)), "app") == 0x500
    with pytest.raises(ObjectError, match="app has 0 functions `main`"):
        find_main(table(function("main", 0x500, is_stub=True)), "app")


def test_a_slide_is_whole_pages() -> None:
    """A `main` elsewhere within its page is another program's."""
    host = table(function("main", 0x1500))
    assert slide_of(host, 0x7F00_0000_1500, origin="app") == 0x7F00_0000_0000
    with pytest.raises(ObjectError, match="is not that of app, which lies 0x500 bytes into a page"):
        slide_of(host, 0x7F00_0000_1510, origin="app")


def test_a_slide_is_whole_pages_of_the_machine() -> None:
    """Where pages have 16 KiB, a slide of 4 KiB is none."""
    with pytest.raises(ObjectError, match="is not that of app"):
        slide_of(table(function("main", 0x1500)), 0x2500, origin="app", page_size=0x4000)


HOST = table(function("main", 0x1500), function(EDIT, 0x1600), origin="app")
PATCH = table(function("main", 0x900), function(EDIT, 0xA00))


def devtools(
    loaded_main_addr: int,
    *,
    host: SymbolTable = HOST,
    patch: SymbolTable = PATCH,
    slide: int | None = None,
) -> DevtoolsTable:
    """The table of a plan for one program."""
    return devtools_table(
        plan_jump_table(host, patch),
        lib="/tmp/libpatch.so",
        host=host,
        host_origin="app",
        host_image_base=host.image_base,
        patch=patch,
        loaded_main_addr=loaded_main_addr,
        slide=slide,
    )


def apply(sent: DevtoolsTable, loaded_main: int, loaded_new_main: int) -> Mapping[int, int]:
    """What `subsecond::apply_patch` makes of a table; it computes with unsigned numbers, and panics on overflow."""

    def checked(number: int) -> int:
        assert 0 <= number < 1 << 64
        return number

    old_offset = checked(loaded_main - sent.aslr_reference)
    new_offset = (loaded_new_main - sent.new_base_address) % (1 << 64)
    return {checked(place + old_offset): checked(to + new_offset) for place, to in sent.map.items()}


def test_a_table_holds_link_time_addresses() -> None:
    """The program's `main` and the library's locate the keys and the values."""
    assert devtools(0x5500_0000_1500) == DevtoolsTable(
        lib="/tmp/libpatch.so", map={0x1600: 0xA00}, aslr_reference=0x1500, new_base_address=0x900
    )


def test_a_program_that_exports_no_main_gets_run_time_addresses() -> None:
    """Its reference is 0 on both sides, and the slide comes from elsewhere."""
    sent = devtools(0, slide=0x5500_0000_0000)
    assert (sent.aslr_reference, dict(sent.map)) == (0, {0x5500_0000_1600: 0xA00})


def test_a_program_that_exports_no_main_must_be_located() -> None:
    """Without a slide the error says how to export `main`."""
    with pytest.raises(ObjectError, match="does not export `main`") as caught:
        devtools(0)
    assert "--export-dynamic-symbol=main" in caught.value.hint


def test_another_programs_main_is_refused_by_the_slide() -> None:
    """A `main` that is where no program of ours has it belongs to a launcher."""
    with pytest.raises(ObjectError, match="is not that of app, which is loaded 0x5500"):
        devtools(0x6600_0000_1500, slide=0x5500_0000_0000)


@pytest.mark.parametrize("new_main", [None, function("main", 0x900, is_local=True)])
def test_a_library_must_export_main(new_main: Symbol | None) -> None:
    """The client panics on a library without it, so such a library is not sent."""
    with pytest.raises(ObjectError, match=r"patch\.so has .*`main`"):
        devtools(0x5500_0000_1500, patch=table(function(EDIT, 0xA00), *([new_main] if new_main else [])))


# Linkers give programs of macOS and DLLs of Windows addresses far above those that they may be loaded at.
BASES = st.sampled_from([0, 0x400000, 0x1_0000_0000, 0x1_4000_0000, 0x1_8000_0000])
LOADED = st.integers(1, (1 << 47) // PAGE - (1 << 21)).map(lambda page: page * PAGE)


@given(host_base=BASES, patch_base=BASES, loaded=LOADED, new_loaded=LOADED, exports_main=st.booleans())
def test_the_client_computes_run_time_addresses(
    host_base: int, patch_base: int, loaded: int, new_loaded: int, exports_main: bool
) -> None:
    """Wherever both are linked and loaded, each jump leads from the old code to the new, without overflow."""
    host = table(function("main", host_base + 0x1500), function(EDIT, host_base + 0x600), image_base=host_base)
    patch = table(function("main", patch_base + 0x900), function(EDIT, patch_base + 0x200), image_base=patch_base)
    loaded_main = loaded + 0x1500 if exports_main else 0
    sent = devtools(loaded_main, host=host, patch=patch, slide=loaded - host_base)
    assert apply(sent, loaded_main, new_loaded + 0x900) == {loaded + 0x600: new_loaded + 0x200}
