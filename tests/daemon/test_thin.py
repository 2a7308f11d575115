"""Thin rebuilds of a small workspace, with real rustc; and with programs that pretend to be it."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.thinplan import ThinCrate, plan_thin_crates
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.fatbuild import FatBuild
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.objfile.objects import BuildObjects
from tests.daemon.test_fatbuild import MANIFEST, Project
from tests.daemon.test_processes import is_running, until

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["leaf", "app"]\nresolver = "2"\n',
    "leaf/Cargo.toml": MANIFEST.format(name="leaf"),
    "leaf/src/lib.rs": "mod deep;\npub fn answer() -> u32 { 42 }\npub fn other() -> u32 { deep::deepest() }\n",
    "leaf/src/deep.rs": "pub fn deepest() -> u32 { 7 }\n",
    "app/Cargo.toml": MANIFEST.format(name="app") + '[dependencies]\nleaf = { path = "../leaf" }\n',
    "app/src/main.rs": 'fn main() { println!("{} {}", leaf::answer(), include_str!("../../shared.txt").len()); }\n',
    "shared.txt": "shared",
}
NEW_FUNCTION = {"leaf/src/lib.rs": FILES["leaf/src/lib.rs"] + "pub fn fresh() -> u32 { 1 }\n"}
OTHER_BODY = {"leaf/src/lib.rs": FILES["leaf/src/lib.rs"].replace("42", "43")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, FatBuild]:
    """The workspace, built once for all tests."""
    project = Project(tmp_path_factory.mktemp("thin") / "workspace")
    project.write(FILES)
    return project, asyncio.run(project.build())


class Workspace:
    """The workspace with its sources as they were built, and the objects of its first thin rebuild."""

    def __init__(self, project: Project, build: FatBuild, thin_dir: Path) -> None:
        self.project = project
        self.crates = plan_thin_crates(build.captures, thin_dir=str(thin_dir))
        self.builder = ThinBuilder(self.crates)
        self.baseline: BuildObjects | None = None

    async def build(self, *crates: str) -> BuildObjects:
        """The objects of a rebuild that must succeed."""
        result = await self.builder.build(crates)
        assert result.program is not None, result.diagnostics
        return result.program

    def write(self, files: Mapping[str, str]) -> None:
        """Edit sources."""
        self.project.write(files)

    def built_objects(self, crate: str) -> set[str]:
        """Numbers of the builds whose objects of a crate are on disk."""
        (found,) = (Path(c.out_dir).with_name("objects") for c in self.crates if c.name == crate)
        return {path.name for path in found.iterdir()}


@pytest.fixture
async def workspace(built: tuple[Project, FatBuild], tmp_path: Path) -> Workspace:
    """The workspace after its first thin rebuild."""
    project, build = built
    project.write(FILES)
    workspace = Workspace(project, build, tmp_path / "thin")
    workspace.baseline = await workspace.build("leaf", "app")
    return workspace


def replaced(crates: tuple[ThinCrate, ...], rustc: Path) -> ThinBuilder:
    """The tip alone, compiled by another program."""
    tip = crates[-1]
    return ThinBuilder([replace(tip, capture=replace(tip.capture, rustc=str(rustc)))])


def script(path: Path, text: str) -> Path:
    """A program that takes rustc's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_the_first_rebuild_compiles_every_crate_in_order(built: tuple[Project, FatBuild], tmp_path: Path) -> None:
    """Libraries come before what depends on them, and all objects are there."""
    project, build = built
    project.write(FILES)
    result = await Workspace(project, build, tmp_path).builder.build(["app", "leaf"])
    assert (result.crates, result.failed) == (("leaf", "app"), frozenset())
    assert result.program is not None
    assert {name.partition("/")[0] for name in result.program.files} == {"leaf", "app"}
    assert result.compile_ms > 0


async def test_dependents_are_compiled_again_when_the_metadata_of_a_library_changed(workspace: Workspace) -> None:
    """A new public function is visible to them."""
    workspace.write(NEW_FUNCTION)
    assert (await workspace.builder.build(["leaf"])).crates == ("leaf", "app")


async def test_dependents_are_left_alone_when_the_metadata_of_a_library_stayed(workspace: Workspace) -> None:
    """A library compiled again with the same metadata concerns nobody else."""
    assert (await workspace.builder.build(["leaf"])).crates == ("leaf",)


