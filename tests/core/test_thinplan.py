"""How the crates of a captured build are compiled again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.argv import parse_argv, values
from hotpatchd.core.capture import Capture, decode_capture
from hotpatchd.core.errors import ArgvError
from hotpatchd.core.thinplan import Recipe, ThinCrate, lto_of, opt_level_of, plan_thin_crates

FIXTURES = Path(__file__).parents[2] / "fixtures" / "captures"


def _capture(stem: str) -> Capture:
    (path,) = FIXTURES.glob(f"{stem}.json")
    return decode_capture(path.read_text("utf-8"), path.name)


LIB = _capture("greet-*-lib-host")
MACRO = _capture("greet_macros-*")
BUILD_SCRIPT = _capture("build_script_build-*")
BIN = _capture("say_hello-*-bin-host")
RELEASE_BIN = _capture("say_hello-*-gnu")
TESTS = _capture("greet-*-test-host")

LIB_STEM, BIN_STEM = "greet-2164279b9fe0fce5", "say_hello-8c916869720248dc"


def _renamed(capture: Capture, name: str) -> Capture:
    return replace(capture, argv=tuple(name if arg == capture.crate_name else arg for arg in capture.argv))


def _of_version(capture: Capture, version: str, file_hash: str) -> Capture:
    argv = tuple(
        arg if not arg.startswith("extra-filename") else f"extra-filename=-{file_hash}" for arg in capture.argv
    )
    metadata = tuple(arg if not arg.startswith("metadata=") else f"metadata={file_hash}" for arg in argv)
    return replace(capture, argv=metadata, env=tuple({**dict(capture.env), "CARGO_PKG_VERSION": version}.items()))


def _plan(*captures: Capture, recipe: Recipe = "cgu") -> tuple[ThinCrate, ...]:
    return plan_thin_crates(captures, thin_dir="/thin", recipe=recipe)


def _values(crate: ThinCrate, flag: str) -> Sequence[str]:
    return values(parse_argv(crate.edited.argv), flag)


def test_crates_that_never_run_in_the_program_are_left_out() -> None:
    """Proc macros and build scripts; the others stay in order."""
    assert [crate.name for crate in _plan(BUILD_SCRIPT, MACRO, LIB, BIN)] == ["greet", "say_hello"]


def test_only_libraries_leave_metadata() -> None:
    """Their dependents read it; nothing depends on the tip."""
    lib, tip = _plan(LIB, BIN)
    assert lib.metadata == f"{lib.out_dir}/lib{LIB_STEM}.rmeta"
    assert "metadata" in _values(lib, "--emit")[-1].split(",")
    assert tip.metadata is None
    assert "metadata" not in _values(tip, "--emit")[-1].split(",")


def test_dependents_are_compiled_against_the_new_metadata() -> None:
    """Dependencies that are not compiled again stay where they were captured."""
    lib, tip = _plan(MACRO, LIB, BIN)
    assert (lib.dependencies, tip.dependencies) == ((), ("greet",))
    macro = "greet_macros=/src/hello/target/debug/deps/libgreet_macros-e97dcf8f54756028.so"
    assert sorted(_values(tip, "--extern")) == [f"greet={lib.metadata}", macro]
    assert _values(lib, "--extern") == (macro,)


def test_every_crate_has_directories_of_its_own() -> None:
    """Named after the crate, its role and the recipe, so that none is used for two purposes."""
    lib, tip = _plan(LIB, BIN)
    assert lib.out_dir == f"/thin/{LIB_STEM}-lib-cgu/out"
    assert tip.out_dir == f"/thin/{BIN_STEM}-bin-cgu/out"
    (as_tip,) = _plan(LIB)
    (single,) = _plan(LIB, recipe="single-object")
    places = {place for crate in (lib, tip, as_tip, single) for place in (crate.out_dir, crate.incremental_dir)}
    assert len(places) == 8
    for crate in (lib, tip):
        assert _values(crate, "--out-dir") == (crate.out_dir,)
        assert f"incremental={crate.incremental_dir}" in _values(crate, "-C")


def test_a_library_and_a_program_of_the_same_name() -> None:
    """Each gets a name that no other crate has, and the dependency is known by it."""
    lib, tip = _plan(LIB, _renamed(BIN, "greet"))
    assert (lib.name, tip.name) == ("greet (lib)", "greet (bin)")
    assert tip.dependencies == (lib.name,)


def test_two_versions_of_a_library() -> None:
    """Each is known by its version; by the hash of its files where that is the same."""
    newer = _of_version(LIB, "0.9.9", "e1e1")
    assert [crate.name for crate in _plan(LIB, newer, BIN)] == ["greet 0.1.0", "greet 0.9.9", "say_hello"]
    other = _of_version(LIB, "0.1.0", "e1e1")
    assert [crate.name for crate in _plan(LIB, other, BIN)] == [f"{LIB_STEM} (lib)", "greet-e1e1 (lib)", "say_hello"]


def test_libraries_of_several_programs_are_planned_once() -> None:
    """The programs' crates follow each other, whatever they share."""
    demo = _renamed(BIN, "demo")
    planned = plan_thin_crates([LIB, BIN, LIB, demo], tips=[BIN, demo], thin_dir="/thin")
    assert [(crate.name, crate.is_tip) for crate in planned] == [("greet", False), ("say_hello", True), ("demo", True)]
    assert planned[2].dependencies == ("greet",)


