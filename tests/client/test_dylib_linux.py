"""A program that has the client as a dependency takes patch libraries."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.client.conftest import TARGET
from tests.client.fake_daemon import FakeDaemon
from tests.client.images import Symbol, build_image, read_symbols
from tests.client.libraries import Library, LibraryStage, adding, write_package

THREAD = "hotpatchd"


@pytest.fixture(scope="session")
def dependent(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, in a cache that outlives the run."""
    assert pytestconfig.cache
    package, target = tmp_path_factory.mktemp("dependent"), pytestconfig.cache.mkdir("dependent")
    write_package(package)
    subprocess.run(["cargo", "build", "--quiet", "--target-dir", target], cwd=package, check=True)
    return target / "debug" / "dependent"


class LinuxStage(LibraryStage):
    """Where a test plays on this machine."""

    def symbols(self, path: Path) -> dict[str, Symbol]:
        """The symbols of the program or of a library."""
        return read_symbols(path)

    def compiler(self, language: str) -> Sequence[str]:
        """The command that makes a shared library of a source file in C or Rust."""
        return {
            "c": ("gcc", "-xc", "-shared", "-fPIC", "-O1"),
            "rust": ("rustc", "--edition=2021", "--crate-type=cdylib", "--crate-name=patch"),
        }[language]


@pytest.fixture
def stage(tmp_path: Path, client_library: Path, dependent: Path) -> LinuxStage:
    """A state directory without a daemon, and the program."""
    return LinuxStage(tmp_path, client_library, {"dependent": dependent})


async def test_program_without_a_daemon_is_left_alone(stage: LinuxStage) -> None:
    """Where the environment names no daemon, `start` starts nothing."""
    async with stage.running("dependent", HOTPATCHD_STATE="") as program:
        assert await program.ask("answer") == "2"
        assert len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1


