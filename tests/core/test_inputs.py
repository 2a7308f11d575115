"""What changed files mean."""

import pytest

from hotpatchd.core.inputs import BuildInputs, EditClass, classify

INPUTS = BuildInputs(
    crates_of={"/w/lib/lib.rs": ("lib",), "/w/app/main.rs": ("app",), "/w/logo.png": ("lib", "app")},
    full_build={"/w/Cargo.toml": "manifest", "/w/lib/build.rs": "build script"},
    source_dirs={"lib": "/w/lib", "app": "/w/app"},
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
    assert classify(files, INPUTS) == EditClass(files=tuple(sorted(files)), crates=frozenset(crates), full_build={})


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


def test_a_file_may_be_read_by_a_crate_and_need_a_full_build() -> None:
    """Both hold."""
    inputs = BuildInputs(crates_of={"shared.rs": ("lib",)}, full_build={"shared.rs": "build script"})
    found = classify(["shared.rs"], inputs)
    assert found.crates == {"lib"}
    assert found.full_build == {"shared.rs": "build script"}


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
