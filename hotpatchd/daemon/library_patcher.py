"""From the objects of a build to a patch library for one client: compare, select, link, and tell what leads where."""

import asyncio
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.client import Anchor, Detour, DylibPatch
from hotpatchd.core.compare import find_differences
from hotpatchd.core.demangle import demangle
from hotpatchd.core.dylibplan import LinkerChoice, choose_dylib_linker, library_file_name, library_os, plan_dylib_link
from hotpatchd.core.errors import BuildError, HotpatchdError
from hotpatchd.core.events import Functions, Note, Refusal
from hotpatchd.core.jumptable import JumpTablePlan, plan_jump_table
from hotpatchd.core.layout import Judgement
from hotpatchd.core.library import (
    LibraryHost,
    News,
    ProgramSymbols,
    choose_roots,
    find_news,
    note_own_state,
    note_stale_copies,
    note_unjudged,
    refuse_grown,
    refuse_thread_locals,
    renamed,
)
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.messages import Prepared
from hotpatchd.core.select import Selection, select
from hotpatchd.core.session import PatchContent, Session
from hotpatchd.core.statics import find_successors
from hotpatchd.core.unit import Archives, Fingerprint
from hotpatchd.daemon.layout_judge import FilesByName, LayoutJudge
from hotpatchd.daemon.linking import LinkCache, identify
from hotpatchd.daemon.patcher import Ready
from hotpatchd.daemon.planner import defined_functions, with_leading
from hotpatchd.daemon.processes import run_process
from hotpatchd.daemon.telling import absence_notes, display, edit_notes, hot_call_notes, is_own, named
from hotpatchd.objfile.atoms import AtomUnit
from hotpatchd.objfile.dylib_stub import StubSymbol, write_dylib_stub
from hotpatchd.objfile.library_object import PROGRAM_FORMATS, prepare_object
from hotpatchd.objfile.objects import BuildObjects, KeptObjects
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX
from hotpatchd.objfile.symbols import read_symbols

ANCHOR = "hotpatchd_anchor"
"""What every patch library exports: its address at run time tells where the library is."""

PULL_FROM = 16 << 20
"""Bytes of a library from which on the client fetches it, so that no other message waits behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One library between selecting and linking."""

    selection: Selection
    host: LibraryHost
    functions: Mapping[str, Fingerprint]
    news: News
    moved: tuple[str, ...]
    notes: tuple[Note, ...]
    refusals: tuple[Refusal, ...]
    files: FilesByName
    judge_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Library:
    """A linked library."""

    path: Path
    content: bytes
    digest: str
    anchor_addr: int
    table: JumpTablePlan