def test_a_crate_is_shown_the_metadata_of_what_it_depends_on_alone() -> None:
    """So its command is the same, whatever other programs are planned with it."""
    other = _of_version(_renamed(LIB, "other"), "0.1.0", "e1e1")
    (alone,) = (crate for crate in _plan(LIB, BIN) if crate.is_tip)
    (beside,) = (crate for crate in _plan(LIB, other, BIN) if crate.is_tip)
    assert alone.edited == beside.edited


def test_a_library_that_is_a_program_of_its_own_as_well() -> None:
    """A shared library that others link as a Rust library: each purpose has its own arguments and directories."""
    lib, as_tip, tip = plan_thin_crates([LIB, BIN], tips=[LIB, BIN], thin_dir="/thin")
    assert (lib.name, as_tip.name, tip.dependencies) == ("greet (lib)", "greet (bin)", ("greet (lib)",))
    assert (lib.is_tip, as_tip.is_tip) == (False, True)
    assert lib.out_dir != as_tip.out_dir


def test_a_test_harness_can_be_the_tip() -> None:
    """It is a program like any other."""
    (tip,) = _plan(MACRO, TESTS)
    assert (tip.name, tip.metadata) == ("greet", None)
    assert "--test" in tip.edited.argv


@pytest.mark.parametrize("captures", [(LIB, MACRO), (BUILD_SCRIPT,), ()], ids=["proc macro", "build script", "none"])
def test_a_tip_that_never_runs_as_a_program_is_refused(captures: tuple[Capture, ...]) -> None:
    """What is asked for cannot be patched."""
    with pytest.raises(ArgvError, match="not a program that can be patched"):
        _plan(*captures)


def test_the_single_object_recipe_is_for_libraries() -> None:
    """The result is one object at a known place."""
    (crate,) = _plan(LIB, recipe="single-object")
    assert _values(crate, "--emit") == (f"obj={crate.out_dir}/greet.o",)


@pytest.mark.parametrize(
    ("capture", "asked", "level"),
    [(BIN, None, "0"), (RELEASE_BIN, None, "3"), (RELEASE_BIN, "0", "0"), (RELEASE_BIN, "match", "3")],
)
def test_optimised_crates_stay_optimised(capture: Capture, asked: str | None, level: str) -> None:
    """Unless something else is asked for."""
    (crate,) = plan_thin_crates([capture], thin_dir="/thin", opt_level=asked)  # type: ignore[arg-type]
    assert opt_level_of(crate.edited.argv) == level
    assert crate.is_optimised == (level != "0")


def test_only_the_tip_keeps_dead_code_without_optimisation() -> None:
    """A dead instance in a library would be used in the place of the program's own; optimised ones are not shared."""
    lib, tip = _plan(LIB, BIN)
    assert "link-dead-code" not in _values(lib, "-C")
    assert any(value.startswith("link-dead-code") for value in _values(tip, "-C"))
    optimised = replace(LIB, argv=(*LIB.argv, "-C", "opt-level=2"))
    assert any(value.startswith("link-dead-code") for value in _values(_plan(optimised, BIN)[0], "-C"))


@pytest.mark.parametrize("ansi", [True, False])
def test_diagnostics_are_coloured_on_request(ansi: bool) -> None:
    """rustc renders them, so it must be told."""
    (crate,) = plan_thin_crates([BIN], thin_dir="/thin", ansi=ansi)
    assert ("--json=diagnostic-rendered-ansi" in crate.edited.argv) == ansi


@pytest.mark.parametrize(
    ("args", "lto"),
    [
        ((), None),
        (("-Clto=off",), None),
        (("-C", "lto=false"), None),
        (("-C", "lto"), "fat"),
        (("-C", "lto=yes"), "fat"),
        (("-C", "lto=fat"), "fat"),
        (("-C", "lto=thin"), "thin"),
    ],
    ids=str,
)
def test_link_time_optimisation_is_told(args: Sequence[str], lto: str | None) -> None:
    """As rustc reads the option."""
    assert lto_of(("--crate-name=a", "a.rs", *args)) == lto
