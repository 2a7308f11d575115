"""Compiling crates with a cache: what was compiled before from the same text is not compiled again."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from hotpatchd.core.cache_key import command_files, command_key, digest_of, other_places, result_key
from hotpatchd.core.depinfo import parse_dep_info
from hotpatchd.core.errors import CaptureError
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.core.trace import Trace
from hotpatchd.daemon import logs
from hotpatchd.daemon.compiler import Compiled, CrateCompiler, objects_dir
from hotpatchd.daemon.object_cache import Entry, ObjectCache
from hotpatchd.daemon.tracing import Tracer
from hotpatchd.objfile.objects import object_file

_log = structlog.get_logger()

_METADATA = "metadata"
# Separates paths, which have none.
_SEPARATOR = "\0"

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a compile beside its files."""

    diagnostics: tuple[str, ...]
    dep_info: bytes
    trace: bytes
    metadata: bytes | None


_Stamps = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """How things stood when a compile began.

    Args:
        command: its key.
        clock_ns: the time by the clock of the cache's file system.
        device: that file system.
        stamps: of the files that are known to have been read earlier; None for those that were not there.
    """

    command: str
    clock_ns: int
    device: int
    stamps: Mapping[str, _Stamps | None]


class CachingCompiler:
    """A `CrateCompiler` that asks a cache first.

    A crate that comes from the cache has the objects, metadata, dep-info and diagnostics of the compile that made them;
    the objects are hard links of that compile's files. The incremental cache is not touched: the next compile starts
    from whatever state was compiled last, which is right from any.

    What rustc made is stored after it was handed over. A compile is stored only if nothing that it read changed from
    its beginning until then. Sources on a file system that keeps time by a clock of its own are asked twice for their
    time stamps, so that a compile is stored only if its files are known from one before. Nor is it stored if it is not
    known what it read: the crate uses proc macros, and they were not traced, or they ran programs that cannot be.

    Args:
        inner: compiles what is not in the cache.
        cache: may be shared.
        crates: all that will be compiled, to know whose metadata a crate reads.
        tracer: that the compiles of `inner` are traced with; None if they are not.
    """

    def __init__(
        self,
        inner: CrateCompiler,
        cache: ObjectCache,
        crates: Iterable[ThinCrate],
        tracer: Tracer | None = None,
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._crates = {crate.name: crate for crate in crates}
        self._tracer = tracer
        self._stores: dict[str, asyncio.Task[None]] = {}

    async def compile(self, crate: ThinCrate, on_metadata: Callable[[bytes], None] | None = None) -> Compiled:
        """Compile a crate, or take it from the cache; see `CrateCompiler`.

        Raises:
            BuildError: it is not in the cache, and could not be tried.
        """
        if storing := self._stores.get(crate.name):
            # It still reads what the next compile overwrites.
            await asyncio.wait({storing})
        start = await _to_its_end(self._begin, crate)
        if start is None:
            return await self._inner.compile(crate, on_metadata)
        found = await _to_its_end(self._restore, crate, start.command)
        if found is not None:
            if on_metadata and found.metadata is not None:
                on_metadata(found.metadata)
            return found
        done = await self._inner.compile(crate, on_metadata)
        if done.ok:
            self._stores[crate.name] = asyncio.create_task(asyncio.to_thread(self._store, crate, start, done))
        return done

    async def close(self) -> None:
        """Wait until everything is stored."""
        if self._stores:
            await asyncio.wait(self._stores.values())

    def _begin(self, crate: ThinCrate) -> _Start | None:
        """None where the cache cannot be used."""
        try:
            clock_ns = self._cache.clock_ns()
            command = self._command(crate)
            known = {path for text in self._cache.recall(command) for path in text.split(_SEPARATOR)}
            return _Start(
                command=command,
                clock_ns=clock_ns,
                device=self._cache.device(),
                stamps={path: _stamps(path) for path in known},
            )
        except OSError as error:
            _log.warning(logs.CACHE_UNUSABLE, crate=crate.name, error=str(error))
            return None

    def _command(self, crate: ThinCrate) -> str:
        rebuilt = {dependency.metadata: dependency for dependency in self._dependencies(crate) if dependency.metadata}
        files = {path: self._cache.digests.of_immutable(Path(path)) for path in rebuilt}
        files |= {path: _digest_of_stamps(path) for path in command_files(crate) if path not in rebuilt}
        return command_key(crate, files)

    def _dependencies(self, crate: ThinCrate) -> Iterator[ThinCrate]:
        """All that a crate depends on, directly or by way of others: rustc reads the metadata of all of them."""
        waiting = [*crate.dependencies]
        seen = set()
        while waiting:
            name = waiting.pop()
            if name not in seen and name in self._crates:
                seen.add(name)
                yield self._crates[name]
                waiting += self._crates[name].dependencies

    def _restore(self, crate: ThinCrate, command: str) -> Compiled | None:
        """Take a crate from the cache, as its sources are now."""
        try:
            now_ns = self._cache.clock_ns()
            for text in self._cache.recall(command):
                key = result_key(command, self._digests(text.split(_SEPARATOR), now_ns))
                entry = self._cache.load(key)
                if entry is None:
                    continue
                if (taken := self._take_out(crate, entry)) is not None:
                    self._cache.remember(command, text)
                    return taken
                self._cache.drop(key)
        except OSError as error:
            _log.warning(logs.CACHE_RESTORE_FAILED, crate=crate.name, error=str(error))
        return None

    def _take_out(self, crate: ThinCrate, entry: Entry) -> Compiled | None:
        objects = objects_dir(crate)
        for directory in (objects, Path(crate.out_dir)):
            directory.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="cached-", dir=objects))
        paths = {name: _place_of(crate, place, name) for name in entry.files}
        if not all(self._cache.take_out(digest, paths[name]) for name, digest in entry.files.items()):
            return None
        note = msgspec.json.decode(entry.note, type=_Note)
        # rustc truncates it: it must be a file of its own.
        dep_info = _dep_info(crate)
        dep_info.unlink(missing_ok=True)
        dep_info.write_bytes(note.dep_info)
        if self._tracer:
            self._tracer.recall(crate, note.trace)
        paths.pop(_METADATA, None)
        is_optimised = crate.is_optimised
        return Compiled(
            ok=True,
            diagnostics=note.diagnostics,
            objects={name: object_file(path, is_optimised=is_optimised) for name, path in paths.items()},
            metadata=note.metadata,
        )

    def _store(self, crate: ThinCrate, start: _Start, done: Compiled) -> None:
        try:
            trace, record = Trace(), b""
            if self._tracer:
                trace, record = self._tracer.trace_of(crate), self._tracer.record_of(crate)
            # A trace that is empty is none: rustc itself opens the crate's sources.
            if trace.untraced or trace.written or not (record or _reads_what_is_listed(crate)):
                return
            dep_info = _dep_info(crate).read_bytes()
            listed = parse_dep_info(dep_info.decode("utf-8", "surrogateescape")).files
            files = {os.path.normpath(os.path.join(crate.capture.cwd, file)) for file in listed}
            inputs = sorted(files.union(other_places(files), trace.paths))
            digests = self._digests(inputs, self._cache.clock_ns())
            # Also where it is not stored: the next compile can ask for these files' time stamps before it begins.
            self._cache.remember(start.command, _SEPARATOR.join(inputs))
            if self._command(crate) != start.command or not all(_is_unchanged(path, start) for path in inputs):
                return
            note = _Note(diagnostics=done.diagnostics, dep_info=dep_info, trace=record, metadata=done.metadata)
            outputs = {name: file.path for name, file in done.objects.items()}
            if crate.metadata:
                outputs[_METADATA] = Path(crate.metadata)
            self._cache.store(result_key(start.command, digests), outputs, msgspec.json.encode(note).decode())
            self._cache.remember(start.command, _SEPARATOR.join(inputs))
        except (OSError, CaptureError) as error:
            _log.warning(logs.CACHE_STORE_FAILED, crate=crate.name, error=str(error))

    def _digests(self, paths: Sequence[str], now_ns: int) -> dict[str, str]:
        return {path: self._cache.digests.of_source(path, now_ns) for path in paths}


