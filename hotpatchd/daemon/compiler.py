"""Compiling one crate of the program again: its captured rustc command, edited, and the objects that come of it."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hotpatchd.core.errors import BuildError
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.processes import Finished, run_process
from hotpatchd.daemon.tracing import Tracer
from hotpatchd.objfile.objects import ObjectFile, object_file

_OBJECT_SUFFIX = ".rcgu.o"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """How a crate's compile ended.

    Args:
        ok: whether it compiles.
        diagnostics: as rustc renders them, in order.
        objects: unit name (`<crate>/<cgu>`) → object; none where it does not compile.
        metadata: digest of what dependents read; None for a tip, and where it does not compile.
    """

    ok: bool
    diagnostics: tuple[str, ...]
    objects: Mapping[str, ObjectFile]
    metadata: bytes | None


class RunProcess(Protocol):
    """Runs a program to its end; see `hotpatchd.daemon.processes.run_process`."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Finished:
        """Run it."""


class CrateCompiler(Protocol):
    """Compiles crates, one or several at a time."""

    async def compile(self, crate: ThinCrate, on_metadata: Callable[[bytes], None] | None = None) -> Compiled:
        """Compile a crate.

        Args:
            crate: what to compile. Its dependencies' metadata is on disk; it is not compiled twice at the same time.
            on_metadata: is given the digest of the metadata as soon as dependents can read that, which is before there
                are objects. The compile can still fail then.

        Raises:
            BuildError: it could not be tried.
        """


class Compiler:
    """Runs rustc. The objects of each compile stay in a directory of their own, to be compared with later ones.

    Args:
        run: starts rustc.
        tracer: writes down what proc macros read; None where nothing can.
    """

    def __init__(self, run: RunProcess = run_process, tracer: Tracer | None = None) -> None:
        self._run = run
        self._tracer = tracer
        self._compiles: Counter[str] = Counter()

    async def compile(self, crate: ThinCrate, on_metadata: Callable[[bytes], None] | None = None) -> Compiled:
        """Compile a crate; see `CrateCompiler`.

        Raises:
            BuildError: rustc cannot be run, or was killed.
        """
        out_dir = Path(crate.out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        for left in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            left.unlink()
        metadata: bytes | None = None

        def read_line(line: bytes) -> None:
            nonlocal metadata
            if crate.metadata and _tells_metadata(line):
                metadata = hashlib.blake2b(Path(crate.metadata).read_bytes()).digest()
                if on_metadata:
                    on_metadata(metadata)

        finished = await self._run(
            [crate.capture.rustc, *crate.edited.argv],
            cwd=crate.capture.cwd,
            env=self._tracer.compile_environ(crate) if self._tracer else dict(crate.capture.env),
            on_stderr=read_line,
        )
        said = tuple(_rendered(finished.stderr))
        if self._tracer:
            self._tracer.compile_ended(crate, ok=finished.status == 0)
        if finished.status < 0:
            raise BuildError(f"rustc was killed by signal {-finished.status} while it compiled {crate.name}")
        if finished.status:
            return Compiled(ok=False, diagnostics=said, objects={}, metadata=None)
        return Compiled(ok=True, diagnostics=said, objects=self._take_objects(crate, out_dir), metadata=metadata)

    def _take_objects(self, crate: ThinCrate, out_dir: Path) -> dict[str, ObjectFile]:
        """Move the objects out of rustc's way; those of earlier builds stay where they are, being compared with."""
        objects = objects_dir(crate)
        if not self._compiles[crate.name]:  # What is there was left by an earlier daemon, or came from a cache.
            for left in objects.glob("[0-9]*"):
                shutil.rmtree(left, ignore_errors=True)
        self._compiles[crate.name] += 1
        place = objects / str(self._compiles[crate.name])
        place.mkdir(parents=True)
        found = {}
        is_optimised = crate.is_optimised
        for path in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            # `<crate>.<cgu>.rcgu.o`; newer compilers put a name of the invocation before the suffix.
            cgu = path.name.split(".")[1]
            kept = place / f"{cgu}.o"
            path.rename(kept)
            found[f"{crate.name}/{cgu}"] = object_file(kept, is_optimised=is_optimised)
        return found


def objects_dir(crate: ThinCrate) -> Path:
    """Where the objects of a crate's compiles are, each compile's in a directory of its own."""
    return Path(crate.out_dir).with_name("objects")


def _tells_metadata(line: bytes) -> bool:
    """Whether rustc says that the metadata is complete, which it writes before it makes machine code.

    Source: `rustc_interface::passes::start_codegen`; the line, "JSON output" in the rustc book.
    """
    return b'"artifact"' in line and (_message(line) or {}).get("emit") == "metadata"


def _message(line: bytes) -> dict[str, Any] | None:
    """One of the JSON messages that rustc was told to print; None if the line is something else."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _rendered(stderr: bytes) -> Iterator[str]:
    """rustc's diagnostics as it renders them; lines that are not JSON as they are."""
    for line in stderr.splitlines():
        message = _message(line)
        if message is None:
            yield line.decode("utf-8", "replace")
        elif message.get("rendered"):
            yield message["rendered"].rstrip("\n")
