"""Explaining the crates of a workspace that was built."""

import asyncio
from pathlib import Path

import pytest

from hotpatchd.core.errors import UsageError
from hotpatchd.core.thinplan import plan_thin_crates
from hotpatchd.daemon.explain import explain_crate
from hotpatchd.daemon.fatbuild import FatBuild
from tests.daemon.test_fatbuild import MANIFEST, Project

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["leaf", "middle", "my-app"]\nresolver = "2"\n',
    "leaf/Cargo.toml": MANIFEST.format(name="leaf"),
    "leaf/src/lib.rs": "pub fn answer() -> u32 { 42 }\n",
    "middle/Cargo.toml": MANIFEST.format(name="middle") + '[dependencies]\nleaf = { path = "../leaf" }\n',
    "middle/src/lib.rs": "pub fn middle() -> u32 { leaf::answer() }\n",
    "my-app/Cargo.toml": MANIFEST.format(name="my-app")
    + '[dependencies]\nmiddle = { path = "../middle" }\n[build-dependencies]\nleaf = { path = "../leaf" }\n',
    "my-app/build.rs": "fn main() { leaf::answer(); }\n",
    "my-app/src/lib.rs": "pub fn run() -> u32 { middle::middle() }\n",
    "my-app/src/main.rs": 'fn main() { println!("{}", my_app::run()); }\n',
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, FatBuild]:
    """A library, and a package whose library and binary have one name."""
    project = Project(tmp_path_factory.mktemp("explain") / "workspace")
    project.write(FILES)
    return project, asyncio.run(project.build())


def test_a_binary_is_shown_with_its_link(built: tuple[Project, FatBuild]) -> None:
    """Of a library and a binary of one name it is the binary, with both rustc commands and both linker commands."""
    project, build = built
    explained = explain_crate(build.workspace, project.state_dir, "my-app", "cgu")
    assert explained["crate"] == "my_app (bin)"
    assert explained["argv"] == list(build.tip.argv)
    assert explained["cwd"] == str(project.root)
    assert explained["env"]["CARGO_PKG_NAME"] == "my-app"
    assert explained["link_argv"][0] == "cc"
    assert {"PATCH", "OBJECTS", "STUB"} <= set(explained["link_plan"])
    assert any(row["flag"].endswith(".rlib") or "archive" in row["reason"] for row in explained["link_dropped"])


def test_a_patch_library_is_shown_with_what_it_adds(built: tuple[Project, FatBuild]) -> None:
    """For programs that load patches the same captured command is edited in another way."""
    project, build = built
    explained = explain_crate(build.workspace, project.state_dir, "my-app", "cgu", "dylib")
    assert "-shared" in explained["link_plan"]
    assert "-Bsymbolic" in [row["flag"] for row in explained["link_added"]]
    assert all(row["flag"] and row["reason"] for row in explained["link_added"])


def test_every_edit_has_its_reason(built: tuple[Project, FatBuild]) -> None:
    """Rows say what became of a flag and why."""
    project, build = built
    edits = explain_crate(build.workspace, project.state_dir, "my_app", "cgu")["edits"]
    assert {"keep", "drop", "set"} >= {row["action"] for row in edits} > {"keep"}
    assert all(row["flag"] and row["reason"] for row in edits)


def test_a_library_is_compiled_again_as_the_daemon_does_it(built: tuple[Project, FatBuild]) -> None:
    """Also one that the binary uses through another library only; it is not linked."""
    project, build = built
    explained = explain_crate(build.workspace, project.state_dir, "leaf", "cgu")
    planned = plan_thin_crates(build.captures, thin_dir=str(project.state_dir / "thin"))
    (thin,) = (crate for crate in planned if crate.name == "leaf")
    assert explained["edited_argv"] == list(thin.edited.argv)
    assert explained["out_dir"] == thin.out_dir
    assert (explained["link_argv"], explained["link_plan"], explained["link_dropped"]) == (None, None, None)


def test_the_other_recipe_makes_one_object_at_a_given_path(built: tuple[Project, FatBuild]) -> None:
    """The captured command is the same, the edited one another."""
    project, build = built
    by_cgu = explain_crate(build.workspace, project.state_dir, "leaf", "cgu")
    single = explain_crate(build.workspace, project.state_dir, "leaf", "single-object")
    assert single["argv"] == by_cgu["argv"]
    assert any("obj=" in word for word in single["edited_argv"])
    assert not any("obj=" in word for word in by_cgu["edited_argv"])


def test_an_unknown_crate_is_answered_with_those_that_are_known(built: tuple[Project, FatBuild]) -> None:
    """The message names what was asked and what could be asked."""
    project, build = built
    with pytest.raises(UsageError, match=r"`nothing`.*leaf, middle, my_app"):
        explain_crate(build.workspace, project.state_dir, "nothing", "cgu")


def test_before_the_first_build_the_help_says_how_to_make_one(built: tuple[Project, FatBuild], tmp_path: Path) -> None:
    """There are no captures to explain."""
    with pytest.raises(UsageError, match="there are: none") as raised:
        explain_crate(built[1].workspace, tmp_path, "leaf", "cgu")
    assert "hotpatchd build" in raised.value.hint
