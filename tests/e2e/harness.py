"""A real daemon on a fixture program: start it, edit the sources, and watch what comes of it.

Three things write while a test runs: the daemon (its log), the program (its lines) and `--events` (one JSON
object a line). All three go to files, and every wait is a bounded wait for a condition on what these files
say, so nothing here depends on how fast the machine is. A wait that runs out raises `AssertionError` with
the end of each file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.e2e.program import PROGRAM_WITHIN_S, LineFile, Program, Project, wait_for

START_WITHIN_S = 180.0
"""Long enough for a first start, which builds the client and the program's dependencies."""
EDIT_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A file was saved; `mark` is how many events there were just before."""

    file: Path
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An `edit.verdict` event."""

    edit: int
    verdict: str
    patched: tuple[str, ...]
    added: tuple[str, ...]
    moved: tuple[str, ...]
    refusals: tuple[Mapping[str, str], ...]
    notes: tuple[Mapping[str, str], ...]
    timings_ms: Mapping[str, float]

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Self:
        """Reads the event's fields; a missing one is an error."""
        functions = event["functions"]
        return cls(
            edit=event["edit"],
            verdict=event["verdict"],
            patched=tuple(functions["patched"]),
            added=tuple(functions["added"]),
            moved=tuple(functions["moved"]),
            refusals=tuple(event["refusals"]),
            notes=tuple(event["notes"]),
            timings_ms=event["timings_ms"],
        )

    def noted(self, note: str) -> list[str]:
        """The symbols that carry this note."""
        return [entry["symbol"] for entry in self.notes if entry["note"] == note]


