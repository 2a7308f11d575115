"""Compiling with a cache, with real rustc: what comes from it is what rustc would make, and rustc does not run."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.thinplan import ThinCrate, plan_thin_crates
from hotpatchd.daemon.cached_compiler import CachingCompiler
from hotpatchd.daemon.compiler import Compiled, Compiler
from hotpatchd.daemon.fatbuild import FatBuild
from hotpatchd.daemon.object_cache import ObjectCache
from hotpatchd.daemon.processes import Finished, run_process
from hotpatchd.daemon.tracing import Tracer, ensure_tracer, scope_of
from tests.daemon.test_fatbuild import MANIFEST, Project
from tests.daemon.test_object_cache import DAMAGES
from tests.daemon.test_processes import until

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["leaf", "app"]\nresolver = "2"\n',
    "leaf/Cargo.toml": MANIFEST.format(name="leaf"),
    "leaf/src/lib.rs": "mod deep;\npub fn answer() -> u32 { 42 }\npub fn other() -> u32 { deep::deepest() }\n",
    "leaf/src/deep.rs": "pub fn deepest() -> u32 { 7 }\n",
    "app/Cargo.toml": MANIFEST.format(name="app") + '[dependencies]\nleaf = { path = "../leaf" }\n',
    "app/src/main.rs": 'fn main() { println!("{} {:?}", leaf::answer(), option_env!("GREETING")); }\n',
}
DEEP = "leaf/src/deep.rs"
OTHER_DEEP = {DEEP: "pub fn deepest() -> u32 { 8 }\n"}
WITH_WARNING = {DEEP: "pub fn deepest() -> u32 { let unused = 1; 7 }\n"}
NEW_FUNCTION = {"leaf/src/lib.rs": FILES["leaf/src/lib.rs"] + "pub fn fresh() -> u32 { 1 }\n"}


SITE = {
    "Cargo.toml": '[workspace]\nmembers = ["page", "app"]\nresolver = "2"\n',
    "page/Cargo.toml": MANIFEST.format(name="page") + "[lib]\nproc-macro = true\n",
    "page/src/lib.rs": """
#[proc_macro]
pub fn page(_: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let directory = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("assets");
    let text = std::fs::read_to_string(directory.join("page.html")).unwrap_or_default();
    let count = std::fs::read_dir(&directory).unwrap().count();
    format!("\\"{text}{count}\\"").parse().unwrap()
}
""",
    "app/Cargo.toml": MANIFEST.format(name="app") + '[dependencies]\npage = { path = "../page" }\n',
    "app/src/main.rs": 'fn main() { println!("{}", page::page!()); }\n',
    "app/assets/page.html": "old",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, FatBuild]:
    """The workspace, built once for all tests."""
    project = Project(tmp_path_factory.mktemp("cached") / "workspace")
    project.write(FILES)
    return project, asyncio.run(project.build())


class Workspace:
    """The workspace with its sources as they were built, an empty cache, and a count of what rustc compiles."""

    def __init__(self, project: Project, build: FatBuild, root: Path, tracer: Tracer | None = None) -> None:
        self.project = project
        self.crates = {crate.name: crate for crate in plan_thin_crates(build.captures, thin_dir=str(root / "thin"))}
        self.cache_dir = root / "cache"
        self.compiled: list[str] = []
        self.while_compiling: Callable[[], None] = lambda: None
        self.tracer = tracer
        self.again()

    def again(self) -> None:
        """What another daemon would have."""
        self.cache = ObjectCache(self.cache_dir)
        compiler = Compiler(self._run, self.tracer)
        self.compiler = CachingCompiler(compiler, self.cache, self.crates.values(), self.tracer)

    async def _run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Finished:
        self.compiled.append(argv[argv.index("--crate-name") + 1])
        finished = await run_process(argv, cwd=cwd, env=env, on_stderr=on_stderr)
        self.while_compiling()
        return finished

    def path(self, name: str) -> Path:
        """A file of the workspace."""
        return self.project.root / name

    async def write(self, files: Mapping[str, str]) -> None:
        """Edit sources; the clock that stamps files goes on before anything is compiled."""
        self.project.write(files)
        newest_ns = max(self.path(name).stat().st_ctime_ns for name in files)
        await until(lambda: self.cache.clock_ns() > newest_ns)

    async def try_compile(self, crate: str | ThinCrate = "leaf") -> Compiled:
        """Compile a crate and let it be stored."""
        told: list[bytes] = []
        done = await self.compiler.compile(self.crates[crate] if isinstance(crate, str) else crate, told.append)
        assert not done.ok or told == ([done.metadata] if done.metadata else [])
        await self.compiler.close()
        return done

    async def compile(self, crate: str | ThinCrate = "leaf") -> Compiled:
        """Compile a crate that is right."""
        done = await self.try_compile(crate)
        assert done.ok, done.diagnostics
        return done

    def runs(self) -> list[str]:
        """The crates that rustc compiled since somebody asked."""
        compiled, self.compiled = self.compiled, []
        return compiled


@pytest.fixture
async def workspace(built: tuple[Project, FatBuild], tmp_path: Path) -> AsyncIterator[Workspace]:
    """The workspace before its first thin rebuild."""
    project, build = built
    workspace = Workspace(project, build, tmp_path)
    await workspace.write(FILES)
    yield workspace
    await workspace.compiler.close()


def contents(compiled: Compiled) -> dict[str, bytes]:
    """What is in the objects."""
    return {name: file.path.read_bytes() for name, file in compiled.objects.items()}


def identities(compiled: Compiled) -> dict[str, tuple[int, int, int]]:
    """Which files the objects are."""
    return {name: file.identity for name, file in compiled.objects.items()}


async def test_going_back_and_forth_between_two_states_runs_rustc_twice_in_all(workspace: Workspace) -> None:
    """Each state's objects are the very files that rustc made of it, and its metadata is in its place."""
    metadata = Path(workspace.crates["leaf"].metadata or "")
    first = await workspace.compile()
    first_metadata = metadata.read_bytes()
    await workspace.write(OTHER_DEEP)
    second = await workspace.compile()
    second_metadata = metadata.read_bytes()
    for _ in range(2):
        await workspace.write(FILES)
        again = await workspace.compile()
        assert (identities(again), again.metadata) == (identities(first), first.metadata)
        assert metadata.read_bytes() == first_metadata
        await workspace.write(OTHER_DEEP)
        again = await workspace.compile()
        assert (identities(again), again.metadata) == (identities(second), second.metadata)
        assert metadata.read_bytes() == second_metadata
    assert identities(first) != identities(second)
    assert workspace.runs() == ["leaf", "leaf"]


