"""The client finds the daemon, says who it is, and believes only a daemon that knows the token."""

import hashlib
import json
import os
import re
import secrets
import subprocess
from pathlib import Path

from tests.client.conftest import TARGET, Program, Stage, wait_until
from tests.client.fake_daemon import FakeDaemon, Peer, proof
from tests.client.images import read_symbols

REACH = 1 << 31


def mapped_bytes(program: Program) -> tuple[int, int]:
    """First and last address of the program's own file in its memory."""
    lines = Path(f"/proc/{program.pid}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(program.path))]
    return int(ranges[0][0], 16), int(ranges[-1][1], 16)


def read_build_id(path: Path) -> str:
    """The build id as readelf shows it."""
    notes = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Build ID: (\w+)", notes)
    assert found is not None
    return found[1]


def assert_region_in_reach(program: Program, peer: Peer) -> None:
    """Every byte of the region is a 32-bit displacement away from every byte of the program."""
    first, end = mapped_bytes(program)
    region = peer.hello["region"]
    assert max(end, region["addr"] + region["size"]) - min(first, region["addr"]) < REACH
    assert region["next"] == region["addr"]
    assert region["addr"] % region["slot_size"] == 0


async def test_hello_says_who_the_program_is(stage: Stage) -> None:
    """Hello has everything that the daemon needs, and proves that the client has read the token."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host") as program:
        peer = await daemon.welcome()
        hello = peer.hello
        build_id = read_build_id(program.path)
        first, _ = mapped_bytes(program)
        assert {name: hello[name] for name in hello.keys() - {"nonce", "instance", "region", "thread_locals"}} == {
            "type": "hello",
            "seq": 1,
            "protocol": 1,
            "proof": proof(daemon.token, "client", peer.nonce),
            "build_id": build_id,
            "pid": program.pid,
            "exe": str(program.path),
            "target": TARGET,
            "slide": first,
            "page_size": os.sysconf("SC_PAGESIZE"),
            "kind": "image",
            "in_place": True,
            "short_jumps": True,
            "patches": [],
        }
        assert re.fullmatch("[0-9a-f]{64}", hello["nonce"])
        assert re.fullmatch("[0-9a-f]{32}", hello["instance"])
        assert (hello["region"]["size"], hello["region"]["slot_size"]) == (128 << 20, 64 << 10)
        assert_region_in_reach(program, peer)


async def test_handshake_is_a_native_one(stage: Stage) -> None:
    """The websocket opens at the daemon's path, with its address as `Host`, and without `Origin`."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host"):
        await daemon.welcome()
        url = json.loads((stage.state / "daemon.json").read_text())["url"]
        [handshake] = daemon.handshakes
        assert f"ws://{handshake['Host']}{handshake[':path']}" == url
        assert "Origin" not in handshake
        assert "Sec-WebSocket-Extensions" not in handshake


async def test_region_of_a_fixed_program_leaves_the_heap_room(stage: Stage) -> None:
    """The region of a program at a fixed address is in reach, and far above where its heap begins."""
    async with stage.patching("fixed") as (program, peer):
        assert_region_in_reach(program, peer)
        _, end = mapped_bytes(program)
        assert peer.hello["region"]["addr"] - end > 1 << 30


async def test_program_without_a_build_id_is_known_by_its_hash(stage: Stage) -> None:
    """Without a build-id note, the file's hash stands for it."""
    async with stage.patching("nameless") as (program, peer):
        assert peer.hello["build_id"] == "sha256-" + hashlib.sha256(program.path.read_bytes()).hexdigest()


async def test_daemon_with_a_wrong_proof_is_left(stage: Stage) -> None:
    """A daemon that does not know the token is closed on, and asked again later."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host") as program:
        peer = await daemon.arrival()
        await peer.challenge()
        wrong = proof(secrets.token_hex(32), "daemon", peer.hello["nonce"])
        await peer.send(type="welcome", proof=wrong, client=1)
        assert await peer.close_code() == 4401
        await daemon.welcome()
        assert await program.ask("answer") == "2"


async def test_rejected_client_comes_back_only_when_asked_to(stage: Stage) -> None:
    """After a rejection with `retry` the client returns; after one without, its thread ends."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host") as program:
        for retry in (True, False):
            peer = await daemon.arrival()
            await peer.challenge()
            await peer.send(type="reject", reason="build_id", detail="", retry=retry)
        await wait_until(lambda: not program.tasks("hotpatchd"))
        assert await program.ask("answer") == "2"


