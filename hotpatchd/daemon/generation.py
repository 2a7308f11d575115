"""What the daemon knows of one full build: programs and their symbols, how crates compile, how patches are made.

A restart makes a new generation; nothing of the old one is used any more.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpatchd.core.capture import Capture, argv_values
from hotpatchd.core.errors import BuildError, HotpatchdError, UsageError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import LinkLine, archives, parse_link_line
from hotpatchd.core.linkplan import Linker, identify_linker
from hotpatchd.core.session import Session
from hotpatchd.core.thinplan import lto_of, opt_level_of, plan_thin_crates
from hotpatchd.daemon.baseline import Snapshot, build_snapshot
from hotpatchd.daemon.cached_compiler import CachingCompiler
from hotpatchd.daemon.carrier import CarrierLinker
from hotpatchd.daemon.compiler import Compiler
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.fatbuild import BuiltProgram, FatBuild
from hotpatchd.daemon.jump_tables import JumpTableClients
from hotpatchd.daemon.library_patcher import LibraryPatcher, choose_linker
from hotpatchd.daemon.linking import LinkCache, linker_version
from hotpatchd.daemon.native_libraries import shared_libraries, static_libraries
from hotpatchd.daemon.object_cache import ObjectCache, digest_of_file
from hotpatchd.daemon.patcher import Patcher
from hotpatchd.daemon.replacing import Origin
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.daemon.tracing import Tracer
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, HostIndex, host_index
from hotpatchd.objfile.library_object import program_build_id
from hotpatchd.objfile.machines import MACHINES
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.padding import Padding
from hotpatchd.objfile.symbols import read_symbols

_DEPENDENCY = "dependency="
_EDITED_EARLY = "file was edited before the first objects were ready; it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A full build, and the sources that it was made from.

    Args:
        fat: what cargo made.
        snapshot: the text of the sources when it ended.
        digests: of the texts of the files whose edit needs a full build, as far as they can be read.
        batches: how many batches of changed files there had been when cargo began.
    """

    fat: FatBuild
    snapshot: Snapshot
    digests: Mapping[str, str]
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTools:
    """What images are made with; programs that take them may also be patched by their own jump tables.

    `linker_version` is what the linker says of itself, by which `linker` is told.
    """

    host: HostIndex
    linker_version: str
    linker: Linker
    carriers: CarrierLinker
    hot_calls: JumpTableClients


