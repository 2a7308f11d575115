"""Fat builds of small projects, with real cargo and rustc."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.recipe import edit_cgu
from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon.fatbuild import FatBuild, fat_build, install_shim, load_workspace
from hotpatchd.daemon.processes import run_process

MANIFEST = '[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n'


class Project:
    """A cargo project; its environment has no wrapper of the developer's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RUSTC_", "CARGO_BUILD", "CARGO_TARGET", "HOTPATCHD_"))
        }

    def write(self, files: Mapping[str, str]) -> None:
        """Writes files, by their path in the project."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @property
    def state_dir(self) -> Path:
        """Where captures go."""
        return self.root / "target" / "hotpatchd"

    async def build(
        self, selection: CargoSelection | None = None, cwd: Path | None = None, tip_args: Sequence[str] = ()
    ) -> FatBuild:
        """A fat build."""
        selection, cwd = selection or CargoSelection(), cwd or self.root
        workspace = await load_workspace(selection, cwd=cwd, environ=self.environ)
        return await fat_build(selection, workspace, self.state_dir, cwd=cwd, environ=self.environ, tip_args=tip_args)

    def cargo(self, *args: str) -> None:
        """Runs cargo as the developer does."""
        subprocess.run(["cargo", *args], cwd=self.root, env=self.environ, check=True)

    def capture_file(self, crate: str) -> Path:
        """The capture of the crate."""
        (path,) = (self.state_dir / "captures").glob(f"{crate}-*.json")
        return path

    def compile_times(self) -> dict[str, int]:
        """When each capture was written."""
        files = (self.state_dir / "captures").glob("*.json")
        return {path.name.partition("-")[0]: path.stat().st_mtime_ns for path in files}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A package `app` with a library and a binary."""
    project = Project(tmp_path / "app")
    project.write(
        {
            "Cargo.toml": MANIFEST.format(name="app") + '[lib]\nname = "core_lib"\n[workspace]\n',
            "src/lib.rs": "pub fn answer() -> u32 { 42 }\n",
            "src/main.rs": 'fn main() { println!("{}", core_lib::answer()); }\n',
        }
    )
    return project


def output_of(*command: str | Path) -> str:
    """What a program prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def names(build: FatBuild) -> list[str]:
    """The crates that can be compiled again."""
    return [capture.crate_name for capture in build.captures]


async def test_a_package_with_lib_and_bin(project: Project) -> None:
    """Both are captured, in order; the executable runs, and the tip knows its other name."""
    build = await project.build()
    assert names(build) == ["core_lib", "app"]
    assert build.tip is build.captures[-1]
    assert build.executable == project.root / "target" / "debug" / "app"
    assert build.executable.samefile(build.tip.outputs[0].path)
    assert output_of(build.executable) == "42\n"
    assert (build.problems, build.recompiled, build.build_time) == ((), (), ())
    assert [package.name for package in build.packages] == ["app"]
    assert "libcore_lib" in (build.tip.link_line or "")


async def test_captures_outlive_the_build(project: Project) -> None:
    """Cargo takes everything as fresh the second time, and nothing is compiled again."""
    first = await project.build()
    times = project.compile_times()
    second = await project.build()
    assert second.captures == first.captures
    assert project.compile_times() == times


async def test_a_missing_capture_makes_just_that_crate_compile_again(project: Project) -> None:
    """The library stays fresh when only the binary's capture is gone."""
    await project.build()
    times = project.compile_times()
    project.capture_file("app").unlink()
    build = await project.build()
    assert build.recompiled == ("app",)
    assert names(build) == ["core_lib", "app"]
    assert project.compile_times()["core_lib"] == times["core_lib"]


def exports_main(program: Path) -> bool:
    """Whether `main` is among a program's dynamic symbols."""
    return " main\n" in output_of("nm", "--dynamic", "--defined-only", program)


async def test_tip_arguments_come_and_go_with_the_program_alone(project: Project) -> None:
    """A fresh program is linked again where they differ from the last time's, and only then; nothing else is."""
    project.write({"build.rs": "fn main() {}\n"})
    args = ("-Clink-arg=-Wl,--export-dynamic-symbol=main",)
    assert not exports_main((await project.build()).executable)
    times = project.compile_times()
    exported = await project.build(tip_args=args)
    assert (exported.recompiled, exported.tip.tip_args, exported.tip.argv[-1:]) == (("app",), args, args)
    assert exports_main(exported.executable)
    assert (await project.build(tip_args=args)).recompiled == ()
    plain = await project.build()
    assert (plain.recompiled, plain.tip.tip_args) == (("app",), ())
    assert not exports_main(plain.executable)
    assert {**project.compile_times(), "app": 0} == {**times, "app": 0}


