"""Which objects are compared with which, for the types in them."""

from pathlib import Path

from hotpatchd.core.session import after_applied
from hotpatchd.daemon.layout_judge import LayoutJudge
from hotpatchd.objfile.objects import BuildObjects, KeptObjects, object_file
from tests.core.fakes import content, session
from tests.objfile.build import run


def build(root: Path, **sources: str) -> BuildObjects:
    """Objects by unit name, each of one assembler source."""
    root.mkdir()
    files = {}
    for name, source in sources.items():
        (root / f"{name}.s").write_text(source)
        run("as", root / f"{name}.s", "-o", root / f"{name}.o")
        files[name] = object_file(root / f"{name}.o", is_optimised=False)
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
