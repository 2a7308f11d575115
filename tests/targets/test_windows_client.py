"""A Windows program that has the client as a dependency takes patch libraries; it runs under Wine."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from hotpatchd.objfile.symbols import read_symbols
from tests.client.fake_daemon import FakeDaemon
from tests.client.images import Symbol
from tests.client.libraries import Library, LibraryStage, adding, write_package
from tests.targets.toolchains import Name, Toolchain

TARGET: Name = "x86_64-pc-windows-gnu"
MINGW = "x86_64-w64-mingw32"


@pytest.fixture(scope="module")
def windows(toolchain: Callable[[Name], Toolchain]) -> Iterator[Toolchain]:
    """The toolchain, with Wine's server and services running: those that a program starts hold on to its output.

    They run in a copy of the prefix, since they are to end with these tests and not with others.
    """
    installed = toolchain(TARGET)
    null = subprocess.DEVNULL
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory) / "wine"
        shutil.copytree(installed.variables["WINEPREFIX"], prefix, symlinks=True)
        own = replace(installed, variables={**installed.variables, "WINEPREFIX": str(prefix)})
        with subprocess.Popen(
            ("wineserver", "-f", "-p"), env=own.environ, stdin=null, stdout=null, stderr=null
        ) as server:
            argv = ("wine", "cmd", "/c", "exit")
            subprocess.run(argv, env=own.environ, stdin=null, stdout=null, stderr=null, check=True)
            yield own
            server.terminate()


@pytest.fixture(scope="module")
def dependent(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, windows: Toolchain) -> Path:
    """The program, in a cache that outlives the run."""
    assert pytestconfig.cache
    package = tmp_path_factory.mktemp("dependent")
    write_package(package)
    return windows.build(package, target_dir=pytestconfig.cache.mkdir("dependent")) / "dependent.exe"


@cache
def _symbols(path: Path) -> dict[str, Symbol]:
    """All symbols of a PE file; the size of a function is the way to the next symbol."""
    shown = subprocess.run([f"{MINGW}-nm", "-n", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in shown.splitlines() if not line.startswith(" ")]
    named = [(int(addr, 16), name) for addr, kind, name in rows if kind not in "aA"]
    addrs = sorted({addr for addr, _ in named})
    following = dict(pairwise(addrs))
    return {name: Symbol(addr, following.get(addr, addr) - addr) for addr, name in named}


class WindowsStage(LibraryStage):
    """Where a test plays under Wine."""

    suffix = ".dll"

    def __init__(self, directory: Path, program: Path, toolchain: Toolchain) -> None:
        super().__init__(directory, Path(), {"dependent": program})
        self.runner = toolchain.runner
        self.users = Path(toolchain.environ["WINEPREFIX"]) / "drive_c" / "users"
        self._environ = toolchain.environ
        rust = (str(toolchain.rustc), "--edition=2021", f"--target={TARGET}", f"-Clinker={toolchain.linker}")
        self._compilers: dict[str, tuple[str, ...]] = {
            "c": (f"{MINGW}-gcc", "-xc", "-shared", "-O1"),
            "rust": (*rust, *toolchain.rustflags, "--crate-type=cdylib", "--crate-name=patch"),
        }

    def environment(self, path: Path) -> dict[str, str]:
        """The environment of a program that is to be patched."""
        return self._environ | super().environment(path)

    def symbols(self, path: Path) -> dict[str, Symbol]:
        """The symbols of the program or of a library."""
        return _symbols(path)

    def compiler(self, language: str) -> Sequence[str]:
        """The command that makes a shared library of a source file in C or Rust."""
        return self._compilers[language]


@pytest.fixture
def stage(tmp_path: Path, windows: Toolchain, dependent: Path) -> WindowsStage:
    """A state directory without a daemon, and the program."""
    return WindowsStage(tmp_path, dependent, windows)


async def test_hello_says_who_the_program_is(stage: WindowsStage) -> None:
    """The daemon is told what it needs to make libraries for the program."""
    async with stage.loading() as (program, peer, _):
        hello = peer.hello
        assert (hello["kind"], hello["in_place"], hello["target"]) == ("dylib", True, TARGET)
        assert hello["build_id"] == read_symbols(program.path).build_id
        assert hello["build_id"] == "sha256-" + hashlib.sha256(program.path.read_bytes()).hexdigest()
        assert hello["exe"].endswith(program.path.name)
        assert (hello["page_size"], hello["region"]["size"], hello["patches"]) == (4096, 0, [])


async def test_program_that_names_its_debug_information_is_known_by_it(
    stage: WindowsStage, windows: Toolchain, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The build id is what the linker wrote for debuggers, where it did so, and the same to the daemon."""
    assert pytestconfig.cache
    package = tmp_path / "package"
    package.mkdir()
    write_package(package)
    (package / "build.rs").write_text('fn main() { println!("cargo:rustc-link-arg=-Wl,--build-id") }')
    program_path = windows.build(package, target_dir=pytestconfig.cache.mkdir("build-id")) / "dependent.exe"
    stage.programs["dependent"] = program_path
    async with stage.loading() as (program, peer, _):
        assert peer.hello["build_id"] == read_symbols(program.path).build_id
        assert not peer.hello["build_id"].startswith("sha256-")