async def test_an_edit_that_is_not_code_stops_where_it_was_made(workspace: Workspace) -> None:
    """The library is compiled, and its metadata is what it was."""
    workspace.write({"leaf/src/lib.rs": FILES["leaf/src/lib.rs"] + "// Said behind everything.\n"})
    assert (await workspace.builder.build(["leaf"])).crates == ("leaf",)


async def test_a_dependent_that_failed_is_compiled_again_though_the_library_stays(workspace: Workspace) -> None:
    """After a failure the library's metadata still counts as changed for whoever did not compile against it."""
    workspace.write({"leaf/src/lib.rs": FILES["leaf/src/lib.rs"].replace("answer", "reply")})
    failed = await workspace.builder.build(["leaf"])
    assert (failed.crates, failed.failed, failed.program) == (("leaf", "app"), frozenset({"app"}), None)
    workspace.write({"app/src/main.rs": "fn main() { leaf::reply(); }\n"})
    assert (await workspace.builder.build(())).crates == ("app",)


async def test_nothing_is_compiled_after_a_crate_that_failed(workspace: Workspace) -> None:
    """Its dependents would only repeat its errors; they are not named as failed."""
    workspace.write({"leaf/src/lib.rs": "pub fn answer() -> u32 { nonsense }\n"})
    result = await workspace.builder.build(["leaf"])
    assert (result.crates, result.failed, result.program) == (("leaf",), frozenset({"leaf"}), None)


async def test_diagnostics_are_as_rustc_renders_them(workspace: Workspace) -> None:
    """Errors and warnings with their place in the source, and no JSON."""
    workspace.write({"leaf/src/lib.rs": "pub fn answer() -> u32 {\n    let unused = 1;\n    nonsense\n}\n"})
    result = await workspace.builder.build(["leaf"])
    text = "\n".join(result.diagnostics)
    assert "error[E0425]: cannot find value `nonsense` in this scope" in text
    assert "leaf/src/lib.rs:3:5" in text
    assert '{"' not in text


async def test_warnings_of_a_rebuild_that_succeeds_are_handed_over(workspace: Workspace) -> None:
    """They are the developer's to see."""
    workspace.write({"leaf/src/deep.rs": "pub fn deepest() -> u32 { let unused = 1; 7 }\n"})
    result = await workspace.builder.build(["leaf"])
    assert result.program is not None
    assert any("unused variable: `unused`" in said for said in result.diagnostics)


async def test_objects_of_codegen_units_that_stay_keep_their_identity(workspace: Workspace) -> None:
    """Of an edited crate only what the edit touches is another file."""
    before = await workspace.build("leaf")
    workspace.write(OTHER_BODY)
    after = await workspace.build("leaf")
    changed = [unit.name for unit in after.changed_since(before)]
    assert changed
    assert len(changed) < len([name for name in after.files if name.startswith("leaf/")])


async def test_objects_of_old_builds_are_deleted(workspace: Workspace) -> None:
    """What stays is the newest build, the one before it, and what somebody, such as for the baseline, still holds."""
    held = await workspace.build("leaf")
    for _ in range(3):
        await workspace.build("leaf")
    assert workspace.built_objects("leaf") == {"1", "2", "4", "5"}
    del held
    await workspace.build("leaf")
    assert workspace.built_objects("leaf") == {"1", "5", "6"}


async def test_objects_that_a_compiler_left_behind_are_not_taken(workspace: Workspace) -> None:
    """One that was killed may have written some."""
    Path(workspace.crates[-1].out_dir, "app-1234.left.rcgu.o").write_bytes(b"half")
    assert "app/left" not in (await workspace.build("app")).files


async def test_objects_of_a_crate_that_rests_outlive_the_rebuilds_of_others(workspace: Workspace) -> None:
    """All objects of the newest build can be opened, whenever they were compiled."""
    (await workspace.build("leaf")).forget_units()
    for _ in range(3):
        newest = await workspace.build("app")
    assert all(newest.unit(name).exports is not None for name in newest.files)


async def test_objects_left_by_an_earlier_daemon_are_not_in_the_way(
    built: tuple[Project, FatBuild], workspace: Workspace
) -> None:
    """Each crate starts from an empty directory, also one that the first rebuild does not come to."""
    project, build = built
    await workspace.build("leaf", "app")
    again = Workspace(project, build, Path(workspace.crates[0].out_dir).parents[1])
    workspace.write({"leaf/src/lib.rs": "nonsense"})
    assert (await again.builder.build(["leaf", "app"])).program is None
    workspace.write(FILES)
    await again.build("leaf", "app")
    assert (again.built_objects("leaf"), again.built_objects("app")) == ({"1"}, {"1"})


