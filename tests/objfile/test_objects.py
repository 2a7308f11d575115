"""The objects of a build, and what is taken over from the build before."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.objects import BuildObjects, KeptObjects, ObjectFile, object_file, open_object, open_once
from hotpatchd.objfile.units import ObjectUnit
from tests.objfile.build import run


def compiled(root: Path, name: str, source: str) -> ObjectFile:
    """An assembler source as an object file of an unoptimised build."""
    (root / "source.s").write_text(source)
    path = root / f"{name}.o"
    path.unlink(missing_ok=True)
    run("as", root / "source.s", "-o", path)
    return object_file(path, is_optimised=False)


def linked(file: ObjectFile, path: Path) -> ObjectFile:
    """The same file under another path, as rustc keeps objects that it did not compile again."""
    path.hardlink_to(file.path)
    return object_file(path, is_optimised=file.is_optimised)


@pytest.fixture
def two_builds(tmp_path: Path) -> tuple[BuildObjects, BuildObjects]:
    """A build of two objects, and one after it in which `b` was compiled again and `c` is new."""
    a, b = compiled(tmp_path, "a", ".globl fa\nfa: ret\n"), compiled(tmp_path, "b", ".globl fb\nfb: ret\n")
    earlier = BuildObjects({"a": a, "b": b})
    changed = compiled(tmp_path, "b2", ".globl fb\nfb: nop\nret\n.data\n.globl state\nstate: .long 1\n")
    new = compiled(tmp_path, "c", ".globl fc\nfc: ret\n")
    return earlier, BuildObjects({"a": linked(a, tmp_path / "a2.o"), "b": changed, "c": new}, earlier)


def test_an_object_that_is_the_same_file_is_taken_over(two_builds: tuple[BuildObjects, BuildObjects]) -> None:
    """A hard link to the object of the build before is the same unit, not read again."""
    earlier, later = two_builds
    assert later.unit("a") is earlier.unit("a")
    assert later.unit("b") is not earlier.unit("b")


def test_objects_taken_over_need_not_exist_until_somebody_looks(tmp_path: Path) -> None:
    """Only the names that an unchanged object defines are kept, and the object is opened from its new place."""
    a = compiled(tmp_path, "a", ".globl fa\nfa: ret\n")
    earlier = BuildObjects({"a": a})
    earlier.forget_units()
    link = linked(a, tmp_path / "link.o")
    later = BuildObjects({"a": link}, earlier)
    a.path.unlink()
    unit = later.get("fa")
    assert isinstance(unit, CodeUnit)
    assert unit.obj.origin == str(link.path)


def test_threads_that_open_an_object_at_once_get_the_same_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches for several clients are planned at once, and tell by the unit which object a function is in."""
    both_opened = threading.Barrier(2)

    def open_together(name: str, path: Path, *, is_optimised: bool) -> ObjectUnit:
        opened = open_object(name, path, is_optimised=is_optimised)
        both_opened.wait(timeout=30)
        return opened

    objects = BuildObjects({"a": compiled(tmp_path, "a", ".globl fa\nfa: ret\n")})
    objects.forget_units()
    monkeypatch.setattr("hotpatchd.objfile.objects.open_object", open_together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(objects.unit, ("a", "a"))
    assert first is second


def test_changed_objects_are_those_that_are_other_files(two_builds: tuple[BuildObjects, BuildObjects]) -> None:
    """New and recompiled objects changed since the build before, linked ones did not."""
    earlier, later = two_builds
    assert [unit.name for unit in later.changed_since(earlier)] == ["b", "c"]
    assert list(later.changed_since(later)) == []


def test_definers_are_found_by_symbol(two_builds: tuple[BuildObjects, BuildObjects]) -> None:
    """A symbol leads to the object that exports it, and an unknown one to none."""
    _, later = two_builds
    assert [unit.name for unit in later.units_defining(["fa", "fc", "nowhere"])].count("b") == 0
    assert {unit.name for unit in later.units_defining(["fa", "fc", "nowhere"])} == {"a", "c"}
    assert later.get("nowhere") is None
    assert later.fingerprint("nowhere") is None


def test_a_function_of_a_recompiled_object_has_another_fingerprint(
    two_builds: tuple[BuildObjects, BuildObjects],
) -> None:
    """Fingerprints are those of the build that is asked."""
    earlier, later = two_builds
    assert earlier.fingerprint("fa") == later.fingerprint("fa")
    assert earlier.fingerprint("fb") != later.fingerprint("fb")


def test_state_names_are_statics_of_all_objects(two_builds: tuple[BuildObjects, BuildObjects]) -> None:
    """Writable data is state, functions are not."""
    earlier, later = two_builds
    assert earlier.state_names() == frozenset()
    assert later.state_names() == {"state"}


@pytest.mark.parametrize("contents", [None, b""], ids=["missing", "empty"])
def test_an_object_that_cannot_be_mapped_is_an_object_error(tmp_path: Path, contents: bytes | None) -> None:
    """The error names the object's path."""
    path = tmp_path / "gone.o"
    path.write_bytes(b"x")
    file = object_file(path, is_optimised=False)
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ObjectError, match=r"gone\.o"):
        BuildObjects({"gone": file})


def test_kept_object_outlives_its_build_and_is_the_same_unit(tmp_path: Path) -> None:
    """An object can be looked at when its build is gone, and is not read twice while somebody holds it."""
    file = compiled(tmp_path, "a", ".globl fa\nfa: ret\n")
    held = BuildObjects({"a": file}).unit("a")
    kept = KeptObjects(tmp_path / "kept")
    kept.keep("patch", {"a": file})
    file.path.unlink()
    found = kept.get("patch")["a"]
    assert open_once("a", found) is held
    del held
    assert open_once("a", found).exports.keys() == {"fa"}


def test_kept_objects_take_only_so_much_of_the_disk(tmp_path: Path) -> None:
    """Beyond the limit, what was kept first is deleted, but not the objects that something newer has as well."""
    common, old = compiled(tmp_path, "common", "nop\n"), compiled(tmp_path, "old", ".zero 4096\n")
    new = compiled(tmp_path, "new", ".zero 4096\n")
    kept = KeptObjects(tmp_path / "kept", limit=common.identity[1] + old.identity[1] + 1)
    kept.keep("first", {"common": common, "b": old})
    first = kept.get("first")
    kept.keep("second", {"common": common, "b": new})
    with pytest.raises(ObjectError, match="not kept any more: restart it"):
        kept.get("first")
    assert not first["b"].path.exists()
    assert all(file.path.exists() for file in kept.get("second").values())


def test_kept_objects_go_with_their_keeper(tmp_path: Path) -> None:
    """Nothing is left on disk once nobody can ask for it."""
    kept = KeptObjects(tmp_path / "kept")
    kept.keep("patch", {"a": compiled(tmp_path, "a", "nop\n")})
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    del kept
    assert list((tmp_path / "kept").iterdir()) == []