async def test_program_without_a_daemon_is_left_alone(stage: WindowsStage) -> None:
    """Where the environment names no daemon, or another program, nothing happens."""
    async with FakeDaemon.listening(stage.state) as daemon:
        for environment in ({"HOTPATCHD_STATE": ""}, {"HOTPATCHD_HOST": str(stage.state)}):
            async with stage.running("dependent", **environment) as program:
                assert await program.ask("answer") == "2"
        assert daemon.handshakes == []


async def test_daemon_is_found_by_its_address(stage: WindowsStage) -> None:
    """Without a state directory in reach, the environment gives address and token."""
    async with FakeDaemon.listening(stage.state) as daemon:
        address = {"HOTPATCHD_STATE": "", "HOTPATCHD_URL": daemon.url, "HOTPATCHD_TOKEN": daemon.token}
        async with stage.running("dependent", **address):
            assert (await daemon.welcome()).hello["target"] == TARGET


async def test_function_is_replaced_and_state_kept(stage: WindowsStage) -> None:
    """Calls run the library's function, which finds the program's statics as they were."""
    async with stage.loading() as (program, peer, _):
        assert [await program.ask("answer") for _ in range(3)] == ["2"] * 3
        count = stage.symbols(program.path)["COUNT"].addr + peer.hello["slide"]
        source = f"int replaced(int n) {{ return n + 100 * ++*(int *){count:#x}; }}"
        library = stage.link(source, peer.hello, program, answer="replaced")
        applied = await peer.apply(library.message, library.content)
        assert (applied["type"], applied["next"]) == ("applied", 0), applied
        assert applied["threads"] >= 1
        assert await program.ask("answer") == "401"
        assert await program.ask("count") == "4"


async def test_rust_library_is_loaded(stage: WindowsStage) -> None:
    """A library that rustc links, with its own copy of std, works as well."""
    source = """
        #[no_mangle] pub extern "C" fn replaced(n: i32) -> i32 {
            format!("{n}").repeat(3).parse().unwrap()
        }
    """
    async with stage.loading() as (program, peer, _):
        library = stage.link(source, peer.hello, program, language="rust", answer="replaced")
        applied = await peer.apply(library.message, library.content)
        assert applied["type"] == "applied", applied
        assert await program.ask("answer") == "111"


async def test_undo_goes_back_step_by_step(stage: WindowsStage) -> None:
    """The second patch of a function replaces the first; undo brings back the first, then the program's own."""
    async with stage.loading() as (program, peer, _):
        first = stage.link(adding(10), peer.hello, program, answer="replaced")
        second = stage.link(adding(20), peer.hello, program, answer="replaced", doubled="replaced")
        for library, answer in ((first, "11"), (second, "21")):
            assert (await peer.apply(library.message, library.content))["type"] == "applied"
            assert await program.ask("answer") == answer
        assert await program.ask("doubled") == "24"
        assert (await peer.undo(first.id))["type"] == "applied"
        assert (await program.ask("answer"), await program.ask("doubled")) == ("11", "8")
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("answer") == "2"


async def test_returning_client_lists_its_patches(stage: WindowsStage) -> None:
    """After a lost connection the daemon is told what is in force."""
    async with stage.loading() as (program, peer, daemon):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        await peer.apply(library.message, library.content)
        await peer.socket.close()
        assert (await daemon.welcome()).hello["patches"] == [library.id]
        assert await program.ask("answer") == "11"


