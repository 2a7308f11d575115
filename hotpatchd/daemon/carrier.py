"""Carrier libraries: what a client gets that can load libraries and nothing else."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.dylibplan import plan_dylib_link
from hotpatchd.core.errors import BuildError
from hotpatchd.core.jumptable import find_main
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.symbols import SymbolTable
from hotpatchd.daemon.linking import run_linker
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.carrier import Carried, Thunk, write_carried
from hotpatchd.objfile.image import Image
from hotpatchd.objfile.machines import Machine
from hotpatchd.objfile.symbols import read_symbols

_BUNDLED = Path(__file__).parents[1] / "_bundled"
_REFERENCE = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A function that is entered by the jump table; run-time addresses.

    Args:
        places: of the program's own code and of the copies that patches brought: whoever looks one up gets the newest.
        before: where its newest code is while the library's image is not in its place.
        after: where it is then.
    """

    places: tuple[int, ...]
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A linked library.

    Args:
        path: of the file.
        size: in bytes.
        symbols: its own; `main` is the reference for all addresses.
        jumps: run-time address in the program → link-time address in the library.
        image: the range of run-time addresses that its image takes once it is loaded.
    """

    path: Path
    size: int
    symbols: SymbolTable
    jumps: dict[int, int]
    image: range


class CarrierLinker:
    """Links carrier libraries for one program.

    Args:
        link_line: the command that linked the program.
        target: target triple of the program.
        rustc: the compiler of the program, with the arguments that choose its target.
        machine: of the program.
        directory: where the code that all carriers share is kept.
    """

    def __init__(
        self, link_line: LinkLine, target: str, rustc: Sequence[str], machine: Machine, directory: Path
    ) -> None:
        self.link_line = link_line
        self.target = target
        self.rustc = tuple(rustc)
        self.machine = machine
        self.directory = directory
        self._loader: Path | None = None
        self._compiling = asyncio.Lock()

    async def link(self, image: Image | None, entries: Sequence[Entry], output: Path, *, page_size: int) -> Carrier:
        """Link one library.

        Args:
            image: what it carries; None for a library that only redirects.
            entries: every function that was ever replaced in the process.
            output: its path.
            page_size: of the process, in bytes.

        Raises:
            BuildError: the compiler or the linker failed.
            ObjectError: the linker did not make the library that it was to make.
        """
        carried = Carried()
        if image is not None:
            carried = Carried(
                payload=image.payload,
                segments=image.segments,
                imports=image.imports,
                eh_frame=image.eh_frame,
                end=image.end,
            )
        thunks = [Thunk(before=entry.before, after=entry.after) for entry in entries]
        written = write_carried(carried, thunks, machine=self.machine, page_size=page_size)
        payload = output.with_suffix(".o")
        await asyncio.to_thread(payload.write_bytes, written)
        loader = await self._loader_object()
        plan = plan_dylib_link(
            self.link_line,
            target=self.target,
            objects=[str(loader), str(payload)],
            output=str(output),
            exports=[_REFERENCE],
        )
        response = output.with_suffix(".args")
        await asyncio.to_thread(response.write_bytes, plan.response_bytes)
        await run_linker([*plan.argv, f"@{response}"], self.link_line, output)
        for temporary in (payload, response):
            temporary.unlink()
        symbols = await asyncio.to_thread(read_symbols, output)
        main_addr = find_main(symbols, str(output))
        jumps = {
            place: main_addr + self.machine.jump_stride * index
            for index, entry in enumerate(entries)
            for place in entry.places
        }
        start = min((segment.addr for segment in carried.segments), default=0)
        return Carrier(
            path=output,
            size=output.stat().st_size,
            symbols=symbols,
            jumps=jumps,
            image=range(start, carried.end),
        )

    async def _loader_object(self) -> Path:
        """The code that puts an image in its place, compiled once, whoever asks at the same time."""
        async with self._compiling:
            if self._loader is None:
                self._loader = await self._compile_loader()
        return self._loader

    async def _compile_loader(self) -> Path:
        bundled = _BUNDLED / "client" / "carrier" / "carrier.rs"
        source = bundled if bundled.exists() else Path(__file__).parents[2] / "client" / "carrier" / "carrier.rs"
        output = self.directory / "carrier.o"
        flags = "--edition=2021 --crate-type=lib --emit=obj -Copt-level=s -Cpanic=abort -Crelocation-model=pic"
        finished = await run_process([*self.rustc, *flags.split(), "-o", str(output), str(source)])
        if finished.status:
            raise BuildError(
                "the code that carrier libraries begin with does not compile",
                output=finished.stderr.decode("utf-8", "replace"),
                hint="is the standard library of the target installed completely?",
            )
        return output