async def test_dependency_takes_images_where_it_can(stage: LinuxStage) -> None:
    """Unless asked for something else, a client on Linux that is a dependency is patched as a preloaded one is."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("dependent") as program:
        peer = await daemon.welcome()
        assert (peer.hello["kind"], peer.hello["target"]) == ("image", TARGET)
        image = build_image(
            adding(9), hello=peer.hello, host=program.path, detours={"answer": "replaced"}, work=stage.state
        )
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "10"


async def test_preloaded_client_and_dependency_are_one(stage: LinuxStage) -> None:
    """Of two clients in a process only one goes to the daemon."""
    preload = {"LD_PRELOAD": str(stage.library)}
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("dependent", **preload) as program:
        await daemon.welcome()
        assert await program.ask("answer") == "2"
        assert len(program.tasks(THREAD)) == 1


async def test_daemon_is_found_by_its_address(stage: LinuxStage) -> None:
    """Without a state directory in reach, the environment gives address and token."""
    async with FakeDaemon.listening(stage.state) as daemon:
        address = {"HOTPATCHD_STATE": "", "HOTPATCHD_URL": daemon.url, "HOTPATCHD_TOKEN": daemon.token}
        async with stage.running("dependent", **address) as program:
            assert (await daemon.welcome()).hello["pid"] == program.pid


async def test_daemon_beyond_loopback_is_not_connected_to(stage: LinuxStage) -> None:
    """An address that may lead out of the machine is left alone, although a daemon listens there."""
    async with FakeDaemon.listening(stage.state) as daemon:
        address = {"HOTPATCHD_URL": daemon.url.replace("127.0.0.1", "0.0.0.0"), "HOTPATCHD_TOKEN": daemon.token}
        async with (
            stage.running("dependent", HOTPATCHD_STATE="", **address) as beyond,
            stage.running("dependent") as within,
        ):
            assert await beyond.ask("answer") == "2"
            assert (await daemon.welcome()).hello["pid"] == within.pid
            assert len(beyond.tasks(THREAD)) == 1
        assert daemon.arrivals.empty()


async def test_hello_of_a_dylib_client_offers_no_region(stage: LinuxStage) -> None:
    """The daemon is told that libraries are wanted, and that there is nowhere to put an image."""
    async with stage.loading() as (_, peer, _):
        hello = peer.hello
        assert (hello["kind"], hello["in_place"], hello["patches"]) == ("dylib", True, [])
        assert (hello["region"]["size"], hello["thread_locals"]["size"]) == (0, 0)


async def test_function_is_replaced_and_state_kept(stage: LinuxStage) -> None:
    """Calls run the library's function, which finds the program's statics as they were."""
    async with stage.loading() as (program, peer, _):
        assert [await program.ask("answer") for _ in range(3)] == ["2"] * 3
        count = stage.symbols(program.path)["COUNT"].addr + peer.hello["slide"]
        source = f"int replaced(int n) {{ return n + 100 * ++*(int *){count:#x}; }}"
        library = stage.link(source, peer.hello, program, answer="replaced")
        applied = await peer.apply(library.message, library.content)
        assert (applied["type"], applied["next"], applied["threads"]) == ("applied", 0, 1)
        assert await program.ask("answer") == "401"
        assert await program.ask("count") == "4"


async def test_rust_library_is_loaded(stage: LinuxStage) -> None:
    """A library that rustc links, with its own copy of std, works as well."""
    source = """
        #[no_mangle] pub extern "C" fn replaced(n: i32) -> i32 {
            format!("{n}").repeat(3).parse().unwrap()
        }
    """
    async with stage.loading() as (program, peer, _):
        library = stage.link(source, peer.hello, program, language="rust", answer="replaced")
        assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert await program.ask("answer") == "111"


async def test_undo_goes_back_step_by_step(stage: LinuxStage) -> None:
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
        assert (await peer.undo(first.id))["reason"] == "unknown_patch"


async def test_patches_can_follow_an_undo(stage: LinuxStage) -> None:
    """What was taken back leaves no trace: patches that come after it are undone one by one as well."""
    async with stage.loading() as (program, peer, _):
        libraries = [stage.link(adding(amount), peer.hello, program, answer="replaced") for amount in (10, 20, 30)]
        for library in libraries:
            await peer.apply(library.message, library.content)
        await peer.undo(libraries[0].id)
        for library in libraries[1:]:
            assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert (await peer.undo(libraries[1].id))["type"] == "applied"
        assert await program.ask("answer") == "21"


async def test_library_is_loaded_once(stage: LinuxStage) -> None:
    """A patch that comes again after it was taken back uses the library that is there."""
    async with stage.loading() as (program, peer, _):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        for _ in range(2):
            assert (await peer.apply(library.message, library.content))["type"] == "applied"
            assert await program.ask("answer") == "11"
            await peer.undo(None)
        maps = Path(f"/proc/{program.pid}/maps").read_text().splitlines()
        mapped = [line for line in maps if library.message["file_name"] in line]
        assert len([line for line in mapped if "r-xp" in line]) == 1


async def test_returning_client_lists_its_patches(stage: LinuxStage) -> None:
    """After a lost connection the daemon is told what is in force, and can go on from there."""
    async with stage.loading() as (program, peer, daemon):
        first = stage.link(adding(10), peer.hello, program, answer="replaced")
        await peer.apply(first.message, first.content)
        await peer.socket.close()
        again = await daemon.welcome()
        assert again.hello["patches"] == [first.id]
        assert again.hello["instance"] == peer.hello["instance"]
        second = stage.link(adding(20), again.hello, program, answer="replaced")
        await again.apply(second.message, second.content)
        assert await program.ask("answer") == "21"


async def test_bytes_are_fetched(stage: LinuxStage) -> None:
    """A library that is announced with an address is fetched from there, with the token."""
    async with stage.loading() as (program, peer, daemon):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        path = f"/patches/{library.id}"
        daemon.files[path] = library.content
        await peer.send(**library.with_changes(url=path).message)
        assert (await peer.receive())["type"] == "applied"
        assert await program.ask("answer") == "11"


@pytest.mark.parametrize(("path", "why"), [("/patches/missing", "404"), ("/patches/a b", "path"), ("", "path")])
async def test_bytes_that_cannot_be_fetched_are_refused(stage: LinuxStage, path: str, why: str) -> None:
    """Where the daemon does not give the bytes, the patch is refused and the connection goes on."""
    async with stage.loading() as (program, peer, _):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        await peer.send(**library.with_changes(url=path).message)
        refused = await peer.receive()
        assert (refused["type"], refused["reason"]) == ("refused", "hash")
        assert why in refused["detail"]
        assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert await program.ask("answer") == "11"


CASES: dict[str, tuple[str, Callable[[Library], Library]]] = {
    "other bytes": ("hash", lambda x: Library(x.message, x.content[:-1] + bytes([x.content[-1] ^ 1]))),
    "bytes missing": ("hash", lambda x: Library(x.message, x.content[:-1])),
    "cut off": ("load", lambda x: x.with_content(x.content[: len(x.content) // 3])),
    "not a library": ("load", lambda x: x.with_content(b"not a library")),
    "other build": ("build_id", lambda x: x.with_changes(build_id="00" * 20)),
    "jump from nowhere": ("address", lambda x: x.with_jump(**{"from": 4096})),
    "jump from the end": ("address", lambda x: x.with_jump(**{"from": 2**64 - 1})),
    "jump to data": ("address", lambda x: x.with_jump(to=0)),
    "jump to nowhere": ("address", lambda x: x.with_jump(to=1 << 40)),
    "jump that wraps": ("address", lambda x: x.with_jump(to=2**64 - 1)),
    "jumps from one place": ("malformed", lambda x: x.with_changes(jumps=x.message["jumps"] * 2)),
    "anchor missing": ("import", lambda x: x.with_changes(anchor={"symbol": "nowhere", "addr": 0})),
    "anchor with a zero": ("import", lambda x: x.with_changes(anchor={"symbol": "a\0b", "addr": 0})),
    "anchor elsewhere": ("address", lambda x: x.with_changes(anchor={**x.message["anchor"], "addr": 1 << 40})),
    "path for a name": ("malformed", lambda x: x.with_changes(file_name="up/libpatch.so")),
    "no name": ("malformed", lambda x: x.with_changes(file_name="")),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_library_is_refused(stage: LinuxStage, case: str) -> None:
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


async def test_library_that_lacks_a_symbol_is_refused(stage: LinuxStage) -> None:
    """What the library needs and nobody has is named by the loader."""
    source = "int nobody_has_this(int); int replaced(int n) { return nobody_has_this(n); }"
    async with stage.loading() as (program, peer, _):
        library = stage.link(source, peer.hello, program, answer="replaced")
        refused = await peer.apply(library.message, library.content)
        assert (refused["type"], refused["reason"]) == ("refused", "load")
        assert "nobody_has_this" in refused["detail"]
        assert await program.ask("answer") == "2"


async def test_image_for_a_dylib_client_is_refused(stage: LinuxStage) -> None:
    """A client that takes libraries says so when an image comes."""
    async with stage.loading() as (program, peer, _):
        region = {"next": peer.hello["slide"] - (1 << 24)}
        image = build_image(
            adding(9),
            hello={**peer.hello, "region": region},
            host=program.path,
            detours={"answer": "replaced"},
            work=stage.state,
        )
        assert (await peer.apply(image.message, image.content))["reason"] == "malformed"
        assert await program.ask("answer") == "2"


async def test_busy_threads_never_see_half_a_patch(stage: LinuxStage) -> None:
    """Twenty libraries in a row under four threads that call the function: each call gives an old or a new answer."""
    async with stage.loading("4") as (program, peer, _):
        for number in range(20):
            library = stage.link(adding(1001 + 1000 * number), peer.hello, program, busy="replaced")
            applied = await peer.apply(library.message, library.content)
            assert (applied["type"], applied["threads"]) == ("applied", 5)
        assert await program.ask("wrong") == "false"


async def test_function_on_the_stack_is_reported(stage: LinuxStage) -> None:
    """The answer names the thread that goes on in the old body, be it the program's or a library's."""
    waits = "int pause(void); int replaced(int n) { for (;;) pause(); return n; }"
    async with stage.loading("1") as (program, peer, _):
        library = stage.link("void replaced(void) {}", peer.hello, program, serve="replaced")
        applied = await peer.apply(library.message, library.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["main"]]
        first, second = (stage.link(source, peer.hello, program, busy="replaced") for source in (waits, adding(1)))
        await peer.apply(first.message, first.content)
        await stage.wait_for_syscall(program, "worker", "pause")
        applied = await peer.apply(second.message, second.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["worker"]]
        assert (await peer.undo(first.id))["on_stack"] == []


async def test_hot_calls_alone_are_led_to_the_library(stage: LinuxStage) -> None:
    """A client that must not write code leads calls through `call` to the library, and undo leads them back."""
    source = """
        #[no_mangle] pub fn replaced(_: &mut ()) -> i32 { 77 }
    """
    async with stage.loading(kind="calls") as (program, peer, _):
        assert (peer.hello["kind"], peer.hello["in_place"]) == ("dylib", False)
        assert await program.ask("hot") == "8"
        [entry] = [name for name in stage.symbols(program.path) if "hotpatch_client" in name and "5enter" in name]
        library = stage.link(source, peer.hello, program, language="rust", doubled="replaced", **{entry: "replaced"})
        assert (await peer.apply(library.message, library.content))["type"] == "applied"
        assert (await program.ask("hot"), await program.ask("doubled")) == ("77", "8")
        await peer.undo(None)
        assert await program.ask("hot") == "8"


async def test_hot_call_of_a_program_patched_in_place_runs_new_code(stage: LinuxStage) -> None:
    """Where code can be written, a hot call needs no table to reach the new body."""
    async with stage.loading() as (program, peer, _):
        library = stage.link(adding(10), peer.hello, program, doubled="replaced")
        await peer.apply(library.message, library.content)
        assert await program.ask("hot") == "14"


async def test_names_of_patched_functions_are_to_be_found(stage: LinuxStage) -> None:
    """The file of a loaded library can be opened by the path under which the loader lists it."""
    async with stage.loading() as (program, peer, _):
        library = stage.link(adding(10), peer.hello, program, answer="replaced")
        await peer.apply(library.message, library.content)
        [client] = program.tasks(THREAD)
        paths = [link for link in (client / "fd").iterdir() if library.message["file_name"] in os.readlink(link)]
        assert [path.read_bytes() for path in paths] == [library.content]
