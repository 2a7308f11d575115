"""Thin rebuilds of several programs whose crates depend on each other in every way that cargo knows; real rustc."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.thinplan import ThinCrate, plan_thin_crates
from hotpatchd.core.unit import Fingerprint
from hotpatchd.daemon.compiler import Compiled, Compiler
from hotpatchd.daemon.fatbuild import FatBuild
from hotpatchd.daemon.thin import ThinBuilder, ThinResult
from tests.daemon.test_fatbuild import MANIFEST, Project
from tests.daemon.test_processes import is_running, until

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["bottom", "left", "right", "macros", "helper", "app"]\nresolver = "2"\n',
    "bottom/Cargo.toml": MANIFEST.format(name="bottom"),
    "bottom/src/lib.rs": (
        "pub fn scale<T: Into<u64>>(value: T) -> u64 { value.into() * 2 }\n"
        "pub fn plain() -> u64 { 1 }\n"
        "pub struct Pair { pub first: u64, pub second: u64 }\n"
    ),
    "left/Cargo.toml": MANIFEST.format(name="left")
    + '[dependencies]\nground = { package = "bottom", path = "../bottom" }\n',
    "left/src/lib.rs": "pub fn left<T: Into<u64>>(value: T) -> u64 { ground::scale(value) + 1 }\n",
    "right/Cargo.toml": MANIFEST.format(name="right")
    + '[dependencies]\nbottom = { path = "../bottom" }\ntwin = { path = "../../twins/one" }\n',
    "right/src/lib.rs": "pub fn right() -> u64 { bottom::plain() + twin::number() }\n",
    "../twins/one/Cargo.toml": MANIFEST.format(name="twin"),
    "../twins/one/src/lib.rs": "pub fn number() -> u64 { 1 }\n",
    "../twins/two/Cargo.toml": MANIFEST.format(name="twin").replace("0.1.0", "0.2.0"),
    "../twins/two/src/lib.rs": "pub fn number() -> u64 { 2 }\n",
    "macros/Cargo.toml": MANIFEST.format(name="macros") + "[lib]\nproc-macro = true\n",
    "macros/src/lib.rs": (
        "use proc_macro::TokenStream;\n"
        '#[proc_macro]\npub fn seven(_: TokenStream) -> TokenStream { "7u64".parse().unwrap() }\n'
    ),
    "helper/Cargo.toml": MANIFEST.format(name="helper") + '[dependencies]\nbottom = { path = "../bottom" }\n',
    "helper/src/lib.rs": "pub fn help() -> u64 { bottom::plain() }\n",
    "app/Cargo.toml": (
        MANIFEST.format(name="app")
        + 'default-run = "app"\n[features]\nloud = []\n'
        + '[[bin]]\nname = "serve-it"\npath = "src/serve.rs"\n[[bin]]\nname = "app"\npath = "src/main.rs"\n'
        + '[dependencies]\nleft = { path = "../left" }\nright = { path = "../right" }\n'
        + 'macros = { path = "../macros" }\ntwin = { path = "../../twins/two" }\n'
        + '[dev-dependencies]\nhelper = { path = "../helper" }\n'
    ),
    "app/build.rs": (
        "fn main() {\n"
        '    let file = std::path::Path::new(&std::env::var_os("OUT_DIR").unwrap()).join("made.rs");\n'
        '    std::fs::write(file, "pub const MADE: u64 = 5;").unwrap();\n}\n'
    ),
    "app/src/lib.rs": (
        'include!(concat!(env!("OUT_DIR"), "/made.rs"));\n'
        "pub fn all() -> u64 { left::left(1u32) + right::right() + twin::number() + macros::seven!() + MADE }\n"
        '#[cfg(feature = "loud")]\npub fn loud() -> u64 { 1000 }\n'
    ),
    "app/src/main.rs": 'fn main() { println!("{}", app::all()); }\n',
    "app/src/serve.rs": 'fn main() { println!("serving {}", app::loud()); }\n'.replace("loud()", "all()"),
    "app/examples/demo.rs": 'fn main() { println!("{} {}", app::all(), helper::help()); }\n',
}


LIBRARIES = ("bottom", "twin 0.1.0", "twin 0.2.0", "left", "right", "app (lib)")
CHANGED_BOTTOM = {"bottom/src/lib.rs": FILES["bottom/src/lib.rs"] + "pub fn fresh() -> u64 { 10 }\n"}


class Recorder:
    """A compiler that notes which crates run while another is begun."""

    def __init__(self) -> None:
        self.inner = Compiler()
        self.beside: dict[str, frozenset[str]] = {}
        self._running: set[str] = set()

    async def compile(self, crate: ThinCrate, on_metadata: Callable[[bytes], None] | None = None) -> Compiled:
        """Compile it."""
        self.beside[crate.name] = frozenset(self._running)
        self._running.add(crate.name)
        try:
            return await self.inner.compile(crate, on_metadata)
        finally:
            self._running.discard(crate.name)


class Programs:
    """Some programs of the workspace, as the daemon compiles them."""

    def __init__(self, project: Project, thin_dir: Path, builds: Sequence[FatBuild], jobs: int = 8) -> None:
        self.project = project
        self.recorder = Recorder()
        captures = [capture for build in builds for capture in build.captures]
        self.crates = plan_thin_crates(captures, thin_dir=str(thin_dir), tips=[build.tip for build in builds])
        self.builder = ThinBuilder(self.crates, self.recorder, jobs)

    async def build(self, *names: str) -> ThinResult:
        """Compile crates."""
        self.recorder.beside.clear()
        return await self.builder.build(names)

    async def cancel_build(self, begun: int, *names: str) -> None:
        """Compile crates, and cancel that once so many have begun."""
        self.recorder.beside.clear()
        task = asyncio.create_task(self.build(*names))
        await until(lambda: task.done() or len(self.recorder.beside) >= begun)
        task.cancel()
        await asyncio.wait({task})

    async def rebuild(self, files: Mapping[str, str], *names: str) -> ThinResult:
        """Edit files and compile crates, which must succeed."""
        self.project.write(files)
        result = await self.build(*names)
        assert not result.failed, result.diagnostics
        return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, FatBuild]]:
    """The workspace, each of its programs built once."""
    project = Project(tmp_path_factory.mktemp("graph") / "workspace")
    project.write(FILES)
    selections = {
        "app": CargoSelection(package="app", bin=("app",)),
        "serve-it": CargoSelection(package="app", bin=("serve-it",)),
        "demo": CargoSelection(package="app", example=("demo",)),
        "loud": CargoSelection(package="app", bin=("app",), features=("app/loud",)),
    }
    return project, {name: asyncio.run(project.build(selection)) for name, selection in selections.items()}


@pytest.fixture
def programs(built: tuple[Project, dict[str, FatBuild]], tmp_path: Path) -> Callable[..., Programs]:
    """Makes `Programs` of the unedited sources, by name."""
    project, builds = built
    project.write(FILES)
    return lambda *names, jobs=8: Programs(project, tmp_path / "thin", [builds[name] for name in names], jobs)


def changed_crates(after: ThinResult, before: ThinResult) -> set[str]:
    """Crates with objects that differ between two builds of one program."""
    assert after.program is not None
    assert before.program is not None
    return {unit.name.partition("/")[0] for unit in after.program.changed_since(before.program)}


async def test_a_program_and_its_crates(programs: Callable[..., Programs]) -> None:
    """Libraries of all kinds are planned, macros and build scripts are not; same-named crates are told apart."""
    app = programs("app")
    assert {crate.name for crate in app.crates} == {*LIBRARIES, "app (bin)"}
    assert app.crates[-1].dependencies[0] == "app (lib)"
    by_name = {crate.name: crate for crate in app.crates}
    assert by_name["left"].dependencies == ("bottom",)
    assert by_name["right"].dependencies == ("bottom", "twin 0.1.0")
    assert "twin 0.2.0" in by_name["app (lib)"].dependencies
    result = await app.build()
    assert result.failed == frozenset(), result.diagnostics
    assert result.program is not None
    assert {name.partition("/")[0] for name in result.program.files} >= {*LIBRARIES, "app (bin)"} - {"left"}


async def test_a_change_at_the_bottom_reaches_every_dependent(programs: Callable[..., Programs]) -> None:
    """Both sides of the diamond, one of them by another name, then the top; not what lies beside the way."""
    app = programs("app")
    await app.build()
    changed = await app.rebuild(CHANGED_BOTTOM, "bottom")
    assert set(changed.crates) == {"bottom", "left", "right", "app (lib)", "app (bin)"}
    assert changed.crates[0] == "bottom"
    assert changed.crates[-2:] == ("app (lib)", "app (bin)")


async def test_both_sides_of_a_diamond_are_compiled_at_once(programs: Callable[..., Programs]) -> None:
    """Neither waits for the other."""
    app = programs("app")
    await app.build()
    await app.rebuild(CHANGED_BOTTOM, "bottom")
    first, second = (name for name in app.recorder.beside if name in ("left", "right"))
    assert first in app.recorder.beside[second]


async def test_with_one_job_nothing_is_compiled_beside_anything(programs: Callable[..., Programs]) -> None:
    """The limit is the caller's."""
    app = programs("app", jobs=1)
    await app.build()
    assert set(app.recorder.beside.values()) == {frozenset()}


