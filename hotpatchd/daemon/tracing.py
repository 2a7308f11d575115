"""Which files compiles and build scripts really open, whether they tell or not.

rustc lists what it reads itself, but not what a proc macro reads while the crate is expanded; a build script tells
cargo what it wants to tell. So a small library is preloaded into both, and into all that they run, which writes down
every file that is opened, every directory that is listed, and what is looked for in vain (wrapper/tracer.rs).

It sees calls of libc's functions. So it does not see

- programs that make system calls themselves (those written in Go), statically linked ones, those of another machine,
  set-uid ones, and those started with an environment of their own: that one of these was run is written down for all
  but the first (`Trace.untraced`);
- what libc opens on its own account: `glob`, `nftw`, `fts`, `realpath`, `dlopen`; and io_uring;
- a file that is found to be there and is not opened: that it goes away, or that its time or size changes;
- what is outside the source directories, below target directories, or kept by version control (`.git`);
- compiles that a wrapper hands on to a server (sccache);
- anything on other systems than Linux on x86-64 and aarch64, or from a cache directory whose path has a space or a
  colon, of which `LD_PRELOAD` makes two.

There, rustc's list and what build scripts tell cargo are all that is known.
"""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.errors import BuildError
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.core.trace import Scope, Trace, parse_trace
from hotpatchd.daemon.client_build import cache_root, loads, locked
from hotpatchd.daemon.processes import run_process

_NAME = "libhotpatchd_tracer.so"
_SOURCE = "tracer.rs"
_LIBRARY = re.compile(r"\.(a|so(\.[0-9.]+)?)$")
_MACHINES = ("x86_64", "aarch64")
_BUILD_SCRIPT_TRACE = "hotpatchd-trace"
_FLAGS = (
    "--edition=2021",
    "--crate-type=cdylib",
    "-Copt-level=3",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Ctarget-feature=-crt-static",
    # Parts of `core` that are not used refer to it; nothing here unwinds.
    "-Clink-arg=-Wl,--defsym=rust_eh_personality=0",
)


class Tracer:
    """Has processes traced, and reads their traces.

    Args:
        library: the tracer, of `ensure_tracer`.
        scope: of which files it tells.
        captures: directory of the captures, where the shim has the traces of the full build put.
    """

    def __init__(self, library: Path, scope: Scope, captures: Path) -> None:
        self._library = library
        self._scope = scope
        self._captures = captures
        self._traces: dict[str, Trace] = {}

    def compile_environ(self, crate: ThinCrate) -> dict[str, str]:
        """The environment for rustc, for a compile that begins now: that of the capture, and the tracer."""
        file = _compile_trace(crate)
        file.unlink(missing_ok=True)
        environ = dict(crate.capture.env)
        return self._preloaded(environ) | {"HOTPATCHD_TRACE": str(file)}

    def compile_ended(self, crate: ThinCrate, *, ok: bool) -> None:
        """Take in the trace of a compile.

        One that failed was perhaps never going to read everything, or failed because of what it did not find: its
        trace is added to that of the last one that did not.
        """
        newest = self._read(_compile_trace(crate)) or Trace()
        self._traces[crate.name] = newest if ok else self.trace_of(crate) | newest

    def trace_of(self, crate: ThinCrate) -> Trace:
        """What the crate's newest objects depend on, besides what rustc lists; at first those of the full build."""
        return self._traces.get(crate.name) or self.captured_trace(crate.capture) or Trace()

    def captured_trace(self, capture: Capture) -> Trace | None:
        """The trace of a captured compile, the linker's part included; None where that was not traced."""
        trace = self._read(self._captures / "traces" / capture.key.file_name.removesuffix(".json"))
        # The linker also looks for libraries in the directory that it runs in.
        return trace and replace(trace, missing=frozenset(path for path in trace.missing if not _LIBRARY.search(path)))

    def record_of(self, crate: ThinCrate) -> bytes:
        """The trace of the newest compile, to be kept with its objects; empty where there was none."""
        return _read_bytes(_compile_trace(crate)) or b""

    def recall(self, crate: ThinCrate, record: bytes) -> None:
        """Take in the trace of an earlier compile, of `record_of`, whose objects are used again."""
        self._traces[crate.name] = parse_trace(record, self._scope)

    def build_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Cargo's environment, for the build scripts that it runs and the compiles that are captured to be traced."""
        return self._preloaded(environ) | {"HOTPATCHD_TRACE_BUILD_SCRIPTS": "1"}

    def build_script_trace(self, out_dir: Path) -> Trace | None:
        """The trace of the run of a build script that cargo holds for the newest; None where that was not traced.

        Args:
            out_dir: the script's `OUT_DIR`.
        """
        file = build_script_trace_file(out_dir)
        # Source: cargo's `custom_build.rs`: it is written just before the script is started.
        started = out_dir.with_name("invoked.timestamp")
        try:
            if file.stat().st_mtime_ns < started.stat().st_mtime_ns:
                return None
        except FileNotFoundError:
            return None
        return self._read(file)

    def _read(self, file: Path) -> Trace | None:
        record = _read_bytes(file)
        return None if record is None else parse_trace(record, self._scope)

    def _preloaded(self, environ: Mapping[str, str]) -> dict[str, str]:
        # The developer's own come first: they may be about what the same functions do.
        preloaded = " ".join(filter(None, [environ.get("LD_PRELOAD"), str(self._library)]))
        return {**environ, "LD_PRELOAD": preloaded, "HOTPATCHD_TRACE_SCOPE": self._scope.text}


