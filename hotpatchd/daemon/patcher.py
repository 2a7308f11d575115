"""From the objects of a build to a patch for one client: compare, select, link, address.

Comparing and selecting is the core's; this module reads and writes the files, and runs the linker. Everything that
depends on the client (its slide, where its region is free, what patches it has) is done anew for each; the objects
are shared.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from graphlib import CycleError
from pathlib import Path

from hotpatchd.core.callers import find_leading
from hotpatchd.core.client import Detour, DylibPatch, Idle, Patch, ThreadLocalImage
from hotpatchd.core.compare import (
    find_changed_constants,
    find_differences,
)
from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import BuildError, HotpatchdError, ObjectError
from hotpatchd.core.events import Functions, Note, Refusal
from hotpatchd.core.forks import Forks, OldValues, find_forks, is_new_again, note_old_code
from hotpatchd.core.inlining import find_merged, find_stale_callers, in_order_of_jumps
from hotpatchd.core.layout import Judgement
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import Linker, plan_image_link
from hotpatchd.core.messages import Prepared
from hotpatchd.core.select import Selection, select
from hotpatchd.core.session import LiveSymbols, PatchContent, Session, earlier_copies
from hotpatchd.core.unit import Fingerprint, Host, HostSymbol, NewThreadLocal, Unit, is_rust_name
from hotpatchd.daemon.carrier import Carrier, CarrierLinker, Entry
from hotpatchd.daemon.layout_judge import (
    Comparison,
    FilesByName,
    FunctionsOf,
    LayoutJudge,
    compare_closures,
    compare_names,
    find_reached,
)
from hotpatchd.daemon.linking import LinkCache
from hotpatchd.daemon.statics import fresh_notes, match_statics, refuse_statics
from hotpatchd.daemon.telling import absence_notes, display, edit_notes, hot_call_notes, is_own, named
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.host_index import HostCode, HostIndex
from hotpatchd.objfile.image import Image, read_image
from hotpatchd.objfile.machines import MACHINES
from hotpatchd.objfile.objects import BuildObjects, KeptObjects
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX, find_unreachable, rewrite
from hotpatchd.objfile.stub import ModuleThreadLocals, write_stub

_NO_ROOM = "it is new, and only the native client has room for it in threads that run already; restart"
_NO_ROOM_LEFT = "it is new, and the room that the client keeps for such in every thread is used up; restart"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One patch between selecting and linking."""

    selection: Selection
    jumps: tuple[str, ...]
    edited: tuple[str, ...]
    definers: Mapping[str, Unit]
    functions: Mapping[str, Fingerprint]
    moved: tuple[str, ...]
    notes: tuple[Note, ...]
    thread_locals: Mapping[str, tuple[int, NewThreadLocal]]
    thread_locals_end: int
    of_library: ModuleThreadLocals | None
    files: FilesByName
    renamed: Mapping[str, HostSymbol]
    forked: frozenset[str]
    gone: frozenset[str]
    aliases: Mapping[str, str]
    idle: Mapping[str, Refusal]
    judge_ms: float


