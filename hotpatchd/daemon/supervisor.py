"""The daemon: turns what happens into events for `hotpatchd.core.step`, and carries out its commands."""

import asyncio
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from hotpatchd.core import step as core
from hotpatchd.core.capture import Capture, argv_values
from hotpatchd.core.client import Applied, ClientAnswer, ClientEvent, ClientHello, ClientLost, Hello, Rejection
from hotpatchd.core.devtools import CARGO_HOT, Protocol, devtools_environ, export_main_args, is_asset, notice_of
from hotpatchd.core.dioxus import DevtoolsEvent, DevtoolsUnavailable
from hotpatchd.core.errors import BuildError, HotpatchdError, UsageError
from hotpatchd.core.events import DaemonReady, EditVerdict, Event, RebuildFailed, Refusal, to_record
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import LinkLine, archives, parse_link_line
from hotpatchd.core.linkplan import Linker
from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.session import Session
from hotpatchd.core.settle import SettleTimes
from hotpatchd.core.thinplan import opt_level_of, plan_thin_crates
from hotpatchd.daemon import logs, wire
from hotpatchd.daemon.baseline import Snapshot, build_snapshot, take_snapshot
from hotpatchd.daemon.carrier import CarrierLinker
from hotpatchd.daemon.crate_inputs import captured_files, inputs_of
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.fatbuild import FatBuild, Workspace, fat_build
from hotpatchd.daemon.jump_tables import JumpTableClients
from hotpatchd.daemon.library_patcher import LibraryPatcher, choose_linker
from hotpatchd.daemon.linking import identify
from hotpatchd.daemon.lock import StateLock
from hotpatchd.daemon.native_libraries import static_libraries
from hotpatchd.daemon.patcher import Patcher, Ready
from hotpatchd.daemon.program import (
    client_environ,
    client_for,
    linked_client_args,
    native_triple,
    program_command,
    run_program,
    target_support,
)
from hotpatchd.daemon.report import Terminal
from hotpatchd.daemon.server import PatchServer
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.daemon.watcher import Batch, Watcher
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, HostIndex, host_index
from hotpatchd.objfile.library_object import program_build_id
from hotpatchd.objfile.machines import MACHINES
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.symbols import read_symbols

KEPT_PAYLOADS = 32
_FILE_CLOCK_LAG_S = 0.01
_SOURCE_SUFFIXES = (".rs", ".toml", ".lock")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a daemon is to run.

    Args:
        selection: what to build.
        cwd: where cargo runs.
        listen: address and port; port 0 takes a free one.
        times: when an edit is complete.
        poll: look for changed files instead of being told by the kernel.
        protocol: how programs are patched.
        environ: the environment of cargo and of the program.
    """

    selection: CargoSelection
    cwd: Path
    listen: tuple[str, int] = ("127.0.0.1", 0)
    times: SettleTimes = SettleTimes()
    poll: bool = False
    protocol: Protocol = "auto"
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageTools:
    """What images are made with.

    Args:
        host: the program's symbols.
        linker: which linker the captured command runs.
        carriers: links carrier libraries.
    """

    host: HostIndex
    linker: Linker
    carriers: CarrierLinker


def state_dir_of(workspace: Workspace) -> Path:
    """The daemon's directory."""
    return workspace.target_dir / "hotpatchd"