async def test_dependents_begin_before_the_objects_of_a_library_are_made(programs: Callable[..., Programs]) -> None:
    """rustc writes the metadata first, and says so."""
    app = programs("app")
    await app.build()
    await app.rebuild(CHANGED_BOTTOM, "bottom")
    assert "bottom" in app.recorder.beside["left"]


async def test_metadata_is_complete_when_it_is_told(programs: Callable[..., Programs]) -> None:
    """It is the same file, with the same content, when the compile has ended."""
    crate = next(crate for crate in programs("app").crates if crate.name == "bottom")
    assert crate.metadata is not None
    at_once: list[tuple[int, bytes]] = []

    def take(_: bytes) -> None:
        path = Path(crate.metadata or "")
        at_once.append((path.stat().st_ino, path.read_bytes()))

    done = await Compiler().compile(crate, take)
    assert done.ok
    assert at_once == [(os.stat(crate.metadata).st_ino, Path(crate.metadata).read_bytes())]


async def test_a_generic_function_is_compiled_anew_where_it_is_used(programs: Callable[..., Programs]) -> None:
    """Two crates above the one that was edited, which has no object code for it."""
    app = programs("app")
    before = await app.build()
    text = FILES["bottom/src/lib.rs"].replace("into() * 2", "into() * 3")
    assert "app (lib)" in changed_crates(await app.rebuild({"bottom/src/lib.rs": text}, "bottom"), before)