class Host:
    """One program of a generation.

    Args:
        program: as it was built.
        link_line: the command that linked it.
        images: what images are made with; None where the program does not take them.
        name: of its tip crate, among all that are compiled.
        kept_executable: another name of its file, which stays when cargo builds another.
        state_dir: the daemon's directory.
    """

    def __init__(
        self,
        program: BuiltProgram,
        link_line: LinkLine,
        images: ImageTools | None,
        *,
        name: str,
        kept_executable: Path,
        state_dir: Path,
    ) -> None:
        self.program = program
        self.build_id = program_build_id(kept_executable)
        self.images = images
        self.name = name
        self._link_line = link_line
        self.kept_executable = kept_executable
        self._state_dir = state_dir
        self._patcher: Patcher | None = None
        self._make_library_patcher: Callable[[Path], Coroutine[Any, Any, LibraryPatcher]] | None = None
        self._library_patcher: asyncio.Task[LibraryPatcher] | None = None

    def executable(self) -> Path:
        """The program's file; another name of it where cargo has put another build in its place since."""
        return self.program.executable if self.newest_build_id() == self.build_id else self.kept_executable

    def newest_build_id(self) -> str | None:
        """The build id of what is at the program's place now; None where that is no program."""
        try:
            return program_build_id(self.program.executable)
        except HotpatchdError:
            return None

    async def take_baseline(
        self, baseline: BuildObjects, crate_names: frozenset[str], cache: ObjectCache, *, links_client: bool
    ) -> None:
        """Make ready what its patches are made with.

        Args:
            baseline: the objects of the source that it was built from.
            crate_names: names of the crates that are compiled; functions of theirs are named in verdicts.
            cache: keeps linked patches.
            links_client: whether the client is linked into it.

        Raises:
            HotpatchdError: its linker or an archive cannot be had.
        """
        images, link_line, tip = self.images, self._link_line, self.program.tip
        native = await static_libraries(link_line) if links_client else ()
        searched = dict.fromkeys(value for crate in self.program.captures for value in argv_values(crate.argv, "-L"))
        archive_set = ArchiveSet(
            (*map(Path, archives(link_line)), *native),
            tuple(Path(value.removeprefix(_DEPENDENCY)) for value in searched if value.startswith(_DEPENDENCY)),
        )
        await asyncio.to_thread(archive_set.warm)
        version = images.linker_version if images else await linker_version(link_line)
        links = LinkCache(cache, host=self.build_id, linker=version)
        if images is not None:
            optimised = any(opt_level_of(capture.argv) != "0" for capture in self.program.captures)
            code = HostCode(self.kept_executable, images.host.header)
            origin = await asyncio.to_thread(
                Origin.of,
                images.host,
                archives=archive_set,
                crate_names=crate_names,
                baseline=baseline,
                host_code=code if optimised else None,
                padding=Padding(images.host, code),
                lto=lto_of(tip.argv),
            )
            self._patcher = Patcher(
                origin=origin,
                libraries=() if links_client else await shared_libraries(link_line),
                link_line=link_line,
                linker=images.linker,
                carriers=images.carriers,
                links=links,
                state_dir=self._state_dir,
            )

        state_dir = self._state_dir

        # It does not know the host, which with its open archives goes when nothing else knows it.
        async def library_patcher(executable: Path) -> LibraryPatcher:
            return LibraryPatcher(
                program=ProgramSymbols(await asyncio.to_thread(read_symbols, executable)),
                archives=archive_set,
                link_line=link_line,
                target=tip.triple,
                linker=await choose_linker(link_line, tip.triple, tip.rustc),
                crate_names=crate_names,
                baseline=baseline,
                links=links,
                state_dir=state_dir,
            )

        self._make_library_patcher = library_patcher
        baseline.forget_units()

    async def patcher_for(self, session: Session) -> Patcher | LibraryPatcher:
        """What makes the patches of a client.

        Raises:
            HotpatchdError: it cannot be had.
        """
        if session.hello.kind == "image":
            if self._patcher is None:
                raise UsageError(f"programs for {session.hello.target} are patched by libraries, not by images")
            return self._patcher
        if self._library_patcher is None:
            assert self._make_library_patcher is not None
            self._library_patcher = asyncio.create_task(self._make_library_patcher(self.executable()))
        try:
            return await asyncio.shield(self._library_patcher)
        except HotpatchdError:
            self._library_patcher = None
            raise


class Generation:
    """One full build, with all programs that it made.

    Args:
        built: the build.
        images: for each program, what images are made with; None where it does not take them.
        state_dir: the daemon's directory.
        links_client: whether the client is linked into the programs.
        ansi: whether diagnostics are coloured.
        tracer: writes down what proc macros read; None where nothing can.
        jobs: how many compilers may run at once.

    Raises:
        HotpatchdError: a captured command cannot be understood, or a program cannot be read.
    """

    def __init__(
        self,
        built: Built,
        images: Sequence[ImageTools | None],
        *,
        state_dir: Path,
        links_client: bool,
        ansi: bool,
        tracer: Tracer | None,
        jobs: int,
    ) -> None:
        fat = self.fat = built.fat
        self.full_build = dict(fat.full_build)
        self._digests = built.digests
        tips = [program.tip for program in fat.programs]
        crates = plan_thin_crates(fat.captures, tips=tips, thin_dir=str(state_dir / "thin"), ansi=ansi)
        self._cache = ObjectCache(state_dir / "cache")
        self.compiler = CachingCompiler(Compiler(tracer=tracer), self._cache, crates, tracer=tracer)
        self.builder = ThinBuilder(crates, self.compiler, jobs)
        self._tracer = tracer
        names = {crate.capture.key: crate.name for crate in self.builder.crates if crate.is_tip}
        kept = _keep(fat.programs, state_dir / "programs")
        self.hosts = tuple(
            Host(
                program,
                link_line_of(program.tip),
                tools,
                name=names[program.tip.key],
                kept_executable=place,
                state_dir=state_dir,
            )
            for program, tools, place in zip(fat.programs, images, kept, strict=True)
        )
        self._snapshot: Snapshot | None = built.snapshot
        self._links_client = links_client
        self._state_dir = state_dir

    @property
    def crate_names(self) -> tuple[str, ...]:
        """The crates that are compiled when they are edited."""
        return tuple(crate.name for crate in self.builder.crates)

    def host(self, build_id: str) -> Host | None:
        """The program with a build id."""
        return next((host for host in self.hosts if host.build_id == build_id), None)

    def harmless(self, files: Iterable[str], variables: frozenset[str]) -> dict[str, str]:
        """Which files that need a full build make no difference to it as they are now → why; reads them.

        Args:
            files: that changed.
            variables: of `BuildInputs`.
        """
        now = digests_of(file for file in files if file in self._digests)
        as_built = [file for file, digest in now.items() if digest == self._digests[file]]
        restored = dict.fromkeys(as_built, "its text is the one that the program was built from")
        return self.fat.inputs.manifests.harmless(files, variables) | restored

    def inputs(self) -> BuildInputs:
        """The files that the programs are made from."""
        return inputs_of(self.builder.crates, self.full_build, tracer=self._tracer)

    async def make_baseline(self, touched: Callable[[], Iterable[str]]) -> Mapping[str, BuildObjects]:
        """The objects of the programs' own source, by host, and whatever patches are made with.

        Args:
            touched: files that were written to since the build began; some may have been read before, some after.

        Raises:
            HotpatchdError: the source does not compile with the arguments of a thin rebuild.
        """
        fat, snapshot = self.fat, self._snapshot
        assert snapshot is not None
        result = await self.builder.build(self.crate_names)
        baseline: Mapping[str, BuildObjects] | None = None if result.failed else result.objects
        written = set(touched())
        for file in fat.inputs.macro_inputs & written:
            self.full_build[file] = _EDITED_EARLY
        edited = await asyncio.to_thread(snapshot.edited)
        edited |= snapshot.texts.keys() & written
        if edited:
            shadow, tips = self._state_dir / "shadow", [program.tip for program in fat.programs]
            as_built = await build_snapshot(fat.captures, tips, snapshot, edited, shadow)
            if as_built is None:
                for file in edited:
                    self.full_build[file] = _EDITED_EARLY
            baseline = as_built or baseline
        self._snapshot = None
        if baseline is None:
            raise BuildError(
                "the program's source does not compile with the arguments of a thin rebuild",
                output="\n".join(result.diagnostics),
            )
        crate_names = frozenset(crate.capture.crate_name for crate in self.builder.crates)
        for host in self.hosts:
            await host.take_baseline(baseline[host.name], crate_names, self._cache, links_client=self._links_client)
        return baseline


