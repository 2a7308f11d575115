"""The client library: taken prebuilt from the wheel, or built once per toolchain and target and kept in a cache.

The cache is `$XDG_CACHE_HOME/hotpatchd/client/<key>/`. The key is made of everything that goes into the library, so
an entry is never out of date and never written twice.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.processes import run_process

_LIBRARY = "libhotpatch_client.so"
_BUNDLED = Path(__file__).parents[1] / "_bundled"
_LOCK_POLL_S = 0.1
# How cargo reaches the network and where it keeps downloads; all its other variables would change what is built.
_KEPT_CARGO_VARIABLES = ("CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_")


async def ensure_client(toolchain_rustc: Path, target: str, progress: Callable[[str], None]) -> Path:
    """The client library for programs of `target`, built now where it has not been built before.

    Several processes may ask at once: one builds, the others wait for it.

    Args:
        toolchain_rustc: the rustc that builds it; the cargo beside it is used.
        target: target triple.
        progress: called with each line that cargo prints while it builds.

    Returns:
        Path of the shared library.

    Raises:
        BuildError: there is no cargo, or the build failed.
    """
    prebuilt = _BUNDLED / "prebuilt" / target / _LIBRARY
    if prebuilt.exists() and await _loads(prebuilt):
        return prebuilt
    source = _source()
    version = await run_process([str(toolchain_rustc), "-vV"], cwd=str(source))
    if version.status != 0:
        raise BuildError(
            f"`{toolchain_rustc} -vV` failed",
            output=version.stderr.decode(errors="replace"),
            hint="is the toolchain installed completely? `rustup show` lists them",
        )
    cache = _cache_root() / _cache_key(source, version.stdout, target)
    library = cache / _LIBRARY
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    async with _locked(cache / "lock"):
        if not library.exists():
            built = await _build(source, toolchain_rustc, target, cache / "target", progress)
            built.replace(library)
            shutil.rmtree(cache / "target", ignore_errors=True)
    return library


async def _loads(library: Path) -> bool:
    """Whether this machine's loader takes the library; it complains and goes on where libc is too old for it."""
    finished = await run_process(["true"], env={**os.environ, "LD_PRELOAD": str(library)})
    return finished.status == 0 and not finished.stderr


def _source() -> Path:
    bundled = _BUNDLED / "client"
    return bundled if bundled.exists() else Path(__file__).parents[2] / "client"


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotpatchd" / "client"


def _cache_key(source: Path, toolchain: bytes, target: str) -> str:
    digest = hashlib.sha256()
    files = (source / "Cargo.toml", source / "Cargo.lock", *sorted((source / "src").rglob("*.rs")))
    named = ((file.relative_to(source).as_posix().encode(), file.read_bytes()) for file in files)
    for name, content in (*named, (b"toolchain", toolchain), (b"target", target.encode())):
        digest.update(b"%d %s %d " % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()[:32]


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield


def _build_environment(environ: Mapping[str, str], rustc: Path, target_dir: Path) -> dict[str, str]:
    """The environment without what a user sets for their own builds."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("CARGO", "RUSTC", "RUSTFLAGS", "LD_PRELOAD", "HOTPATCHD_"))
        or name.startswith(_KEPT_CARGO_VARIABLES)
    }
    # Set to nothing, these take precedence over the user's cargo configuration files.
    nothing = dict.fromkeys(("CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"), "")
    return {**kept, **nothing, "RUSTC": str(rustc), "CARGO_TARGET_DIR": str(target_dir)}


async def _build(source: Path, rustc: Path, target: str, target_dir: Path, progress: Callable[[str], None]) -> Path:
    beside = rustc.with_name("cargo")
    cargo = str(beside) if beside.exists() else "cargo"
    argv = (cargo, "rustc", "--locked", "--release", "--lib", "--crate-type", "cdylib", "--target", target)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=source,
            env=_build_environment(os.environ, rustc, target_dir),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(
            f"cannot start `{cargo}` to build the client: {error.strerror}", hint="is cargo installed?"
        ) from error
    output: list[str] = []
    try:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace").rstrip()
            output.append(line)
            progress(line.strip())
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if status != 0:
        raise BuildError(
            f"building the client for {target} failed",
            output="\n".join(output),
            hint=f"it needs Rust 1.74 or newer with the target {target} installed, and crates.io within reach once",
        )
    return target_dir / target / "release" / _LIBRARY
