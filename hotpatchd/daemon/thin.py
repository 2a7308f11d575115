"""Thin rebuilds: replay captured rustc commands, edited, and hand over the objects."""

import asyncio
import os
import shutil
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hotpatchd.core import schedule
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.compiler import Compiled, Compiler, CrateCompiler, objects_dir
from hotpatchd.daemon.crate_inputs import conventions_of
from hotpatchd.objfile.objects import BuildObjects, ObjectFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinResult:
    """How a thin rebuild ended.

    Args:
        crates: names of the crates that were compiled, in the order in which they were begun.
        failed: crates whose objects are not those of the newest source: they do not compile, or could not be compiled
            because of one that does not.
        diagnostics: as rustc renders them, crate by crate, dependencies first.
        objects: tip crate → all objects of its program as the source is now; without programs that have a failed crate.
        compile_ms: how long it took.
    """

    crates: tuple[str, ...]
    failed: frozenset[str]
    diagnostics: tuple[str, ...]
    objects: Mapping[str, BuildObjects]
    compile_ms: float

    @property
    def program(self) -> BuildObjects | None:
        """The objects of the program, where there is only one; None where a crate failed."""
        return next(iter(self.objects.values()), None)


class ThinBuilder:
    """The crates of one or more programs as the daemon compiles them, and their newest objects.

    It remembers which crates are not up to date because a build failed or was cancelled: each build compiles them too.

    Args:
        crates: each after those that it depends on.
        compiler: compiles one crate.
        jobs: how many compilers may run at once; None: as many as there are processors.
    """

    def __init__(
        self, crates: Sequence[ThinCrate], compiler: CrateCompiler | None = None, jobs: int | None = None
    ) -> None:
        self.crates = tuple(crates)
        self._by_name = {crate.name: crate for crate in crates}
        self._compiler = compiler or Compiler()
        self._jobs = jobs or os.cpu_count() or 1
        graph = {
            crate.name: tuple(name for name in crate.dependencies if name in self._by_name) for crate in self.crates
        }
        self._schedule = schedule.new_schedule(graph, (crate.name for crate in crates if crate.is_tip))
        self._files: dict[str, Mapping[str, ObjectFile]] = {}
        self._conventions: dict[str, frozenset[tuple[str, str]]] = {}
        self._newest: dict[str, BuildObjects] = {}
        self._in_use: weakref.WeakSet[BuildObjects] = weakref.WeakSet()

    async def build(self, wanted: Collection[str]) -> ThinResult:
        """Compile some crates, those that depend on what changed in them, and what earlier builds left undone.

        What runs when a crate fails is let finish: its errors belong to the same edit, and what it compiled need not be
        compiled again. When the caller is cancelled, all compilers are killed; so they are if one cannot be run.

        Args:
            wanted: names of crates with newer sources.

        Raises:
            BuildError: rustc cannot be run, or was killed.
        """
        start = time.perf_counter()
        self._schedule = schedule.begin(self._schedule, wanted)
        compiled: dict[str, Compiled | None] = {}
        try:
            async with asyncio.TaskGroup() as group:
                self._start_ready(group, compiled)
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        compile_ms = (time.perf_counter() - start) * 1000
        self._delete_unused()
        return ThinResult(
            crates=tuple(compiled),
            failed=schedule.outdated(self._schedule),
            diagnostics=tuple(
                said for crate in self.crates if (done := compiled.get(crate.name)) for said in done.diagnostics
            ),
            objects={tip: await self._objects_of(tip) for tip in schedule.finished_tips(self._schedule)},
            compile_ms=compile_ms,
        )

    def _start_ready(self, group: asyncio.TaskGroup, compiled: dict[str, Compiled | None]) -> None:
        for name in schedule.ready(self._schedule, self._jobs):
            self._schedule = schedule.started(self._schedule, name)
            compiled[name] = None
            group.create_task(self._compile(name, group, compiled))

    async def _compile(self, name: str, group: asyncio.TaskGroup, compiled: dict[str, Compiled | None]) -> None:
        """Compile a crate, and begin with those that waited for it."""

        def take_metadata(digest: bytes) -> None:
            self._schedule = schedule.told(self._schedule, name, digest)
            self._start_ready(group, compiled)

        done = await self._compiler.compile(self._by_name[name], take_metadata)
        compiled[name] = done
        if done.ok:
            self._files[name] = done.objects
            self._conventions[name] = await asyncio.to_thread(conventions_of, self._by_name[name])
            if done.metadata is not None:
                self._schedule = schedule.told(self._schedule, name, done.metadata)
        self._schedule = schedule.ended(self._schedule, name, ok=done.ok)
        self._start_ready(group, compiled)

    async def _objects_of(self, tip: str) -> BuildObjects:
        crates = schedule.crates_of(self._schedule.graph, tip)
        files = {name: file for crate in crates for name, file in self._files[crate].items()}
        conventions = frozenset[tuple[str, str]]().union(*(self._conventions[crate] for crate in crates))
        objects = await asyncio.to_thread(BuildObjects, files, self._newest.get(tip), conventions)
        self._newest[tip] = objects
        self._in_use.add(objects)
        return objects

    def _delete_unused(self) -> None:
        """Delete objects that are neither the newest nor of a build that somebody still holds: it may open them yet."""
        used = {
            file.path.parent
            for files in (*self._files.values(), *(o.files for o in self._in_use))
            for file in files.values()
        }
        for crate in self.crates:
            for place in objects_dir(crate).glob("*"):
                if place not in used:
                    shutil.rmtree(place, ignore_errors=True)
