"""The client: taken prebuilt from the wheel, or built once per toolchain and target and kept in a cache.

It is a library to be preloaded, or an object to be linked into static programs. The latter has a standard library of
its own, like the program: its symbols get names of their own, and only libc and the unwinder are shared.

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
from typing import Literal

from hotpatchd.core.errors import BuildError
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.seclude import seclude

ClientKind = Literal["preload", "linked"]

_NAMES: Mapping[ClientKind, str] = {"preload": "libhotpatch_client.so", "linked": "hotpatch_client.o"}
_AT_LOAD = "hotpatch_client_at_load"
# What others look for in a program: the unwinder and std's symbolizer, and gdb.
_PUBLIC = frozenset({"dl_iterate_phdr", "__jit_debug_descriptor", "__jit_debug_register_code"})
_BUNDLED = Path(__file__).parents[1] / "_bundled"
_LOCK_POLL_S = 0.1
# How cargo reaches the network and where it keeps downloads; all its other variables would change what is built.
_KEPT_CARGO_VARIABLES = ("CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_")


async def ensure_client(
    toolchain_rustc: Path, target: str, progress: Callable[[str], None], *, kind: ClientKind = "preload"
) -> Path:
    """The client for programs of `target`, built now where it has not been built before.

    Several processes may ask at once: one builds, the others wait for it. The linker and the flags that the environment
    sets for the target (`CARGO_TARGET_<TRIPLE>_LINKER`, `CARGO_TARGET_<TRIPLE>_RUSTFLAGS`) are used.

    Args:
        toolchain_rustc: the rustc that builds it; the cargo beside it is used.
        target: target triple.
        progress: called with each line that cargo prints while it builds.
        kind: whether it is preloaded, or linked into a static program.

    Returns:
        Path of the shared library, or of the relocatable object, which goes before all libraries on a link line.

    Raises:
        BuildError: there is no cargo, or the build failed.
    """
    prebuilt = _BUNDLED / "prebuilt" / target / _NAMES[kind]
    if prebuilt.exists() and (kind == "linked" or await loads(prebuilt)):
        return prebuilt
    source = _source()
    version = await run_process([str(toolchain_rustc), "-vV"], cwd=str(source))
    if version.status != 0:
        raise BuildError(
            f"`{toolchain_rustc} -vV` failed",
            output=version.stderr.decode(errors="replace"),
            hint="is the toolchain installed completely? `rustup show` lists them",
        )
    recipe = _Recipe(kind, target, os.environ)
    cache = cache_root("client") / _cache_key(source, version.stdout, recipe)
    client = cache / _NAMES[kind]
    if client.exists():
        return client
    cache.mkdir(parents=True, exist_ok=True)
    async with locked(cache / "lock"):
        if not client.exists():
            built = await _build(source, toolchain_rustc, recipe, cache / "target", progress)
            built.replace(client)
            shutil.rmtree(cache / "target", ignore_errors=True)
    return client


class _Recipe:
    """What is built, and what the environment says of building for the target."""

    def __init__(self, kind: ClientKind, target: str, environ: Mapping[str, str]) -> None:
        prefix = f"CARGO_TARGET_{target.upper().replace('-', '_').replace('.', '_')}"
        self.kind = kind
        self.target = target
        self.linker_variable = f"{prefix}_LINKER"
        self.linker = environ.get(self.linker_variable, "")
        # The flags may be meant for programs that are static, or at a fixed address.
        needed = f"-Ctarget-feature={'+' if kind == 'linked' else '-'}crt-static", "-Crelocation-model=pic"
        self.rustflags = (*environ.get(f"{prefix}_RUSTFLAGS", "").split(), *needed)

    def identity(self) -> bytes:
        """All of it, for telling recipes apart."""
        return "\0".join((self.kind, self.target, self.linker, *self.rustflags)).encode()


async def loads(library: Path) -> bool:
    """Whether this machine's loader takes the library; it complains and goes on where libc is too old for it."""
    finished = await run_process(["true"], env={**os.environ, "LD_PRELOAD": str(library)})
    return finished.status == 0 and not finished.stderr


def _source() -> Path:
    bundled = _BUNDLED / "client"
    return bundled if bundled.exists() else Path(__file__).parents[2] / "client"


def cache_root(what: str) -> Path:
    """Where things of one kind are kept that are built once for a toolchain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotpatchd" / what


def _cache_key(source: Path, toolchain: bytes, recipe: _Recipe) -> str:
    digest = hashlib.sha256()
    files = (source / "Cargo.toml", source / "Cargo.lock", *sorted((source / "src").rglob("*.rs")))
    named = ((file.relative_to(source).as_posix().encode(), file.read_bytes()) for file in files)
    for name, content in (*named, (b"toolchain", toolchain), (b"recipe", recipe.identity())):
        digest.update(b"%d %s %d " % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()[:32]


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds a lock file; other processes that want it wait."""
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield


def _build_environment(environ: Mapping[str, str], rustc: Path, recipe: _Recipe, target_dir: Path) -> dict[str, str]:
    """The environment without what a user sets for their own builds, but for how they build for the target."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("CARGO", "RUSTC", "RUSTFLAGS", "LD_PRELOAD", "HOTPATCHD_"))
        or name.startswith(_KEPT_CARGO_VARIABLES)
    }
    # These take precedence over the user's cargo configuration files.
    nothing = dict.fromkeys(("RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"), "")
    linker = {recipe.linker_variable: recipe.linker} if recipe.linker else {}
    rustflags = "\x1f".join(recipe.rustflags)
    own = {"RUSTC": str(rustc), "CARGO_TARGET_DIR": str(target_dir), "CARGO_ENCODED_RUSTFLAGS": rustflags}
    return {**kept, **nothing, **linker, **own}


async def _build(source: Path, rustc: Path, recipe: _Recipe, target_dir: Path, progress: Callable[[str], None]) -> Path:
    beside = rustc.with_name("cargo")
    cargo = str(beside) if beside.exists() else "cargo"
    wanted = ("cdylib",) if recipe.kind == "preload" else ("staticlib", "--features", "linked")
    target = recipe.target
    argv = (cargo, "rustc", "--locked", "--release", "--lib", "--target", target, "--crate-type", *wanted)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=source,
            env=_build_environment(os.environ, rustc, recipe, target_dir),
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
    out = target_dir / target / "release"
    return out / _NAMES["preload"] if recipe.kind == "preload" else await _join(out, recipe)


async def _join(out: Path, recipe: _Recipe) -> Path:
    """One object of what the client needs of its archive, in which it shares no name with the program's own std."""
    joined = out / _NAMES["linked"]
    linker = recipe.linker or "cc"
    selection = ("-Wl,--gc-sections", f"-Wl,--undefined={_AT_LOAD}", *(f"-Wl,--undefined={name}" for name in _PUBLIC))
    argv = (linker, "-r", "-nostdlib", "-Wl,--strip-debug", *selection, "libhotpatch_client.a", "-o", joined.name)
    finished = await run_process(argv, cwd=str(out))
    if finished.status != 0:
        raise BuildError(
            f"joining the objects of the client for {recipe.target} with {linker} failed",
            output=finished.stderr.decode(errors="replace"),
            hint=f"set {recipe.linker_variable} to a C compiler that links for it",
        )
    joined.write_bytes(
        seclude(joined.read_bytes(), prefix="hotpatch_client.", keep=_PUBLIC, origin=str(joined)),
    )
    return joined
