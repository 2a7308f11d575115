"""Thin rebuilds: replay captured rustc commands, edited, and hand over the objects."""

import asyncio
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.depinfo import parse_dep_info
from hotpatchd.core.errors import BuildError, CaptureError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.objects import BuildObjects, ObjectFile, object_file

_OBJECT_SUFFIX = ".rcgu.o"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinResult:
    """How a thin rebuild ended.

    Args:
        crates: names of the crates that were compiled, in order.
        failed: of these, those that do not compile.
        diagnostics: as rustc renders them, in order.
        objects: all objects of the program as its source is now; None where a crate failed.
        compile_ms: how long it took.
    """

    crates: tuple[str, ...]
    failed: frozenset[str]
    diagnostics: tuple[str, ...]
    objects: BuildObjects | None
    compile_ms: float


class ThinBuilder:
    """The program's crates as the daemon compiles them, and their newest objects.

    Args:
        crates: each after those that it depends on; the tip last.
    """

    def __init__(self, crates: Sequence[ThinCrate]) -> None:
        self.crates = tuple(crates)
        self._files: dict[str, dict[str, ObjectFile]] = {}
        self._metadata: dict[str, bytes] = {}
        self._newest: BuildObjects | None = None
        self._in_use: weakref.WeakSet[BuildObjects] = weakref.WeakSet()
        self._builds = 0

    async def build(self, wanted: frozenset[str]) -> ThinResult:
        """Compile some crates, and those that depend on what changed in them.

        Args:
            wanted: names of crates.

        Raises:
            BuildError: rustc cannot be run.
        """
        start = time.perf_counter()
        self._builds += 1
        stale = set(wanted)
        compiled, diagnostics = [], []
        metadata: dict[str, bytes] = {}
        for crate in self.crates:
            if crate.name not in stale and not stale.intersection(crate.dependencies):
                continue
            compiled.append(crate.name)
            ok, said = await self._compile(crate)
            diagnostics += said
            if not ok:
                return ThinResult(
                    crates=tuple(compiled),
                    failed=frozenset(stale | {crate.name}),
                    diagnostics=tuple(diagnostics),
                    objects=None,
                    compile_ms=(time.perf_counter() - start) * 1000,
                )
            if crate.metadata is not None:
                metadata[crate.name] = hashlib.blake2b(Path(crate.metadata).read_bytes()).digest()
            if metadata.get(crate.name) == self._metadata.get(crate.name):
                stale.discard(crate.name)
            else:
                stale.add(crate.name)
        # Only now: had a dependent failed, the next rebuild would have to compile it against the same metadata again.
        self._metadata.update(metadata)
        compile_ms = (time.perf_counter() - start) * 1000
        files = {name: file for of_crate in self._files.values() for name, file in of_crate.items()}
        self._delete_unused(files)
        self._newest = await asyncio.to_thread(BuildObjects, files, self._newest)
        self._in_use.add(self._newest)
        return ThinResult(
            crates=tuple(compiled),
            failed=frozenset(),
            diagnostics=tuple(diagnostics),
            objects=self._newest,
            compile_ms=compile_ms,
        )

    def _delete_unused(self, newest: Mapping[str, ObjectFile]) -> None:
        """Delete objects that neither the newest build has nor one that somebody still holds: it may open them yet."""
        used = {file.path.parent for files in (newest, *(o.files for o in self._in_use)) for file in files.values()}
        for crate in self.crates:
            for place in Path(crate.out_dir).with_name("objects").glob("*"):
                if place not in used:
                    shutil.rmtree(place, ignore_errors=True)

    async def _compile(self, crate: ThinCrate) -> tuple[bool, list[str]]:
        out_dir = Path(crate.out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        for left in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            left.unlink()
        finished = await run_process(
            [crate.capture.rustc, *crate.edited.argv], cwd=crate.capture.cwd, env=dict(crate.capture.env)
        )
        said = _rendered(finished.stderr)
        if finished.status < 0:
            raise BuildError(f"rustc was killed by signal {-finished.status} while it compiled {crate.name}")
        if finished.status == 0:
            self._files[crate.name] = self._take_objects(crate, out_dir)
        return finished.status == 0, said

    def _take_objects(self, crate: ThinCrate, out_dir: Path) -> dict[str, ObjectFile]:
        """Move the objects out of rustc's way; those of earlier builds stay where they are, being compared with."""
        objects = out_dir.with_name("objects")
        if crate.name not in self._files:  # What is there was left by an earlier daemon.
            shutil.rmtree(objects, ignore_errors=True)
        place = objects / str(self._builds)
        place.mkdir(parents=True)
        found = {}
        for path in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            # `<crate>.<cgu>.rcgu.o`; newer compilers put a name of the invocation before the suffix.
            cgu = path.name.split(".")[1]
            kept = place / f"{cgu}.o"
            path.rename(kept)
            found[f"{crate.name}/{cgu}"] = object_file(kept, is_optimised=crate.is_optimised)
        return found

    def inputs(self, full_build: Mapping[str, str]) -> BuildInputs:
        """The files that the newest objects were made from, as rustc listed them.

        Args:
            full_build: files whose edit needs a full build, with what they are.
        """
        crates_of: dict[str, tuple[str, ...]] = {}
        source_dirs = {}
        for crate in self.crates:
            for file in _files_read(crate):
                crates_of[file] = (*crates_of.get(file, ()), crate.name)
            source_dirs[crate.name] = crate.capture.manifest_dir
        return BuildInputs(crates_of=crates_of, full_build=dict(full_build), source_dirs=source_dirs)


def captured_files(capture: Capture) -> tuple[str, ...]:
    """The files that a captured compile read, absolute; none where rustc's list of them is gone."""
    return _listed_files(capture, capture.dep_info) or ()


def _files_read(crate: ThinCrate) -> tuple[str, ...]:
    """From the newest dep-info; from the captured one where there is none yet. Absolute."""
    newest = os.path.join(crate.out_dir, f"{crate.capture.crate_name}{crate.capture.extra_filename}.d")
    return _listed_files(crate.capture, newest) or captured_files(crate.capture)


def _listed_files(capture: Capture, dep_info: str | None) -> tuple[str, ...] | None:
    """What a dep-info file of a compile in the capture's directory lists; None where it cannot be read."""
    if dep_info is None:
        return None
    try:
        files = parse_dep_info(Path(capture.cwd, dep_info).read_text("utf-8", "surrogateescape")).files
    except (OSError, CaptureError):
        return None
    return tuple(os.path.normpath(os.path.join(capture.cwd, file)) for file in files)


def _rendered(stderr: bytes) -> list[str]:
    """rustc's diagnostics as it renders them; lines that are not JSON as they are."""
    found = []
    for line in stderr.decode("utf-8", "replace").splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            found.append(line)
            continue
        if isinstance(message, dict) and message.get("rendered"):
            found.append(message["rendered"].rstrip("\n"))
    return found
