"""Which objects are compared with which, for the types in them."""

from pathlib import Path

from hotpatchd.core.session import after_applied
from hotpatchd.daemon.layout_judge import LayoutJudge
from hotpatchd.objfile.objects import BuildObjects, KeptObjects, object_file
from tests.core.fakes import content, session
from tests.objfile.build import run


def build(root: Path, *, is_optimised: bool = False, **sources: str) -> BuildObjects:
    """Objects by unit name, each of one assembler source."""
    root.mkdir()
    files = {}
    for name, source in sources.items():
        (root / f"{name}.s").write_text(source)
        run("as", root / f"{name}.s", "-o", root / f"{name}.o")
        files[name] = object_file(root / f"{name}.o", is_optimised=is_optimised)
    return BuildObjects(files)


def test_objects_that_a_build_has_no_more_are_compared(tmp_path: Path) -> None:
    """rustc cuts a large crate otherwise for each text of it: what an object held may be in another one now."""
    baseline = build(tmp_path / "baseline", first="a: nop\n", second="b: ret\n")
    newest = build(tmp_path / "newest", third="c: hlt\n")
    judge = LayoutJudge(baseline, KeptObjects(tmp_path / "kept"))
    compared = judge.compare(session(1), judge.files(newest), newest)
    assert {unit.name for unit in compared.before} == {"first", "second"}
    assert {unit.name for unit in compared.now} == {"third"}


def test_what_a_patch_had_no_more_is_not_compared_again(tmp_path: Path) -> None:
    """The program runs the patch's code, and going back brings the objects back."""
    baseline = build(tmp_path / "baseline", first="a: nop\n", second="b: ret\n")
    middle = build(tmp_path / "middle", third="c: hlt\n")
    judge = LayoutJudge(baseline, KeptObjects(tmp_path / "kept"))
    judge.remember("p1", judge.files(middle), middle)
    patched = after_applied(session(1), content("p1"), next_addr=0)
    compared = judge.compare(patched, judge.files(baseline), baseline)
    assert {unit.name for unit in compared.before} == {"third"}
    assert {unit.name for unit in compared.now} == {"first", "second"}


FIRST = ".section .text.a\n.globl a\na: nop\n.section .text.b\n.globl b\nb: ret\n"
"""Two functions in sections of their own, as rustc has them."""


def alike(root: Path, *, is_optimised: bool = False, **now: str) -> set[tuple[str, bool]]:
    """Which objects are alike to the first ones: name, and whether it is a new one."""
    baseline = build(root / "baseline", is_optimised=is_optimised, first=FIRST, second=".globl c\nc: hlt\n")
    newest = build(root / "newest", is_optimised=is_optimised, **now)
    judge = LayoutJudge(baseline, KeptObjects(root / "kept"))
    compared = judge.compare(session(1), judge.files(newest), newest)
    return {(unit.name, unit in compared.now) for unit in compared.alike}


def test_objects_with_the_same_code_are_alike(tmp_path: Path) -> None:
    """What loads no code, such as debug information, does not count; code that is edited does."""
    debug = '.section .debug_str,"",@progbits\n.asciz "other"\n'
    found = alike(tmp_path, first=FIRST + debug, second=".globl c\nc: nop\n")
    assert found == {("first", False), ("first", True)}


def test_functions_that_only_went_to_another_object_leave_these_alike(tmp_path: Path) -> None:
    """rustc cuts a large crate otherwise for each text of it, and that changes nothing."""
    both = ".section .text.b\n.globl b\nb: ret\n.text\n.globl c\nc: hlt\n"
    found = alike(tmp_path, first=both, third=".section .text.a\n.globl a\na: nop\n")
    assert found == {("first", False), ("second", False), ("first", True), ("third", True)}


def test_optimised_objects_are_never_alike(tmp_path: Path) -> None:
    """Their debug information need not mention a type that their code reads."""
    assert alike(tmp_path, is_optimised=True, first=FIRST + ".globl d\nd = 1\n", second=".globl c\nc: hlt\n") == set()
