"""Thin rebuilds: replay captured rustc commands, edited, and hand over the objects."""

import asyncio
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.compiler import Compiler, objects_dir
from hotpatchd.objfile.objects import BuildObjects, ObjectFile


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
        self._compiler = Compiler()
        self._files: dict[str, Mapping[str, ObjectFile]] = {}
        self._metadata: dict[str, bytes] = {}
        self._newest: BuildObjects | None = None
        self._in_use: weakref.WeakSet[BuildObjects] = weakref.WeakSet()

    async def build(self, wanted: frozenset[str]) -> ThinResult:
        """Compile some crates, and those that depend on what changed in them.

        Args:
            wanted: names of crates.

        Raises:
            BuildError: rustc cannot be run.
        """
        start = time.perf_counter()
        stale = set(wanted)
        compiled: list[str] = []
        diagnostics: list[str] = []
        metadata: dict[str, bytes] = {}
        for crate in self.crates:
            if crate.name not in stale and not stale.intersection(crate.dependencies):
                continue
            compiled.append(crate.name)
            done = await self._compiler.compile(crate)
            diagnostics += done.diagnostics
            if not done.ok:
                return ThinResult(
                    crates=tuple(compiled),
                    failed=frozenset(stale | {crate.name}),
                    diagnostics=tuple(diagnostics),
                    objects=None,
                    compile_ms=(time.perf_counter() - start) * 1000,
                )
            self._files[crate.name] = done.objects
            if done.metadata is not None:
                metadata[crate.name] = done.metadata
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
            for place in objects_dir(crate).glob("*"):
                if place not in used:
                    shutil.rmtree(place, ignore_errors=True)