async def image_tools(
    program: BuiltProgram,
    state_dir: Path,
    hot_calls: Callable[[HostIndex, CarrierLinker], JumpTableClients],
) -> ImageTools:
    """What images are made with.

    Args:
        program: as it was built.
        state_dir: the daemon's directory.
        hot_calls: makes the list of the programs that use the `subsecond` crate.

    Raises:
        HotpatchdError: the program's symbols cannot be read, or its linker is not known.
    """
    tip, link_line = program.tip, link_line_of(program.tip)
    host = await asyncio.to_thread(host_index, program.linked, state_dir / "hosts")
    carriers = CarrierLinker(link_line, tip.triple, _compiler(tip), MACHINES[host.header.machine], state_dir)
    version = await linker_version(link_line)
    return ImageTools(
        host=host,
        linker_version=version,
        linker=identify_linker(version),
        carriers=carriers,
        hot_calls=hot_calls(host, carriers),
    )


def link_line_of(tip: Capture) -> LinkLine:
    """The command that linked a program.

    Raises:
        HotpatchdError: there is none, or it cannot be understood.
    """
    if tip.link_line is None:
        raise BuildError(f"the capture of {tip.crate_name} has no linker command", hint="build it again")
    return parse_link_line(tip.link_line)


def _compiler(tip: Capture) -> tuple[str, ...]:
    """The compiler of the program, with what makes it compile for the same target."""
    target = ("--target", tip.target) if tip.target else ()
    sysroot = [word for value in argv_values(tip.argv, "--sysroot") for word in ("--sysroot", value)]
    return (tip.rustc, *target, *sysroot[-2:])


def digests_of(files: Iterable[str]) -> dict[str, str]:
    """Digests of the texts of files; those that cannot be read are left out."""
    found = {}
    for file in files:
        try:
            found[file] = digest_of_file(file)
        except OSError:
            continue
    return found


def _keep(programs: Iterable[BuiltProgram], directory: Path) -> list[Path]:
    """Other names for the programs' files, which stay when cargo builds others; those of earlier builds are removed."""
    shutil.rmtree(directory, ignore_errors=True)
    kept = []
    for number, program in enumerate(programs):
        place = directory / str(number) / program.executable.name
        place.parent.mkdir(parents=True)
        try:
            place.hardlink_to(program.linked)
        except OSError:
            shutil.copy2(program.linked, place)
        kept.append(place)
    return kept