class LibraryPatcher:
    """Makes patch libraries for the clients of one program.

    Args:
        program: its symbols.
        archives: the archives of its link line.
        link_line: the command that linked it.
        target: its target triple.
        linker: what to run instead of the captured linker.
        crate_names: names of the crates that the daemon compiles; functions of theirs are named in verdicts.
        baseline: the objects of the source that the program was built from.
        links: links libraries.
        state_dir: the daemon's directory.
    """

    def __init__(
        self,
        *,
        program: ProgramSymbols,
        archives: Archives,
        link_line: LinkLine,
        target: str,
        linker: LinkerChoice | None,
        crate_names: frozenset[str],
        baseline: BuildObjects,
        links: LinkCache,
        state_dir: Path,
    ) -> None:
        self.program = program
        self.archives = archives
        self.link_line = link_line
        self.target = target
        self.linker = linker
        self.crate_names = crate_names
        self.baseline = baseline
        self.links = links
        self.directory = state_dir / "patches" / "libraries"
        self._judge = LayoutJudge(baseline, KeptObjects(state_dir / "kept"))
        self._unjudged = note_unjudged(target)
        self._libraries: dict[str, asyncio.Task[_Library]] = {}

    async def prepare(self, session: Session, edit: int, objects: BuildObjects, before: BuildObjects) -> Ready:
        """Make the library that brings one client up to date.

        Args:
            session: the client.
            edit: number of the edit.
            objects: the newest objects.
            before: the objects of the build before.

        Returns:
            What to send, or why not; nothing is sent here.
        """
        start = time.perf_counter()
        try:
            plan = await asyncio.to_thread(self._plan, session, objects, before)
            selected = time.perf_counter()
            moved = display(plan.moved, self.crate_names)
            library, refusals = None, plan.refusals
            if not refusals and plan.news.patched:
                library = await self._library(session, plan, objects)
                refusals = library.table.refusals
            if library is None or refusals:
                return Ready(
                    prepared=Prepared(
                        client=session.client,
                        functions=Functions(moved=moved),
                        refusals=tuple(map(named, refusals)),
                        notes=plan.notes,
                        select_ms=(selected - start) * 1000 - plan.judge_ms,
                        judge_ms=plan.judge_ms,
                    )
                )
        except (HotpatchdError, OSError) as error:
            output = error.output if isinstance(error, BuildError) else ""
            refusal = Refusal(symbol=None, reason="link", detail=f"{error}\n{output}".rstrip())
            return Ready(prepared=Prepared(client=session.client, refusals=(refusal,), failed=True))
        self._judge.remember(library.digest, plan.files, objects)
        slide = session.hello.slide
        jumps = library.table.jumps
        return Ready(
            prepared=Prepared(
                client=session.client,
                content=PatchContent(
                    patch=library.digest, edit=edit, functions=plan.functions, symbols={}, thread_locals=0
                ),
                kind="dylib",
                bytes=len(library.content),
                functions=Functions(
                    patched=display(plan.news.patched, self.crate_names),
                    added=display((name for name in plan.news.added if self._is_own(name)), self.crate_names),
                    moved=moved,
                ),
                names={jump.from_addr + slide: demangle(jump.name) for jump in jumps},
                notes=plan.notes,
                select_ms=(selected - start) * 1000 - plan.judge_ms,
                judge_ms=plan.judge_ms,
                link_ms=(time.perf_counter() - selected) * 1000,
            ),
            patch=DylibPatch(
                patch=library.digest,
                edit=edit,
                build_id=session.hello.build_id,
                size=len(library.content),
                file_name=library.path.name,
                anchor=Anchor(symbol=ANCHOR, addr=library.anchor_addr),
                jumps=tuple(
                    Detour(from_addr=jump.from_addr + slide, to_addr=jump.to_addr, size=jump.size) for jump in jumps
                ),
                pull=len(library.content) > PULL_FROM,
            ),
            linked=library.path,
            payload=library.content,
        )

    def _is_own(self, symbol: str) -> bool:
        return is_own(symbol, self.crate_names)

    def _plan(self, session: Session, objects: BuildObjects, before: BuildObjects) -> _Plan:
        host = LibraryHost(self.program, objects)
        candidates = {unit.name: unit for unit in objects.changed_since(self.baseline)}
        differences = find_differences(candidates.values(), self.baseline.fingerprint, host)
        roots = choose_roots(differences.changed, session.running, host, objects)
        notes = edit_notes(objects, before, host) + absence_notes(
            filter(self._is_own, differences.absent), objects, before
        )
        if session.redirect == "jump_table":
            roots = with_leading(roots, differences.absent, objects, host)
            notes += hot_call_notes(roots, roots)
        selection = select(
            roots=roots, definitions=objects, host=host, archives=self.archives, redirect=session.redirect
        )
        functions = defined_functions(selection)

        def running(name: str) -> Fingerprint | None:
            known = session.running.get(name)
            return known or (self.baseline.fingerprint(name) if self.program.find(name) else None)

        started = time.perf_counter()
        files = self._judge.files(objects)
        compared = self._judge.compare(session, files, objects)
        judgement = (
            self._judge.judge(session, compared, objects, self.program, self.crate_names)
            if selection.replaced
            else Judgement()
        )
        judge_ms = (time.perf_counter() - started) * 1000
        news = find_news(functions, running)
        if news.patched:
            notes += self._unjudged
            self._unjudged = ()
        if any(file.is_optimised for file in self.baseline.files.values()):
            notes += note_stale_copies(filter(self._is_own, news.patched))
        can_share = self.program.table.format == "macho"
        return _Plan(
            selection=selection,
            host=host,
            functions=functions,
            news=news,
            moved=differences.moved,
            notes=(*notes, *note_own_state(selection)),
            files=files,
            judge_ms=judge_ms,
            refusals=(
                *judgement.refusals,
                *selection.refusals,
                *self._retyped(session, selection, objects),
                *refuse_thread_locals(selection, host, can_share=can_share),
                *refuse_grown(self._extents(selection, objects), self.program),
            ),
        )

    def _retyped(self, session: Session, selection: Selection, objects: BuildObjects) -> Iterator[Refusal]:
        """State whose value would be lost: it has another symbol now, since its type changed."""
        new = [thread_local.name for thread_local in selection.thread_locals]
        for kept in selection.units:
            for section in kept.sections:
                if kept.unit.kind(section) == "data":
                    new += [found.name for found in kept.unit.definitions_in(section) if self._is_own(found.name)]
        if not new:
            return
        # A unit that is there no more differs, too: how rustc cuts a crate depends on all that is in it.
        earlier = self.baseline.changed_since(objects)
        state = {name for unit in earlier for name, found in unit.exports.items() if found.kind != "function"}
        state |= {name for name, found in session.symbols.items() if found.kind != "function"}
        gone = (name for name in state if objects.get(name) is None)
        for name, why in find_successors(new, gone, {}, {}).lost.items():
            yield Refusal(symbol=name, reason="static_changed", detail=why)

    def _extents(self, selection: Selection, objects: BuildObjects) -> dict[str, tuple[int, int]]:
        """Statics of the program that the newest objects define, too, with how far they reach there and before."""
        found = {}
        for name in selection.host_names:
            before, now = self.baseline.get(name), objects.get(name)
            if isinstance(now, AtomUnit) and now.exports[name].kind == "data":
                found[name] = (before.extent(name) if isinstance(before, AtomUnit) else 0, now.extent(name))
        return found

    async def _library(self, session: Session, plan: _Plan, objects: BuildObjects) -> _Library:
        """The linked library; one for all clients that need the same bytes."""
        inputs = await asyncio.to_thread(lambda: tuple(self._inputs(session, plan, objects)))
        key = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in inputs)).hexdigest()
        task = self._libraries.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._libraries[key] = asyncio.create_task(self._link(key, inputs, plan, objects))
        return await task

    def _inputs(self, session: Session, plan: _Plan, objects: BuildObjects) -> Iterator[bytes]:
        """The objects to link, the stub last."""
        selection = plan.selection
        found = {name: plan.host.find(name) for name in selection.host_names}
        symbols = [
            StubSymbol(name=name, kind=symbol.kind, addr=symbol.addr + session.hello.slide, size=symbol.size)
            for name, symbol in sorted(found.items())
            if symbol is not None
        ]
        data = {symbol.name: symbol.addr for symbol in symbols if symbol.kind != "function"}
        for kept in selection.units:
            replaced = frozenset(name for name in selection.replaced if objects.get(name) is kept.unit)
            yield prepare_object(kept, selection=selection, replaced=replaced, data=data)
        yield write_dylib_stub(
            format=PROGRAM_FORMATS[self.program.table.format],
            machine="aarch64" if self.program.table.arch == "aarch64" else "x86_64",
            symbols=symbols,
            anchor=ANCHOR,
        )

    async def _link(self, key: str, inputs: Iterable[bytes], plan: _Plan, objects: BuildObjects) -> _Library:
        directory = self.directory / key[:16]
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, content in enumerate(inputs):
            path = directory / f"{number}.o"
            path.write_bytes(content)
            paths.append(str(path))
        output = directory / library_file_name(self.target, f"patch-{key[:16]}")
        command = plan_dylib_link(
            self.link_line,
            target=self.target,
            objects=paths,
            output=str(output),
            exports=[ANCHOR],
            linker=self.linker,
        )
        response = directory / "link.args"
        response.write_bytes(command.response_bytes)
        await self.links.run(command.argv, response, self.link_line, output, [Path(path) for path in paths])
        for argv in command.after:
            await run_process(argv)
        return await asyncio.to_thread(self._read, output, plan, objects)

    def _read(self, output: Path, plan: _Plan, objects: BuildObjects) -> _Library:
        table = read_symbols(output)
        content = output.read_bytes()
        [(anchor_addr, _)] = table.functions(ANCHOR)
        return _Library(
            path=output,
            content=content,
            digest=hashlib.sha256(content).hexdigest(),
            anchor_addr=anchor_addr,
            table=plan_jump_table(
                self.program,
                renamed(table, NEW_CODE_SUFFIX),
                replaced=plan.selection.replaced,
                agree=lambda one, other: objects.fingerprint(one) == objects.fingerprint(other),
            ),
        )


async def choose_linker(line: LinkLine, target: str, rustc: str) -> LinkerChoice | None:
    """Find out what links libraries for a program.

    Args:
        line: the command that linked the program.
        target: its target triple.
        rustc: the compiler that ran it.

    Returns:
        Another linker than the captured one; None where that will do.

    Raises:
        HotpatchdError: it will not, and no other was found.
    """
    if library_os(target) not in ("linux", "android"):
        return None
    identified = await identify(line)
    if identified != "bfd":
        return None
    asked = await run_process([rustc, "--print", "sysroot"])
    tools = Path(asked.stdout.decode("utf-8", "surrogateescape").strip(), "lib", "rustlib")
    bundled = next(iter(tools.glob("*/bin/gcc-ld/ld.lld")), None)
    installed = {name: path for name in ("ld.lld", "mold") if (path := shutil.which(name))}
    return choose_dylib_linker(identified, rust_lld=str(bundled.parent) if bundled else None, found=installed)
