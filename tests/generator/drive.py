"""A random program under `hotpatchd run`: edits are made, and what it prints is compared with the model."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Self

from tests.e2e.harness import START_WITHIN_S, Session, Verdict
from tests.e2e.program import PROGRAM_WITHIN_S, Project, wait_for
from tests.generator.edits import edited
from tests.generator.interpret import Machine
from tests.generator.judge import Allowed, allowed
from tests.generator.language import Program
from tests.generator.make import Maker, make_program
from tests.generator.render import sources

PROFILES = (
    "",
    "",
    "",
    "opt-level = 1\n",
    "opt-level = 3\n",
    "opt-level = 3\ncodegen-units = 1\n",
    'opt-level = "s"\n',
)
"""Profiles of programs; often the one in which most programs are developed."""
TICKS = 4
"""How many lines the program is sent after each edit; two for each of its threads."""


TRIES = 50
AMBIGUOUS, MACHINES = 6, 64
"""How many functions are tried without one of them, and how many machines are kept."""


class Mismatch(AssertionError):
    """A program did something that it must not do."""


class GeneratedSession(Session):
    """A program of the generator under `hotpatchd run`."""

    def __init__(self, project: Project) -> None:
        # A Unix socket's path has room for 108 bytes; test directories are longer than that.
        self._socket = Path(tempfile.mkdtemp(prefix="generator-")) / "socket"
        super().__init__(project, env={"GENERATOR_SOCKET": str(self._socket)})
        self.pid = 0
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(PROGRAM_WITHIN_S)

    def wait_started(self) -> Self:
        """Waits until the daemon is ready for edits, and the program for lines."""
        self.pid = self.wait_event("client.connected", within_s=START_WITHIN_S)["pid"]
        self.wait_event("daemon.ready", within_s=START_WITHIN_S)

        def connect() -> bool:
            return self._socket.exists() and self._connection.connect_ex(os.fspath(self._socket)) == 0

        wait_for("the program's socket", connect, within_s=PROGRAM_WITHIN_S, diagnose=self.diagnosis)
        return self

    def tick(self, number: int) -> str:
        """What the program answers to a line; the process must be the first one."""
        answer = b""
        try:
            self._connection.sendall(f"{number}\n".encode())
            while not answer.endswith(b"\n") and (more := self._connection.recv(65536)):
                answer += more
        except OSError as error:
            raise Mismatch(f"the program did not answer: {error!r}") from error
        pid, _, text = answer.decode().strip().partition(" ")
        if pid != str(self.pid):
            raise Mismatch(f"the program {self.pid} answered {answer!r}")
        return text

    def make(self, contents: Mapping[str, str]) -> Verdict:
        """Writes files at once, and waits for the verdict on the last of them that settles."""
        saved = self.save_together(contents)
        settled = [
            self.wait_event(
                "edit.settled",
                lambda event, file=one.file: str(file) in event["files"],  # type: ignore[misc]
                after=one.mark,
            )
            for one in saved
        ]
        return self.wait_verdict_of(max(event["edit"] for event in settled))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._connection.close()
        super().__exit__(kind, *error)
        shutil.rmtree(self._socket.parent)


@dataclass(slots=True)
class Run:
    """One program and its edits.

    Args:
        seed: what chance begins with.
        directory: where sources and logs go, and stay; must not exist. What is built there is removed.
        profiles: the program has one of these.
        counts: how often each edit had each verdict; it is added to.
    """

    seed: int
    directory: Path
    profiles: tuple[str, ...] = PROFILES
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def run(self, steps: int) -> None:
        """Makes so many edits.

        Raises:
            Mismatch: the program did something else than the model; the message says what and when.
        """
        random = Random(f"generator {self.seed}")
        program = make_program(random, Random(f"profile {self.seed}").choice(self.profiles))
        _write(self.directory / "first", sources(program))
        try:
            session = GeneratedSession(Project(self.directory / "first", self.directory / "program"))
            driver = Driver(
                random=random, session=session, machines=(Machine(program),), disk=program, before=program, run=self
            )
            self._drive(driver, steps)
        finally:
            # What was built takes a hundred times the room of all that tells a failure.
            shutil.rmtree(self.directory / "program", ignore_errors=True)

    def _drive(self, driver: Driver, steps: int) -> None:
        session = driver.session
        try:
            with session:
                session.wait_started()
                driver.check()
                for _ in range(steps):
                    driver.step()
        except Exception as error:
            _write(self.directory / "before", sources(driver.before))
            _write(self.directory / "after", sources(driver.disk))
            told = "\n".join(["".join(self.story[-1:]), f"{type(error).__name__}: {error}"])
            story = "\n".join(self.story)
            (self.directory / "story.txt").write_text(f"{story}\n\n{told}\n\n{session.diagnosis()}")
            where = f"seed {self.seed}, step {len(self.story)}, profile {driver.disk.profile!r}, see {self.directory}"
            raise Mismatch(f"{where}\n{told[:2000]}") from error


@dataclass(slots=True, kw_only=True)
class Driver:
    """Makes edits of one running program.

    Args:
        random: where chance comes from.
        session: the program.
        machines: what it must do: several as long as none of its answers tells which of them it does.
        disk: the sources as they are written.
        before: what they were before the last edit.
        run: what is told of it.
    """

    random: Random
    session: GeneratedSession
    machines: tuple[Machine, ...]
    disk: Program
    before: Program
    run: Run
    number: int = 0
    in_force: list[tuple[int, Program, tuple[str, ...]]] = field(default_factory=list)
    past: list[Program] = field(default_factory=list)
    is_undone: bool = False

    @property
    def machine(self) -> Machine:
        """What the program must do, as far as is told."""
        return self.machines[0]

    def check(self) -> None:
        """Compares what the program prints from now on."""
        for _ in range(TICKS):
            self.number += 1
            got = self.session.tick(self.number)
            answers = [_answer(machine, self.number) for machine in self.machines]
            self.machines = tuple(
                machine for machine, answer in zip(self.machines, answers, strict=True) if answer == got
            )
            if not self.machines:
                expected = answers[0]
                pairs = zip(expected.split(), got.split(), strict=False)
                differ = [f"{one} is {two}" for one, two in pairs if one != two] or [f"{expected} is {got}"]
                raise Mismatch(f"tick {self.number}: {', '.join(differ)}")

    def step(self) -> None:
        """One edit, or a few at once, and what comes of it."""
        chance = self.random.random()
        if self.disk != self.machine.program and chance < 0.7:
            self._make("go back", self.machine.program)
        elif chance < 0.05 and self.past:
            back = self.random.choice(self.past)
            if not self.machine.is_doubtful(back):
                self._make("go back", back)
        elif chance < 0.1 and self.disk == self.machine.program:
            self._fail()
        elif chance < 0.15 and self.in_force:
            self._undo()
        else:
            self._edit()

    def _edit(self) -> None:
        """One to three edits of which the model can tell what follows; there may be none after an undo."""
        for _ in range(TRIES):
            names, program = [], self.disk
            for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                name, program = edited(Maker(self.random, program))
                names.append(name)
            if not self.machine.is_doubtful(program):
                self._make(names[0] if len(names) == 1 else "several", program, " + ".join(names))
                return
        self._make("go back", self.machine.program)

    def _make(self, kind: str, program: Program, told: str = "") -> None:
        judged = allowed(self.machine, program)
        before = sources(self.disk)
        contents = {path: text for path, text in sources(program).items() if before[path] != text}
        self.run.story.append(f"{len(self.run.story)}: {told or kind} in {', '.join(contents) or 'no file'}")
        self.before, self.disk = self.disk, program
        if not contents:
            return
        verdict = self.session.make(contents)
        self.run.story[-1] += f" → {verdict.verdict} {verdict.patched} {verdict.added} {verdict.refusals}"
        self.run.counts[kind, verdict.verdict] += 1
        _hold(verdict, judged)
        if verdict.verdict != "refused":
            self.past.append(program)
            self.is_undone = False
            left = tuple(verdict.noted("old_code_kept"))
            if verdict.verdict == "applied":
                self.in_force.append((verdict.edit, self.machine.program, left))
            self._go_on(left, lambda machine, some: machine.switch(program, some))
        self.check()

    def _go_on(self, left: Sequence[str], change: Callable[[Machine, Sequence[str]], None]) -> None:
        """Has the machines run other sources.

        What is told of closures and tasks that are left names the functions that made them, not which ones they are:
        it may be some of these that take along other things, or all.
        """
        told = [left, *(combinations(left, len(left) - 1) if len(left) <= AMBIGUOUS else ()), ()] if left else [left]
        tried: list[Machine] = []
        for machine in self.machines:
            for some in dict.fromkeys(map(tuple, told)):
                change(other := machine.copied(), some)
                if len(tried) < MACHINES and other not in tried:
                    tried.append(other)
        self.machines = tuple(tried)

    def _undo(self) -> None:
        """The last patch is taken back; the sources stay as they are."""
        edit, before, left = self.in_force[-1]
        if self.machine.is_doubtful(before):
            return
        self.in_force.pop()
        self.run.story.append(f"{len(self.run.story)}: undo of edit {edit}")
        undone = self.session.cli_json("undo")
        self.run.counts["undo", "undone"] += 1
        if undone["edits"] != [edit]:
            raise Mismatch(f"not edit {edit} was undone: {undone}")
        self._go_on(left, lambda machine, some: machine.take_back(before, some))
        self.is_undone = True
        self.check()

    def _fail(self) -> None:
        """A file that does not compile, and its repair."""
        path = self.random.choice([path for path in sources(self.disk) if path.endswith(("m0.rs", "m1.rs"))])
        text = sources(self.disk)[path]
        self.run.story.append(f"{len(self.run.story)}: a typo in {path}")
        # Until there is another edit, what was taken back is still in the sources.
        repaired = {"unchanged", "applied"} if self.is_undone else {"unchanged"}
        for content, expected in ((text + "\nfn broken( {\n", {"failed"}), (text, repaired)):
            verdict = self.session.make({path: content})
            self.run.story[-1] += f" → {verdict.verdict}"
            self.run.counts["typo", verdict.verdict] += 1
            _hold(verdict, Allowed(verdicts=frozenset(expected)))
            self.check()


def _answer(machine: Machine, number: int) -> str:
    """What a machine answers to a line; nothing where it would run what is not there, so that it is another one."""
    try:
        return machine.tick(number)
    except AssertionError:
        return ""


def _hold(verdict: Verdict, judged: Allowed) -> None:
    if not judged.allows(verdict):
        raise Mismatch(f"the verdict may be {sorted(judged.verdicts)}, or name {sorted(judged.named)}: {verdict}")


def _write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