async def _to_its_end(function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
    """Run something in a thread. A caller that is cancelled waits for it, so that it writes nothing later."""
    running = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _reads_what_is_listed(crate: ThinCrate) -> bool:
    """Whether dep-info lists all that a compile reads: a proc macro, which is a shared library, may read anything."""
    return all(path.endswith((".rlib", ".rmeta", ".json")) for path in command_files(crate))


def _place_of(crate: ThinCrate, place: Path, name: str) -> Path:
    if name == _METADATA and crate.metadata:
        return Path(crate.metadata)
    return place / f"{name.rpartition('/')[2]}.o"


def _dep_info(crate: ThinCrate) -> Path:
    return Path(crate.out_dir, f"{crate.capture.crate_name}{crate.capture.extra_filename}.d")


def _stamps(path: str) -> _Stamps | None:
    """What changes when a file is written or another one takes its place."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _digest_of_stamps(path: str) -> str:
    """Identity of a file that is not read: cargo writes libraries anew instead of changing them."""
    found = _stamps(path)
    return "absent" if found is None else digest_of(*(str(stamp) for stamp in found[2:4]))


def _is_unchanged(path: str, start: _Start) -> bool:
    """Whether it is certain that a file, or its absence, is as it was when a compile began."""
    now = _stamps(path)
    if start.stamps.get(path, now) != now:
        return False
    there = path
    while now is None:
        # Had it been there, the directory would have changed when it went.
        there = os.path.dirname(there)
        now = _stamps(there)
    device, changed_ns = now[0], now[-1]
    return changed_ns < start.clock_ns if device == start.device else path in start.stamps
