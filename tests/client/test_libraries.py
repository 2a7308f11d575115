"""A library that a program loads, sooner or later, is patched like a program."""

import hashlib
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.client.conftest import Program, Stage, wait_until
from tests.client.fake_daemon import FakeDaemon
from tests.client.test_opening import REACH, read_build_id

_PROGRAMS = Path(__file__).parent / "programs"
_NINE = "int replaced(int n) { return 9; }"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A library, linked with another one."""
    return build_part(tmp_path / "part")


def build_part(place: Path, *flags: str) -> Path:
    """Both libraries, in a directory of their own."""
    place.mkdir()
    helper, part = place / "libhelper.so", place / "libpart.so"
    shared = ("gcc", "-g", "-O1", "-fPIC", "-shared")
    subprocess.run([*shared, "helper.c", "-o", helper], cwd=_PROGRAMS, check=True)
    subprocess.run([*shared, *flags, "part.c", "-o", part, helper, "-Wl,-rpath,$ORIGIN"], cwd=_PROGRAMS, check=True)
    return part


def described(part: Path, build_id: str = "") -> dict[str, str]:
    """How the daemon tells of a library."""
    return {"build_id": build_id or read_build_id(part), "path": str(part)}


def mapped(program: Program, path: Path) -> range:
    """Where a file is in the program's memory; empty if it is not there."""
    lines = Path(f"/proc/{program.pid}/maps").read_text().splitlines()
    places = [int(addr, 16) for line in lines if line.endswith(str(path)) for addr in line.split()[0].split("-")]
    return range(min(places), max(places)) if places else range(0)


def is_free(program: Program, addr: int) -> bool:
    """Whether nothing in the program's memory begins there."""
    return f"{addr:x}-" not in Path(f"/proc/{program.pid}/maps").read_text()


async def test_hello_comes_with_the_library(stage: Stage, part: Path) -> None:
    """A program without the library is left alone; with it, hello is of the library."""
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        await wait_until(lambda: bool(program.tasks("hotpatchd")))
        assert await program.ask(f"open {part.parent / 'libhelper.so'}") == "0"
        assert daemon.arrivals.empty()
        assert await program.ask(f"open {part}") == "1"
        hello = (await daemon.welcome()).hello
        there, region = mapped(program, part), hello["region"]
        assert (hello["build_id"], hello["slide"]) == (read_build_id(part), there.start)
        assert (hello["exe"], hello["pid"]) == (str(program.path), program.pid)
        assert hello["library"] == {"path": str(part), "tls_module": 0}
        assert max(there.stop, region["addr"] + region["size"]) - min(there.start, region["addr"]) < REACH