async def test_a_thin_rebuild_takes_a_tip_with_arguments(project: Project) -> None:
    """What the daemon adds to the link does no harm where nothing is linked."""
    build = await project.build(tip_args=("-Clink-arg=-Wl,--export-dynamic-symbol=main", "-lm"))
    out = project.root / "thin"
    out.mkdir()
    edited = edit_cgu(build.tip.argv, out_dir=str(out), incremental_dir=str(project.root / "incremental"))
    rebuilt = await run_process([build.tip.rustc, *edited.argv], cwd=build.tip.cwd, env=dict(build.tip.env))
    assert rebuilt.status == 0
    assert list(out.glob("*.rcgu.o"))


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 99}'])
async def test_a_corrupt_capture_is_named_and_made_again(project: Project, damage: str) -> None:
    """It is told as a problem once, and is valid afterwards."""
    await project.build()
    path = project.capture_file("core_lib")
    path.write_text(damage)
    build = await project.build()
    assert [problem.path for problem in build.problems] == [path]
    assert build.recompiled == ("core_lib",)
    assert names(build) == ["core_lib", "app"]
    assert (await project.build()).problems == ()


async def test_plain_builds_are_left_alone(project: Project) -> None:
    """A plain build keeps its own results, and what it puts in place of the program is put back."""
    project.cargo("build")
    plain = {path for path in (project.root / "target/debug/deps").iterdir() if path.suffix != ".d"}
    first = await project.build()
    project.capture_file("app").unlink()
    project.cargo("build")
    second = await project.build()
    assert all(path.exists() for path in plain)
    assert second.executable.samefile(first.tip.outputs[0].path)


async def test_an_edit_renews_the_captures_of_what_it_touches(project: Project) -> None:
    """A library's edit recompiles the binary too."""
    await project.build()
    times = project.compile_times()
    project.write({"src/lib.rs": "pub fn answer() -> u32 { 43 }\npub fn other() {}\n"})
    build = await project.build()
    renewed = project.compile_times()
    assert all(renewed[crate] > times[crate] for crate in ("app", "core_lib"))
    assert build.recompiled == ()


async def test_an_example_can_be_the_tip(project: Project) -> None:
    """Its name may differ from the crate name, as cargo allows `-`."""
    project.write({"examples/show-it.rs": 'fn main() { println!("{}", core_lib::answer()); }'})
    build = await project.build(CargoSelection(example=("show-it",)))
    assert names(build) == ["core_lib", "show_it"]
    assert build.executable == project.root / "target/debug/examples/show-it"


async def test_selection_flags_reach_cargo(project: Project) -> None:
    """Release profile, another target directory and a target triple, from another directory."""
    triple = output_of("rustc", "-vV").partition("host: ")[2].splitlines()[0]
    selection = CargoSelection(manifest_path="app/Cargo.toml", release=True, target=triple, target_dir="out")
    build = await project.build(selection, cwd=project.root.parent)
    assert build.executable == project.root.parent / "out" / triple / "release" / "app"
    assert build.tip.target == triple
    assert build.workspace.target_dir == project.root.parent / "out"


async def test_several_programs_are_listed(project: Project) -> None:
    """Cargo built two, and hotpatchd does not guess; it takes one that is named."""
    project.write({"src/bin/tool.rs": "fn main() {}\n"})
    with pytest.raises(BuildError, match="several programs: app, tool"):
        await project.build()
    assert names(await project.build(CargoSelection(bin=("tool",))))[-1] == "tool"


async def test_the_default_binary_is_taken(project: Project) -> None:
    """`default-run` decides, as it does for `cargo run`."""
    manifest = (project.root / "Cargo.toml").read_text()
    project.write(
        {
            "src/bin/tool.rs": "fn main() {}\n",
            "Cargo.toml": manifest.replace("[lib]", 'default-run = "tool"\n[lib]'),
        }
    )
    assert (await project.build()).executable.name == "tool"


async def test_a_library_alone_is_no_program(project: Project) -> None:
    """The error says what to do."""
    (project.root / "src/main.rs").unlink()
    with pytest.raises(BuildError, match="no program"):
        await project.build()