class Patcher:
    """Makes patches for the clients of one host binary.

    Args:
        host: its symbols.
        archives: the archives of its link line.
        libraries: the shared libraries of its link line.
        link_line: the command that linked it.
        linker: which linker that command runs.
        crate_names: names of the crates that the daemon compiles; functions of theirs are named in verdicts.
        baseline: the objects of the source that the host was built from.
        host_code: the host's machine code, where it was built with optimisation and so has functions inlined into
            others; None where it was not.
        lto: `fat` or `thin`, where its crates were optimised together.
        carriers: links carrier libraries, for clients that enter new code by a jump table.
        links: links images.
        state_dir: the daemon's directory.
    """

    def __init__(
        self,
        *,
        host: HostIndex,
        archives: ArchiveSet,
        libraries: Sequence[Path],
        link_line: LinkLine,
        linker: Linker,
        crate_names: frozenset[str],
        baseline: BuildObjects,
        host_code: HostCode | None,
        lto: str | None = None,
        carriers: CarrierLinker,
        links: LinkCache,
        state_dir: Path,
    ) -> None:
        self.host = host.without_private(host_code.addresses_taken()) if host_code else host
        self.machine = MACHINES[host.header.machine]
        self.archives = archives
        self.libraries = libraries
        self.link_line = link_line
        self.linker = linker
        self.crate_names = crate_names
        self.baseline = baseline
        self.state_dir = state_dir
        self.host_code = host_code
        self.lto = lto
        self.carriers = carriers
        self.links = links
        self._baseline_state = baseline.state_names() if host_code else frozenset()
        self._judge = LayoutJudge(baseline, KeptObjects(state_dir / "kept"))

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
            plan = await asyncio.to_thread(self._plan, session, objects, before)
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
        return is_own(symbol, self.crate_names)

    def _display(self, symbols: Iterable[str]) -> tuple[str, ...]:
        return display(symbols, self.crate_names)

    def _plan(self, session: Session, objects: BuildObjects, before: BuildObjects) -> _Plan:
        started = time.perf_counter()
        files = self._judge.files(objects)
        compared = self._judge.compare(session, files, objects)
        old = OldValues()
        if session.redirect == "detours":
            old = compare_closures(compared, self.crate_names)
            session = replace(session, aliases=self._aliases(session, compared, old, objects))
        judge_ms = (time.perf_counter() - started) * 1000
        live = LiveSymbols(self.host, session.symbols, aliases=session.aliases)

        def running(name: str) -> Fingerprint | None:
            known = session.aliases.get(name, name)
            return session.running.get(known) or self.baseline.fingerprint(known)

        candidates = {unit.name: unit for unit in objects.changed_since(self.baseline)}
        candidates |= {unit.name: unit for unit in objects.units_defining({*session.running, *session.aliases})}
        differences = find_differences(candidates.values(), running, live)
        constants = find_changed_constants(candidates.values(), running)
        started = time.perf_counter()
        is_optimised = self.host_code is not None
        statics = match_statics(session, compared, objects, live, is_optimised=is_optimised)
        symbols = {**session.symbols, **statics.renamed}
        live = LiveSymbols(self.host, symbols, aliases=session.aliases)
        judge_ms += (time.perf_counter() - started) * 1000
        types = FunctionsOf(compared, objects)
        # While the source did not have a function, what it refers to may have been forked.
        again = {name for name in session.gone - session.aliases.keys() if objects.get(name)}
        changed = {*differences.changed, *differences.absent, *constants, *again, *find_reached(old, objects)}
        forks = self._forks(session, changed, objects, old, types)
        merged = find_merged(forks.replaced, lambda name: self._led_to(session, name, objects, forks.forked))
        roots = edited = tuple(merged)
        if session.redirect == "jump_table":
            roots = with_leading(roots, differences.absent, objects, live)
        selection = select(
            roots=roots,
            definitions=objects,
            host=LiveSymbols(self.host, symbols, forks.forked, session.aliases),
            archives=self.archives,
            baseline_state=self._baseline_state,
            redirect=session.redirect,
            shares_constants=True,
        )
        places, places_end = _place_thread_locals(session, selection.thread_locals)
        of_library = self._of_library(session, selection)
        started = time.perf_counter()
        judgement = (
            self._judge.judge(session, compared, objects, live, self.crate_names, old)
            if selection.replaced
            else Judgement()
        )
        static_refusals = tuple(refuse_statics(statics, selection, compared))
        judge_ms += (time.perf_counter() - started) * 1000
        refusals = [
            *judgement.refusals,
            *map(self._explained, selection.refusals),
            *(self._too_short(session, roots) if session.redirect == "detours" else ()),
            *self._folded(session, (name for name in differences.changed if name not in forks.forked), objects),
            *_circular(merged),
            *_unreachable(selection, of_library),
            *_other_signatures(differences.changed, types),
            *static_refusals,
        ]
        functions = defined_functions(selection)
        brought = functions | defined_constants(selection)
        forked = frozenset(brought.keys() & forks.forked)
        notes = edit_notes(objects, before, live, statics.successors.kept, forked)
        notes += fresh_notes(selection, objects, before)
        # In an optimised program, a function without a symbol may be part of one that is replaced.
        if self.host_code is None or not edited:
            notes += absence_notes(filter(self._is_own, differences.absent), objects, before)
        if session.redirect == "jump_table":
            notes += hot_call_notes(edited, roots)
        if old.closures and not refusals:
            notes += note_old_code(old, compared.uses_before())
        if places_end > session.hello.thread_locals.size:
            refusals.append(
                Refusal(
                    symbol=selection.thread_locals[0].name,
                    reason="new_thread_local",
                    detail=_NO_ROOM_LEFT if session.hello.thread_locals.size else _NO_ROOM,
                )
            )
        return _Plan(
            thread_locals=places,
            thread_locals_end=places_end,
            of_library=of_library,
            files=files,
            renamed={name: place for name, place in statics.renamed.items() if name in selection.host_names},
            forked=forked,
            # Code that the optimiser put into its callers only has no place of its own.
            gone=self._gone(session, files, objects) | (forks.forked - forked),
            aliases={
                name: known for name, known in session.aliases.items() if name not in forks.forked and known != name
            },
            idle=judgement.idle,
            judge_ms=judge_ms,
            selection=replace(selection, refusals=tuple(refusals)),
            jumps=() if refusals else in_order_of_jumps(merged),
            edited=tuple(sorted({*edited, *(forked & functions.keys() & set(differences.changed))})),
            definers={name: definer for name in roots if (definer := objects.get(name))},
            functions={
                name if name in forked else session.aliases.get(name, name): code for name, code in brought.items()
            },
            moved=differences.moved,
            notes=tuple(notes),
        )

    def _aliases(self, session: Session, compared: Comparison, old: OldValues, objects: BuildObjects) -> dict[str, str]:
        """Functions, as the newest objects call them → as the program knows them."""
        live = LiveSymbols(self.host, session.symbols, aliases=session.aliases)

        def was(name: str) -> bool:
            return name in session.aliases or (live.find(name) is not None and name not in session.gone)

        renamed = compare_names(compared, old, objects, self.crate_names, was)
        kept = {name: known for name, known in session.aliases.items() if objects.get(name)}
        return kept | {name: session.aliases.get(earlier, earlier) for name, earlier in renamed.items()}

    def _forks(
        self,
        session: Session,
        changed: Iterable[str],
        objects: BuildObjects,
        old: OldValues,
        types: FunctionsOf,
    ) -> Forks:
        """What to replace, and what to bring beside the program's own."""
        gone = session.gone - session.aliases.keys()

        @cache
        def is_forked(name: str) -> bool:
            if objects.kind(name) == "constant":
                return True
            if session.redirect == "jump_table":
                return False
            if is_rust_name(name) and types.has_other_signature(name):
                return True
            if not old.closures and name not in gone:
                return False
            return any(old.reach(found) or is_new_again(name, found, gone) for found in types.of(name))

        def users(name: str) -> Iterator[str]:
            yield from objects.users(name)
            yield from (holder for holder in objects.holders(name) if objects.kind(holder) == "constant")

        return find_forks(
            changed,
            is_forked=is_forked,
            users=users,
            is_live=lambda name: objects.kind(name) == "constant" or bool(self._places(session, name)),
            stale=lambda changed: self._stale_callers(session, changed, objects),
        )

    def _stale_callers(self, session: Session, changed: Iterable[str], objects: BuildObjects) -> tuple[str, ...]:
        """Functions of an optimised program that may hold old code of changed ones."""
        code = self.host_code
        if code is None:
            return ()

        def references(caller: str, callee: str) -> int | None:
            places = self.host.functions(session.aliases.get(caller, caller))
            if not places or objects.get(caller) is not objects.get(callee):
                return None
            targets = [addr for addr, _ in self.host.functions(session.aliases.get(callee, callee))]
            return min(sum(code.count_references(addr, size, to) for to in targets) for addr, size in places)

        def is_replaced(caller: str) -> bool:
            return session.aliases.get(caller, caller) in session.running and demangle(caller) not in session.lingering

        def may_be_copied(caller: str) -> bool:
            known = session.aliases.get(caller, caller)
            return not self.host.functions(known) and self.baseline.get(known) is not None

        def callers(callee: str) -> Iterator[tuple[str, int]]:
            direct = dict(objects.callers(callee))
            yield from direct.items()
            # The optimiser may have put what a constant, virtual table or static leads to in the place of a use of it.
            yield from ((name, 1) for name in {*objects.users(callee), *objects.holders(callee)} - direct.keys())

        stale = find_stale_callers(
            changed,
            callers=callers,
            references_in_program=references,
            is_replaced=is_replaced,
            may_be_copied=may_be_copied,
        )
        return tuple(name for name in stale if objects.kind(name) == "function")

    def _led_to(self, session: Session, name: str, objects: BuildObjects, forked: frozenset[str]) -> Iterator[str]:
        """Other functions that the program has in the same place as one, and that its new code refers to."""
        unit = objects.get(name)
        if unit is None or self.host_code is None or session.redirect != "detours":
            return
        own = {addr for addr, _ in self._places(session, name)}
        for other in {reference.name for reference in unit.references(unit.exports[name].section)} - forked - {name}:
            if objects.kind(other) == "function" and any(addr in own for addr, _ in self._places(session, other)):
                yield other

    def _gone(self, session: Session, files: FilesByName, objects: BuildObjects) -> frozenset[str]:
        """Functions that the program has and the newest source does not define."""
        edited = (files.keys() | (self.baseline.files.keys() - objects.files.keys())) & self.baseline.files.keys()
        known = {name for name, found in session.symbols.items() if found.kind == "function"}
        for unit in map(self.baseline.unit, edited):
            known |= {name for name, found in unit.exports.items() if found.kind == "function"}
        return frozenset(name for name in known if objects.get(name) is None)

    def _places(self, session: Session, name: str) -> tuple[tuple[int, int], ...]:
        """Where the program has a function: (link-time address, size), several for one that it has several times."""
        known = session.aliases.get(name, name)
        added = session.symbols.get(known)
        # A function of an assembler may have no size; it is taken to reach to the next.
        own = ((addr, size or self.host.room_at(addr)) for addr, size in self.host.functions(known))
        return ((added.addr, added.size),) if added else tuple(own)

    def _explained(self, refusal: Refusal) -> Refusal:
        """A refusal with its cause, where that is how the whole program was optimised."""
        if refusal.reason != "unresolved" or self.lto is None:
            return refusal
        detail = f'`lto = "{self.lto}"` left nothing of it in the program that a patch could use; set `lto = "off"`'
        return replace(refusal, detail=detail)

    def _too_short(self, session: Session, names: Iterable[str]) -> Iterator[Refusal]:
        for name in names:
            for addr, size in self._places(session, name):
                needed = self.machine.detour_size
                if size < needed and self.host.room_at(addr) < needed and self.host.function_names_at(addr):
                    yield Refusal(
                        symbol=name,
                        reason="too_short",
                        detail=f"it is {size} bytes long, and a jump to its new code takes {needed}",
                    )

    def _folded(self, session: Session, changed: Iterable[str], objects: BuildObjects) -> Iterator[Refusal]:
        """Functions that share their code with others in the program, and no longer may.

        Stale callers are not asked about: what shares their code holds the same old copies as they do.
        """
        added: dict[int, list[str]] = {}
        for name, symbol in session.symbols.items():
            added.setdefault(symbol.addr, []).append(name)
        for name in changed:
            for addr, _ in self._places(session, name):
                for other in (*self.host.function_names_at(addr), *added.get(addr, ())):
                    is_gone = objects.get(other) is None and (self.baseline.get(other) or other in session.symbols)
                    is_label = other.partition(".llvm.")[0] == name
                    codes = {objects.fingerprint(self._with_code(one, objects)) for one in (name, other)}
                    if not is_label and not is_gone and len(codes) > 1:
                        yield Refusal(
                            symbol=name,
                            reason="folded",
                            detail=f"the running program has one copy of it and of {demangle(other)}, which now differ",
                        )

    def _with_code(self, name: str, objects: BuildObjects) -> str:
        """The function that has the code of one, which may be nothing but a jump there."""
        unit = objects.get(name)
        if unit is None or unit.exports[name].size != self.machine.detour_size:
            return name
        section = unit.exports[name].section
        targets = {reference.name for reference in unit.references(section)}
        is_jump = len(targets) == len(unit.definitions_in(section)) == 1 and objects.kind(min(targets)) == "function"
        return min(targets) if is_jump else name

    def _of_library(self, session: Session, selection: Selection) -> ModuleThreadLocals | None:
        """Those of the program's thread-locals that are reached through the dynamic loader."""
        block, library = self.host.header.tls, session.hello.library
        if block is None or library is None:
            return None
        new = {*session.symbols, *(thread_local.name for thread_local in selection.thread_locals)}
        found = {name: self.host.find(name) for name in selection.host_names - new}
        offsets = {name: place.addr - block.offset(0) for name, place in found.items() if place and place.kind == "tls"}
        return ModuleThreadLocals(module=library.tls_module, offsets=offsets)

    async def _link(self, session: Session, plan: _Plan) -> tuple[Image, Path]:
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

    def _write_inputs(self, session: Session, plan: _Plan) -> list[str]:
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
        live = LiveSymbols(self.host, {**session.symbols, **plan.renamed}, aliases=plan.aliases)
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
                machine=self.machine,
            )
        )
        return [*paths, str(stub)]

    def _detours(self, session: Session, plan: _Plan, image: Image) -> Iterator[tuple[str, Detour]]:
        seen = set()
        for name in plan.jumps:
            new_code = _new_code(image, name)
            for addr, size in self._places(session, name):
                # Folded functions that still agree (`_folded`) share their one detour.
                if addr in seen:
                    continue
                seen.add(addr)
                yield name, Detour(from_addr=addr + session.hello.slide, to_addr=new_code.addr, size=size)

    async def _carry(self, session: Session, plan: _Plan, image: Image, elf_path: Path, identity: str) -> Carrier:
        """Link the library for a client that enters new code by a jump table, which covers all patches so far."""
        slide = session.hello.slide
        entries = []
        for name in sorted({*session.copies, *plan.selection.replaced}):
            earlier = tuple(addr + slide for addr in earlier_copies(session, name))
            places = (*(addr + slide for addr, _ in self.host.functions(name)), *earlier)
            newest = _new_code(image, name).addr if name in plan.selection.replaced else earlier[-1]
            entries.append(Entry(places=places, before=(earlier or places)[-1], after=newest))
        # A loader takes a library with a name that it knows for the one it has.
        library = elf_path.with_name(f"libpatch-{session.hello.instance}-{identity[:16]}.so")
        return await self.carriers.link(image, entries, library, page_size=session.hello.page_size)

    def _address(
        self,
        session: Session,
        edit: int,
        plan: _Plan,
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
                for addr, size in self._places(session, name)
            ),
        )

    def _content(self, session: Session, edit: int, plan: _Plan, image: Image, identity: str) -> PatchContent:
        slide = session.hello.slide
        live = LiveSymbols(self.host, session.symbols, plan.forked, plan.aliases)
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
        )


