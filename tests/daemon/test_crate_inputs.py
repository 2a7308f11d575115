"""What crates are made from, as rustc lists it; what is traced is in test_tracing.py."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.thinplan import plan_thin_crates
from hotpatchd.daemon.crate_inputs import captured_files, captured_variables, inputs_of
from hotpatchd.daemon.fatbuild import FatBuild
from tests.daemon.test_fatbuild import MANIFEST, Project

FILES = {
    "Cargo.toml": MANIFEST.format(name="app") + "[workspace]\n",
    "src/lib.rs": 'pub const NAME: &str = env!("CARGO_PKG_NAME");\npub fn home() -> Option<&\'static str> { '
    'option_env!("SOME_HOME") }\n',
    "src/main.rs": 'mod deep;\nfn main() { println!("{} {}", deep::TEXT, include_bytes!("../data.bin").len()); }\n',
    "src/deep.rs": 'pub const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), include_str!("../data.bin"));\n',
    "data.bin": "data",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FatBuild]:
    """A library and a program of one package, and where they are."""
    project = Project(tmp_path_factory.mktemp("inputs") / "app")
    project.write(FILES)
    return project.root, asyncio.run(project.build())


def test_captured_files_are_what_rustc_read(built: tuple[Path, FatBuild]) -> None:
    """Modules and included files, each once, as absolute paths."""
    root, build = built
    assert sorted(captured_files(build.tip)) == sorted(
        str(root / name) for name in ("data.bin", "src/deep.rs", "src/main.rs")
    )


def test_captured_variables_are_those_of_the_package(built: tuple[Path, FatBuild]) -> None:
    """Others do not come from a manifest."""
    _, build = built
    assert [captured_variables(capture) for capture in build.captures] == [
        {"CARGO_PKG_NAME"},
        {"CARGO_PKG_VERSION"},
    ]


@pytest.mark.parametrize("text", [None, "", "app: src/main.rs"])
def test_a_list_that_is_gone_or_broken_names_nothing(
    built: tuple[Path, FatBuild], tmp_path: Path, text: str | None
) -> None:
    """The crate is compiled all the same."""
    if text is not None:
        (tmp_path / "app.d").write_text(text)
    capture = replace(built[1].tip, dep_info=str(tmp_path / "app.d"))
    assert captured_files(capture) == ()
    assert captured_variables(capture) == frozenset()


def test_inputs_of_several_crates_come_together(built: tuple[Path, FatBuild], tmp_path: Path) -> None:
    """Each file with the crates that read it, and all variables."""
    root, build = built
    crates = plan_thin_crates(build.captures, thin_dir=str(tmp_path))
    inputs = inputs_of(crates, build.full_build)
    names = [crate.name for crate in crates]
    assert inputs.crates_of[str(root / "src/lib.rs")] == (names[0],)
    assert inputs.crates_of[str(root / "data.bin")] == (names[1],)
    assert inputs.variables == {"CARGO_PKG_NAME", "CARGO_PKG_VERSION"}
    assert inputs.macro_inputs == {}
    assert inputs.paths >= {str(root / "Cargo.toml"), str(root / "data.bin")}
