"""What the daemon knows of one full build of a program: its symbols, how its crates compile, how its patches are made.

A restart makes a new generation; nothing of the old one is used any more.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpatchd.core.capture import Capture, argv_values
from hotpatchd.core.errors import BuildError, HotpatchdError, UsageError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import LinkLine, archives, parse_link_line
from hotpatchd.core.linkplan import Linker
from hotpatchd.core.session import Session
from hotpatchd.core.thinplan import opt_level_of, plan_thin_crates
from hotpatchd.daemon.baseline import Snapshot, build_snapshot
from hotpatchd.daemon.carrier import CarrierLinker
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.fatbuild import FatBuild
from hotpatchd.daemon.jump_tables import JumpTableClients
from hotpatchd.daemon.library_patcher import LibraryPatcher, choose_linker
from hotpatchd.daemon.linking import identify
from hotpatchd.daemon.native_libraries import static_libraries
from hotpatchd.daemon.patcher import Patcher
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, HostIndex, host_index
from hotpatchd.objfile.library_object import program_build_id
from hotpatchd.objfile.machines import MACHINES
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.symbols import read_symbols


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A full build, and the sources that it was made from.

    Args:
        fat: what cargo made.
        snapshot: the text of the sources when it ended.
        full_build: files whose edit needs a full build, with what they are.
        batches: how many batches of changed files there had been when cargo began.
    """

    fat: FatBuild
    snapshot: Snapshot
    full_build: dict[str, str]
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTools:
    """What images are made with; programs that take them may also be patched by their own jump tables."""

    host: HostIndex
    linker: Linker
    carriers: CarrierLinker
    hot_calls: JumpTableClients


class Generation:
    """One full build of the program.

    Args:
        built: the build.
        link_line: the command that linked the program.
        images: what images are made with; None where the program does not take them.
        state_dir: the daemon's directory.
        links_client: whether the client is linked into the program.
        ansi: whether diagnostics are coloured.
    """

    def __init__(
        self,
        built: Built,
        link_line: LinkLine,
        images: ImageTools | None,
        *,
        state_dir: Path,
        links_client: bool,
        ansi: bool,
    ) -> None:
        self.fat = built.fat
        self.build_id = program_build_id(built.fat.executable)
        self.images = images
        self.full_build = dict(built.full_build)
        self.kept_executable = _keep(built.fat.executable, state_dir / "programs", self.build_id)
        self.builder = ThinBuilder(plan_thin_crates(built.fat.captures, thin_dir=str(state_dir / "thin"), ansi=ansi))
        self._snapshot: Snapshot | None = built.snapshot
        self._link_line = link_line
        self._links_client = links_client
        self._state_dir = state_dir
        self._patcher: Patcher | None = None
        self._make_library_patcher: Callable[[], Coroutine[Any, Any, LibraryPatcher]] | None = None
        self._library_patcher: asyncio.Task[LibraryPatcher] | None = None

    @property
    def crate_names(self) -> tuple[str, ...]:
        """The crates that are compiled when they are edited."""
        return tuple(crate.name for crate in self.builder.crates)

    def executable(self) -> Path:
        """The program's file; a copy where cargo has put another build in its place since."""
        return self.fat.executable if self.newest_build_id() == self.build_id else self.kept_executable

    def newest_build_id(self) -> str | None:
        """The build id of what is at the program's place now; None where that is no program."""
        try:
            return program_build_id(self.fat.executable)
        except HotpatchdError:
            return None

    def inputs(self) -> BuildInputs:
        """The files that the program is made from."""
        return inputs_of(self.builder.crates, self.full_build)

    async def make_baseline(self, touched: Callable[[], Iterable[str]]) -> BuildObjects:
        """The objects of the program's own source, and whatever patches are made with.

        Args:
            touched: files that were written to since the build began; some may have been read before, some after.

        Raises:
            HotpatchdError: the source does not compile with the arguments of a thin rebuild, or the link line is none.
        """
        fat, snapshot = self.fat, self._snapshot
        assert snapshot is not None
        result = await self.builder.build(frozenset(self.crate_names))
        baseline = result.program
        edited = await asyncio.to_thread(snapshot.edited)
        edited |= snapshot.texts.keys() & set(touched())
        if edited:
            shadow = self._state_dir / "shadow"
            baseline = await build_snapshot(fat.captures, snapshot, edited, shadow) or baseline
            if baseline is result.program:
                for file in edited:
                    self.full_build[file] = "file was edited before the first objects were ready; it"
        self._snapshot = None
        if baseline is None:
            raise BuildError(
                "the program's source does not compile with the arguments of a thin rebuild",
                output="\n".join(result.diagnostics),
            )
        await self._ready_patchers(baseline)
        baseline.forget_units()
        return baseline

    async def _ready_patchers(self, baseline: BuildObjects) -> None:
        fat, images, link_line = self.fat, self.images, self._link_line
        native = await static_libraries(link_line) if self._links_client else ()
        archive_set = ArchiveSet((*map(Path, archives(link_line)), *native))
        await asyncio.to_thread(archive_set.warm)
        crate_names = frozenset(crate.capture.crate_name for crate in self.builder.crates)
        if images is not None:
            optimised = any(opt_level_of(capture.argv) != "0" for capture in fat.captures)
            self._patcher = Patcher(
                host=images.host,
                archives=archive_set,
                link_line=link_line,
                linker=images.linker,
                crate_names=crate_names,
                baseline=baseline,
                host_code=HostCode(self.kept_executable, images.host.header) if optimised else None,
                carriers=images.carriers,
                state_dir=self._state_dir,
            )

        async def library_patcher() -> LibraryPatcher:
            return LibraryPatcher(
                program=ProgramSymbols(await asyncio.to_thread(read_symbols, self.executable())),
                archives=archive_set,
                link_line=link_line,
                target=fat.tip.triple,
                linker=await choose_linker(link_line, fat.tip.triple, fat.tip.rustc),
                crate_names=crate_names,
                baseline=baseline,
                state_dir=self._state_dir,
            )

        self._make_library_patcher = library_patcher

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
            self._library_patcher = asyncio.create_task(self._make_library_patcher())
        try:
            return await asyncio.shield(self._library_patcher)
        except HotpatchdError:
            self._library_patcher = None
            raise


async def image_tools(
    fat: FatBuild,
    link_line: LinkLine,
    state_dir: Path,
    hot_calls: Callable[[HostIndex, CarrierLinker], JumpTableClients],
) -> ImageTools:
    """What images are made with.

    Args:
        fat: the full build.
        link_line: the command that linked the program.
        state_dir: the daemon's directory.
        hot_calls: makes the list of the programs that use the `subsecond` crate.

    Raises:
        HotpatchdError: the program's symbols cannot be read, or its linker is not known.
    """
    host = await asyncio.to_thread(host_index, fat.executable, state_dir / "hosts")
    carriers = CarrierLinker(link_line, fat.tip.triple, _compiler(fat.tip), MACHINES[host.header.machine], state_dir)
    linker = await identify(link_line)
    return ImageTools(host=host, linker=linker, carriers=carriers, hot_calls=hot_calls(host, carriers))


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


def _keep(executable: Path, directory: Path, build_id: str) -> Path:
    """Another name for the program's file, which stays when cargo builds another; earlier ones are removed."""
    shutil.rmtree(directory, ignore_errors=True)
    place = directory / build_id / executable.name
    place.parent.mkdir(parents=True)
    try:
        place.hardlink_to(executable)
    except OSError:
        shutil.copy2(executable, place)
    return place
