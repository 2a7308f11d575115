"""The client is built once for a toolchain and target, whatever the user's own builds are set to."""

import asyncio
import stat
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.client_build import ensure_client
from tests.client.conftest import TARGET

CARGO = """#!/bin/sh
echo "$@" >> "$LOG/argv"
env > "$LOG/environment"
echo '   Compiling something v1.0.0' >&2
while [ -e "$LOG/wait" ]; do sleep 0.01; done
[ -e "$LOG/fail" ] && { echo 'error: cannot do it' >&2; exit 101; }
mkdir -p "$CARGO_TARGET_DIR/TARGET/release"
echo library > "$CARGO_TARGET_DIR/TARGET/release/libhotpatch_client.so"
"""


class Toolchain:
    """A rustc and a cargo that write down how they are called."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.rustc = directory / "bin" / "rustc"
        for path in (self.log, self.rustc.parent):
            path.mkdir(parents=True)
        self.be_version("1.90.0")
        self._write("cargo", CARGO.replace("TARGET/", f"{TARGET}/"))

    def be_version(self, version: str) -> None:
        """Let rustc call itself by another version."""
        self._write("rustc", f"#!/bin/sh\necho rustc {version}\n")

    def _write(self, name: str, script: str) -> None:
        path = self.rustc.with_name(name)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def builds(self) -> list[str]:
        """Arguments of each run of cargo."""
        log = self.log / "argv"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """A toolchain, and an empty cache."""
    toolchain = Toolchain(tmp_path / "toolchain")
    monkeypatch.setenv("LOG", str(toolchain.log))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return toolchain


async def test_second_call_takes_what_the_first_has_built(toolchain: Toolchain, tmp_path: Path) -> None:
    """The library is built into the cache, cargo's lines are passed on, and nothing is built a second time."""
    lines: list[str] = []
    library = await ensure_client(toolchain.rustc, TARGET, lines.append)
    assert library.read_text() == "library\n"
    assert library.is_relative_to(tmp_path / "cache" / "hotpatchd" / "client")
    assert lines == ["Compiling something v1.0.0"]
    assert await ensure_client(toolchain.rustc, TARGET, lines.append) == library
    assert toolchain.builds == [f"rustc --locked --release --lib --crate-type cdylib --target {TARGET}"]
    assert {path.name for path in library.parent.iterdir()} == {library.name, "lock"}


async def test_another_toolchain_gets_another_library(toolchain: Toolchain) -> None:
    """A new version of rustc at the same path has its own entry in the cache."""
    first = await ensure_client(toolchain.rustc, TARGET, print)
    toolchain.be_version("1.91.0")
    assert await ensure_client(toolchain.rustc, TARGET, print) != first


async def test_two_at_once_build_once(toolchain: Toolchain) -> None:
    """Whoever comes second waits, and takes what the first has built."""
    wait = toolchain.log / "wait"
    wait.touch()
    building = asyncio.Event()
    first = asyncio.create_task(ensure_client(toolchain.rustc, TARGET, lambda _: building.set()))
    await asyncio.wait_for(building.wait(), 20)
    second = asyncio.create_task(ensure_client(toolchain.rustc, TARGET, print))
    done, _ = await asyncio.wait([second], timeout=0.3)
    assert not done
    wait.unlink()
    assert await first == await second
    assert len(toolchain.builds) == 1


async def test_failed_build_says_what_cargo_said(toolchain: Toolchain) -> None:
    """A failure carries cargo's output and leaves nothing in the cache that a later call would take."""
    (toolchain.log / "fail").touch()
    with pytest.raises(BuildError, match="building the client") as caught:
        await ensure_client(toolchain.rustc, TARGET, print)
    assert "error: cannot do it" in caught.value.output
    assert caught.value.hint
    (toolchain.log / "fail").unlink()
    assert (await ensure_client(toolchain.rustc, TARGET, print)).exists()


async def test_missing_toolchain_is_an_error(toolchain: Toolchain) -> None:
    """A rustc that is not there is named."""
    with pytest.raises(BuildError, match="nowhere/rustc"):
        await ensure_client(toolchain.rustc.with_name("nowhere") / "rustc", TARGET, print)


async def test_cancelled_build_is_killed(toolchain: Toolchain) -> None:
    """Cancelling ends cargo, and the next call can build."""
    (toolchain.log / "wait").touch()
    building = asyncio.Event()
    task = asyncio.create_task(ensure_client(toolchain.rustc, TARGET, lambda _: building.set()))
    await asyncio.wait_for(building.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (toolchain.log / "wait").unlink()
    assert (await ensure_client(toolchain.rustc, TARGET, print)).exists()


async def test_settings_of_the_user_do_not_reach_the_build(
    toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that change how crates are compiled are left out; those that lead to the registry stay."""
    theirs = {"RUSTFLAGS": "-Cnope", "RUSTC_WRAPPER": "sccache", "CARGO_BUILD_TARGET": "wasm", "HOTPATCHD_STATE": "/s"}
    kept = {"CARGO_HOME": "/cargo", "CARGO_NET_GIT_FETCH_WITH_CLI": "true"}
    for name, value in {**theirs, **kept}.items():
        monkeypatch.setenv(name, value)
    await ensure_client(toolchain.rustc, TARGET, print)
    seen = dict(line.partition("=")[::2] for line in (toolchain.log / "environment").read_text().splitlines())
    assert {name: seen[name] for name in kept} == kept
    assert {name: seen.get(name) for name in theirs} == {**dict.fromkeys(theirs), "RUSTC_WRAPPER": ""}
    assert (seen["CARGO_ENCODED_RUSTFLAGS"], seen["RUSTC"]) == ("", str(toolchain.rustc))


async def test_prebuilt_library_is_taken_where_it_loads(
    toolchain: Toolchain, client_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel's prebuilt library saves the build, unless this machine's loader complains about it."""
    monkeypatch.setattr("hotpatchd.daemon.client_build._BUNDLED", tmp_path)
    prebuilt = tmp_path / "prebuilt" / TARGET / "libhotpatch_client.so"
    prebuilt.parent.mkdir(parents=True)
    (tmp_path / "client").symlink_to(Path(__file__).parents[2] / "client")
    prebuilt.symlink_to(client_library)
    assert await ensure_client(toolchain.rustc, TARGET, print) == prebuilt
    prebuilt.unlink()
    prebuilt.write_text("not for this machine")
    assert await ensure_client(toolchain.rustc, TARGET, print) != prebuilt
    assert len(toolchain.builds) == 1
