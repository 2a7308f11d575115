"""Fingerprints of functions: what counts as a change, in real builds of edited sources."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hotpatchd.core.demangle import demangle
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.objects import BuildObjects
from tests.objfile.build import assembled, thin_build
from tests.objfile.sources import PROGRAM

Build = Callable[[str, int], BuildObjects]

EDITS = {
    "body": ("n ^ 0x55", "n ^ 0x56", {"plain"}),
    "const": ("LIMIT: u32 = 40", "LIMIT: u32 = 41", {"limited"}),
    "string literal": ('"goodbye"', '"Goodbye"', {"farewell"}),
    "format string": ("hello {who}", "HELLO {who}", {"greet"}),
    "called function": ("plain(plain(n))", "plain(guarded(n))", {"twice"}),
    "vtable": ("* self.0 }", "* self.0 } fn sides(&self) -> u32 { 3 }", {"shapes"}),
    "panic location only": ("{ v[i] }", "{  v[i] }", set()),
}

INLINED = {"string literal": {"main"}}
"""What an edit changes instead in an optimised program: its only caller has the literal."""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a source at an opt-level: the same source with the same result object each time."""
    roots = {level: tmp_path_factory.mktemp(f"level{level}") for level in (0, 3)}
    made: dict[tuple[str, int], BuildObjects] = {}

    def build(source: str, opt_level: int) -> BuildObjects:
        if (source, opt_level) not in made:
            made[source, opt_level] = thin_build(roots[opt_level], source, opt_level=opt_level)
        return made[source, opt_level]

    return build


def functions(objects: BuildObjects) -> set[str]:
    """Symbols of the exported functions."""
    return {
        name
        for unit in map(objects.unit, objects.files)
        for name, definition in unit.exports.items()
        if definition.kind == "function"
    }


def differing(before: BuildObjects, after: BuildObjects) -> tuple[set[str], set[str]]:
    """The functions of both builds that changed, and those that only moved, by the last part of their names."""
    changed: set[str] = set()
    moved: set[str] = set()
    for symbol in functions(before) & functions(after):
        old, new = before.fingerprint(symbol), after.fingerprint(symbol)
        assert old is not None
        assert new is not None
        if old.strict != new.strict:
            (moved if old.blind == new.blind else changed).add(demangle(symbol).removeprefix("demo::"))
    return changed, moved


@pytest.mark.parametrize("opt_level", [0, 3])
def test_two_builds_of_the_same_source_have_equal_fingerprints(tmp_path: Path, opt_level: int) -> None:
    """A build without the incremental cache of the other differs in nothing."""
    first = thin_build(tmp_path, PROGRAM, opt_level=opt_level, incremental="one")
    again = thin_build(tmp_path, PROGRAM, opt_level=opt_level, incremental="two")
    assert len(functions(first)) > 50
    assert differing(first, again) == (set(), set())


def refers_to_promoted(objects: BuildObjects) -> set[str]:
    """The functions that use a symbol which thin-local LTO made global, by the last part of their names."""
    return {
        demangle(name).removeprefix("demo::")
        for unit in map(objects.unit, objects.files)
        for name, definition in unit.exports.items()
        if any(".llvm." in reference.name for reference in unit.references(definition.section))
    }


@pytest.mark.parametrize("opt_level", [0, 3])
def test_a_comment_moves_functions_with_panic_locations_and_no_others(build: Build, opt_level: int) -> None:
    """Lines added above change the strict digest of what can panic, and no blind digest."""
    commented = PROGRAM.replace("#[inline(never)] fn even", "// about even\n\n#[inline(never)] fn even")
    before = build(PROGRAM, opt_level)
    changed, moved = differing(before, build(commented, opt_level))
    # Symbols of promoted constants are named by a hash of the debug info, too, and their content is out of sight.
    assert changed <= refers_to_promoted(before)
    assert "pick" in moved
    assert not moved & {"plain", "twice", "limited", "farewell"}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_edited_function_alone(build: Build, edit: str) -> None:
    """Without optimisation exactly the functions that an edit concerns differ."""
    old, new, expected = EDITS[edit]
    assert PROGRAM.count(old) == 1
    changed, _ = differing(build(PROGRAM, 0), build(PROGRAM.replace(old, new), 0))
    assert changed == expected


