"""From the objects of a build to a patch for one client: plan, link, address.

This module writes the files, and runs the linker. Everything that
depends on the client (its slide, where its region is free, what patches it has) is done anew for each; the objects
are shared.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hotpatchd.core.client import Detour, DylibPatch, Gap, Idle, Patch, ThreadLocalImage
from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import BuildError, HotpatchdError, ObjectError
from hotpatchd.core.events import Functions, Refusal
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import Linker, plan_image_link
from hotpatchd.core.messages import Prepared
from hotpatchd.core.session import LiveSymbols, PatchContent, Session, earlier_copies
from hotpatchd.core.unit import HostSymbol
from hotpatchd.daemon.carrier import Carrier, CarrierLinker, Entry
from hotpatchd.daemon.layout_judge import LayoutJudge
from hotpatchd.daemon.linking import LinkCache
from hotpatchd.daemon.planner import Plan, plan_patch
from hotpatchd.daemon.replacing import Origin
from hotpatchd.daemon.telling import display, is_own, named
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.image import Image, read_image
from hotpatchd.objfile.objects import BuildObjects, KeptObjects
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX, rewrite
from hotpatchd.objfile.stub import write_stub


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What an edit means for one client, and the patch where there is one: with its bytes, or in a carrier library.

    `linked` is what the linker wrote.
    """

    prepared: Prepared
    patch: Patch | DylibPatch | None = None
    linked: Path | None = None
    payload: bytes = b""
    carrier: Carrier | None = None