async def test_dependents_come_from_the_cache_with_the_metadata_that_they_were_compiled_against(
    workspace: Workspace,
) -> None:
    """Another metadata of a dependency is another compile, and the one from the cache is the same."""
    await workspace.compile("leaf")
    first = await workspace.compile("app")
    await workspace.write(NEW_FUNCTION)
    await workspace.compile("leaf")
    await workspace.compile("app")
    assert workspace.runs() == ["leaf", "app", "leaf", "app"]
    await workspace.write(FILES)
    await workspace.compile("leaf")
    again = await workspace.compile("app")
    assert (workspace.runs(), identities(again)) == ([], identities(first))


async def test_another_daemon_finds_what_an_earlier_one_compiled(workspace: Workspace) -> None:
    """What is on disk is enough."""
    first = await workspace.compile()
    workspace.again()
    assert identities(await workspace.compile()) == identities(first)
    assert workspace.runs() == ["leaf"]


async def test_a_compile_after_one_from_the_cache_is_right(workspace: Workspace) -> None:
    """The incremental cache is then that of another state than the one before."""
    await workspace.compile()
    await workspace.write(OTHER_DEEP)
    second = contents(await workspace.compile())
    await workspace.write(FILES)
    await workspace.compile()
    await workspace.write({DEEP: "pub fn deepest() -> u32 { 9 }\n"})
    third = contents(await workspace.compile())
    workspace.cache_dir.rename(workspace.cache_dir.with_name("elsewhere"))
    await workspace.write(OTHER_DEEP)
    assert contents(await workspace.compile()) == second != third
    assert workspace.runs() == ["leaf"] * 4


async def test_a_warning_is_shown_again(workspace: Workspace) -> None:
    """The developer sees the same whether rustc ran or not."""
    await workspace.write(WITH_WARNING)
    first = await workspace.compile()
    assert any("unused variable: `unused`" in said for said in first.diagnostics)
    assert (await workspace.compile()).diagnostics == first.diagnostics
    assert workspace.runs() == ["leaf"]


async def test_what_does_not_compile_is_not_kept(workspace: Workspace) -> None:
    """rustc is asked each time, also where it got as far as to list the sources."""
    await workspace.compile()
    await workspace.write({DEEP: 'pub fn deepest() -> u32 { "eight" }\n'})
    for _ in range(2):
        assert not (await workspace.try_compile()).ok
    assert workspace.runs() == ["leaf"] * 3