async def test_import_is_found_in_what_the_library_was_linked_with(stage: Stage, part: Path) -> None:
    """A library's own dependencies count, which the program does not see; its statics are where they were."""
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        await program.ask(f"open {part}")
        peer = await daemon.welcome()
        assert await program.ask("call 0") == "11"
        source = """
            extern int calls;
            int (*import_help_more)(int);
            int replaced(int n) { return import_help_more(n) + ++calls; }
        """
        image = stage.image(source, peer.hello, program, library=part, counted="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("call 0") == "102"
        await peer.undo(None)
        assert await program.ask("call 0") == "13"


async def test_unloading_ends_the_connection(stage: Stage, part: Path) -> None:
    """The client leaves with the library, gives the region back, and says hello anew when it is loaded again."""
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        instances = []
        for number in ("0", "1", "2"):
            assert await program.ask(f"open {part}") == number
            peer = await daemon.welcome()
            image = stage.image(_NINE, peer.hello, program, library=part, answer="replaced")
            assert (await peer.apply(image.message, image.content))["type"] == "applied"
            assert await program.ask(f"call {number}") == "9"
            region = peer.hello["region"]["addr"]
            assert await program.ask(f"close {number}") == "1"
            await peer.close_code()
            await wait_until(partial(is_free, program, region))
            instances.append(peer.hello["instance"])
        assert len(set(instances)) == 3


async def test_library_that_is_back_at_once_is_another(stage: Stage, part: Path) -> None:
    """A library that was unloaded and loaded again at the same place has its own code: the client says hello anew."""
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        await program.ask(f"open {part}")
        peer = await daemon.welcome()
        image = stage.image(_NINE, peer.hello, program, library=part, answer="replaced")
        await peer.apply(image.message, image.content)
        await program.ask("close 0")
        await program.ask(f"open {part}")
        assert (await daemon.welcome()).hello["patches"] == []
        assert await program.ask("call 1") == "11"


async def test_patch_for_an_unloaded_library_writes_nothing(stage: Stage, part: Path) -> None:
    """A patch that comes when the library is just gone is refused, or the client has left already."""
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        await program.ask(f"open {part}")
        peer = await daemon.welcome()
        image = stage.image(_NINE, peer.hello, program, library=part, answer="replaced")
        await program.ask("close 0")
        try:
            answer = await peer.apply(image.message, image.content)
        except ConnectionClosed:
            answer = {"type": "refused"}
        assert answer["type"] == "refused"
        await peer.close_code()
        await program.ask(f"open {part}")
        await daemon.welcome()
        assert await program.ask("call 1") == "11"


async def test_first_of_two_copies_is_patched(stage: Stage, part: Path) -> None:
    """A library is known by its build id: of two files with the same one, the first counts, as long as it is loaded."""
    copy = Path(shutil.copy(part, part.with_name("libcopy.so")))
    async with FakeDaemon.listening(stage.state, described(part)) as daemon, stage.running("loader") as program:
        await program.ask(f"open {copy}")
        first = await daemon.welcome()
        assert first.hello["library"]["path"] == str(copy)
        await program.ask(f"open {part}")
        image = stage.image(_NINE, first.hello, program, library=part, answer="replaced")
        assert (await first.apply(image.message, image.content))["type"] == "applied"
        assert [await program.ask(f"call {number}") for number in (0, 1)] == ["9", "11"]
        await program.ask("close 0")
        second = await daemon.welcome()
        assert second.hello["library"]["path"] == str(part)
        image = stage.image(_NINE, second.hello, program, library=part, answer="replaced")
        assert (await second.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("call 1") == "9"


async def test_library_without_a_build_id_is_known_by_its_hash(stage: Stage, tmp_path: Path) -> None:
    """Without a note, the hash of the file that was loaded stands for it."""
    part = build_part(tmp_path / "nameless", "-Wl,--build-id=none")
    build_id = "sha256-" + hashlib.sha256(part.read_bytes()).hexdigest()
    async with (
        FakeDaemon.listening(stage.state, described(part, build_id)) as daemon,
        stage.running("loader") as program,
    ):
        await program.ask(f"open {part}")
        assert (await daemon.welcome()).hello["build_id"] == build_id


async def test_other_build_at_its_place_is_told_once(stage: Stage, part: Path) -> None:
    """The daemon hears of a build that it does not know; when it turns that away, the client waits for another one."""
    async with (
        FakeDaemon.listening(stage.state, described(part, "00" * 20)) as daemon,
        stage.running("loader") as program,
    ):
        await program.ask(f"open {part}")
        peer = await daemon.arrival()
        await peer.challenge()
        assert peer.hello["build_id"] == read_build_id(part)
        await peer.send(type="reject", reason="build_id", detail="", retry=False)
        await peer.close_code()
        daemon.publish(described(part))
        await daemon.welcome()
        assert len(daemon.handshakes) == 2


async def test_client_turns_to_the_program_and_back(stage: Stage, part: Path) -> None:
    """What is patched is up to the daemon that runs; patches of the one before stay as they are."""
    async with stage.running("loader") as program:
        await program.ask(f"open {part}")
        async with FakeDaemon.listening(stage.state, described(part)) as daemon:
            peer = await daemon.welcome()
            image = stage.image(_NINE, peer.hello, program, library=part, answer="replaced")
            await peer.apply(image.message, image.content)
            instance = peer.hello["instance"]
        async with FakeDaemon.listening(stage.state) as daemon:
            hello = (await daemon.welcome()).hello
            assert "library" not in hello
            assert hello["build_id"] == read_build_id(program.path)
        async with FakeDaemon.listening(stage.state, described(part)) as daemon:
            hello = (await daemon.welcome()).hello
            assert (hello["instance"], hello["patches"]) == (instance, [image.id])
        assert await program.ask("call 0") == "9"
