"""What changed files mean."""

import pytest

from hotpatchd.core.inputs import CODE, MACRO_INPUT, NEW_SOURCE, BuildInputs, EditClass, classify

INPUTS = BuildInputs(
    crates_of={"/w/lib/lib.rs": ("lib",), "/w/app/main.rs": ("app",), "/w/logo.png": ("lib", "app")},
    full_build={"/w/Cargo.toml": "manifest", "/w/lib/build.rs": "build script"},
    source_dirs={"lib": "/w/lib", "app": "/w/app"},
    macro_inputs={"/w/app/page.html": ("app",), "/w/app/pages": ("app",)},
)


@pytest.mark.parametrize(
    ("files", "crates"),
    [
        (["/w/lib/lib.rs"], {"lib"}),
        (["/w/lib/lib.rs", "/w/app/main.rs"], {"lib", "app"}),
        (["/w/logo.png"], {"lib", "app"}),
    ],
)
def test_a_file_means_the_crates_that_read_it(files: list[str], crates: set[str]) -> None:
    """Source or not: what a compile read is an input of it."""
    found = EditClass(
        files=tuple(sorted(files)), crates=frozenset(crates), full_build={}, classes=dict.fromkeys(files, CODE)
    )
    assert classify(files, INPUTS) == found


@pytest.mark.parametrize("path", ["/w/app/page.html", "/w/app/pages"])
def test_what_a_macro_opens_or_lists_means_its_crate(path: str) -> None:
    """A directory stands for the names in it."""
    found = classify([path, "/w/app/other.html"], INPUTS)
    assert (found.files, found.crates, found.classes) == ((path,), frozenset({"app"}), {path: MACRO_INPUT})


def test_files_that_nothing_reads_do_not_matter() -> None:
    """A new source file matters only once another one names it."""
    nothing = EditClass(files=(), crates=frozenset(), full_build={})
    assert classify(["/w/notes.txt", "/w/lib/new.rs"], INPUTS) == nothing


def test_only_the_files_that_matter_are_listed() -> None:
    """In a fixed order, whatever order they come in."""
    found = classify(["/w/notes.txt", "/w/lib/lib.rs", "/w/app/main.rs"], INPUTS)
    assert found.files == ("/w/app/main.rs", "/w/lib/lib.rs")


def test_files_that_need_a_full_build_are_told_apart_by_what_they_are() -> None:
    """The code that changed with them is known, too."""
    found = classify(["/w/Cargo.toml", "/w/lib/build.rs", "/w/lib/lib.rs"], INPUTS)
    assert found.full_build == {"/w/Cargo.toml": "manifest", "/w/lib/build.rs": "build script"}
    assert found.crates == {"lib"}
    assert found.files == ("/w/Cargo.toml", "/w/lib/build.rs", "/w/lib/lib.rs")
    assert found.classes == {"/w/Cargo.toml": "manifest", "/w/lib/build.rs": "build script", "/w/lib/lib.rs": CODE}


def test_a_file_may_be_read_by_a_crate_and_need_a_full_build() -> None:
    """Both hold."""
    inputs = BuildInputs(crates_of={"shared.rs": ("lib",)}, full_build={"shared.rs": "build script"})
    found = classify(["shared.rs"], inputs)
    assert found.crates == {"lib"}
    assert found.full_build == found.classes == {"shared.rs": "build script"}


def test_a_manifest_whose_change_makes_no_difference_has_no_consequence() -> None:
    """It is told apart from files that do not matter at all."""
    found = classify(["/w/Cargo.toml", "/w/notes.txt"], INPUTS, harmless={"/w/Cargo.toml": "only a comment"})
    assert (found.files, found.full_build) == ((), {})
    assert found.harmless == {"/w/Cargo.toml": "manifest: only a comment"}


def test_a_harmless_manifest_that_a_macro_reads_is_its_input() -> None:
    """Nobody knows what the macro looks for in it."""
    inputs = BuildInputs(crates_of={}, full_build={"Cargo.toml": "manifest"}, macro_inputs={"Cargo.toml": ("app",)})
    found = classify(["Cargo.toml"], inputs, harmless={"Cargo.toml": "only a comment"})
    assert (found.crates, found.full_build) == (frozenset({"app"}), {})
    assert found.classes == {"Cargo.toml": MACRO_INPUT}


def test_all_paths_are_to_be_watched() -> None:
    """Whatever they are."""
    inputs = BuildInputs(crates_of={"a": ("x",)}, full_build={"b": "manifest"}, macro_inputs={"c": ("x",)})
    assert inputs.paths == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("file", "failed", "crates"),
    [
        ("/w/lib/new.rs", {"lib"}, {"lib"}),
        ("/w/lib/deep/er/new.rs", {"lib", "app"}, {"lib"}),
        ("/w/lib/new.rs", {"app"}, set()),
        ("/w/lib/new.txt", {"lib"}, set()),
        ("/w/library/new.rs", {"lib"}, set()),
        ("/w/lib/build.rs", {"lib"}, set()),
        ("/w/app/main.rs", {"app", "lib"}, {"app"}),
        ("/w/lib/new.rs", {"unknown"}, set()),
    ],
)
def test_a_source_file_that_a_broken_crate_may_lack(file: str, failed: set[str], crates: set[str]) -> None:
    """Only a new `.rs` file in the package of a crate that did not compile is taken for one."""
    assert classify([file], INPUTS, frozenset(failed)).crates == crates


def test_a_new_source_file_is_named_as_one() -> None:
    """It is not known yet to be code of the crate."""
    assert classify(["/w/lib/new.rs"], INPUTS, frozenset({"lib"})).classes == {"/w/lib/new.rs": NEW_SOURCE}