async def test_inputs_lead_from_files_to_the_crates_that_read_them(workspace: Workspace) -> None:
    """Modules and included files count, and all paths are absolute and plain."""
    root = workspace.project.root
    inputs = inputs_of(workspace.builder.crates, {"/etc/hosts": "a file"})
    assert inputs.crates_of == {
        str(root / "leaf/src/lib.rs"): ("leaf",),
        str(root / "leaf/src/deep.rs"): ("leaf",),
        str(root / "app/src/main.rs"): ("app",),
        str(root / "shared.txt"): ("app",),
    }
    assert inputs.full_build == {"/etc/hosts": "a file"}
    assert inputs.source_dirs == {"leaf": str(root / "leaf"), "app": str(root / "app")}


async def test_inputs_are_those_of_the_newest_rebuild(workspace: Workspace) -> None:
    """A module that an edit adds is an input from then on."""
    extra = workspace.project.root / "app/src/extra.rs"
    workspace.write({"app/src/extra.rs": "pub fn run() {}\n"})
    workspace.write({"app/src/main.rs": "mod extra;\nfn main() { extra::run(); }\n"})
    await workspace.build("app")
    assert inputs_of(workspace.builder.crates, {}).crates_of[str(extra)] == ("app",)


def test_inputs_before_the_first_rebuild_are_those_of_the_capture(
    built: tuple[Project, FatBuild], tmp_path: Path
) -> None:
    """The full build listed its files too."""
    project, build = built
    inputs = inputs_of(Workspace(project, build, tmp_path).builder.crates, {})
    assert inputs.crates_of[str(project.root / "leaf/src/deep.rs")] == ("leaf",)


async def test_objects_are_told_apart_where_rustc_adds_no_invocation_to_their_names(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Older compilers name them `<crate>.<cgu>.rcgu.o`."""
    some = next(iter((await workspace.build("app")).files.values())).path
    out = workspace.crates[-1].out_dir
    copies = "\n".join(f'cp "{some}" "{out}/app-1234.{cgu}.rcgu.o"' for cgu in ("one", "two"))
    builder = replaced(workspace.crates, script(tmp_path / "rustc", copies))
    result = await builder.build(["app"])
    assert result.program is not None
    assert set(result.program.files) == {"app/one", "app/two"}


async def test_a_missing_rustc_is_named(workspace: Workspace, tmp_path: Path) -> None:
    """A toolchain that was removed is an error that names the program."""
    with pytest.raises(BuildError, match="gone/rustc"):
        await replaced(workspace.crates, tmp_path / "gone/rustc").build(["app"])


async def test_a_rustc_that_is_killed_is_an_error_of_its_own(workspace: Workspace, tmp_path: Path) -> None:
    """The source is not blamed for it."""
    with pytest.raises(BuildError, match="signal 9 while it compiled app"):
        await replaced(workspace.crates, script(tmp_path / "rustc", "kill -KILL $$")).build(["app"])


async def test_lines_that_are_not_json_are_shown_as_they_are(workspace: Workspace, tmp_path: Path) -> None:
    """A compiler that breaks off says why in plain text."""
    said = script(tmp_path / "rustc", "echo 'cannot load the driver' >&2; echo '{}' >&2; exit 1")
    result = await replaced(workspace.crates, said).build(["app"])
    assert result.diagnostics == ("cannot load the driver",)


async def test_a_cancelled_rebuild_kills_rustc_and_what_it_started(workspace: Workspace, tmp_path: Path) -> None:
    """Nothing of it runs on, and the next rebuild works."""
    pids = tmp_path / "pids"
    slow = script(tmp_path / "rustc", f'sleep 600 & echo $! $$ > "{pids}.new"; mv "{pids}.new" "{pids}"; wait')
    task = asyncio.create_task(replaced(workspace.crates, slow).build(["app"]))
    await until(pids.exists)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    child, rustc = map(int, pids.read_text().split())
    assert not is_running(rustc)
    await until(lambda: not is_running(child))
    assert os.listdir(workspace.crates[-1].out_dir)
    await workspace.build("app")
