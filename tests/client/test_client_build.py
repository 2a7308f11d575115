"""The client is built once for a toolchain and target, whatever the user's own builds are set to."""

import asyncio
import stat
import subprocess
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
[ -e "$LOG/archive" ] && cp "$LOG/archive" "$CARGO_TARGET_DIR/TARGET/release/libhotpatch_client.a"
exit 0
"""

LINKER_VARIABLE = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_LINKER"
RUSTFLAGS_VARIABLE = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_RUSTFLAGS"

# What rustc makes of the client, in short: it starts by itself, and has a standard library of its own.
ARCHIVE = """
int dl_iterate_phdr(void *callback, void *data) { return 0; }
int __jit_debug_descriptor;
void __jit_debug_register_code(void) {}
__attribute__((noinline)) int std_version(void) { return 1; }
static int local_state = 40;
int getpid(void);
int seen_by_client;
static void at_load(void) { seen_by_client = getpid() > 0 ? ++local_state + std_version() : 0; }
__attribute__((section(".init_array"))) void (*hotpatch_client_at_load)(void) = at_load;
int not_needed(void) { return std_version(); }
"""
PROGRAM = """
#include <stdio.h>
int local_state = 7;
int std_version(void) { return 2; }
int seen_by_client = 5;
int main(void) { printf("%d %d %d\\n", std_version(), local_state, seen_by_client); return 0; }
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
    assert toolchain.builds == [f"rustc --locked --release --lib --target {TARGET} --crate-type cdylib"]
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
    assert seen["RUSTC"] == str(toolchain.rustc)
    assert "-Cnope" not in seen["CARGO_ENCODED_RUSTFLAGS"]


async def test_settings_for_the_target_reach_the_build(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's linker and flags are used, and other ones make another library."""
    first = await ensure_client(toolchain.rustc, TARGET, print)
    monkeypatch.setenv(LINKER_VARIABLE, "some-cc")
    second = await ensure_client(toolchain.rustc, TARGET, print)
    monkeypatch.setenv(RUSTFLAGS_VARIABLE, "-Lnative=/some/where -Copt-level=1")
    third = await ensure_client(toolchain.rustc, TARGET, print)
    assert len({first, second, third}) == 3
    seen = dict(line.partition("=")[::2] for line in (toolchain.log / "environment").read_text().splitlines())
    assert seen[LINKER_VARIABLE] == "some-cc"
    assert seen["CARGO_ENCODED_RUSTFLAGS"].split("\x1f")[:2] == ["-Lnative=/some/where", "-Copt-level=1"]


def run(directory: Path, *command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout


def make_archive(directory: Path, log: Path) -> None:
    """What cargo shall give out as the client's archive."""
    (directory / "client.c").write_text(ARCHIVE)
    run(directory, "gcc", "-c", "-O1", "-g", "-ffunction-sections", "client.c")
    run(directory, "ar", "rcs", log / "archive", "client.o")


async def test_linked_client_does_not_meet_the_program(toolchain: Toolchain, tmp_path: Path) -> None:
    """A program that defines the same names as the client can have it on its link line; each uses its own."""
    make_archive(tmp_path, toolchain.log)
    client = await ensure_client(toolchain.rustc, TARGET, print, kind="linked")
    assert toolchain.builds == [
        f"rustc --locked --release --lib --target {TARGET} --crate-type staticlib --features linked"
    ]
    (tmp_path / "program.c").write_text(PROGRAM)
    run(tmp_path, "gcc", "program.c", client, "-o", "program")
    assert run(tmp_path, "./program") == "2 7 5\n"
    names = [line.split()[-1] for line in run(tmp_path, "nm", "-a", "program").splitlines()]
    assert {name: names.count(name) for name in ("std_version", "local_state", "seen_by_client")} == {
        "std_version": 1,
        "local_state": 1,
        "seen_by_client": 1,
    }
    assert "hotpatch_client.std_version" in names
    assert "hotpatch_client.not_needed" not in names
    assert {"dl_iterate_phdr", "__jit_debug_descriptor", "__jit_debug_register_code"} <= set(names)


async def test_linked_client_starts_by_itself(toolchain: Toolchain, tmp_path: Path) -> None:
    """The linker keeps the client in a program that drops what nothing refers to, and it runs before `main`."""
    make_archive(tmp_path, toolchain.log)
    client = await ensure_client(toolchain.rustc, TARGET, print, kind="linked")
    source = """
        #include <stdio.h>
        extern int seen __asm__("hotpatch_client.seen_by_client");
        int main(void) { printf("%d\\n", seen); return 0; }
    """
    (tmp_path / "program.c").write_text(source)
    run(tmp_path, "gcc", "-Wl,--gc-sections", "program.c", client, "-o", "program")
    assert run(tmp_path, "./program") == "42\n"


async def test_client_that_cannot_be_joined_is_an_error(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linker that fails is named, with what it printed and the variable that sets another one."""
    make_archive(tmp_path, toolchain.log)
    linker = tmp_path / "some-cc"
    linker.write_text("#!/bin/sh\necho 'cannot link' >&2\nexit 1\n")
    linker.chmod(0o755)
    monkeypatch.setenv(LINKER_VARIABLE, str(linker))
    with pytest.raises(BuildError, match="some-cc failed") as caught:
        await ensure_client(toolchain.rustc, TARGET, print, kind="linked")
    assert "cannot link" in caught.value.output
    assert LINKER_VARIABLE in caught.value.hint


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