class Daemon:
    """One daemon, for one program.

    Args:
        options: how to run.
        workspace: what is built.
        events: where events go.
        terminal: what a person sees.
    """

    def __init__(self, options: Options, workspace: Workspace, events: EventBus, terminal: Terminal) -> None:
        self.options = options
        self.workspace = workspace
        self.state_dir = state_dir_of(workspace)
        self.events = events
        self.terminal = terminal
        self.state = core.State()
        self.server: PatchServer | None = None
        self.interrupted = False
        self._running: set[asyncio.Task[None]] = set()
        self._last_request = 0
        self._fat: FatBuild | None = None
        self._build_id = ""
        self._linked_client: Path | None = None
        self._builder: ThinBuilder | None = None
        self._patcher: Patcher | None = None
        self._make_library_patcher: Callable[[], Coroutine[Any, Any, LibraryPatcher]] | None = None
        self._library_patcher: asyncio.Task[LibraryPatcher] | None = None
        self._full_build: dict[str, str] = {}
        self._objects: BuildObjects | None = None
        self._before: BuildObjects | None = None
        self._ready: dict[int, Ready] = {}
        self._sent_at: dict[int, float] = {}
        self._resetting: dict[int, Session] = {}
        self._hot_calls: JumpTableClients | None = None
        self._instances: dict[str, Session] = {}
        self._payloads: OrderedDict[str, bytes] = OrderedDict()
        self._requests: dict[int, asyncio.Future[Mapping[str, object]]] = {}
        self._watcher: Watcher | None = None
        self._snapshot = Snapshot(texts={})
        self._started = time.time()

    async def serve(self, program: Sequence[str] | None) -> int:
        """Build, listen, watch, patch: until cancelled, or until the program ends.

        Args:
            program: arguments of the program to run; None to run none and wait for clients.

        Returns:
            the program's exit status, 0 without one.

        Raises:
            HotpatchdError: something without which no edit can be applied does not work.
        """
        options = self.options
        triple = options.selection.target or native_triple()
        support = await target_support(triple, cwd=options.cwd, environ=options.environ)
        client = None
        if support.client == "linked":
            self._linked_client = await client_for(triple, options.environ, self.terminal, kind="linked")
        elif support.client == "preload" and program is not None and options.protocol != "dioxus":
            client = await client_for(triple, options.environ, self.terminal)
        watcher = Watcher(
            [self.workspace.root, *(package.manifest_path.parent for package in self.workspace.packages)],
            excluded=[self.workspace.target_dir, self.workspace.build_dir],
            relevant=lambda path: path.endswith(_SOURCE_SUFFIXES) or (self._speaks_devtools and is_asset(path)),
            times=self.options.times,
            poll=self.options.poll,
            notice=lambda text: self.terminal.say("Warning", text, "bold yellow"),
        )
        token = secrets.token_hex(32)
        with StateLock(self.state_dir) as lock:
            # Left by earlier daemons; a program that outlived one is taken back to its own code when it connects.
            for left in ("link", "patches"):
                shutil.rmtree(self.state_dir / left, ignore_errors=True)
            async with self._listening(token) as url, watcher:
                self._watcher = watcher
                fat = await self._fat_build(watcher)
                link_line = _link_line(fat.tip)
                images = await self._image_tools(fat, link_line) if support.patch == "image" else None
                lock.publish(url=url, token=token)
                if program is None:
                    work = _for_ever()
                else:
                    # What `cargo run` sets as well.
                    package = {k: v for k, v in fat.tip.env if k.startswith(("CARGO_MANIFEST_", "CARGO_PKG_"))}
                    base = {**self.options.environ, **package}
                    if self._speaks_devtools:
                        base |= devtools_environ(url)
                    environ = client_environ(base, client, self.state_dir, fat.executable, triple)
                    work = run_program(
                        program_command(fat.executable, program, triple, cwd=self.options.cwd, environ=base),
                        environ,
                        cwd=self.options.cwd,
                        terminal=self.terminal,
                        was_interrupted=lambda: self.interrupted,
                    )
                try:
                    return await _first(work, self._follow_files(fat, link_line, images, watcher, url))
                finally:
                    for task in self._running:
                        task.cancel()
                    await asyncio.gather(*self._running, return_exceptions=True)

    @asynccontextmanager
    async def _listening(self, token: str) -> AsyncIterator[str]:
        self.server = PatchServer(
            token=token,
            admit=self._admit,
            on_event=self._on_client,
            control=self._control,
            events=self.events,
            find_patch=self._payloads.get,
            on_devtools=self._on_devtools if self._speaks_devtools else None,
        )
        url = await self.server.start(*self.options.listen)
        if self._speaks_devtools and CARGO_HOT in self.workspace.hot_call_crates:
            await self.server.start_cargo_hot()
        try:
            yield url
        finally:
            await self.server.close()

    @property
    def _speaks_devtools(self) -> bool:
        return self.options.protocol == "dioxus" or (
            self.options.protocol == "auto" and bool(self.workspace.hot_call_crates)
        )

    def _tip_args(self) -> tuple[str, ...]:
        exports = export_main_args(self.options.selection.target or native_triple()) if self._speaks_devtools else ()
        client = linked_client_args(self._linked_client) if self._linked_client else ()
        return (*exports, *client)

    async def _image_tools(self, fat: FatBuild, link_line: LinkLine) -> "_ImageTools":
        """What images are made with; programs that take them may also be patched by their own jump tables."""
        assert self.server is not None
        host = await asyncio.to_thread(host_index, fat.executable, self.state_dir / "hosts")
        machine = MACHINES[host.header.machine]
        carriers = CarrierLinker(link_line, fat.tip.triple, _compiler(fat.tip), machine, self.state_dir)
        self._hot_calls = JumpTableClients(
            server=self.server,
            host=host,
            target=fat.tip.triple,
            carriers=carriers,
            directory=self.state_dir / "patches",
            known=self._instances.get,
            dispatch=self._dispatch,
            ignored=lambda text: self.terminal.say("Ignored", text, "bold yellow"),
        )
        return _ImageTools(host=host, linker=await identify(link_line), carriers=carriers)

    async def _fat_build(self, watcher: Watcher) -> FatBuild:
        """Build until no source changed meanwhile: what is built must be what the baseline will describe."""
        while True:
            fat = await fat_build(
                self.options.selection,
                self.workspace,
                self.state_dir,
                cwd=self.options.cwd,
                environ=self.options.environ,
                tip_args=self._tip_args(),
            )
            for problem in fat.problems:
                self.terminal.say("Warning", f"{problem.reason}; it was ignored", "bold yellow")
                _log.warning(logs.CAPTURE_IGNORED, path=str(problem.path), reason=problem.reason)
            build_time = {file for capture in fat.build_time for file in captured_files(capture)}
            self._full_build = dict.fromkeys(build_time, "code that runs while building") | dict(fat.full_build)
            sources = {file for capture in fat.captures for file in captured_files(capture)}
            inputs = sources | self._full_build.keys()
            self._snapshot = await asyncio.to_thread(take_snapshot, sources)
            batch = await watcher.rescan()
            if batch is None or inputs.isdisjoint(map(str, batch.files)):
                break
            self.terminal.say("Rebuilding", "sources changed while the program was built")
        self._fat = fat
        self._build_id = program_build_id(fat.executable)
        await watcher.include(Path(file) for file in inputs)
        return fat

    async def _follow_files(
        self,
        fat: FatBuild,
        link_line: LinkLine,
        images: "_ImageTools | None",
        watcher: Watcher,
        url: str,
    ) -> int:
        """Make the baseline, and then every settled batch of files an event; never returns."""
        started = time.perf_counter()
        crates = plan_thin_crates(
            fat.captures, thin_dir=str(self.state_dir / "thin"), ansi=self.terminal.console.is_terminal
        )
        self._builder = builder = ThinBuilder(crates)
        with self.terminal.working("Compiling the objects to compare with"):
            baseline, batch = await self._make_baseline(fat, builder, watcher)
        native = await static_libraries(link_line) if self._linked_client else ()
        archive_set = ArchiveSet((*map(Path, archives(link_line)), *native))
        await asyncio.to_thread(archive_set.warm)
        self._objects = self._before = baseline
        crate_names = frozenset(crate.capture.crate_name for crate in crates)
        if images is not None:
            optimised = any(opt_level_of(capture.argv) != "0" for capture in fat.captures)
            self._patcher = Patcher(
                host=images.host,
                archives=archive_set,
                link_line=link_line,
                linker=images.linker,
                crate_names=crate_names,
                baseline=baseline,
                host_code=HostCode(fat.executable, images.host.header) if optimised else None,
                carriers=images.carriers,
                state_dir=self.state_dir,
            )

        async def library_patcher() -> LibraryPatcher:
            program = await asyncio.to_thread(read_symbols, fat.executable)
            if program_build_id(fat.executable) != self._build_id:
                raise BuildError(f"{fat.executable} was built anew; restart", hint="end the program and run it again")
            return LibraryPatcher(
                program=ProgramSymbols(program),
                archives=archive_set,
                link_line=link_line,
                target=fat.tip.triple,
                linker=await choose_linker(link_line, fat.tip.triple, fat.tip.rustc),
                crate_names=crate_names,
                baseline=baseline,
                state_dir=self.state_dir,
            )

        self._make_library_patcher = library_patcher
        baseline.forget_units()
        names = ", ".join(crate.name for crate in crates)
        self.terminal.say("Watching", f"{names}; ready after {time.perf_counter() - started:.1f} s")
        self._publish(DaemonReady(url=url, pid=os.getpid()))
        self._dispatch(core.BaselineReady(inputs=inputs_of(builder.crates, self._full_build)))
        if batch:
            self._take_batch(batch)
        async for settled in watcher.batches():
            self._take_batch(settled)
        return 0

    async def _make_baseline(
        self, fat: FatBuild, builder: ThinBuilder, watcher: Watcher
    ) -> tuple[BuildObjects, Batch | None]:
        """The objects of the program's source, and what was edited before they were ready."""
        result = await builder.build(frozenset(crate.name for crate in builder.crates))
        batch = await watcher.rescan()
        edited = frozenset(map(str, batch.files if batch else ())) & self._snapshot.texts.keys()
        baseline = result.objects
        if edited:
            shadow = self.state_dir / "shadow"
            baseline = await build_snapshot(fat.captures, self._snapshot, edited, shadow) or baseline
            if baseline is result.objects:
                for file in edited:
                    self._full_build[file] = "file was edited before the first objects were ready; it"
        self._snapshot = Snapshot(texts={})
        if baseline is None:
            raise BuildError(
                "the program's source does not compile with the arguments of a thin rebuild",
                output="\n".join(result.diagnostics),
            )
        return baseline, batch

    def _take_batch(self, batch: Batch) -> None:
        files = tuple(map(str, batch.files))
        if self._hot_calls is not None:
            self._hot_calls.tell_assets(file for file in files if is_asset(file))
        self._dispatch(core.Settled(files=files, last_write=batch.last_write, settle_ms=batch.settle_ms))

    def _dispatch(self, event: core.StepEvent) -> None:
        self.state, commands = core.step(self.state, event)
        for session in self.state.sessions.values():
            self._instances[session.hello.instance] = session
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: core.Command) -> None:
        assert self.server is not None
        match command:
            case core.Emit():
                self._publish(command.event)
            case core.Rebuild():
                self._spawn(self._rebuild(command.crates))
            case core.Prepare():
                self._spawn(self._prepare(command.session, command.edit))
            case core.Send():
                ready = self._ready.pop(command.client)
                if ready.carrier is not None and self._hot_calls is not None:
                    since_edit_ms = (time.time() - self.state.outcome.last_write) * 1000
                    session = self.state.sessions[command.client]
                    self._spawn(self._hot_calls.send(session, ready.carrier, since_edit_ms))
                    return
                assert ready.patch is not None
                self._payloads[ready.patch.patch] = ready.payload
                while len(self._payloads) > KEPT_PAYLOADS:
                    self._payloads.popitem(last=False)
                self._sent_at[command.client] = time.perf_counter()
                self.server.send_patch(command.client, ready.patch, ready.payload)
            case core.SendUndo():
                self._sent_at[command.client] = time.perf_counter()
                self.server.send_undo(command.client, command.to)
            case core.Reply():
                asked = self._requests.pop(command.request)
                if asked.cancelled():
                    return
                if command.error:
                    asked.set_exception(UsageError(command.error))
                else:
                    asked.set_result(command.result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _publish(self, event: Event) -> None:
        self.events.publish(event)
        self.terminal.show(event)
        notice = notice_of(event)
        if notice and self._hot_calls is not None:
            self._hot_calls.tell(notice)
        if isinstance(event, EditVerdict):
            record = to_record(event, time.time())
            _log.info(logs.EDIT_JUDGED, **{key: value for key, value in record.items() if key not in ("event", "ts")})
        elif isinstance(event, RebuildFailed):
            _log.info(logs.REBUILD_FAILED, edit=event.edit, diagnostics=event.diagnostics)

    async def _rebuild(self, crates: frozenset[str]) -> None:
        assert self._builder is not None
        assert self._watcher is not None
        started = time.time()
        try:
            with self.terminal.working(f"Compiling {', '.join(sorted(crates))}"):
                result = await self._builder.build(crates)
        except Exception as error:
            _log.exception(logs.REBUILD_FAILED)
            failed = core.Rebuilt(
                crates=tuple(sorted(crates)),
                failed=crates,
                diagnostics=(_told(error),),
                compile_ms=0.0,
                inputs=self.state.inputs,
            )
            self._dispatch(failed)
            return
        if result.objects is not None:
            if not self.state.carried:
                self._before = self._objects
            self._objects = result.objects
        inputs = inputs_of(self._builder.crates, self._full_build)
        # Changes that rustc may have read, though they have not settled yet.
        newer = [Path(file) for file in inputs.crates_of if _changed_after(file, started)]
        batch = await self._watcher.rescan(newer) if newer else None
        if batch:
            self._take_batch(batch)
        self._dispatch(
            core.Rebuilt(
                crates=result.crates,
                failed=result.failed,
                diagnostics=result.diagnostics,
                compile_ms=result.compile_ms,
                inputs=inputs,
            )
        )
        await self._watcher.include(Path(file) for file in inputs.crates_of)

    async def _prepare(self, session: Session, edit: int) -> None:
        assert self._objects is not None
        assert self._before is not None
        try:
            patcher = await self._patcher_for(session)
            ready = await patcher.prepare(session, edit, self._objects, self._before)
        except Exception as error:
            _log.exception(logs.PATCH_FAILED)
            refusal = Refusal(symbol=None, reason="internal", detail=_told(error))
            ready = Ready(prepared=core.Prepared(client=session.client, refusals=(refusal,), failed=True))
        self._ready[session.client] = ready
        self._dispatch(ready.prepared)

    async def _patcher_for(self, session: Session) -> Patcher | LibraryPatcher:
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

    def _admit(self, hello: Hello) -> Rejection | None:
        if hello.build_id == self._build_id:
            return None
        expected = self._fat.executable if self._fat else "the program, which is being built"
        detail = f"{hello.exe} (process {hello.pid}) is not the build that is watched, which is {expected}"
        self.terminal.say("Ignored", f"{detail}; start that one instead", "bold yellow")
        return Rejection(reason="build_id", detail=detail, retry=self._fat is None)

    def _on_client(self, event: ClientEvent) -> None:
        match event:
            case ClientHello():
                self._welcome(event.client, event.hello)
            case ClientAnswer() if event.client in self._resetting:
                fresh = self._resetting.pop(event.client)
                if isinstance(event.answer, Applied):
                    self._dispatch(core.Joined(session=fresh))
            case ClientAnswer():
                session = self.state.sessions.get(event.client)
                if isinstance(event.answer, Applied) and session and self._hot_calls:
                    self._spawn(self._hot_calls.announce(session.hello.pid))
                since_ms = (time.perf_counter() - self._sent_at.get(event.client, 0.0)) * 1000
                self._dispatch(
                    core.Answered(client=event.client, answer=event.answer, now=time.time(), since_sent_ms=since_ms)
                )
            case ClientLost():
                self._resetting.pop(event.client, None)
                self._ready.pop(event.client, None)
                self._dispatch(core.Left(client=event.client))

    def _on_devtools(self, event: DevtoolsEvent) -> None:
        if isinstance(event, DevtoolsUnavailable):
            self.terminal.say("Warning", f"{event.reason}: programs with {CARGO_HOT} cannot connect", "bold yellow")
        # Programs that connect before the build is done are of an earlier one.
        elif self._hot_calls is not None:
            self._hot_calls.take(event)

    def _welcome(self, client: int, hello: Hello) -> None:
        """A client that returns goes on where it was; one whose patches are not known here starts from its own code."""
        assert self.server is not None
        known = self._instances.get(hello.instance)
        if known and hello.patches == tuple(applied.patch for applied in known.history):
            self._dispatch(core.Joined(session=replace(known, client=client, hello=hello, next_addr=hello.region.next)))
            return
        session = Session(
            client=client,
            hello=hello,
            next_addr=hello.region.next,
            redirect="detours" if hello.in_place else "jump_table",
        )
        if hello.patches:
            self._resetting[client] = session
            self.server.send_undo(client, None)
        else:
            self._dispatch(core.Joined(session=session))

    async def _control(self, command: wire.ControlCommand) -> object:
        match command:
            case wire.StatusRequest():
                return self._status()
            case wire.ClientsRequest():
                return [self._client_row(session) for session in self.state.sessions.values()]
            case wire.TriggerRequest():
                return await self._trigger([Path(file) for file in command.files])
            case wire.UndoRequest():
                return await self._undo(command.count)
            case _:
                raise UsageError(f"the daemon does not know the command {type(command).__name__}")

    def _status(self) -> dict[str, object]:
        verdicts = [record for record in self.events.recent if record["event"] == EditVerdict.event]
        return {
            "pid": os.getpid(),
            "since": self._started,
            "workspace": str(self.workspace.root),
            "program": str(self._fat.executable) if self._fat else None,
            "build_id": self._build_id,
            "phase": self.state.phase,
            "edit": self.state.edit,
            "crates": [crate.name for crate in self._builder.crates] if self._builder else [],
            "clients": len(self.state.sessions),
            "edits": verdicts,
        }

    def _client_row(self, session: Session) -> dict[str, object]:
        hello = session.hello
        return {
            "client": session.client,
            "pid": hello.pid,
            "exe": hello.exe,
            "target": hello.target,
            "patches": len(session.history),
            "region_used": session.next_addr - hello.region.addr,
            "region_size": hello.region.size,
        }

    async def _trigger(self, files: Sequence[Path]) -> dict[str, int | None]:
        assert self._watcher is not None
        batch = await self._watcher.rescan(files)
        before = self.state.edit
        if batch:
            self._take_batch(batch)
        if self.state.edit > before:
            return {"edit": self.state.edit}
        return {"edit": before + 1 if batch and self.state.pending else None}

    async def _undo(self, count: int) -> Mapping[str, object]:
        self._last_request += 1
        asked: asyncio.Future[Mapping[str, object]] = asyncio.get_running_loop().create_future()
        self._requests[self._last_request] = asked
        self._dispatch(core.UndoAsked(count=count, request=self._last_request))
        return await asked


async def _for_ever() -> int:
    await asyncio.Event().wait()
    return 0


async def _first(*works: Coroutine[Any, Any, int]) -> int:
    """Run all until one ends; the others are cancelled, and its result is the result."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _compiler(tip: Capture) -> tuple[str, ...]:
    """The compiler of the program, with what makes it compile for the same target."""
    target = ("--target", tip.target) if tip.target else ()
    sysroot = [word for value in argv_values(tip.argv, "--sysroot") for word in ("--sysroot", value)]
    return (tip.rustc, *target, *sysroot[-2:])


def _link_line(tip: Capture) -> LinkLine:
    if tip.link_line is None:
        raise BuildError(f"the capture of {tip.crate_name} has no linker command", hint="build it again")
    return parse_link_line(tip.link_line)


def _changed_after(file: str, moment: float) -> bool:
    """Whether a file changed after a moment in Unix seconds; the kernel's clock for files may lag a little behind."""
    try:
        return os.stat(file).st_ctime > moment - _FILE_CLOCK_LAG_S
    except OSError:
        return False


def _told(error: Exception) -> str:
    """An error as a person is told of it."""
    if isinstance(error, BuildError) and error.output:
        return f"{error}\n{error.output}"
    return str(error) if isinstance(error, HotpatchdError) else repr(error)