@pytest.mark.parametrize("edit", [name for name in EDITS if EDITS[name][2]])
def test_an_edit_changes_the_edited_function_of_an_optimised_program(build: Build, edit: str) -> None:
    """With optimisation the edited function differs, and unrelated functions do not."""
    old, new, expected = EDITS[edit]
    changed, moved = differing(build(PROGRAM, 3), build(PROGRAM.replace(old, new), 3))
    assert INLINED.get(edit, expected) <= changed
    assert not (changed | moved) & {"even", "odd"}


def test_an_edited_closure_differs_and_the_function_around_it_does_not(build: Build) -> None:
    """A closure is a function of its own."""
    changed, _ = differing(build(PROGRAM, 0), build(PROGRAM.replace("wrapping_mul(3)", "wrapping_mul(4)"), 0))
    assert changed == {"mapped::{{closure}}"}


def test_more_anonymous_constants_do_not_change_what_uses_the_others(build: Build) -> None:
    """A new function with literals of its own renumbers constants, which are compared by content."""
    extended = PROGRAM.replace("= 40;", '= 40; pub fn extra(n: u32) -> String { format!("extra {n}") + "more" }')
    before, after = build(PROGRAM, 0), build(extended, 0)
    assert any("extra" in name for name in functions(after) - functions(before))
    assert differing(before, after) == (set(), set())


def fingerprint_of(unit: CodeUnit, name: str) -> tuple[bytes, bytes]:
    """The fingerprint of the section in which a symbol lies, local or not."""
    return unit.fingerprint(next(symbol.shndx for symbol in unit.obj.symbols if symbol.name == name))


def test_names_and_order_of_anonymous_constants_do_not_count(tmp_path: Path) -> None:
    """Two objects with the same constants under other names, in another order, have equal fingerprints."""
    one = '.section .rodata.a,"a"\nanon.0: .quad 1\n.section .rodata.b,"a"\nanon.1: .quad 2\n'
    two = '.section .rodata.x,"a"\nanon.9: .quad 2\n.section .rodata.y,"a"\nanon.3: .quad 1\n'
    code = '.section .text.f,"ax"\n.globl f\nf: lea {}(%rip),%rax\nlea {}(%rip),%rcx\n'
    before = assembled(tmp_path, one + code.format("anon.0", "anon.1"), "before")
    after = assembled(tmp_path, two + code.format("anon.3", "anon.9"), "after")
    swapped = assembled(tmp_path, two + code.format("anon.9", "anon.3"), "swapped")
    assert fingerprint_of(before, "f") == fingerprint_of(after, "f")
    assert fingerprint_of(before, "f") != fingerprint_of(swapped, "f")


def test_one_constant_used_twice_is_told_from_two(tmp_path: Path) -> None:
    """Which of two alike constants, that lead to different ones, is used where, counts."""
    constants = (
        '.section .data.rel.ro.p,"aw"\np: .quad one\n.section .data.rel.ro.q,"aw"\nq: .quad two\n'
        '.section .rodata.one,"a"\none: .quad 1\n.section .rodata.two,"a"\ntwo: .quad 2\n'
    )
    code = '.section .text.f,"ax"\n.globl f\nf: lea p(%rip),%rax\nlea q(%rip),%rcx\nlea {}(%rip),%rdx\n'
    first = assembled(tmp_path, constants + code.format("p"), "first")
    second = assembled(tmp_path, constants + code.format("q"), "second")
    assert fingerprint_of(first, "f") != fingerprint_of(second, "f")


def ring(count: int, *, last: str = "ret") -> str:
    """Local functions each of which calls all others."""
    parts = [
        f'.section .text.f{n},"ax",@progbits\nf{n}:\n'
        + "".join(f"call f{other}\n" for other in range(count) if other != n)
        + (last if n == count - 1 else "ret")
        for n in range(count)
    ]
    return "\n".join([*parts, '.section .text.top,"ax",@progbits', ".globl top", "top: call f0", ""])