def _other_signatures(changed: Iterable[str], types: FunctionsOf) -> Iterator[Refusal]:
    """Functions that code of another language may call, which was not compiled anew."""
    for name in changed:
        if not is_rust_name(name) and types.has_other_signature(name):
            before, now = (", ".join(filter(None, one.parameters)) for one in types.of(name)[:2])
            detail = f"what it takes and returns changed ({before} → {now}), and code in another language may call it"
            yield Refusal(symbol=name, reason="signature", detail=f"{detail}; restart")


def _circular(merged: Mapping[str, frozenset[str]]) -> Iterator[Refusal]:
    """Functions of one place in the program whose new code calls each other."""
    try:
        in_order_of_jumps(merged)
    except CycleError as error:
        name, other = error.args[1][:2]
        yield Refusal(
            symbol=name,
            reason="folded",
            detail=f"the running program has one copy of it and of {demangle(other)}, which call each other now",
        )


def _unreachable(selection: Selection, of_library: ModuleThreadLocals | None) -> Iterator[Refusal]:
    if of_library is None:
        return
    names = frozenset(of_library.offsets)
    for kept in selection.units:
        assert isinstance(kept.unit, CodeUnit)
        for name in find_unreachable(kept.unit, kept.sections, kept.host_sections, of_library=names):
            yield Refusal(
                symbol=name,
                reason="thread_local",
                detail="it is a thread-local of a shared library, and reached here in a way that takes the dynamic"
                " loader; restart",
            )