def build_script_trace_file(out_dir: Path) -> Path:
    """Where the tracer writes what a build script opens: beside what cargo keeps of its output."""
    return out_dir.with_name(_BUILD_SCRIPT_TRACE)


def scope_of(roots: Iterable[Path], excluded: Iterable[Path]) -> Scope:
    """The scope for source directories, and for the directories below them that results go to."""
    given = tuple(dict.fromkeys(map(str, roots)))
    results = dict.fromkeys(str(path) for directory in excluded for path in (directory, directory.resolve()))
    real = {root: real for root in given if (real := os.path.realpath(root)) != root}
    return Scope(roots=given, excluded=tuple(results), real=real)


async def find_tracer(rustc: Path, scope: Scope, captures: Path, notice: Callable[[str], None]) -> Tracer | None:
    """The tracer, built now where it has not been built before; None where nothing can be traced.

    Args:
        rustc: the compiler that builds it.
        scope: of which files it is to tell.
        captures: directory of the captures.
        notice: is told why there is none, where there could be one.
    """
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return None
    try:
        return Tracer(await ensure_tracer(rustc), scope, captures)
    except BuildError as error:
        notice(f"what proc macros and build scripts read is not traced: {error.message}")
        return None


async def ensure_tracer(rustc: Path) -> Path:
    """The tracer's library. Several processes may ask at once: one builds, the others wait for it.

    Raises:
        BuildError: it cannot be built, or cannot be preloaded.
    """
    source = _source()
    version = await run_process([str(rustc), "-vV"])
    digest = hashlib.sha256(b"\0".join((source.read_bytes(), version.stdout, *map(str.encode, _FLAGS))))
    library = cache_root("tracer") / digest.hexdigest()[:32] / _NAME
    if any(separator in str(library) for separator in " :"):
        raise BuildError(
            f"{library.parent} has a space or a colon in its path", hint="set XDG_CACHE_HOME to another directory"
        )
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    async with locked(library.with_name("lock")):
        if not library.exists():
            await _build(rustc, source, library)
    return library


async def _build(rustc: Path, source: Path, library: Path) -> None:
    made = library.with_name(f"new-{_NAME}")
    environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    finished = await run_process(
        [str(rustc), *_FLAGS, "--crate-name=hotpatchd_tracer", f"-o{made}", str(source)], env=environ
    )
    if finished.status != 0:
        raise BuildError(
            f"`{rustc}` cannot compile {source.name}",
            output=finished.stderr.decode(errors="replace"),
            hint="it needs Rust 1.74 or newer and a C compiler to link with",
        )
    if not await loads(made):
        raise BuildError(f"{made} cannot be preloaded", hint="is rustc of another machine than this one's programs?")
    made.replace(library)


def _source() -> Path:
    bundled = Path(__file__).parents[1] / "_bundled" / "wrapper" / _SOURCE
    return bundled if bundled.exists() else Path(__file__).parents[2] / "wrapper" / _SOURCE


def _compile_trace(crate: ThinCrate) -> Path:
    return Path(crate.out_dir).with_name("trace")


def _read_bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