async def test_source_that_does_not_compile(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """Cargo's own diagnostics are on standard error; the error has its exit status."""
    project.write({"src/main.rs": "fn main() { core_lib::missing() }\n"})
    with pytest.raises(BuildError, match="cargo build failed with exit status 101"):
        await project.build()
    assert "cannot find function `missing`" in capfd.readouterr().err


async def test_a_project_that_cargo_cannot_read(tmp_path: Path) -> None:
    """No manifest at all."""
    with pytest.raises(BuildError, match="cargo metadata failed with exit status 101"):
        await Project(tmp_path).build()


async def test_no_cargo(project: Project) -> None:
    """The hint says where to get it."""
    project.environ["PATH"] = "/nonexistent"
    with pytest.raises(BuildError, match="cargo is not on PATH"):
        await load_workspace(CargoSelection(), cwd=project.root, environ=project.environ)


async def test_a_build_script(project: Project) -> None:
    """Variables that it sets are in the capture; it and its inputs are known as a reason for a fat build."""
    project.write(
        {
            "build.rs": 'fn main() { println!("cargo:rustc-env=GIT_SHA=abc\\ncargo:rerun-if-changed=data"); }',
            "data/one.txt": "1",
            "src/main.rs": 'fn main() { println!("{}", env!("GIT_SHA")); }',
            "rust-toolchain.toml": f'[toolchain]\npath = "{output_of("rustc", "--print=sysroot").strip()}"\n',
            ".cargo/config.toml": "",
        }
    )
    build = await project.build()
    assert dict(build.tip.env)["GIT_SHA"] == "abc"
    assert "OUT_DIR" in dict(build.tip.env)
    assert [capture.crate_name for capture in build.build_time] == ["build_script_build"]
    there = {file: what for file, what in build.full_build.items() if Path(file).exists()}
    kinds = {str(Path(file).relative_to(project.root)): what for file, what in there.items()}
    assert kinds == {
        "Cargo.toml": "manifest",
        "Cargo.lock": "lock file",
        "build.rs": "build script",
        "data": "input of a build script",
        "data/one.txt": "input of a build script",
        "rust-toolchain.toml": "toolchain file",
        ".cargo/config.toml": "cargo configuration",
    }


async def test_a_proc_macro_is_build_time(project: Project) -> None:
    """It and what it alone uses are captured, but are no part of the program; other members are neither."""
    manifest = (project.root / "Cargo.toml").read_text()
    project.write(
        {
            "Cargo.toml": manifest
            + 'members = ["unrelated"]\ndefault-members = [".", "unrelated"]\n'
            + '[dependencies]\nmacros = { path = "macros" }\n',
            "macros/Cargo.toml": MANIFEST.format(name="macros")
            + '[lib]\nproc-macro = true\n[dependencies]\nhelper = { path = "../helper" }\n',
            "macros/src/lib.rs": """
                #[proc_macro]
                pub fn n(_: proc_macro::TokenStream) -> proc_macro::TokenStream { helper::one().parse().unwrap() }
            """,
            "helper/Cargo.toml": MANIFEST.format(name="helper"),
            "helper/src/lib.rs": 'pub fn one() -> &\'static str { "1" }',
            "src/main.rs": "fn main() { std::process::exit(macros::n!()); }",
            "unrelated/Cargo.toml": MANIFEST.format(name="unrelated"),
            "unrelated/src/lib.rs": "",
            "unrelated/build.rs": "fn main() {}",
        }
    )
    build = await project.build()
    assert names(build) == ["core_lib", "app"]
    assert {capture.crate_name for capture in build.build_time} == {"macros", "helper"}
    assert {package.name for package in build.packages} == {"app"}


async def test_a_path_dependency_outside_the_workspace(project: Project, tmp_path: Path) -> None:
    """It is captured too, also when a plain build had made it before."""
    manifest = (project.root / "Cargo.toml").read_text()
    project.write(
        {
            "Cargo.toml": manifest + '[dependencies]\noutside = { path = "../outside" }\n',
            "src/lib.rs": "pub fn answer() -> u32 { outside::two() }",
            "../outside/Cargo.toml": MANIFEST.format(name="outside"),
            "../outside/src/lib.rs": "pub fn two() -> u32 { 2 }",
        }
    )
    project.cargo("build")
    build = await project.build()
    assert build.workspace.spills
    assert names(build) == ["outside", "core_lib", "app"]
    assert build.recompiled == ("outside",)
    assert str(tmp_path / "outside" / "Cargo.toml") in build.full_build
    assert (await project.build()).recompiled == ()


def write_wrapper(path: Path) -> None:
    """A wrapper that notes which crates it is run for."""
    path.write_text(f'#!/bin/sh\necho "$3" >> {path}.log\nexec "$@"\n')
    path.chmod(0o755)


@pytest.mark.parametrize("variable", ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"])
async def test_the_developers_own_wrapper_still_runs(project: Project, tmp_path: Path, variable: str) -> None:
    """Once for each crate, with rustc as its argument."""
    wrapper = tmp_path / "wrapper"
    write_wrapper(wrapper)
    project.environ[variable] = str(wrapper)
    assert names(await project.build()) == ["core_lib", "app"]
    crates = Path(f"{wrapper}.log").read_text().split()
    assert (crates.count("core_lib"), crates.count("app")) == (1, 1)


async def test_both_kinds_of_wrapper_at_once(project: Project, tmp_path: Path) -> None:
    """One from the environment, one from cargo's configuration."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    write_wrapper(outer)
    write_wrapper(inner)
    outer.write_text(outer.read_text().replace("$3", "$4"))
    project.environ["RUSTC_WRAPPER"] = str(outer)
    project.write({".cargo/config.toml": '[build]\nrustc-workspace-wrapper = "../inner"\n'})
    assert names(await project.build()) == ["core_lib", "app"]
    for wrapper in (outer, inner):
        assert Path(f"{wrapper}.log").read_text().split()[-2:] == ["core_lib", "app"]


async def test_cancelling_kills_the_compiler(project: Project) -> None:
    """Cargo, the shim, the linker and all they started are gone when the coroutine ends."""
    os.mkfifo(project.root / "running")
    linker = project.root / "slow-linker"
    linker.write_text(f"#!/bin/sh\necho $$ > {project.root}/running\nexec sleep 60\n")
    linker.chmod(0o755)
    project.write({".cargo/config.toml": f'[target."cfg(all())"]\nlinker = "{linker}"\n'})
    build = asyncio.create_task(project.build())
    linker_process = os.pidfd_open(int(await asyncio.to_thread((project.root / "running").read_text)))
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    ended, _, _ = await asyncio.to_thread(select.select, [linker_process], [], [], 10)
    os.close(linker_process)
    assert ended


async def test_cargo_ended_by_a_signal_is_named(project: Project) -> None:
    """As when the developer kills it."""
    project.write({"fake/cargo": f"#!/bin/sh\nkill -{signal.SIGTERM.value} $$\n"})
    (project.root / "fake/cargo").chmod(0o755)
    project.environ["PATH"] = f"{project.root}/fake:{project.environ['PATH']}"
    with pytest.raises(BuildError, match="cargo metadata was ended by SIGTERM"):
        await project.build()


async def test_a_crate_that_cannot_be_captured_is_named(project: Project) -> None:
    """The store cannot be written: the build goes on, and the error says which crates have no capture."""
    (project.state_dir / "captures").mkdir(parents=True)
    (project.state_dir / "captures" / "toolchains").write_text("in the way")
    with pytest.raises(BuildError, match="no capture of core_lib, app could be made"):
        await project.build()


def test_the_installed_shim_is_left_as_it_is(tmp_path: Path) -> None:
    """Cargo looks at its time: it is written only when it differs."""
    shim = install_shim(tmp_path)
    before = shim.stat()
    assert install_shim(tmp_path).stat() == before
    shim.write_text("an older one")
    assert install_shim(tmp_path).read_text() != "an older one"


@pytest.mark.parametrize("directory", ["with space", "d" * 250], ids=["space", "long"])
def test_interpreters_that_a_first_line_cannot_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    """The shim runs all the same, with just that interpreter."""
    python = tmp_path / directory / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    shim = install_shim(tmp_path)
    monkeypatch.undo()
    assert str(python) in shim.read_text()
    echo = subprocess.run([shim, "echo", "a b", "$HOME"], stdout=subprocess.PIPE, check=True)
    assert echo.stdout == b"a b $HOME\n"


async def test_a_very_long_command_line(project: Project) -> None:
    """Cargo then passes `@file`; the capture has all of it."""
    features = [f"a-feature-with-a-rather-long-name-for-its-size-{number}" for number in range(3000)]
    manifest = (project.root / "Cargo.toml").read_text()
    project.write({"Cargo.toml": manifest + "[features]\n" + "".join(f"{name} = []\n" for name in features)})
    build = await project.build(replace(CargoSelection(), all_features=True))
    assert f'feature="{features[-1]}"' in build.tip.argv
    assert not any(arg.startswith("@") for arg in build.tip.argv)


async def test_captures_hold_what_the_shim_was_started_with(project: Project) -> None:
    """The environment of the compile is there, that of the daemon is not."""
    project.environ["SOME_SECRET"] = "s3cret"
    build = await project.build()
    record = json.loads(project.capture_file("app").read_text())
    assert record["env"]["CARGO_PKG_NAME"] == "app"
    assert "SOME_SECRET" not in dict(build.tip.env)
