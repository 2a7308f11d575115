"""The daemon: turns what happens into events for `hotpatchd.core.step`, and carries out its commands."""

import asyncio
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import structlog

from hotpatchd.core import messages as core
from hotpatchd.core.client import (
    Applied,
    ClientAnswer,
    ClientEvent,
    ClientHello,
    ClientLost,
    ClientPanicked,
    ClientRan,
    Hello,
    Patch,
    Rejection,
)
from hotpatchd.core.devtools import CARGO_HOT, Protocol, devtools_environ, export_main_args, is_asset, notice_of
from hotpatchd.core.dioxus import DevtoolsEvent, DevtoolsUnavailable
from hotpatchd.core.errors import BuildError, HotpatchdError
from hotpatchd.core.events import (
    BuildReason,
    BuildStarted,
    DaemonReady,
    EditVerdict,
    Event,
    RebuildFailed,
    Refusal,
    to_record,
)
from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.session import Session
from hotpatchd.core.settle import SettleTimes
from hotpatchd.core.state import Policy, State
from hotpatchd.core.step import step
from hotpatchd.daemon import logs, wire
from hotpatchd.daemon.baseline import take_snapshot
from hotpatchd.daemon.build_lock import build_in_turn
from hotpatchd.daemon.cargo_config import user_jobs
from hotpatchd.daemon.carrier import CarrierLinker
from hotpatchd.daemon.commands import Commands
from hotpatchd.daemon.crash_report import CrashReports
from hotpatchd.daemon.crate_inputs import captured_files
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.fatbuild import FatBuild, Workspace, load_workspace, tracer_for
from hotpatchd.daemon.generation import Built, Generation, digests_of, image_tools
from hotpatchd.daemon.history import History
from hotpatchd.daemon.instances import Instances
from hotpatchd.daemon.jump_tables import JumpTableClients
from hotpatchd.daemon.limits import Limits
from hotpatchd.daemon.lock import LibraryInfo, StateLock
from hotpatchd.daemon.patcher import Ready
from hotpatchd.daemon.processes import caring
from hotpatchd.daemon.program import client_for, linked_client_args, native_triple, target_support
from hotpatchd.daemon.proof import Proofs
from hotpatchd.daemon.report import Terminal
from hotpatchd.daemon.run_control import RunControl
from hotpatchd.daemon.server import PatchServer
from hotpatchd.daemon.source_tree import SOURCE_SUFFIXES
from hotpatchd.daemon.watcher import Batch, Watcher
from hotpatchd.objfile.host_index import HostIndex
from hotpatchd.objfile.objects import BuildObjects