async def test_dep_info_is_that_of_the_state(workspace: Workspace) -> None:
    """Where a module was added, it is an input again; and the file is not one of the cache's: rustc writes into it."""
    listing = Path(workspace.crates["leaf"].out_dir, f"leaf{workspace.crates['leaf'].capture.extra_filename}.d")
    more = {"leaf/src/more.rs": "", "leaf/src/lib.rs": "mod more;\n" + FILES["leaf/src/lib.rs"]}
    for _ in range(2):
        await workspace.write(FILES)
        await workspace.compile()
        assert "more.rs" not in listing.read_text()
        await workspace.write(more)
        await workspace.compile()
        assert "more.rs" in listing.read_text()
        assert listing.stat().st_nlink == 1
    assert workspace.runs() == ["leaf", "leaf"]


async def test_a_changed_variable_is_another_compile(workspace: Workspace) -> None:
    """The source asks for it with `option_env!`; going back to its old value is instant too."""
    app = workspace.crates["app"]

    def greeted(greeting: str) -> ThinCrate:
        env = (*app.capture.env, ("GREETING", greeting))
        return replace(app, capture=replace(app.capture, env=env))

    await workspace.compile("leaf")
    hello = await workspace.compile(greeted("hello"))
    howdy = await workspace.compile(greeted("howdy"))
    assert workspace.runs() == ["leaf", "app", "app"]
    assert identities(howdy) != identities(hello)
    assert identities(await workspace.compile(greeted("hello"))) == identities(hello)
    assert workspace.runs() == []


async def test_a_library_that_cargo_built_again_is_another_compile(workspace: Workspace) -> None:
    """One that the daemon does not compile itself is known by its size and time."""
    leaf = workspace.crates["leaf"]
    library = workspace.project.root / "libforeign.rlib"
    library.write_bytes(b"library")
    crate = replace(leaf, edited=replace(leaf.edited, argv=(*leaf.edited.argv, f"--extern=foreign={library}")))
    await workspace.compile(crate)
    await workspace.compile(crate)
    os.utime(library, (1000, 1000))
    await workspace.compile(crate)
    assert workspace.runs() == ["leaf", "leaf"]


async def test_a_second_file_for_a_module_is_not_overlooked(workspace: Workspace) -> None:
    """rustc does not list where it found nothing; with a file there, the module is ambiguous."""
    await workspace.compile()
    second = workspace.path("leaf/src/deep/mod.rs")
    await workspace.write({"leaf/src/deep/mod.rs": ""})
    done = await workspace.try_compile()
    second.unlink()
    second.parent.rmdir()
    assert not done.ok
    assert "E0761" in "".join(done.diagnostics)


async def test_a_source_that_changes_while_it_is_compiled_is_not_stored(workspace: Workspace) -> None:
    """Neither under the text that rustc may have read, nor under the one that it may not."""
    workspace.while_compiling = lambda: workspace.project.write(OTHER_DEEP)
    first = await workspace.compile()
    workspace.while_compiling = lambda: None
    await workspace.write(OTHER_DEEP)
    assert contents(await workspace.compile()) != contents(first)
    await workspace.write(FILES)
    assert contents(await workspace.compile()) == contents(first)
    assert workspace.runs() == ["leaf"] * 3


async def test_sources_that_are_exchanged_while_they_are_compiled_are_not_stored(workspace: Workspace) -> None:
    """A directory that takes another's place brings files that nobody wrote just now."""
    await workspace.compile()
    package, other, gone = workspace.path("leaf"), workspace.path("other"), workspace.path("gone")
    shutil.copytree(package, other)
    await workspace.write({"other/src/deep.rs": OTHER_DEEP[DEEP], DEEP: "pub fn deepest() -> u32 { 9 }\n"})

    def exchange() -> None:
        package.rename(gone)
        other.rename(package)

    workspace.while_compiling = exchange
    nine = contents(await workspace.compile())
    workspace.while_compiling = lambda: None
    eight = contents(await workspace.compile())
    shutil.rmtree(gone)
    assert eight != nine
    assert workspace.runs() == ["leaf"] * 3