async def test_bytes_are_fetched(stage: WindowsStage) -> None:
    """A library that is announced with an address is fetched from there."""
    async with stage.loading() as (program, peer, daemon):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        path = f"/patches/{library.id}"
        daemon.files[path] = library.content
        await peer.send(**library.with_changes(url=path).message)
        assert (await peer.receive())["type"] == "applied"
        assert await program.ask("answer") == "11"


async def test_busy_threads_never_see_half_a_patch(stage: WindowsStage) -> None:
    """Ten libraries in a row under four threads that call the function: each call gives an old or a new answer."""
    async with stage.loading("4") as (program, peer, _):
        for number in range(10):
            library = stage.link(adding(1001 + 1000 * number), peer.hello, program, busy="replaced")
            applied = await peer.apply(library.message, library.content)
            assert applied["type"] == "applied", applied
            assert applied["threads"] >= 5
        assert await program.ask("wrong") == "false"


async def test_function_on_the_stack_is_reported(stage: WindowsStage) -> None:
    """The answer names the thread that goes on in the old body, be it the program's or a library's."""
    waits = "__declspec(dllimport) void Sleep(int); void replaced(void) { for (;;) Sleep(10); }"
    async with stage.loading("1") as (program, peer, _):
        library = stage.link("void replaced(void) {}", peer.hello, program, serve="replaced")
        applied = await peer.apply(library.message, library.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["main"]]
        first = stage.link(waits, peer.hello, program, busy="replaced")
        assert (await peer.apply(first.message, first.content))["type"] == "applied"
        second = stage.link(waits, peer.hello, program, busy="replaced")
        applied = await peer.apply(second.message, second.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["worker"]]


CASES: dict[str, tuple[str, Callable[[Library], Library]]] = {
    "other bytes": ("hash", lambda x: Library(x.message, x.content[:-1] + bytes([x.content[-1] ^ 1]))),
    "cut off": ("load", lambda x: x.with_content(x.content[: len(x.content) // 3])),
    "not a library": ("load", lambda x: x.with_content(b"not a library")),
    "other build": ("build_id", lambda x: x.with_changes(build_id="00" * 20)),
    "jump from nowhere": ("address", lambda x: x.with_jump(**{"from": 4096})),
    "jump to data": ("address", lambda x: x.with_jump(to=x.message["anchor"]["addr"] & ~0xFFFF)),
    "jump to nowhere": ("address", lambda x: x.with_jump(to=1 << 40)),
    "anchor missing": ("import", lambda x: x.with_changes(anchor={"symbol": "nowhere", "addr": 0})),
    "anchor elsewhere": ("address", lambda x: x.with_changes(anchor={**x.message["anchor"], "addr": 1 << 40})),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_library_is_refused(stage: WindowsStage, case: str) -> None:
    """A library with one thing wrong is refused for it, changes nothing, and a right one can follow."""
    reason, spoil = CASES[case]
    async with stage.loading() as (program, peer, _):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        spoilt = spoil(library)
        refused = await peer.apply(spoilt.message, spoilt.content)
        assert (refused["type"], refused["reason"]) == ("refused", reason), refused
        assert refused["detail"]
        assert await program.ask("answer") == "2"
        assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert await program.ask("answer") == "11"


async def test_hot_calls_alone_are_led_to_the_library(stage: WindowsStage) -> None:
    """A client that is asked not to write code leads calls through `call` to the library, and undo leads them back."""
    async with stage.loading(kind="calls") as (program, peer, _):
        assert peer.hello["in_place"] is False
        [entry] = [name for name in stage.symbols(program.path) if "hotpatch_client" in name and "5enter" in name]
        source = "int replaced(void *body) { return 77; }"
        library = stage.link(source, peer.hello, program, doubled="replaced", **{entry: "replaced"})
        assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert (await program.ask("hot"), await program.ask("doubled")) == ("77", "8")
        await peer.undo(None)
        assert await program.ask("hot") == "8"


async def test_libraries_of_ended_processes_are_deleted(stage: WindowsStage) -> None:
    """A process cannot delete what it has loaded: the next one does it."""
    left: list[Path] = []
    for _ in range(2):
        async with stage.loading() as (program, peer, _):
            library = stage.link(adding(10), peer.hello, program, answer="replaced")
            await peer.apply(library.message, library.content)
            [own] = stage.users.rglob(f"Temp/hotpatchd-{peer.hello['pid']}")
            assert [path.read_bytes() for path in own.iterdir()] == [library.content]
            assert not any(path.exists() for path in left if path != own)
            left.append(own)