class Session:
    """A daemon in a project: `run` starts the program too, `serve` leaves that to `attach`.

    A context manager; leaving it ends the daemon as a developer does and asserts that no process is left.

    Args:
        project: the sources.
        command: `run` or `serve`.
        directory: where in the project `hotpatchd` is called.
        selection: cargo's target selection.
        options: further options of the daemon.
        env: additions to the environment.
        prefix: a command that runs the daemon, such as `unshare`.
    """

    def __init__(
        self,
        project: Project,
        command: str = "run",
        *,
        directory: str = "",
        selection: Sequence[str] = (),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.project = project
        self.directory = project.root / directory
        self._mark = uuid.uuid4().hex
        self.logs = project.root.with_name(f"logs-{self._mark[:8]}")
        self.logs.mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("HOTPATCHD_")}
        self.env |= {"HOTPATCH_E2E_MARK": self._mark, **(env or {})}
        self._events = LineFile(self.logs / "events.jsonl")
        self._programs: list[Program] = []
        self.daemon = self.start_daemon(command, *selection, *options, prefix=prefix)

    def start_daemon(self, command: str, *arguments: str, prefix: Sequence[str] = ()) -> Program:
        """Starts `run` or `serve` with the session's event file (`build` writes none); it is `daemon` then."""
        events = () if command == "build" else ("--events", str(self._events.path))
        quiet = command == "run" and "--background-build" not in arguments
        background = ("--no-background-build",) if quiet else ()
        self.daemon = self.start(command, *background, *arguments, *events, prefix=prefix)
        return self.daemon

    def start(self, *arguments: str, prefix: Sequence[str] = ()) -> Program:
        """Starts `hotpatchd ARGUMENTS` in the project."""
        program = Program(
            [*prefix, sys.executable, "-m", "hotpatchd", *arguments],
            cwd=self.directory,
            log=self.logs / f"{len(self._programs)}-{arguments[0]}",
            env=self.env,
        )
        self._programs.append(program)
        return program

    def attach(self, program: Path, *, options: Sequence[str] = (), wait: bool = True) -> Program:
        """Starts a program with `hotpatchd exec`, and waits for the daemon to know it unless told not to."""
        mark = len(self.events())
        attached = self.start("exec", *options, "--", str(program))
        if wait:
            self.wait_event("client.connected", after=mark, within_s=START_WITHIN_S)
        return attached

    def cli(self, *arguments: str, within_s: float = EDIT_WITHIN_S) -> subprocess.CompletedProcess[str]:
        """Runs a `hotpatchd` command to its end; its exit status is the caller's to check."""
        return subprocess.run(
            [sys.executable, "-m", "hotpatchd", *arguments],
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def cli_json(self, *arguments: str) -> Any:
        """What a command with `--json` prints."""
        result = self.cli(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first."""
        return [json.loads(line) for line in self._events.lines()]

    def wait_event(
        self,
        name: str,
        predicate: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        after: int = 0,
        within_s: float = EDIT_WITHIN_S,
    ) -> dict[str, Any]:
        """The first event of this name, from number `after` on, that satisfies `predicate`."""

        def find() -> dict[str, Any] | None:
            matching = (event for event in self.events()[after:] if event["event"] == name and predicate(event))
            found = next(matching, None)
            assert found or self.daemon.process.poll() is None, f"the daemon ended\n{self.diagnosis()}"
            return found

        return wait_for(f"the event {name}", find, within_s=within_s, diagnose=self.diagnosis)

    def wait_started(self) -> Self:
        """Waits until the program runs, prints, and is known to the daemon, which is ready for edits."""
        self.wait_event("client.connected", within_s=START_WITHIN_S)
        self.wait_event("daemon.ready", within_s=START_WITHIN_S)
        self.daemon.wait_line("the first")
        return self

    def save(self, file: str, content: str | bytes) -> Saved:
        """Writes a file in place, as most editors do."""
        path = self.project.root / file
        saved = Saved(file=path, mark=len(self.events()))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return saved

    def save_together(self, contents: Mapping[str, str]) -> tuple[Saved, ...]:
        """Writes several files at once, as an editor's "save all" does."""
        mark = len(self.events())
        saved = [Saved(file=self.project.root / file, mark=mark) for file in contents]
        for one, content in zip(saved, contents.values(), strict=True):
            one.file.write_text(content)
        return tuple(saved)

    def save_by_rename(self, file: str, content: str) -> Saved:
        """Writes a temporary file beside it and renames it over the old one, as vim and others do."""
        path = self.project.root / file
        saved = Saved(file=path, mark=len(self.events()))
        temporary = path.with_name(f".{path.name}.swp")
        temporary.write_text(content)
        temporary.replace(path)
        return saved

    def edit(self, file: str, old: str, new: str) -> Saved:
        """Replaces the only occurrence of `old` in a file."""
        return self.save(file, self.project.replaced(file, old, new))

    def wait_verdict(self, saved: Saved) -> Verdict:
        """What became of a save: the verdict of the first edit that settled with this file in it."""
        settled = self.wait_event(
            "edit.settled",
            lambda event: any(Path(file).resolve() == saved.file.resolve() for file in event["files"]),
            after=saved.mark,
        )
        return self.wait_verdict_of(settled["edit"])

    def wait_verdict_of(self, edit: int) -> Verdict:
        """The verdict of an edit known by its number."""
        return Verdict.from_event(self.wait_event("edit.verdict", lambda event: event["edit"] == edit))

    def wait_quiet(self) -> None:
        """Has the daemon look at every file now, and waits until no edit is without its verdict."""
        triggered = self.cli_json("trigger")["edit"]

        def is_quiet() -> bool:
            numbers = {
                name: {event["edit"] for event in self.events() if event["event"] == name}
                for name in ("edit.settled", "edit.verdict")
            }
            wanted = numbers["edit.settled"] | ({triggered} if triggered else set())
            return wanted <= numbers["edit.verdict"]

        wait_for("all edits to be judged", is_quiet, within_s=EDIT_WITHIN_S, diagnose=self.diagnosis)

    def verdicts(self, *, after: int) -> list[str]:
        """The verdicts among the events from number `after` on."""
        return [event["verdict"] for event in self.events()[after:] if event["event"] == "edit.verdict"]

    def apply(self, file: str, old: str, new: str) -> Verdict:
        """Edits and waits; the verdict must be `applied`."""
        verdict = self.wait_verdict(self.edit(file, old, new))
        assert verdict.verdict == "applied", f"{verdict}\n{self.diagnosis()}"
        return verdict

    def diagnosis(self) -> str:
        """The end of the event file and of every program's output."""
        return "\n".join([self._events.tail(), *(program.diagnosis() for program in self._programs)])

    def processes(self) -> dict[int, str]:
        """Every living process that descends from this session, by its environment: pid to command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self._mark.encode() in (entry / "environ").read_bytes():
                        found[int(entry.name)] = (entry / "cmdline").read_text(errors="replace")
                except OSError:
                    continue
        return found

    def wait_no_process(self) -> None:
        """Asserts that every process of the session ends."""
        wait_for(
            "all processes to end",
            lambda: not self.processes(),
            within_s=PROGRAM_WITHIN_S,
            diagnose=lambda: f"{self.processes()}\n{self.diagnosis()}",
        )

    def end(self) -> None:
        """Ctrl-C to everything that was started here; then nothing may be left."""
        for program in self._programs:
            if program.process.poll() is None:
                program.signal_group(signal.SIGINT)
        for program in self._programs:
            program.wait_exit()
        self.wait_no_process()

    def kill(self) -> None:
        """Kills what is left, without asserting anything."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for program in self._programs:
            program.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.end()
        finally:
            self.kill()


class SharedSession:
    """One running session for many tests; replaced when a test leaves it changed or broken."""

    def __init__(self, start: Callable[[], Session]) -> None:
        self._start = start
        self._session: Session | None = None

    @contextmanager
    def borrow(self) -> Iterator[Session]:
        """A started session whose sources are the fixture's, also afterwards."""
        session = self._session = self._session or self._start().wait_started()
        try:
            yield session
        except BaseException:
            self.discard()
            raise
        self._repair(session)

    def _repair(self, session: Session) -> None:
        """Puts the sources back; a daemon that does not follow is replaced."""
        mark = len(session.events())
        changed = session.project.restore()
        try:
            for path in changed:
                session.wait_verdict(Saved(file=path, mark=mark))
            alive = session.daemon.process.poll() is None
        except AssertionError:
            alive = False
        if not alive:
            self.discard()

    def discard(self) -> None:
        """Ends the session without asserting anything; the next test gets a new one."""
        if self._session:
            self._session.kill()
            self._session = None

    def end(self) -> None:
        """Ends the session and asserts that no process is left."""
        if self._session:
            with self._session:
                self._session = None
