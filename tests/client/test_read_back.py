"""The client looks at what it wrote before it says that it did."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import FakeDaemon, Peer

_PROGRAMS = Path(__file__).parent / "programs"
_BOTH = "int replaced(int n) { return n + 1001; } int tripled(int n) { return n * 3; }"


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that comes between the client and libc, and loses writes."""
    library = tmp_path_factory.mktemp("lossy") / "lossy.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, _PROGRAMS / "lossy.c"], check=True)
    return library


@asynccontextmanager
async def losing(stage: Stage, lossy: Path, what: str) -> AsyncIterator[tuple[Program, Peer]]:
    """A program in which some of what the client writes gets lost."""
    preload = f"{lossy} {stage.library}"
    async with (
        FakeDaemon.listening(stage.state) as daemon,
        stage.running("host", LD_PRELOAD=preload, LOSE=what) as program,
    ):
        yield program, await daemon.welcome()


async def test_lost_detour_takes_back_all_of_the_patch(stage: Stage, lossy: Path) -> None:
    """Where one of two jumps is not there after it was written, the other one is taken back, and the patch refused."""
    async with losing(stage, lossy, "detours") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(_BOTH, peer.hello, program, answer="replaced", doubled="tripled")
        refused = await peer.apply(image.message, image.content)
        assert (refused["type"], refused["reason"]) == ("refused", "memory")
        second = max(detour["from"] for detour in image.message["detours"])
        assert f"{second:#x} is not what is there" in refused["detail"]
        assert await program.ask("bytes") == original


async def test_spoilt_segment_is_refused_before_anything_leads_to_it(stage: Stage, lossy: Path) -> None:
    """Code that differs from the patch's is never run; the same patch can be applied once it arrives whole."""
    async with losing(stage, lossy, "segments") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(_BOTH, peer.hello, program, answer="replaced", doubled="tripled")
        refused = await peer.apply(image.message, image.content)
        assert (refused["type"], refused["reason"]) == ("refused", "memory")
        code = next(segment["addr"] for segment in image.message["segments"] if segment["prot"] == "rx")
        assert f"{code:#x} is not what is there" in refused["detail"]
        assert await program.ask("bytes") == original
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "1002"
