"""What needs a full build, with real cargo, build scripts, proc macros and the tracer."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.thinplan import plan_thin_crates
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.fatbuild import FatBuild, fat_build, load_workspace
from hotpatchd.daemon.tracing import Tracer, ensure_tracer, scope_of
from tests.daemon.test_fatbuild import MANIFEST, Project, output_of
from tests.daemon.test_tracing import MACROS

# Reads what the file `how` says: directly, through programs, or by listing; tells cargo of itself alone.
BUILD_SCRIPT = r"""
use std::process::Command;
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut text = String::new();
    for line in HOW.lines() {
        let (how, what) = line.split_once(' ').unwrap();
        text += &match how {
            "read" => std::fs::read_to_string(what).unwrap(),
            "cat" => String::from_utf8(Command::new("cat").arg(what).output().unwrap().stdout).unwrap(),
            "sh" => String::from_utf8(Command::new("sh").args(["-c", what]).output().unwrap().stdout).unwrap(),
            "list" => std::fs::read_dir(what).unwrap().count().to_string(),
            "exists" => std::path::Path::new(what).exists().to_string(),
            "write" => std::fs::write(what, "written").map(|()| String::new()).unwrap(),
            "env" => std::env::var(what).unwrap(),
            "run" => Command::new(what).status().map(|_| String::new()).unwrap(),
            _ => unreachable!(),
        };
    }
    println!("cargo:rustc-env=TEXT={}", text.trim().replace('\n', " "));
}
"""
PROGRAM = 'fn main() { println!("{}", env!("TEXT")); }\n'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracer, built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return asyncio.run(ensure_tracer(Path("rustc")))


class Traced(Project):
    """A package whose build script reads what it is told to, built with the tracer."""

    def __init__(self, root: Path, library: Path) -> None:
        super().__init__(root)
        self.tracer = Tracer(
            library, scope_of([root, root.with_name("outside")], [root / "target"]), self.state_dir / "captures"
        )
        self.write({"Cargo.toml": MANIFEST.format(name="app") + "[workspace]\n", "src/main.rs": PROGRAM})
        self.write({"data/one.txt": "one\n", "data/two.txt": "two\n"})

    def script(self, *how: str) -> None:
        """Another build script."""
        text = "\n".join(how)
        self.write({"build.rs": BUILD_SCRIPT + f'const HOW: &str = r##"{text}"##;\n'})

    async def traced(self) -> FatBuild:
        """A fat build."""
        selection = CargoSelection()
        workspace = await load_workspace(selection, cwd=self.root, environ=self.environ)
        return await fat_build(
            selection, workspace, self.state_dir, cwd=self.root, environ=self.environ, tracer=self.tracer
        )

    async def traced_without_script(self) -> FatBuild:
        """A fat build of a program that needs no build script."""
        self.write({"src/main.rs": "fn main() {}\n"})
        return await self.traced()


@pytest.fixture
def project(tmp_path: Path, library: Path) -> Traced:
    """With two files of data, and no build script yet."""
    return Traced(tmp_path / "app", library)


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def named(build: FatBuild, root: Path) -> Mapping[str, str]:
    """The files and directories that are there and need a full build, by their path in the project."""
    found = {os.path.relpath(path, root): what for path, what in build.full_build.items() if Path(path).exists()}
    return {path: what for path, what in sorted(found.items()) if not path.startswith("Cargo.")}


@pytest.mark.parametrize(
    ("how", "inputs"),
    [
        ("read data/one.txt", {"data/one.txt"}),
        ("cat data/one.txt", {"data/one.txt"}),
        ("sh cat < data/two.txt", {"data/two.txt"}),
        ("read ../outside/x.txt", {"../outside/x.txt"}),
        ("list data", {"data"}),
        ("write data/made.txt", set()),
    ],
)
async def test_what_a_build_script_reads_without_telling_needs_a_full_build(
    project: Traced, how: str, inputs: set[str]
) -> None:
    """Also through the programs that it runs; what it writes does not."""
    project.write({"../outside/x.txt": "x"})
    project.script(how)
    build = await project.traced()
    expected = {**dict.fromkeys(inputs, "input of a build script"), "build.rs": "build script"}
    assert named(build, project.root) == expected
    assert build.inputs.untraced == ()


@pytest.mark.parametrize("reads", [False, True])
async def test_code_that_is_told_and_not_read_stays_code(project: Traced, reads: bool) -> None:
    """Many scripts tell of all sources; an edit of these would need a full build for nothing."""
    project.script(*(["read src/main.rs"] if reads else []))
    edit(project.root / "build.rs", "cargo:rerun-if-changed=build.rs", "cargo:rerun-if-changed=src")
    project.write({"src/other.txt": "other", "src/main.rs": "fn main() {}\n"})
    build = await project.traced()
    assert named(build, project.root) == {
        "build.rs": "build script",
        "src/other.txt": "input of a build script",
        **({"src/main.rs": "input of a build script"} if reads else {}),
    }


async def test_what_it_looks_for_in_vain_needs_a_full_build_when_it_comes(project: Traced) -> None:
    """The path is an input, though nothing is there."""
    project.script("exists data/none.txt")
    build = await project.traced()
    assert build.full_build[str(project.root / "data/none.txt")] == "input of a build script"


@pytest.mark.parametrize(
    ("how", "file", "before", "after"),
    [
        ("read data/one.txt", "data/one.txt", "one\n", "1\n"),
        ("cat data/one.txt", "data/one.txt", "one\n", "1\n"),
        ("list data", "data/three.txt", "2\n", "3\n"),
        ("exists data/three.txt", "data/three.txt", "false\n", "true\n"),
    ],
)
async def test_cargo_is_made_to_run_the_script_again(
    project: Traced, how: str, file: str, before: str, after: str
) -> None:
    """It takes it for fresh otherwise, and the program would be built with the old text."""
    project.script(how)
    assert output_of((await project.traced()).executable) == before
    project.write({file: "1"})
    project.cargo("build")
    assert output_of((await project.traced()).executable) == after


async def test_a_script_does_not_run_again_for_nothing(project: Traced) -> None:
    """Not for what it told, nor for what it does itself."""
    # It takes longer than a tick of the clock by which files get their times.
    slow = "sh sleep 0.1; rm -f data/made.txt"
    project.script("read data/one.txt", "list data", slow, "write data/made.txt", "exists none", "cat data/two.txt")
    await project.traced()
    (first,) = project.root.glob("target/debug/build/app-*/output")
    ran = first.stat().st_mtime_ns
    await project.traced()
    assert first.stat().st_mtime_ns == ran


async def test_a_script_that_ran_without_the_tracer_runs_again_once(project: Traced) -> None:
    """Nobody knows what it read."""
    project.script("read data/one.txt")
    assert "data/one.txt" not in named(await project.build(), project.root)
    assert "data/one.txt" in named(await project.traced(), project.root)
    (output,) = project.root.glob("target/debug/build/app-*/output")
    ran = output.stat().st_mtime_ns
    await project.traced()
    assert output.stat().st_mtime_ns == ran


async def test_a_trace_that_is_older_than_the_last_run_is_none(project: Traced) -> None:
    """The script ran since without the tracer, and may have read something else."""
    project.script("read data/one.txt")
    await project.traced()
    project.script("read data/two.txt")
    await project.build()
    inputs = named(await project.traced(), project.root)
    assert inputs == {"build.rs": "build script", "data/two.txt": "input of a build script"}


async def test_a_script_that_cannot_be_traced_is_told_and_run_again_only_once(project: Traced, library: Path) -> None:
    """As where the tracer cannot be loaded into it."""
    project.tracer = Tracer(library.with_name("gone.so"), scope_of([project.root], []), project.state_dir / "captures")
    project.script("read data/one.txt")
    build = await project.traced()
    assert build.inputs.untraced == (f"build script in {project.root}",)
    (output,) = project.root.glob("target/debug/build/app-*/output")
    ran = output.stat().st_mtime_ns
    await project.traced()
    assert output.stat().st_mtime_ns == ran


async def test_programs_out_of_sight_are_told(project: Traced) -> None:
    """A statically linked one, here."""
    project.write({"tool.c": "int main(void) { return 0; }\n"})
    output_of("cc", "-static", "-o", project.root / "tool", project.root / "tool.c")
    project.script("run ./tool")
    build = await project.traced()
    assert build.inputs.untraced == ("./tool",)
    assert named(build, project.root) == {"build.rs": "build script", "tool": "input of a build script"}


async def test_the_tracer_is_no_part_of_captures(project: Traced) -> None:
    """Thin rebuilds have a tracer of their own, and a traced build makes nothing compile again."""
    project.script("read data/one.txt")
    await project.build()
    times = project.compile_times()
    build = await project.traced()
    assert build.recompiled == ()
    environ = dict(build.tip.env)
    assert not {"LD_PRELOAD", "HOTPATCHD_TRACE_SCOPE", "HOTPATCHD_TRACE_BUILD_SCRIPTS"} & environ.keys()
    assert project.compile_times()["build_script_build"] == times["build_script_build"]


def write_macros(project: Traced, body: str) -> None:
    """A program that uses proc macros which read files."""
    project.write(
        {
            "macros/Cargo.toml": MANIFEST.format(name="macros") + "[lib]\nproc-macro = true\n",
            "macros/src/lib.rs": MACROS,
            "src/main.rs": f'fn main() {{ println!("{{}}", {body}); }}\n',
        }
    )
    with (project.root / "Cargo.toml").open("a") as manifest:
        manifest.write('[dependencies]\nmacros = { path = "macros" }\n')


@pytest.mark.parametrize(
    ("body", "file", "before", "after"),
    [
        ('macros::length!("data/one.txt")', "data/one.txt", "4\n", "1\n"),
        ('macros::count!("data")', "data/three.txt", "2\n", "3\n"),
        ('macros::exists!("data/three.txt")', "data/three.txt", "0\n", "1\n"),
    ],
)
async def test_cargo_is_made_to_compile_a_crate_again_whose_macros_read_something(
    project: Traced, body: str, file: str, before: str, after: str
) -> None:
    """It knows nothing of that, and would link the program as it was."""
    write_macros(project, body)
    assert output_of((await project.traced()).executable) == before
    assert (await project.traced()).recompiled == ()
    project.write({file: "1"})
    build = await project.traced()
    assert output_of(build.executable) == after
    assert build.recompiled == ("app",)
    assert (await project.traced()).recompiled == ()


async def test_what_macros_read_in_the_full_build_is_known_before_anything_is_compiled_again(project: Traced) -> None:
    """The trace of the full build is that of the program as it runs."""
    write_macros(project, 'macros::length!("data/one.txt")')
    build = await project.traced()
    crates = plan_thin_crates(build.captures, thin_dir=str(project.state_dir / "thin"))
    inputs = inputs_of(crates, build.full_build, tracer=project.tracer)
    assert inputs.macro_inputs == {str(project.root / "data/one.txt"): ("app",)}
    assert build.inputs.macro_inputs == inputs.macro_inputs.keys()


@pytest.mark.parametrize("file", ["exports.map", "native/libnative.a"])
async def test_what_the_linker_reads_among_the_sources_needs_a_full_build(project: Traced, file: str) -> None:
    """A script or a library; thin rebuilds do not come to it."""
    project.write({"exports.map": "{ local: *; };\n", "native.c": "int native(void) { return 3; }\n", "native/x": ""})
    output_of("cc", "-c", project.root / "native.c", "-o", project.root / "native.o")
    output_of("ar", "rc", project.root / "native/libnative.a", project.root / "native.o")
    flags = (
        "rustc-link-arg-bins=-Wl,--version-script=exports.map",
        "rustc-link-search=native",
        "rustc-link-lib=native",
        "rerun-if-changed=build.rs",
    )
    lines = "\n".join(f'println!("cargo:{flag}");' for flag in flags)
    project.write({"build.rs": f"fn main() {{ {lines} }}\n"})
    body = 'extern "C" { fn native() -> i32; }\nfn main() { println!("{}", unsafe { native() }); }\n'
    project.write({"src/main.rs": body})
    build = await project.traced()
    path = str(project.root / file)
    assert build.full_build.get(path) == "input of the linker"
    assert path not in build.inputs.macro_inputs


async def test_what_macros_read_in_a_build_script_needs_a_full_build(project: Traced) -> None:
    """A build script is code that runs while building."""
    write_macros(project, "1")
    project.write({"build.rs": 'fn main() { assert!(macros::length!("data/one.txt") > 0); }\n'})
    edit(project.root / "Cargo.toml", "[dependencies]", "[build-dependencies]")
    build = await project.traced()
    assert build.full_build[str(project.root / "data/one.txt")] == "code that runs while building"


TOOLS = {
    "macros/Cargo.toml": MANIFEST.format(name="macros")
    + '[lib]\nproc-macro = true\n[dependencies]\nhelper = { path = "../helper" }\n',
    "macros/src/lib.rs": """
        #[proc_macro]
        pub fn n(_: proc_macro::TokenStream) -> proc_macro::TokenStream { helper::one().parse().unwrap() }
    """,
    "helper/Cargo.toml": MANIFEST.format(name="helper"),
    "helper/src/lib.rs": 'mod deep;\npub fn one() -> &\'static str { let _ = deep::TEXT; env!("ONE") }',
    "helper/src/deep.rs": 'pub const TEXT: &str = include_str!("deep.txt");',
    "helper/src/deep.txt": "deep",
    "helper/more.rs": "",
    "helper/build.rs": """
        mod more;
        fn main() {
            println!("cargo:rerun-if-changed=told");
            println!("cargo:rustc-env=ONE={}", std::fs::read_to_string("one.txt").unwrap());
        }
    """,
    "helper/one.txt": "1",
    "helper/told/sub/x": "",
    "src/main.rs": 'fn main() { println!("{}", macros::n!()); }',
    "other/Cargo.toml": MANIFEST.format(name="other"),
    "other/src/lib.rs": "",
    "other/build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }',
}


async def test_all_that_runs_during_the_build_is_known(project: Traced) -> None:
    """Modules, included files, manifests and build scripts of what proc macros are made from; not other members."""
    project.write(TOOLS)
    with (project.root / "Cargo.toml").open("a") as manifest:
        manifest.write('members = ["other"]\n[dependencies]\nmacros = { path = "macros" }\n')
    build = await project.traced()
    assert named(build, project.root) == {
        "helper/Cargo.toml": "manifest",
        "helper/build.rs": "build script",
        "helper/more.rs": "code that runs while building",
        "helper/one.txt": "input of a build script",
        "helper/src/deep.rs": "code that runs while building",
        "helper/src/deep.txt": "code that runs while building",
        "helper/src/lib.rs": "code that runs while building",
        "helper/told/sub/x": "input of a build script",
        "macros/Cargo.toml": "manifest",
        "macros/src/lib.rs": "code that runs while building",
    }


async def test_files_that_could_come_are_known_by_what_they_would_be(project: Traced) -> None:
    """Cargo and rustup would act on them."""
    build = await project.traced_without_script()
    would_be = {os.path.relpath(path, project.root): what for path, what in build.full_build.items()}
    assert would_be == {
        ".cargo/config": "cargo configuration",
        ".cargo/config.toml": "cargo configuration",
        "Cargo.lock": "lock file",
        "Cargo.toml": "manifest",
        "build.rs": "build script",
        "rust-toolchain": "toolchain file",
        "rust-toolchain.toml": "toolchain file",
    }


async def test_harmless_edits_are_judged_by_what_the_build_saw(project: Traced) -> None:
    """Not by what an earlier edit left: two that undo each other make no difference."""
    build = await project.traced_without_script()
    manifest, lock = project.root / "Cargo.toml", project.root / "Cargo.lock"
    harmless = build.inputs.manifests.harmless
    edit(manifest, "[package]", "[package]\ndescription = 'new'")
    assert list(harmless([str(manifest), str(lock), "/w/notes.txt"])) == [str(manifest), str(lock)]
    edit(manifest, "0.1.0", "0.2.0")
    assert harmless([str(manifest)]) == {}
    edit(manifest, "0.2.0", "0.1.0")
    assert "`package.description`" in harmless([str(manifest)])[str(manifest)]
    manifest.unlink()
    assert harmless([str(manifest)]) == {}


@pytest.mark.parametrize(
    ("program", "script", "counts"),
    [
        ('fn main() { println!("{}", env!("CARGO_PKG_DESCRIPTION")); }', (), True),
        ('fn main() { println!("{:?}", option_env!("CARGO_PKG_VERSION")); }', (), False),
        (PROGRAM, ("env CARGO_PKG_DESCRIPTION",), True),
        (PROGRAM, ("env CARGO_PKG_NAME",), False),
        (PROGRAM, ("cat Cargo.toml",), True),
    ],
)
async def test_a_description_counts_for_who_reads_it(
    project: Traced, program: str, script: tuple[str, ...], counts: bool
) -> None:
    """In a crate, or in a build script, which may also read the manifest itself."""
    manifest = project.root / "Cargo.toml"
    edit(manifest, "[package]", "[package]\ndescription = 'old'")
    project.write({"src/main.rs": program})
    if script:
        project.script(*script)
    build = await project.traced()
    edit(manifest, "old", "new")
    assert (build.inputs.manifests.harmless([str(manifest)]) == {}) == counts
    asked = frozenset({"CARGO_PKG_DESCRIPTION"})
    assert build.inputs.manifests.harmless([str(manifest)], asked) == {}