def test_program_without_a_daemon_runs_to_its_end(stage: Stage) -> None:
    """Nobody to connect to: the program prints what it prints and ends as it ends."""
    path = stage.programs["linger"]
    finished = subprocess.run([path], env=stage.environment(path), capture_output=True, timeout=20, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (7, b"done\n", b"")


async def test_daemon_that_starts_later_is_found(stage: Stage) -> None:
    """The client goes on looking, and reads again where the daemon is."""
    (stage.state / "daemon.json").write_text("half a fi")
    async with stage.running("host") as program:
        await wait_until(lambda: bool(program.tasks("hotpatchd")))
        async with FakeDaemon.listening(stage.state) as daemon:
            first = await daemon.welcome()
        async with FakeDaemon.listening(stage.state) as daemon:
            second = await daemon.welcome()
        assert second.hello["instance"] == first.hello["instance"]
        assert second.hello["nonce"] != first.hello["nonce"]


async def test_returning_client_lists_its_patches(stage: Stage) -> None:
    """After a lost connection, hello names the patches in force and the next free address."""
    async with FakeDaemon.listening(stage.state) as daemon, stage.running("host") as program:
        peer = await daemon.welcome()
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        await peer.socket.close()
        peer = await daemon.welcome()
        assert peer.hello["patches"] == [image.id]
        assert peer.hello["region"]["next"] == applied["next"]
        await peer.undo(None)
        await peer.socket.close()
        assert (await daemon.welcome()).hello["patches"] == []


async def test_program_that_was_not_meant_is_left_alone(stage: Stage) -> None:
    """A program that inherited the variables from the host gets no thread and no region."""
    async with stage.running("host", HOTPATCHD_HOST=str(stage.programs["linger"])) as program:
        assert await program.ask("answer") == "2"
        assert len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1
        assert await program.ask("modules") == ""


async def test_host_is_known_under_another_name(stage: Stage, tmp_path: Path) -> None:
    """The host is a file, not a name: a link to it counts."""
    link = tmp_path / "link"
    link.symlink_to(stage.programs["host"])
    async with (
        FakeDaemon.listening(stage.state) as daemon,
        stage.running("host", HOTPATCHD_HOST=str(link)) as program,
    ):
        assert (await daemon.welcome()).hello["pid"] == program.pid


async def test_thread_takes_no_signals(stage: Stage) -> None:
    """All signals that can be blocked are blocked in the client's thread."""
    async with stage.patching("host") as (program, _):
        [task] = program.tasks("hotpatchd")
        blocked = re.search(r"SigBlk:\s*(\w+)", (task / "status").read_text())
        assert blocked is not None
        kill_stop_and_internal = {9, 19, 32, 33}
        expected = sum(1 << (number - 1) for number in range(1, 65) if number not in kill_stop_and_internal)
        assert int(blocked[1], 16) == expected


def test_library_exports_only_what_it_must(client_library: Path) -> None:
    """It has no symbols but those by which it is asked for patches or for being there, and hears of panics."""
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=just-symbols", client_library],
        capture_output=True,
        text=True,
        check=True,
    )
    asked_for_patches = {"dl_iterate_phdr", "__jit_debug_descriptor", "__jit_debug_register_code"}
    others = {"hotpatch_client_claimed", "_Unwind_RaiseException"}
    assert set(exported.stdout.split()) == asked_for_patches | others
    assert "__jit_debug_descriptor" in read_symbols(client_library)