async def test_a_new_function_and_its_first_use_in_one_build(programs: Callable[..., Programs]) -> None:
    """The dependents are compiled against the metadata that has it."""
    app = programs("app")
    await app.build()
    main = {"app/src/main.rs": 'fn main() { println!("{}", right::more()); }\n'}
    right = {"right/src/lib.rs": FILES["right/src/lib.rs"] + "pub fn more() -> u64 { bottom::fresh() }\n"}
    result = await app.rebuild(CHANGED_BOTTOM | right | main, "bottom", "right", "app (bin)")
    assert {"bottom", "right", "app (bin)"} <= set(result.crates)


async def test_a_use_that_came_before_its_function(programs: Callable[..., Programs]) -> None:
    """The dependent that failed is compiled again when the function is there, though nobody names it."""
    app = programs("app")
    await app.build()
    app.project.write({"right/src/lib.rs": "pub fn right() -> u64 { bottom::fresh() }\n"})
    failed = await app.build("right")
    assert (failed.failed, failed.program) == (frozenset({"right"}), None)
    assert "right" in (await app.rebuild(CHANGED_BOTTOM, "bottom")).crates


async def test_versions_of_a_crate_are_compiled_apart(programs: Callable[..., Programs]) -> None:
    """Each for those that depend on it."""
    app = programs("app")
    await app.build()
    two = "../twins/two/src/lib.rs"
    result = await app.rebuild({two: FILES[two] + "pub fn extra() {}\n"}, "twin 0.2.0")
    assert set(result.crates) == {"twin 0.2.0", "app (lib)", "app (bin)"}
    one = "../twins/one/src/lib.rs"
    result = await app.rebuild({one: FILES[one] + "pub fn extra() {}\n"}, "twin 0.1.0")
    assert set(result.crates) == {"twin 0.1.0", "right", "app (lib)", "app (bin)"}