@pytest.mark.timeout(60)
def test_local_functions_that_call_each_other_have_a_fingerprint(tmp_path: Path) -> None:
    """Mutual recursion ends, in time that does not depend on the number of ways around, and content counts."""
    plain, other = assembled(tmp_path, ring(40), "plain"), assembled(tmp_path, ring(40, last="nop"), "other")
    assert fingerprint_of(plain, "top") == fingerprint_of(assembled(tmp_path, ring(40), "again"), "top")
    assert fingerprint_of(plain, "top") != fingerprint_of(other, "top")


def test_fingerprints_do_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    """In a circle of functions, each has the same fingerprint whichever was looked at first."""
    forwards, backwards = assembled(tmp_path, ring(3), "forwards"), assembled(tmp_path, ring(3), "backwards")
    names = ["f0", "f1", "f2", "top"]
    expected = {name: fingerprint_of(forwards, name) for name in names}
    assert {name: fingerprint_of(backwards, name) for name in reversed(names)} == expected


def test_an_exception_table_counts(tmp_path: Path) -> None:
    """The same code with another landing pad table is a change."""
    source = '.section .text.f,"ax"\n.globl f\nf: ret\n.section .gcc_except_table.f,"a"\n.byte {}\n'
    one, two = assembled(tmp_path, source.format(1), "one"), assembled(tmp_path, source.format(2), "two")
    assert fingerprint_of(one, "f") != fingerprint_of(two, "f")


def test_writable_state_counts_by_its_name(tmp_path: Path) -> None:
    """Another initialiser of a static is no change of the functions that use it."""
    name = "_ZN4demo5COUNT17h0123456789abcdefE"
    source = f'.section .text.f,"ax"\n.globl f\nf: incl {name}(%rip)\n.section .data.c,"aw"\n{name}: .long {{}}\n'
    one, two = assembled(tmp_path, source.format(1), "one"), assembled(tmp_path, source.format(2), "two")
    assert fingerprint_of(one, "f") == fingerprint_of(two, "f")
    assert fingerprint_of(one, name) != fingerprint_of(two, name)


def test_absolute_and_common_symbols_are_not_exported_sections(tmp_path: Path) -> None:
    """What lies in no section of the object is none of its definitions, and can be referred to."""
    unit = assembled(tmp_path, ".globl fixed\nfixed = 4\n.comm shared,8\n.globl f\nf: mov shared(%rip),%eax\n")
    assert set(unit.exports) == {"f"}
    (reference,) = unit.references(unit.exports["f"].section)
    assert reference.name == "shared"
    assert reference.section < 0


def test_an_absolute_symbol_counts_by_its_number(tmp_path: Path) -> None:
    """It is no reference to anything."""
    source = ".globl f\nf: mov fixed@GOTPCREL(%rip),%rax\n.globl fixed\n.set fixed, {}\n"
    one, two = assembled(tmp_path, source.format(4), "one"), assembled(tmp_path, source.format(5), "two")
    assert fingerprint_of(one, "f") != fingerprint_of(two, "f")
    assert not [reference for reference in one.references(one.exports["f"].section) if not reference.local]


TOLD = """
#[track_caller] pub fn line() -> u32 { std::panic::Location::caller().line() }
#[track_caller] pub fn kept() -> u32 { std::panic::Location::caller().line() }
pub fn plain() -> u32 { 1 }
pub fn get(list: &[u32]) -> u32 { list[0] + line() + plain() }
pub fn pointer() -> [fn() -> u32; 2] { [kept, plain] }
fn main() { println!("{} {}", get(&[1]), pointer()[0]()); }
"""


@pytest.mark.parametrize("mangling", [(), ("-Csymbol-mangling-version=v0",)], ids=["default", "v0"])
def test_functions_that_are_told_their_caller(tmp_path: Path, mangling: tuple[str, ...]) -> None:
    """By a call, or by the shim for those who have a pointer."""
    objects = thin_build(tmp_path, TOLD, opt_level=0, compiler=("rustc", *mangling))
    units = [unit for unit in map(objects.unit, objects.files) if isinstance(unit, CodeUnit)]
    told = {path for unit in units for path in unit.told_callers}
    assert {path for path in told if path.startswith("demo::")} == {"demo::line", "demo::kept"}