KEPT_PAYLOADS = 32
KEPT_OBJECTS = 32
"""How many edits can be taken back and still reach a program that connects later."""
BACKGROUND_AFTER_S = 5.0
"""How long nothing must have happened before the program's file is brought up to date."""
_FILE_CLOCK_LAG_S = 0.01
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
        auto_restart: start the program anew where an edit needs it, and after a crash.
        background: bring the program's file up to date while nothing happens.
        keys: the terminal's keys are the daemon's, and not the program's.
        proof: find out when new code runs for the first time.
        cpus: how many processors builds may use; None: those that the program can spare.
        environ: the environment of cargo and of the program.
    """

    selection: CargoSelection
    cwd: Path
    listen: tuple[str, int] = ("127.0.0.1", 0)
    times: SettleTimes = SettleTimes()
    poll: bool = False
    protocol: Protocol = "auto"
    auto_restart: bool = False
    background: bool = True
    keys: bool = False
    proof: bool = False
    cpus: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Daemon:
    """One daemon, for the programs of one selection.

    Args:
        options: how to run.
        workspace: what is built.
        events: where events go.
        terminal: what a person sees.
    """

    def __init__(self, options: Options, workspace: Workspace, events: EventBus, terminal: Terminal) -> None:
        self.options = options
        self.workspace = workspace
        self.state_dir = workspace.state_dir
        self.events = events
        self.terminal = terminal
        self.state = State()
        self.interrupted = False
        self._triple = options.selection.target or native_triple()
        self._history = History(workspace.root, self.state_dir / "patches")
        self._proofs = Proofs()
        self._commands = Commands(
            workspace=workspace.root,
            events=events,
            history=self._history,
            proofs=self._proofs,
            state=lambda: self.state,
            generation=lambda: self._generation,
            dispatch=self._dispatch,
            rescan=self._rescan,
        )
        self._token = secrets.token_hex(32)
        self._url = ""
        self._linked_client: Path | None = None
        self._built: Built | None = None
        self._generation: Generation | None = None
        self._objects: dict[int, Mapping[str, BuildObjects]] = {}
        self._noted: set[str] = set()
        self._is_closing = False
        self._batches = 0
        self._changed_in: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rebuilding: asyncio.Task[None] | None = None
        self._building: asyncio.Task[None] | None = None
        self._ready: dict[int, Ready] = {}
        self._sent_at: dict[int, float] = {}
        self._resetting: dict[int, Session] = {}
        self._hellos: dict[int, Hello] = {}
        self._instances = Instances(self.state_dir)
        self._payloads: OrderedDict[str, bytes] = OrderedDict()
        self._crashes = CrashReports(self.state_dir / "patches", workspace.root)

    async def serve(self, program: Sequence[str] | None) -> int:
        """Build, listen, watch, patch: until cancelled, or until the program ends.

        Args:
            program: arguments of the program to run; None to run none and wait for clients.

        Returns:
            the program's exit status, 128 and the signal's number where a signal ended it; 0 without one.

        Raises:
            HotpatchdError: something without which no edit can be applied does not work.
        """
        most_jobs = user_jobs(os.cpu_count() or 1, cwd=self.options.cwd, environ=self.options.environ)
        self._limits = Limits(self.options.cpus, most_jobs=most_jobs)
        with caring(self._limits):
            if self._limits.note:
                self.terminal.say("Note", self._limits.note)
            return await self._serve(program)

    async def _serve(self, program: Sequence[str] | None) -> int:
        options = self.options
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._support = await target_support(self._triple, cwd=options.cwd, environ=options.environ)
        preloaded = None
        if self._support.client == "linked":
            self._linked_client = await client_for(self._triple, options.environ, self.terminal, kind="linked")
        elif self._support.client == "preload" and program is not None and options.protocol != "dioxus":
            preloaded = await client_for(self._triple, options.environ, self.terminal)
        self._tracer = await tracer_for(
            self.workspace,
            environ=options.environ,
            notice=lambda text: self.terminal.say("Warning", text, "bold yellow"),
        )
        self._run = RunControl(
            args=program,
            triple=self._triple,
            client=preloaded,
            cwd=options.cwd,
            state_dir=self.state_dir,
            takes_keys=options.keys,
            crashes=self._crashes,
            terminal=self.terminal,
            dispatch=self._dispatch,
            spawn=self._spawn,
            undo=self._undo_last,
            leave=lambda: self._end(0),
        )
        policy = Policy(
            starts=program is not None,
            auto_restart=options.auto_restart and program is not None,
            stays=program is not None and (options.auto_restart or self._run.can_ask),
            background=options.background and program is not None,
        )
        self.state = replace(self.state, policy=policy)
        self._watcher = Watcher(
            self.workspace.source_dirs,
            excluded=self.workspace.output_dirs,
            relevant=lambda path: path.endswith(SOURCE_SUFFIXES) or (self._speaks_devtools and is_asset(path)),
            times=options.times,
            poll=options.poll,
            notice=lambda text: self.terminal.say("Warning", text, "bold yellow"),
        )
        with StateLock(self.state_dir) as self._lock:
            # Left by earlier daemons; a program that outlived one is taken back to its own code when it connects.
            for left in ("kept", "link", "patches"):
                shutil.rmtree(self.state_dir / left, ignore_errors=True)
            async with self._listening(), self._watcher:
                try:
                    self._publish(BuildStarted(reason="start"))
                    await self._build("start")
                    self._spawn(self._follow_files())
                    return await self._ended
                finally:
                    self._is_closing = True
                    self._run.leave_keys()
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.gather(*self._tasks, return_exceptions=True)
                    await self._run.end(interrupted=self.interrupted)
                    if self._generation:
                        await self._generation.compiler.close()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        self.server = PatchServer(
            token=self._token,
            admit=self._admit,
            on_event=self._on_client,
            control=self._commands.answer,
            events=self.events,
            find_patch=self._payloads.get,
            on_devtools=self._on_devtools if self._speaks_devtools else None,
        )
        self._url = await self.server.start(*self.options.listen)
        if self._speaks_devtools and CARGO_HOT in self.workspace.hot_call_crates:
            await self.server.start_cargo_hot()
        try:
            yield
        finally:
            await self.server.close()

    @property
    def _speaks_devtools(self) -> bool:
        return self.options.protocol == "dioxus" or (
            self.options.protocol == "auto" and bool(self.workspace.hot_call_crates)
        )

    def _tip_args(self) -> tuple[str, ...]:
        exports = export_main_args(self._triple) if self._speaks_devtools else ()
        client = linked_client_args(self._linked_client) if self._linked_client else ()
        return (*exports, *client)

    @property
    def _hot_calls(self) -> list[JumpTableClients]:
        hosts = self._generation.hosts if self._generation else ()
        return [host.images.hot_calls for host in hosts if host.images]

    async def _build(self, reason: BuildReason) -> None:
        """A full build, to its end; what was built is in `_built` unless it is one in the background."""
        started = time.time()
        problem = ""
        try:
            if reason == "background":
                await self._fat_build()
            else:
                self._built = await self._build_settled()
        except HotpatchdError as error:
            if reason == "start":
                raise
            problem = _told(error)
        self._dispatch(core.FullyBuilt(reason=reason, seconds=time.time() - started, problem=problem))

    async def _fat_build(self) -> FatBuild:
        options = self.options
        if self._built:
            # Its manifests may name other packages than at first.
            self.workspace = await load_workspace(options.selection, cwd=options.cwd, environ=options.environ)
        fat = await build_in_turn(
            options.selection,
            self.workspace,
            self.state_dir,
            cwd=options.cwd,
            environ=options.environ,
            tip_args=self._tip_args(),
            tracer=self._tracer,
            tell=self._tell_waiting,
        )
        self.workspace = fat.workspace
        for problem in fat.problems:
            self.terminal.say("Warning", f"{problem.reason}; it was ignored", "bold yellow")
            _log.warning(logs.CAPTURE_IGNORED, path=str(problem.path), reason=problem.reason)
        for text in fat.notes:
            if text not in self._noted:
                self._noted.add(text)
                self.terminal.say("Note", text, "bold cyan")
                _log.info(logs.BUILD_NOTED, detail=text)
        return fat

    def _tell_waiting(self, text: str) -> None:
        self.terminal.say("Waiting", text, "bold cyan")
        _log.info(logs.BUILD_WAITED, detail=text)

    async def _build_settled(self) -> Built:
        """Build until no source changed meanwhile: what is built must be what the baseline will describe."""
        while True:
            batches = self._batches
            fat = await self._fat_build()
            sources = {file for capture in fat.captures for file in captured_files(capture)}
            snapshot = await asyncio.to_thread(take_snapshot, sources)
            digests = await asyncio.to_thread(digests_of, fat.full_build)
            inputs = sources | fat.full_build.keys() | fat.inputs.macro_inputs
            await self._watcher.include(Path(file) for file in inputs)
            await self._rescan(())
            if inputs.isdisjoint(self._touched_since(batches)):
                return Built(fat=fat, snapshot=snapshot, digests=digests, batches=batches)
            self.terminal.say("Rebuilding", "sources changed while the program was built")

    def _touched_since(self, batches: int) -> set[str]:
        return {file for file, number in self._changed_in.items() if number > batches}

    async def _adopt(self) -> None:
        """Make what was built the program: the old one ends, a new one starts, and the baseline is made."""
        built = self._built
        assert built is not None
        started = time.perf_counter()
        await self._run.end()
        if self._generation:
            await self._generation.compiler.close()

        def hot_calls(host: HostIndex, carriers: CarrierLinker) -> JumpTableClients:
            return JumpTableClients(
                server=self.server,
                host=host,
                target=self._triple,
                carriers=carriers,
                directory=self.state_dir / "patches",
                known=self._instances.get,
                dispatch=self._dispatch,
                ignored=lambda text: self.terminal.say("Ignored", text, "bold yellow"),
            )

        takes_images = self._support.patch == "image"
        images = [
            await image_tools(program, self.state_dir, hot_calls) if takes_images else None
            for program in built.fat.programs
        ]
        generation = self._generation = Generation(
            built,
            images,
            state_dir=self.state_dir,
            links_client=self._linked_client is not None,
            ansi=self.terminal.console.is_terminal,
            tracer=self._tracer,
            jobs=self._limits.cpus,
        )
        self._objects = {}
        await asyncio.to_thread(self._history.know, built.snapshot.texts)
        for client, hello in list(self._hellos.items()):
            if generation.host(hello.build_id) is None:
                self.server.dismiss(client)
        library = None
        if built.fat.is_library:
            library = LibraryInfo(build_id=generation.hosts[0].build_id, path=str(built.fat.executable))
        self._lock.publish(url=self._url, token=self._token, library=library)
        if self._run.is_ours:
            await self._start_program()
        self._run.take_keys()
        with self.terminal.working("Compiling the objects to compare with"):
            baseline = await generation.make_baseline(lambda: self._touched_since(built.batches))
        self._objects = {0: baseline}
        names = ", ".join(generation.crate_names)
        self.terminal.say("Watching", f"{names}; ready after {time.perf_counter() - started:.1f} s")
        self._publish(DaemonReady(url=self._url, pid=os.getpid()))
        inputs = generation.inputs()
        await self._watcher.include(map(Path, inputs.paths))
        self._dispatch(core.BaselineReady(inputs=inputs))

    async def _start_program(self) -> None:
        assert self._generation is not None
        executable = await asyncio.to_thread(self._generation.hosts[0].executable)
        # What `cargo run` sets as well.
        package = {k: v for k, v in self._generation.fat.tip.env if k.startswith(("CARGO_MANIFEST_", "CARGO_PKG_"))}
        devtools = devtools_environ(self._url) if self._speaks_devtools else {}
        await self._run.start(executable, {**self.options.environ, **package, **devtools})

    async def _start_again(self) -> None:
        await self._run.end()
        await self._start_program()

    async def _follow_files(self) -> None:
        async for batch in self._watcher.batches():
            self._take_batch(batch)

    def _take_batch(self, batch: Batch) -> None:
        files = tuple(map(str, batch.files))
        self._batches += 1
        self._changed_in.update(dict.fromkeys(files, self._batches))
        for hot_calls in self._hot_calls:
            hot_calls.tell_assets(file for file in files if is_asset(file))
        harmless: Mapping[str, str] = {}
        if self._generation:
            harmless = self._generation.harmless(files, self.state.inputs.variables)
        self._dispatch(
            core.Settled(files=files, last_write=batch.last_write, settle_ms=batch.settle_ms, harmless=harmless)
        )

    async def _rescan(self, files: Sequence[Path]) -> bool:
        """Look now whether these files changed, or all; returns whether any did."""
        batch = await self._watcher.rescan(files)
        if batch:
            self._take_batch(batch)
        return batch is not None

    def _dispatch(self, event: core.StepEvent) -> None:
        self.state, commands = step(self.state, event)
        self._instances.note(self.state.sessions.values())
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: core.Command) -> None:
        match command:
            case core.Emit():
                self._publish(command.event)
            case core.Rebuild():
                self._rebuilding = self._spawn(self._rebuild(command.crates))
            case core.CancelRebuild():
                assert self._rebuilding is not None
                self._rebuilding.cancel()
            case core.Prepare():
                objects = self._objects.get(command.objects)
                self._spawn(self._prepare(command, objects, self._objects.get(command.before, self._objects[0])))
            case core.Send():
                self._send(command.client)
            case core.SendUndo():
                self._sent_at[command.client] = time.perf_counter()
                self.server.send_undo(command.client, command.to)
            case core.Reply():
                self._commands.reply(command)
            case core.BuildFully():
                self._building = self._spawn(self._build(command.reason))
            case core.CancelBuild():
                assert self._building is not None
                self._building.cancel()
            case core.Adopt():
                self._spawn(self._adopt())
            case core.StartAgain():
                self._spawn(self._start_again())
            case core.ScheduleBackground():
                self._spawn(self._wait_idle(command.edit))
            case core.OfferRestart():
                self._run.offer_restart(command.leaves_out)
            case core.End():
                self._end(command.status)

    async def _undo_last(self) -> None:
        try:
            await self._commands.answer(wire.UndoRequest(id=0))
        except HotpatchdError as error:
            self.terminal.say("Kept", str(error), "bold yellow")

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _spawn(self, work: Coroutine[Any, Any, None], *, essential: bool = True) -> asyncio.Task[None]:
        """Run something beside everything else; where it fails and is essential, the daemon ends with its error."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, essential=essential))
        return task

    def _done(self, task: asyncio.Task[None], *, essential: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            # Here and not in the task itself, which may not have begun when it was cancelled.
            if task is self._rebuilding and self.state.cancelling and not self._is_closing:
                self._dispatch(self._not_rebuilt(self.state.building, cancelled=True))
        elif (error := task.exception()) and not essential:
            _log.error(logs.SIDE_TASK_FAILED, exc_info=error)
        elif error and not self._ended.done():
            self._ended.set_exception(error)

    def _send(self, client: int) -> None:
        ready = self._ready.pop(client)
        if ready.carrier is not None:
            since_edit_ms = (time.time() - self.state.outcome.last_write) * 1000
            hot_calls = next(found for found in self._hot_calls if client in found)
            self._spawn(hot_calls.send(self.state.sessions[client], ready.carrier, since_edit_ms), essential=False)
            return
        patch = ready.patch
        assert patch is not None
        if isinstance(patch, Patch):
            patch = replace(patch, proof=self.options.proof)
        self._payloads[patch.patch] = ready.payload
        while len(self._payloads) > KEPT_PAYLOADS:
            self._payloads.popitem(last=False)
        self._note_sent(self.state.sessions[client], ready)
        self._sent_at[client] = time.perf_counter()
        self.server.send_patch(client, patch, ready.payload)

    def _note_sent(self, session: Session, ready: Ready) -> None:
        hello, patch = session.hello, ready.patch
        host = self._generation.host(hello.build_id) if self._generation else None
        if host is None or patch is None or ready.linked is None:
            return
        self._history.sent(session, patch, ready.linked, ready.prepared.names, host.kept_executable)
        if host.images and isinstance(patch, Patch):
            self._crashes.sent(hello, host.images.host, patch)
        if self.options.proof:
            outcome = self.state.outcome
            last_write = outcome.last_write if outcome.edit else None
            self._proofs.sent(hello.instance, patch.patch, patch.edit, ready.prepared.names, last_write)

    async def _wait_idle(self, edit: int) -> None:
        await asyncio.sleep(BACKGROUND_AFTER_S)
        self._dispatch(core.BackgroundDue(edit=edit))

    def _publish(self, event: Event) -> None:
        self.events.publish(event)
        self._history.take(event)
        self._proofs.take(event)
        self.terminal.show(event)
        notice = notice_of(event)
        if notice:
            for hot_calls in self._hot_calls:
                hot_calls.tell(notice)
        if isinstance(event, EditVerdict):
            record = to_record(event, time.time())
            _log.info(logs.EDIT_JUDGED, **{key: value for key, value in record.items() if key not in ("event", "ts")})
        elif isinstance(event, RebuildFailed):
            _log.info(logs.REBUILD_FAILED, edit=event.edit, diagnostics=event.diagnostics)

    async def _rebuild(self, crates: frozenset[str]) -> None:
        generation = self._generation
        assert generation is not None
        started = time.time()
        try:
            with self.terminal.working(f"Compiling {', '.join(sorted(crates))}"):
                result = await generation.builder.build(crates)
            inputs = generation.inputs()
            # Changes that rustc may have read, though they have not settled yet.
            newer = [Path(file) for file in inputs.paths if _changed_after(file, started)]
            if newer:
                await self._rescan(newer)
        except Exception as error:
            _log.exception(logs.REBUILD_FAILED)
            self._dispatch(self._not_rebuilt(crates, _told(error)))
            return
        self._history.include(self.state.edit, sorted(inputs.crates_of.keys() - self.state.inputs.crates_of.keys()))
        programs = {}
        if not result.failed:
            before = self._objects.get(self.state.target, self._objects[0])
            self._objects[self.state.edit] = result.objects
            programs = {
                host.build_id: host.program.executable.name
                for host in generation.hosts
                if result.objects[host.name].changed_files(before[host.name])
            }
        self._dispatch(
            core.Rebuilt(
                crates=result.crates,
                failed=result.failed,
                diagnostics=result.diagnostics,
                compile_ms=result.compile_ms,
                inputs=inputs,
                programs=programs,
            )
        )
        sent, undoable = self.state.sent, self.state.in_force[-KEPT_OBJECTS:]
        used = {0, self.state.target, self.state.previous, sent.before if sent else 0}
        used.update(edit.edit for edit in undoable)
        self._objects = {edit: objects for edit, objects in self._objects.items() if edit in used}
        await self._watcher.include(map(Path, inputs.paths))

    def _not_rebuilt(self, crates: frozenset[str], *said: str, cancelled: bool = False) -> core.Rebuilt:
        return core.Rebuilt(
            crates=tuple(sorted(crates)),
            failed=crates,
            diagnostics=said,
            compile_ms=0.0,
            inputs=self.state.inputs,
            cancelled=cancelled,
        )

    async def _prepare(
        self, command: core.Prepare, objects: Mapping[str, BuildObjects] | None, before: Mapping[str, BuildObjects]
    ) -> None:
        session = command.session
        assert self._generation is not None
        try:
            if objects is None:
                raise HotpatchdError(
                    f"{session.hello.exe} (process {session.hello.pid}) cannot get the code of edit {command.objects},"
                    " which is not kept any more",
                    hint="save a file, or restart the program",
                )
            host = self._generation.host(session.hello.build_id)
            assert host is not None
            patcher = await host.patcher_for(session)
            ready = await patcher.prepare(session, command.edit, objects[host.name], before[host.name])
        except Exception as error:
            _log.exception(logs.PATCH_FAILED)
            refusal = Refusal(symbol=None, reason="internal", detail=_told(error))
            ready = Ready(prepared=core.Prepared(client=session.client, refusals=(refusal,), failed=True))
        self._ready[session.client] = ready
        self._dispatch(ready.prepared)

    def _admit(self, hello: Hello) -> Rejection | None:
        generation = self._generation
        if generation is None:
            detail = f"{hello.exe} (process {hello.pid}) came before the program was built"
            return Rejection(reason="build_id", detail=detail, retry=True)
        if generation.host(hello.build_id):
            return None
        if not self._run.is_ours and hello.build_id in [host.newest_build_id() for host in generation.hosts]:
            self.terminal.say("Renewing", f"{hello.exe} (process {hello.pid}) was built anew")
            self._dispatch(core.RestartAsked())
            return Rejection(reason="build_id", detail="the daemon is about to know this build", retry=True)
        watched = ", ".join(str(host.program.executable) for host in generation.hosts)
        detail = f"{hello.exe} (process {hello.pid}) is not the build that is watched, which is {watched}"
        self.terminal.say("Ignored", f"{detail}; start that one instead", "bold yellow")
        return Rejection(reason="build_id", detail=detail, retry=False)

    def _on_client(self, event: ClientEvent) -> None:
        match event:
            case ClientHello():
                self._hellos[event.client] = event.hello
                self._welcome(event.client, event.hello)
            case ClientAnswer() if event.client in self._resetting:
                fresh = self._resetting.pop(event.client)
                if isinstance(event.answer, Applied):
                    self._dispatch(core.Joined(session=fresh))
            case ClientAnswer():
                session = self.state.sessions.get(event.client)
                if isinstance(event.answer, Applied) and session:
                    if event.patch:
                        self._proofs.applied(session.hello.instance, event.patch, event.answer, time.time())
                    for hot_calls in self._hot_calls:
                        self._spawn(hot_calls.announce(session.hello.pid), essential=False)
                since_ms = (time.perf_counter() - self._sent_at.get(event.client, 0.0)) * 1000
                self._dispatch(
                    core.Answered(client=event.client, answer=event.answer, now=time.time(), since_sent_ms=since_ms)
                )
            case ClientRan() if event.client in self._hellos:
                told = self._proofs.ran(event.client, self._hellos[event.client].instance, event.ran)
                if told:
                    self._publish(told)
            case ClientPanicked() if event.client in self._hellos:
                pid = self._hellos[event.client].pid
                self._spawn(
                    self._crashes.tell_panics(pid, lambda panic: self._dispatch(core.Panicked(pid=pid, panic=panic))),
                    essential=False,
                )
            case ClientLost():
                hello = self._hellos.pop(event.client, None)
                if hello and hello.pid != self.state.program:
                    self._spawn(self._tell_crash(hello.pid), essential=False)
                self._resetting.pop(event.client, None)
                self._ready.pop(event.client, None)
                self._sent_at.pop(event.client, None)
                self._dispatch(core.Left(client=event.client))

    async def _tell_crash(self, pid: int) -> None:
        ending = await self._crashes.follow(pid)
        for panic in ending.panics if ending else ():
            self._dispatch(core.Panicked(pid=pid, panic=panic))
        if ending and ending.crash:
            crash = ending.crash
            self._dispatch(core.ProgramEnded(pid=pid, status=-Signals[crash.ended_by], crash=crash))

    def _on_devtools(self, event: DevtoolsEvent) -> None:
        if isinstance(event, DevtoolsUnavailable):
            self.terminal.say("Warning", f"{event.reason}: programs with {CARGO_HOT} cannot connect", "bold yellow")
        # Programs that connect before the build is done are of an earlier one.
        else:
            for hot_calls in self._hot_calls:
                if hot_calls.is_for(event) or len(self._hot_calls) == 1:
                    hot_calls.take(event)

    def _welcome(self, client: int, hello: Hello) -> None:
        """A client that returns goes on where it was; one whose patches are not known here starts from its own code."""
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