async def test_features_are_those_of_the_program(programs: Callable[..., Programs]) -> None:
    """Code behind one is compiled if the program was built with it."""
    loud, app = programs("loud"), programs("app")
    await loud.build()
    text = FILES["app/src/lib.rs"].replace("1000", "missing()")
    app.project.write({"app/src/lib.rs": text})
    assert (await app.build()).program is not None
    failed = await loud.build("app (lib)")
    assert failed.failed == {"app (lib)"}
    assert "missing" in "".join(failed.diagnostics)


async def test_a_program_whose_name_is_not_the_packages(programs: Callable[..., Programs]) -> None:
    """It is known by its crate name."""
    serve = programs("serve-it")
    assert [crate.name for crate in serve.crates if crate.is_tip] == ["serve_it"]
    before = await serve.build()
    text = FILES["app/src/serve.rs"].replace("serving", "still serving")
    result = await serve.rebuild({"app/src/serve.rs": text}, "serve_it")
    assert result.crates == ("serve_it",)
    assert changed_crates(result, before) == {"serve_it"}


async def test_an_example_has_the_development_dependencies(programs: Callable[..., Programs]) -> None:
    """An edit of one reaches it."""
    demo = programs("demo")
    await demo.build()
    text = FILES["helper/src/lib.rs"] + "pub fn extra() {}\n"
    result = await demo.rebuild({"helper/src/lib.rs": text}, "helper")
    assert set(result.crates) == {"helper", "demo"}


async def test_programs_share_their_libraries(programs: Callable[..., Programs]) -> None:
    """Each library is compiled once for all of them, and each program has its own objects and no others."""
    both = programs("app", "demo")
    result = await both.build()
    assert sorted(result.crates) == sorted({*LIBRARIES, "app (bin)", "helper", "demo"})
    crates = {tip: {name.partition("/")[0] for name in objects.files} for tip, objects in result.objects.items()}
    assert crates["demo"] - crates["app (bin)"] == {"demo", "helper"}
    assert crates["app (bin)"] - crates["demo"] == {"app (bin)"}


async def test_a_program_is_rebuilt_where_another_does_not_compile(programs: Callable[..., Programs]) -> None:
    """What the other lacks is told, and made up for later."""
    both = programs("app", "demo")
    await both.build()
    both.project.write(CHANGED_BOTTOM | {"helper/src/lib.rs": "pub fn help() -> u64 { missing }\n"})
    broken = await both.build("bottom", "helper")
    assert broken.failed == {"helper", "demo"}
    assert set(broken.objects) == {"app (bin)"}
    assert "missing" in "".join(broken.diagnostics)
    repaired = await both.rebuild({"helper/src/lib.rs": FILES["helper/src/lib.rs"]}, "helper")
    assert set(repaired.objects) == {"app (bin)", "demo"}


async def test_what_runs_when_a_crate_fails_is_let_finish(programs: Callable[..., Programs]) -> None:
    """It is not compiled a second time; its dependents were never begun."""
    app = programs("app")
    await app.build()
    app.project.write({"left/src/lib.rs": "nonsense", "right/src/lib.rs": FILES["right/src/lib.rs"] + "fn x() {}\n"})
    failed = await app.build("left", "right")
    assert set(failed.crates) == {"left", "right"}
    assert failed.failed >= {"left"}
    assert "right" not in failed.failed
    repaired = await app.rebuild({"left/src/lib.rs": FILES["left/src/lib.rs"]}, "left")
    assert "right" not in repaired.crates
    assert "app (lib)" in repaired.crates