LOGGED = """
pub struct Metadata { name: &'static str, level: usize, line: Option<u32>, fields: &'static [&'static str] }
unsafe impl Sync for Metadata {}
const NAME: &str = concat!("event ", file!(), ":", line!());
pub fn logged() -> &'static Metadata {
    static __CALLSITE: &'static Metadata = {
        static META: Metadata = Metadata { name: NAME, level: 3, line: Some(line!()), fields: &["message"] };
        &META
    };
    __CALLSITE
}
fn main() { println!("{:?}", logged().line); }
"""


@pytest.mark.parametrize("mangling", [(), ("-Csymbol-mangling-version=v0",)], ids=["default", "v0"])
@pytest.mark.parametrize(("old", "new", "moved"), [("\nconst", "\n\nconst", True), ("level: 3", "level: 4", False)])
def test_a_call_site_of_tracing_may_move(
    tmp_path: Path, mangling: tuple[str, ...], old: str, new: str, moved: bool
) -> None:
    """Its line number is no change of the static that describes it; its level is one."""
    compiler = ("rustc", *mangling)
    before, after = (thin_build(tmp_path, source, compiler=compiler) for source in (LOGGED, LOGGED.replace(old, new)))
    (meta,) = (name for name in before.state_names() | _constants(before) if "4META" in name)
    old_print, new_print = before.fingerprint(meta), after.fingerprint(meta)
    assert old_print is not None
    assert new_print is not None
    assert old_print.strict != new_print.strict
    assert (old_print.blind == new_print.blind) == moved


def _constants(objects: BuildObjects) -> set[str]:
    return {
        name
        for unit in map(objects.unit, objects.files)
        for name, what in unit.exports.items()
        if what.kind == "constant"
    }


@pytest.mark.parametrize("opt_level", [0, 3])
def test_a_function_is_pointed_to_where_its_address_is_more_than_called(tmp_path: Path, opt_level: int) -> None:
    """Code that stores an address, a static and a virtual table point to a function; a call does not."""
    source = """
    pub trait Shape { fn area(&self) -> u32; }
    pub struct Square(pub u32);
    impl Shape for Square { #[inline(never)] fn area(&self) -> u32 { self.0 * self.0 } }
    #[inline(never)] pub fn called(n: u32) -> u32 { n ^ 0x55 }
    #[inline(never)] pub fn stored(n: u32) -> u32 { n ^ 0x56 }
    #[inline(never)] pub fn held(n: u32) -> u32 { n ^ 0x57 }
    #[used] pub static HELD: fn(u32) -> u32 = held;
    pub fn store(to: &mut Vec<fn(u32) -> u32>) { to.push(stored); }
    pub fn object(side: u32) -> Box<dyn Shape> { Box::new(Square(called(side))) }
    fn main() { let mut to = Vec::new(); store(&mut to); println!("{} {}", to[0](1), object(2).area()); }
    """
    objects = thin_build(tmp_path, source, opt_level=opt_level)
    units = [objects.unit(name) for name in objects.files]
    pointed = {demangle(name) for unit in units if isinstance(unit, CodeUnit) for name in unit.pointed}
    functions_of_it = {"demo::called", "demo::stored", "demo::held", "<demo::Square as demo::Shape>::area"}
    assert pointed & functions_of_it == functions_of_it - {"demo::called"}


def test_a_closures_code_is_pointed_to_by_what_is_stored_alone(tmp_path: Path) -> None:
    """Optimised code reads its address before a loop; a virtual table has it for whoever holds the closure."""
    closure, function = (
        f"_ZN4demo{name}17h0123456789abcdefE" for name in ("3one28_$u7b$$u7b$closure$u7d$$u7d$", "3two")
    )
    loads = "".join(f'movq "{name}"@GOTPCREL(%rip), %r14\n' for name in (closure, function))
    data = f'.section .data.rel.ro.v,"aw"\n.globl vtable\nvtable: .quad "{closure}"\n'
    found = [assembled(tmp_path, f".globl f\nf:\n{text}").pointed for text in (loads, loads + data)]
    assert found == [{function}, {function, closure}]