async def test_metadata_that_changes_while_a_dependent_is_compiled_is_noticed(workspace: Workspace) -> None:
    """The dependent is then not stored under the metadata that was there at its beginning."""
    await workspace.compile("leaf")
    metadata = Path(workspace.crates["leaf"].metadata or "")
    old = metadata.read_bytes()

    def exchange() -> None:
        metadata.unlink()
        metadata.write_bytes(old + b"\0")

    workspace.while_compiling = exchange
    await workspace.compile("app")
    metadata.unlink()
    metadata.write_bytes(old)
    await workspace.compile("app")
    assert workspace.runs() == ["leaf", "app", "app"]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_in_the_cache_is_compiled_anew(
    workspace: Workspace, damage: Callable[[Path], None]
) -> None:
    """And it is kept again from then on."""
    first = contents(await workspace.compile())
    await workspace.write(OTHER_DEEP)
    await workspace.compile()
    for blob in (workspace.cache_dir / "blobs").iterdir():
        # A file of its own: rustc's incremental cache has hard links of the blobs.
        content = blob.read_bytes()
        blob.unlink()
        blob.write_bytes(content)
        damage(blob)
    workspace.again()
    await workspace.write(FILES)
    assert contents(await workspace.compile()) == first
    assert workspace.runs() == ["leaf"] * 3
    assert contents(await workspace.compile()) == first
    assert workspace.runs() == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, FatBuild, Path]:
    """A program with a macro that reads a file and counts those beside it, built once; and the tracer."""
    project = Project(tmp_path_factory.mktemp("site") / "workspace")
    project.write(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        library = asyncio.run(ensure_tracer(Path("rustc")))
    return project, asyncio.run(project.build()), library


def traced(site: tuple[Project, FatBuild, Path], root: Path, *, with_tracer: bool = True) -> Workspace:
    """The program with the macro, before its first thin rebuild."""
    project, build, library = site
    scope = scope_of([project.root], [project.root / "target"])
    shutil.rmtree(project.root / "app/assets")
    return Workspace(project, build, root, Tracer(library, scope, root) if with_tracer else None)


def change(assets: Path) -> None:
    """Another text in the file."""
    (assets / "page.html").write_text("new")


def remove(assets: Path) -> None:
    """No file any more."""
    (assets / "page.html").unlink()


def add_another(assets: Path) -> None:
    """One more file beside it."""
    (assets / "other.html").write_text("")


@pytest.mark.parametrize("edit", [change, remove, add_another])
async def test_what_a_macro_reads_counts(
    site: tuple[Project, FatBuild, Path], tmp_path: Path, edit: Callable[[Path], None]
) -> None:
    """Dep-info does not list it; it is known from the trace, which is that of the state that comes from the cache."""
    workspace = traced(site, tmp_path)
    crate, assets = workspace.crates["app"], workspace.path("app/assets")
    await workspace.write(SITE)
    first = await workspace.compile("app")
    edit(assets)
    second = await workspace.compile("app")
    assert contents(second) != contents(first)
    shutil.rmtree(assets)
    await workspace.write(SITE)
    assert identities(await workspace.compile("app")) == identities(first)
    assert workspace.runs() == ["app", "app"]
    assert workspace.tracer
    assert str(assets / "page.html") in workspace.tracer.trace_of(crate).opened


async def test_a_macro_that_finds_a_file_that_was_missing(site: tuple[Project, FatBuild, Path], tmp_path: Path) -> None:
    """What it looked for in vain counts too."""
    workspace = traced(site, tmp_path)
    page, other = workspace.path("app/assets/page.html"), workspace.path("app/assets/other.html")
    workspace.project.write({**SITE, "app/assets/other.html": "found"})
    page.unlink()
    await workspace.write({"app/src/main.rs": SITE["app/src/main.rs"]})
    first = contents(await workspace.compile("app"))
    assert contents(await workspace.compile("app")) == first
    assert workspace.runs() == ["app"]
    other.rename(page)
    assert contents(await workspace.compile("app")) != first


async def test_a_crate_with_macros_that_nobody_traces_is_not_kept(
    site: tuple[Project, FatBuild, Path], tmp_path: Path
) -> None:
    """They may have read anything."""
    workspace = traced(site, tmp_path, with_tracer=False)
    await workspace.write(SITE)
    await workspace.compile("app")
    await workspace.compile("app")
    assert workspace.runs() == ["app", "app"]


async def test_a_cache_that_cannot_be_used_is_done_without(workspace: Workspace) -> None:
    """Its directory cannot be made, for instance."""
    workspace.cache_dir.rename(workspace.cache_dir.with_name("elsewhere"))
    workspace.cache_dir.touch()
    await workspace.compile()
    await workspace.compile()
    assert workspace.runs() == ["leaf", "leaf"]


async def test_a_cancelled_compile_is_not_stored(workspace: Workspace) -> None:
    """The next one runs rustc, and is."""
    reached = asyncio.Event()
    workspace.while_compiling = reached.set
    task = asyncio.create_task(workspace.compiler.compile(workspace.crates["leaf"]))
    await reached.wait()
    task.cancel()
    await asyncio.wait({task})
    await workspace.compile()
    await workspace.compile()
    assert len(workspace.runs()) <= 2