async def test_a_crate_that_fails_after_its_metadata_was_told(programs: Callable[..., Programs]) -> None:
    """Some errors come with the machine code only: what was compiled against that metadata is not handed over."""
    app = programs("app")
    await app.build()
    late = 'pub fn late() { unsafe { core::arch::asm!("no such instruction") } }\n'
    app.project.write({"bottom/src/lib.rs": FILES["bottom/src/lib.rs"] + late})
    failed = await app.build("bottom")
    assert "left" in failed.crates
    assert "bottom" in failed.failed
    assert failed.program is None
    repaired = await app.rebuild({"bottom/src/lib.rs": FILES["bottom/src/lib.rs"]}, "bottom")
    assert "left" in repaired.crates


async def test_a_cancelled_build_is_made_up_for(programs: Callable[..., Programs], tmp_path: Path) -> None:
    """All compilers are killed, and the next build compiles what they did not, whatever it is asked for."""
    app = programs("app")
    pids, hangs, rustc = tmp_path / "pids", tmp_path / "hangs", app.crates[0].capture.rustc
    slow = tmp_path / "rustc"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *crate-name\\ bottom*) exec "{rustc}" "$@";; esac\n'
        f'[ -e "{hangs}" ] || exec "{rustc}" "$@"\necho $$ >> "{pids}"\nexec sleep 600\n'
    )
    slow.chmod(0o755)
    crates = [replace(crate, capture=replace(crate.capture, rustc=str(slow))) for crate in app.crates]
    app.builder = ThinBuilder(crates, app.recorder, 8)
    before = await app.build()
    hangs.touch()
    text = FILES["bottom/src/lib.rs"].replace("into() * 2", "into() * 3")
    app.project.write({"bottom/src/lib.rs": text})
    task = asyncio.create_task(app.build("bottom"))
    await until(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    hangs.unlink()
    after = await app.build()
    assert set(after.crates) >= {"left", "right", "app (lib)", "app (bin)"}
    assert "app (lib)" in changed_crates(after, before)


SOURCE_OF = {
    "bottom": "bottom/src/lib.rs",
    "left": "left/src/lib.rs",
    "right": "right/src/lib.rs",
    "twin 0.1.0": "../twins/one/src/lib.rs",
    "app (lib)": "app/src/lib.rs",
    "app (bin)": "app/src/main.rs",
    "helper": "helper/src/lib.rs",
    "demo": "app/examples/demo.rs",
}
EDITS: Sequence[Callable[[str], str]] = (
    lambda text: text,
    lambda text: text + "pub fn extra() -> u64 { 3 }\n",
    lambda text: text + "// Said behind everything.\n",
    lambda text: "// Said before everything.\n" + text,
    lambda text: text.replace("into() * 2", "into() * 5"),
    lambda text: text + "fn broken() { missing }\n",
)


def fingerprints(result: ThinResult) -> dict[str, dict[str, Fingerprint | None]]:
    """Of all functions and statics of each program."""
    return {
        tip: {symbol: objects.fingerprint(symbol) for name in objects.files for symbol in objects.unit(name).exports}
        for tip, objects in result.objects.items()
    }


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happened_objects_are_those_of_the_newest_sources(
    programs: Callable[..., Programs], built: tuple[Project, dict[str, FatBuild]], tmp_path: Path, seed: int
) -> None:
    """Edits of several crates of two programs, some that do not compile, and builds that are cancelled at any point."""
    random = Random(seed)
    both = programs("app", "demo", jobs=random.choice([1, 2, 4]))
    await both.build()
    for _ in range(12):
        edited = random.sample(sorted(SOURCE_OF), random.randint(1, 3))
        both.project.write({SOURCE_OF[name]: random.choice(EDITS)(FILES[SOURCE_OF[name]]) for name in edited})
        if random.random() < 0.5:
            await both.build(*edited)
        else:
            await both.cancel_build(random.randint(1, 6), *edited)
    newest = await both.build()
    project, builds = built
    afresh = await Programs(project, tmp_path / "afresh", [builds["app"], builds["demo"]]).build()
    assert (newest.failed == frozenset()) == (afresh.failed == frozenset())
    assert fingerprints(newest) == fingerprints(afresh)
    repaired = await both.rebuild({file: FILES[file] for file in SOURCE_OF.values()}, *SOURCE_OF)
    assert set(repaired.objects) == {"app (bin)", "demo"}