class Patcher:
    """Makes patches for the clients of one host binary.

    Args:
        origin: that binary.
        libraries: the shared libraries of its link line.
        link_line: the command that linked it.
        linker: which linker that command runs.
        carriers: links carrier libraries, for clients that enter new code by a jump table.
        links: links images.
        state_dir: the daemon's directory.
    """

    def __init__(
        self,
        *,
        origin: Origin,
        libraries: Sequence[Path],
        link_line: LinkLine,
        linker: Linker,
        carriers: CarrierLinker,
        links: LinkCache,
        state_dir: Path,
    ) -> None:
        self.origin = origin
        self.libraries = libraries
        self.link_line = link_line
        self.linker = linker
        self.state_dir = state_dir
        self.carriers = carriers
        self.links = links
        self._judge = LayoutJudge(origin.baseline, KeptObjects(state_dir / "kept"))

    async def prepare(self, session: Session, edit: int, objects: BuildObjects, before: BuildObjects) -> Ready:
        """Make the patch that brings one client up to date.

        Args:
            session: the client.
            edit: number of the edit.
            objects: the newest objects.
            before: the objects of the build before.

        Returns:
            What to send, or why not; nothing is sent here.
        """
        start = time.perf_counter()
        selected = start
        try:
            plan = await asyncio.to_thread(plan_patch, self.origin, self._judge, session, objects, before)
            selected = time.perf_counter()
            moved = self._display(plan.moved)
            if plan.selection.refusals or not plan.selection.replaced:
                return Ready(
                    prepared=Prepared(
                        client=session.client,
                        functions=Functions(moved=moved),
                        refusals=tuple(named(refusal) for refusal in plan.selection.refusals),
                        notes=plan.notes,
                        select_ms=(selected - start) * 1000 - plan.judge_ms,
                        judge_ms=plan.judge_ms,
                    )
                )
            session = replace(session, aliases=plan.aliases)
            image, elf_path = await self._link(session, plan)
            if image.end > session.hello.region.addr + session.hello.region.size:
                full = Refusal(
                    symbol=None,
                    reason="region_full",
                    detail="the address space that the program keeps for patches is used up: restart it",
                )
                return Ready(prepared=Prepared(client=session.client, refusals=(full,)))
            identity = hashlib.sha256(image.payload).hexdigest()
            patch, carrier, names = None, None, {}
            if session.redirect == "jump_table":
                carrier = await self._carry(session, plan, image, elf_path, identity)
                sent_bytes = carrier.size
            else:
                detours = tuple(self._detours(session, plan, image))
                names = {detour.from_addr: demangle(name) for name, detour in detours}
                patch = self._address(session, edit, plan, image, elf_path, detours, identity)
                sent_bytes = len(image.payload)
            content = self._content(session, edit, plan, image, identity)
            self._judge.remember(identity, plan.files, objects)
        except HotpatchdError as error:
            output = error.output if isinstance(error, BuildError) else ""
            return self._failed(session, "link", f"{error}\n{output}".rstrip(), selected - start)
        except OSError as error:
            place = error.filename or self.state_dir
            return self._failed(
                session, "disk", f"the patch cannot be written: {place}: {error.strerror}", selected - start
            )
        return Ready(
            prepared=Prepared(
                client=session.client,
                content=content,
                kind="dylib" if carrier else "image",
                bytes=sent_bytes,
                functions=Functions(
                    patched=self._display(plan.edited),
                    added=self._display(
                        name for name in plan.selection.added if self._is_own(name) and name not in plan.forked
                    ),
                    moved=moved,
                ),
                names=names,
                notes=plan.notes,
                select_ms=(selected - start) * 1000 - plan.judge_ms,
                judge_ms=plan.judge_ms,
                link_ms=(time.perf_counter() - selected) * 1000,
            ),
            patch=patch,
            linked=elf_path,
            payload=image.payload,
            carrier=carrier,
        )

    def _failed(self, session: Session, reason: str, detail: str, seconds: float) -> Ready:
        refusal = Refusal(symbol=None, reason=reason, detail=detail)
        prepared = Prepared(client=session.client, refusals=(refusal,), failed=True, select_ms=seconds * 1000)
        return Ready(prepared=prepared)

    def _is_own(self, symbol: str) -> bool:
        return is_own(symbol, self.origin.crate_names)

    def _display(self, symbols: Iterable[str]) -> tuple[str, ...]:
        return display(symbols, self.origin.crate_names)

    async def _link(self, session: Session, plan: Plan) -> tuple[Image, Path]:
        region = session.hello.region
        slot = (session.next_addr - region.addr) // region.slot_size
        elf_dir = self.state_dir / "patches" / session.hello.instance
        elf_path = elf_dir / f"slot-{slot}.elf"
        inputs = await asyncio.to_thread(self._write_inputs, session, plan)
        elf_dir.mkdir(parents=True, exist_ok=True)
        elf_path.unlink(missing_ok=True)
        command = plan_image_link(
            self.link_line,
            linker=self.linker,
            objects=inputs,
            output=str(elf_path),
            base_addr=session.next_addr,
            page_size=session.hello.page_size,
            keep=[name + NEW_CODE_SUFFIX for name in plan.selection.replaced],
        )
        response = elf_dir / "link.args"
        response.write_text(command.response, "utf-8", "surrogateescape")
        await self.links.run(command.argv, response, self.link_line, elf_path, [Path(path) for path in inputs])
        image = read_image(elf_path, page_size=session.hello.page_size)
        for covered in range(slot + 1, (image.end - 1 - region.addr) // region.slot_size + 1):
            alias = elf_dir / f"slot-{covered}.elf"
            alias.unlink(missing_ok=True)
            alias.hardlink_to(elf_path)
        return image, elf_path

    def _write_inputs(self, session: Session, plan: Plan) -> list[str]:
        selection = plan.selection
        of_library = plan.of_library
        directory = self.state_dir / "link" / session.hello.instance
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, kept in enumerate(selection.units):
            assert isinstance(kept.unit, CodeUnit)
            path = directory / f"{number}.o"
            path.write_bytes(
                rewrite(
                    kept.unit,
                    sections=kept.sections,
                    host_sections=kept.host_sections,
                    host_names=selection.host_names,
                    replaced=frozenset(name for name, unit in plan.definers.items() if unit is kept.unit),
                    imports=selection.imports,
                    weak_imports=selection.weak_imports,
                    of_library=frozenset(of_library.offsets if of_library else ()),
                )
            )
            paths.append(str(path))
        live = LiveSymbols(self.origin.host, {**session.symbols, **plan.renamed}, aliases=plan.aliases)
        absolute = {}
        thread_locals = {name: offset for name, (offset, _) in plan.thread_locals.items()}
        for name in selection.host_names - thread_locals.keys():
            found = live.find(name)
            assert found is not None
            if found.kind == "tls":
                thread_locals[name] = found.addr
            else:
                absolute[name] = found.addr + session.hello.slide
        stub = directory / "stub.o"
        stub.write_bytes(
            write_stub(
                absolute=absolute,
                thread_locals=thread_locals,
                imports=selection.imports,
                weak_imports=selection.weak_imports,
                of_library=of_library,
                machine=self.origin.machine,
            )
        )
        return [*paths, str(stub)]

    def _detours(self, session: Session, plan: Plan, image: Image) -> Iterator[tuple[str, Detour]]:
        seen = set()
        for name in plan.jumps:
            new_code = _new_code(image, name)
            for addr, size in self.origin.places(session, name):
                # Folded functions that still agree (`_folded`) share their one detour.
                if addr in seen:
                    continue
                seen.add(addr)
                room, padding = self._room(session, addr, size)
                from_addr = addr + session.hello.slide
                yield name, Detour(from_addr=from_addr, to_addr=new_code.addr, size=size, room=room, padding=padding)

    def _room(self, session: Session, addr: int, size: int) -> tuple[int | None, tuple[Gap, ...]]:
        """What a detour of the function at a link-time address may use: see `Detour`."""
        slide = session.hello.slide
        if not session.hello.short_jumps or not self.origin.host.function_names_at(addr):
            return None, ()
        room = self.origin.room(addr, size)
        padding = tuple(replace(gap, addr=gap.addr + slide) for gap in self.origin.padding.near(addr))
        return room if room < self.origin.machine.detour_size else None, padding

    async def _carry(self, session: Session, plan: Plan, image: Image, elf_path: Path, identity: str) -> Carrier:
        """Link the library for a client that enters new code by a jump table, which covers all patches so far."""
        slide = session.hello.slide
        entries = []
        for name in sorted({*session.copies, *plan.selection.replaced}):
            earlier = tuple(addr + slide for addr in earlier_copies(session, name))
            places = (*(addr + slide for addr, _ in self.origin.host.functions(name)), *earlier)
            newest = _new_code(image, name).addr if name in plan.selection.replaced else earlier[-1]
            entries.append(Entry(places=places, before=(earlier or places)[-1], after=newest))
        # A loader takes a library with a name that it knows for the one it has.
        library = elf_path.with_name(f"libpatch-{session.hello.instance}-{identity[:16]}.so")
        return await self.carriers.link(image, entries, library, page_size=session.hello.page_size)

    def _address(
        self,
        session: Session,
        edit: int,
        plan: Plan,
        image: Image,
        elf_path: Path,
        detours: tuple[tuple[str, Detour], ...],
        identity: str,
    ) -> Patch:
        return Patch(
            patch=identity,
            edit=edit,
            build_id=session.hello.build_id,
            size=len(image.payload),
            segments=image.segments,
            imports=image.imports,
            libraries=tuple(map(str, self.libraries)) if image.imports else (),
            eh_frame=image.eh_frame,
            detours=tuple(detour for _, detour in detours),
            thread_locals=tuple(
                ThreadLocalImage(offset=offset, data=new.image.hex())
                for offset, new in plan.thread_locals.values()
                if new.image
            ),
            elf=str(elf_path),
            idle=tuple(
                Idle(
                    from_addr=addr + session.hello.slide, size=size, symbol=refusal.symbol or "", detail=refusal.detail
                )
                for name, refusal in plan.idle.items()
                for addr, size in self.origin.places(session, name)
            ),
        )

    def _content(self, session: Session, edit: int, plan: Plan, image: Image, identity: str) -> PatchContent:
        slide = session.hello.slide
        live = LiveSymbols(self.origin.host, session.symbols, plan.forked, plan.aliases)
        defined = {name: found._replace(addr=found.addr - slide) for name, found in image.symbols.items()}
        copies = {}
        if session.redirect == "jump_table":
            copies = {name: defined[name + NEW_CODE_SUFFIX] for name in plan.selection.replaced}
        return PatchContent(
            patch=identity,
            edit=edit,
            functions=plan.functions,
            symbols={
                name: found
                for name, found in defined.items()
                if live.find(name) is None and not name.endswith(NEW_CODE_SUFFIX)
            }
            | {name: HostSymbol(offset, new.size, "tls", 1) for name, (offset, new) in plan.thread_locals.items()}
            | dict(plan.renamed),
            thread_locals=plan.thread_locals_end,
            copies=copies,
            forked=plan.forked,
            gone=plan.gone,
            aliases=plan.aliases,
            left=plan.left,
        )


def _new_code(image: Image, name: str) -> HostSymbol:
    new_code = image.symbols.get(name + NEW_CODE_SUFFIX)
    if new_code is None:
        raise ObjectError(f"the linked patch does not define {demangle(name)}, which it is to replace")
    return new_code