def _new_code(image: Image, name: str) -> HostSymbol:
    new_code = image.symbols.get(name + NEW_CODE_SUFFIX)
    if new_code is None:
        raise ObjectError(f"the linked patch does not define {demangle(name)}, which it is to replace")
    return new_code


def _place_thread_locals(
    session: Session, new: Iterable[NewThreadLocal]
) -> tuple[dict[str, tuple[int, NewThreadLocal]], int]:
    """Offsets from the thread pointer for new thread-locals, and the bytes of the reserve then in use."""
    reserve, used = session.hello.thread_locals, session.thread_locals
    places = {}
    for thread_local in new:
        used += -(reserve.offset + used) % thread_local.align
        places[thread_local.name] = (reserve.offset + used, thread_local)
        used += thread_local.size
    return places, used


def defined_functions(selection: Selection) -> dict[str, Fingerprint]:
    """The functions of the developer's own objects that a patch defines, by exported name."""
    return {
        definition.name: kept.unit.fingerprint(section)
        for kept in selection.units
        if not kept.unit.from_archive
        for section in kept.sections
        for definition in kept.unit.definitions_in(section)
        if definition.kind == "function"
        and definition.name in kept.unit.exports
        and (definition.name not in selection.host_names or definition.name in selection.replaced)
    }


def defined_constants(selection: Selection) -> dict[str, Fingerprint]:
    """The statics of the developer's own objects that a patch defines and nobody can write to, by exported name."""
    return {
        name: kept.unit.fingerprint(static.section)
        for kept in selection.units
        if not kept.unit.from_archive
        for name, static in kept.unit.statics.items()
        if static.kind == "constant" and not static.local and static.section in kept.sections
    }


def with_leading(roots: Iterable[str], absent: Iterable[str], objects: BuildObjects, host: Host) -> tuple[str, ...]:
    """What is to be replaced in a program that looks up what it calls: the roots, and what leads to them.

    Args:
        roots: changed functions that the program has.
        absent: those that it does not have.
        objects: the newest objects.
        host: the program's symbols.
    """
    leading = find_leading(
        {*roots, *absent},
        users=objects.users,
        is_replaceable=lambda name: is_rust_name(name) and host.find(name) is not None,
    )
    return tuple(sorted({*roots, *leading}))
