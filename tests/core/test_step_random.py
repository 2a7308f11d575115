"""Promises of the daemon's decisions, whatever happens in whatever order."""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hotpatchd.core.client import Applied, Refused
from hotpatchd.core.events import (
    BuildReason,
    BuildStarted,
    ClientLost,
    EditSettled,
    EditsUndone,
    EditVerdict,
    Event,
    PatchSent,
    Refusal,
)
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.messages import (
    Adopt,
    Answered,
    BackgroundDue,
    BaselineReady,
    BuildFully,
    CancelBuild,
    CancelRebuild,
    Command,
    Emit,
    End,
    FullyBuilt,
    Joined,
    Left,
    OfferRestart,
    Prepare,
    Prepared,
    ProgramEnded,
    ProgramStarted,
    Rebuild,
    Rebuilt,
    Reply,
    RestartAsked,
    ScheduleBackground,
    Send,
    SendUndo,
    Settled,
    StartAgain,
    StepEvent,
    UndoAsked,
)
from hotpatchd.core.session import Session
from hotpatchd.core.state import Policy, State
from hotpatchd.core.step import PATIENCE_S, step
from tests.core.fakes import content, fingerprint, session

CRATE_OF = {"lib.rs": "lib", "main.rs": "app"}
INPUTS = BuildInputs(
    crates_of={file: (crate,) for file, crate in CRATE_OF.items()}, full_build={"Cargo.toml": "manifest"}
)
FILES = st.sets(st.sampled_from(["lib.rs", "main.rs", "notes.txt"]), min_size=1).map(sorted)
CRASH = -11

Versions = dict[str, int]
"""How often the source of each crate was saved; a program, and objects, have the versions they were made from."""


@dataclass
class Process:
    """A program that runs: what it is made of, and before each patch in force."""

    runs: Versions
    before: list[Versions] = field(default_factory=list)
    excused: bool = False


class World(RuleBasedStateMachine):
    """Compiler, clients and people around `step`: they carry its commands out late and in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State(policy=Policy(auto_restart=True, stays=True, background=True))
        self.now = 1.0
        self.source: Versions = {"lib": 0, "app": 0}
        self.broken: set[tuple[str, int]] = set()
        self.newest: Versions = dict(self.source)
        self.objects: dict[int, Versions] = {}
        self.host: Versions = {}
        self.processes: dict[int, Process] = {}
        self.away: list[tuple[Process, Session]] = []
        self.program: int | None = None
        self.numbers = 0
        self.building: frozenset[str] | None = None
        self.cancelling = False
        self.full: BuildReason | None = "start"
        self.full_read: Versions = dict(self.source)
        self.making_baseline = False
        self.starting = False
        self.preparing: dict[int, Prepare] = {}
        self.prepared: dict[int, tuple[str, Versions]] = {}
        self.unanswered: dict[int, Versions | str | None] = {}
        self.scheduled: list[int] = []
        self.requests: set[int] = set()
        self.edits = 0
        self.open_edits: list[int] = []
        self.facts: set[str] = set()
        self.last_verdict = ""
        self.held = False
        self.ended = False

    # What step commands.

    def feed(self, event: StepEvent) -> None:
        """One event in, and its commands checked against what the world knows; nothing comes after the end."""
        if self.ended:
            return
        self.state, commands = step(self.state, event)
        for command in commands:
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        """A command makes sense when it is given."""
        match command:
            case Emit():
                self.hear(command.event)
            case Rebuild():
                self.assert_nothing_runs()
                stale = {crate for crate, version in self.source.items() if self.newest[crate] != version}
                assert command.crates >= stale
                self.building, self.cancelling = command.crates, False
            case CancelRebuild():
                assert self.building is not None
                assert not self.cancelling
                self.cancelling = True
            case Prepare(session=known):
                assert self.building is None
                assert self.full in (None, "background")
                assert known.client in self.processes.keys() - self.preparing.keys() - self.unanswered.keys()
                assert known == self.state.sessions[known.client]
                assert command.before in self.objects
                self.preparing[known.client] = command
            case Send():
                name, versions = self.prepared.pop(command.client)
                assert (name, command.client in self.processes) == (command.patch, True)
                self.unanswered[command.client] = versions
            case SendUndo():
                known = self.state.sessions[command.client]
                assert command.client in self.processes.keys() - self.unanswered.keys()
                assert command.to is None or command.to in [patch.patch for patch in known.history[:-1]]
                self.unanswered[command.client] = command.to or "all"
            case Reply():
                self.requests.remove(command.request)
            case BuildFully():
                self.assert_nothing_runs()
                self.full, self.full_read = command.reason, dict(self.source)
            case CancelBuild():
                assert self.full == "background"
                self.full = None
            case Adopt():
                self.assert_nothing_runs()
                assert self.state.sessions == {}
                self.host = self.full_read
                self.newest = dict(self.host)
                self.replace_program()
                self.making_baseline = True
            case StartAgain():
                self.assert_nothing_runs()
                self.held = True
                self.replace_program()
            case ScheduleBackground():
                self.scheduled.append(command.edit)
            case OfferRestart():
                assert self.program is None
            case End():
                self.ended = True

    def assert_nothing_runs(self) -> None:
        """One thing happens at a time."""
        assert self.building is None
        assert self.full is None
        assert not self.making_baseline

    def replace_program(self) -> None:
        """What ran ends, unheard; a new process starts."""
        self.processes.clear()
        self.away.clear()
        self.preparing.clear()
        self.prepared.clear()
        self.unanswered.clear()
        self.program = None
        self.starting = True

    def hear(self, event: Event) -> None:
        """Events tell the truth; a settled edit has one verdict, and only one that is carried waits for the next."""
        match event:
            case EditSettled():
                assert self.state.phase != "building" or tuple(self.open_edits) == self.state.carried
                assert event.edit == self.edits + 1
                self.edits = event.edit
                self.open_edits.append(event.edit)
                self.held = False
                self.facts = {"full_build"} & {"full_build" for file in event.files if file in INPUTS.full_build}
            case EditVerdict():
                assert event.edit == self.open_edits.pop(0)
                assert event.verdict.verdict == self.expected_verdict()
                assert bool(event.verdict.refusals) == (
                    event.verdict.verdict in ("refused", "restart") or "tool" in self.facts
                )
                self.last_verdict = event.verdict.verdict
            case EditsUndone():
                assert event.edits
                assert event.edit < min(event.edits)
                self.held = True
            case PatchSent():
                assert event.client in self.unanswered
            case ClientLost():
                self.processes.pop(event.client, None)
            case BuildStarted():
                assert self.full is None
            case _:
                pass

    def expected_verdict(self) -> str:
        """The worst of what happened during the edit in hand."""
        order = (
            ("full_build", "restart"),
            ("broken", "failed"),
            ("tool", "failed"),
            ("ended", "restart"),
            ("refusal", "refused"),
        )
        for fact, verdict in order:
            if fact in self.facts:
                return verdict
        return "applied" if self.facts else "unchanged"

    # What happens.

    @initialize()
    def begin(self) -> None:
        """The program was built and runs, as at the beginning of most sessions."""
        self.work_off()

    @rule()
    def work_off(self) -> None:
        """Everybody does what they were told."""
        if self.full is not None:
            self.end_full_build(not self.is_broken(self.source))
        if self.making_baseline:
            self.end_baseline()
        if self.starting:
            self.start_program()
        if self.building is not None:
            self.end_build()
        for client in sorted(self.preparing):
            self.end_prepare(client, "patch")
        for client in sorted(self.unanswered):
            self.give_answer(client, True)

    @precondition(lambda self: self.full is not None)
    @rule(works=st.booleans())
    def finish_full_build(self, works: bool) -> None:
        """Cargo is done; a build of changed source is repeated until it is of the newest."""
        self.end_full_build(works and not self.is_broken(self.source))

    def end_full_build(self, works: bool) -> None:
        """Cargo says whether it built."""
        assert self.full is not None
        reason, self.full = self.full, None
        if reason == "start" and not works:
            self.ended = True
        self.full_read = dict(self.source)
        self.feed(FullyBuilt(reason=reason, seconds=1.0, problem="" if works else "no"))

    def is_broken(self, versions: Versions) -> bool:
        """Whether any of this source does not compile."""
        return not self.broken.isdisjoint(versions.items())

    @precondition(lambda self: self.making_baseline)
    @rule()
    def baseline(self) -> None:
        """The first objects are ready."""
        self.end_baseline()

    def end_baseline(self) -> None:
        """From now on there is something to compare with."""
        self.making_baseline = False
        self.objects = {0: dict(self.host)}
        self.feed(BaselineReady(inputs=INPUTS))

    @precondition(lambda self: self.starting)
    @rule()
    def start(self) -> None:
        """The daemon has started the program, which connects."""
        self.start_program()

    def start_program(self) -> None:
        """It has a process, and says hello."""
        self.starting = False
        self.numbers += 1
        self.program = self.numbers
        self.feed(ProgramStarted(pid=self.numbers))
        self.connect()

    def program_crashes(self) -> None:
        """Perhaps because of its last patch."""
        assert self.program is not None
        pid, self.program = self.program, None
        self.feed(ProgramEnded(pid=pid, status=CRASH))

    @rule(files=FILES, breaks=st.sampled_from([False, False, True]), late_s=st.sampled_from([0.0, PATIENCE_S]))
    def settle(self, files: list[str], breaks: bool, late_s: float) -> None:
        """Somebody saves files, which compile or do not."""
        self.now += 0.1 + late_s
        for file in files:
            if crate := CRATE_OF.get(file):
                self.source[crate] += 1
                if breaks:
                    self.broken.add((crate, self.source[crate]))
        self.feed(Settled(files=tuple(files), last_write=self.now, settle_ms=20.0))

    def edit_manifest(self) -> None:
        """Somebody saves a file that no thin rebuild can follow."""
        self.now += 0.1
        self.feed(Settled(files=("Cargo.toml",), last_write=self.now, settle_ms=20.0))

    @rule(data=st.data(), what=st.sampled_from(["crash", "manifest", "join", "leave", "return", "undo", "restart"]))
    def something_else_happens(self, data: st.DataObject, what: str) -> None:
        """What is rarer than saving, building and patching."""
        match what:
            case "crash" if self.program is not None:
                self.program_crashes()
            case "manifest":
                self.edit_manifest()
            case "join" if self.host and not self.starting and len(self.processes) < 3:
                self.join()
            case "leave" if self.processes:
                self.leave(data.draw(st.sampled_from(sorted(self.processes))))
            case "return" if self.away and not self.starting:
                self.come_back()
            case "undo":
                self.undo(data.draw(st.integers(1, 3)))
            case "restart":
                self.restart(without_last=data.draw(st.booleans()))

    @precondition(lambda self: self.building is not None)
    @rule()
    def finish_build(self) -> None:
        """The compiler is done."""
        self.end_build()

    def end_build(self) -> None:
        """The compiler says whether the source is in order; it read the newest."""
        assert self.building is not None
        crates, self.building = self.building, None
        compiles = not self.is_broken({crate: self.source[crate] for crate in crates})
        cancelled, self.cancelling = self.cancelling, False
        if compiles and not cancelled:
            self.newest |= {crate: self.source[crate] for crate in crates}
            self.objects[self.state.edit] = dict(self.newest)
            if not self.processes:
                self.facts.add("ended" if self.state.crashed else "refusal")
        elif not cancelled:
            self.facts.add("broken")
        failed = frozenset() if compiles and not cancelled else crates
        self.feed(
            Rebuilt(
                crates=tuple(crates),
                failed=failed,
                diagnostics=(),
                compile_ms=1.0,
                inputs=INPUTS,
                cancelled=cancelled,
            )
        )

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), how=st.sampled_from(["patch", "patch", "refusal", "tool"]))
    def finish_prepare(self, data: st.DataObject, how: str) -> None:
        """A patch is linked, or not; perhaps for a client that has gone meanwhile."""
        self.end_prepare(data.draw(st.sampled_from(sorted(self.preparing))), how)

    def end_prepare(self, client: int, how: str) -> None:
        """What a patch would bring is told by the objects; there may be nothing to bring."""
        asked = self.preparing.pop(client)
        process = self.processes.get(client)
        wanted = self.objects[asked.objects]
        if process is None or (how == "patch" and process.runs == wanted):
            self.feed(Prepared(client=client))
            return
        if how == "patch":
            name = f"patch-{client}-{asked.edit}-{len(process.before)}"
            self.prepared[client] = (name, wanted)
            made = content(name, {"f": fingerprint(name)}, edit=asked.edit)
            self.feed(Prepared(client=client, content=made, bytes=1))
            return
        process.excused = True
        self.facts.add(how)
        self.feed(
            Prepared(client=client, refusals=(Refusal(symbol=None, reason=how, detail=""),), failed=how == "tool")
        )

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), agrees=st.booleans())
    def answer(self, data: st.DataObject, agrees: bool) -> None:
        """A client answers."""
        self.give_answer(data.draw(st.sampled_from(sorted(self.unanswered))), agrees)

    def give_answer(self, client: int, agrees: bool) -> None:
        """A client did what it was told, or refused."""
        asked = self.unanswered.pop(client)
        process = self.processes[client]
        self.facts.add("applied" if agrees else "refusal")
        reply: Applied | Refused = Refused(reason="park", detail="", symbol=None)
        process.excused = not agrees
        if agrees:
            reply = Applied(next=0x20000, threads=1, timings_us={}, on_stack=())
            if isinstance(asked, dict):
                process.before.append(process.runs)
                process.runs = asked
            else:
                history = self.state.sessions[client].history
                kept = 0 if asked == "all" else [patch.patch for patch in history].index(str(asked)) + 1
                process.runs = process.before[kept]
                del process.before[kept:]
        self.feed(Answered(client=client, answer=reply, now=2.0, since_sent_ms=1.0))

    def join(self) -> None:
        """Somebody else starts the program."""
        self.numbers += 1
        self.connect()

    def connect(self) -> None:
        """The newest process says hello."""
        self.processes[self.numbers] = Process(runs=dict(self.host))
        self.feed(Joined(session=session(self.numbers)))

    def leave(self, client: int) -> None:
        """A connection ends."""
        process = self.processes.pop(client)
        if client in self.state.awaited:
            self.facts.add("refusal")
        # What it does with words that it still got, the daemon would not know.
        if client not in self.unanswered:
            self.away.append((process, self.state.sessions[client]))
        self.unanswered.pop(client, None)
        self.feed(Left(client=client))

    def come_back(self) -> None:
        """A program whose connection ended connects again, with the patches that it has."""
        self.numbers += 1
        process, known = self.away.pop()
        self.processes[self.numbers] = process
        self.feed(Joined(session=replace(known, client=self.numbers)))

    def undo(self, count: int) -> None:
        """Somebody asks for an undo."""
        self.numbers += 1
        self.requests.add(self.numbers)
        self.feed(UndoAsked(count=count, request=self.numbers))

    def restart(self, without_last: bool) -> None:
        """Somebody asks for a restart."""
        self.numbers += 1
        self.requests.add(self.numbers)
        self.feed(RestartAsked(request=self.numbers, without_last=without_last))

    @precondition(lambda self: self.scheduled)
    @rule()
    def time_passes(self) -> None:
        """The pause that was asked for is over."""
        self.feed(BackgroundDue(edit=self.scheduled.pop(0)))

    # What is promised.

    @invariant()
    def something_is_in_hand_unless_idle(self) -> None:
        """The phase says what is being waited for."""
        state = self.state
        if self.ended:
            return
        assert state.sessions.keys() == self.processes.keys()
        assert (state.phase == "building") == (self.building is not None)
        assert set(state.awaited) == (self.preparing.keys() & self.processes.keys()) | self.unanswered.keys()
        assert (state.phase in ("applying", "undoing")) == bool(state.awaited)
        assert (state.phase == "restarting") == (self.full == "restart")
        assert (state.background == "running") == (self.full == "background")
        if state.phase in ("waiting", "idle", "restarting"):
            assert self.open_edits == []
        if state.phase == "idle":
            assert state.pending == ()
            assert state.undos == ()
            assert state.late == frozenset()
            assert state.wish is None
            wanted = self.objects[state.target]
            assert all(process.runs == wanted for process in self.processes.values() if not process.excused)

    def teardown(self) -> None:
        """Once everybody has done what they were told, the newest source runs, or a verdict says why not."""
        for _ in range(30):
            self.work_off()
        if self.ended:
            return
        assert self.state.phase == "idle"
        assert self.open_edits == []
        assert self.requests == set()
        if self.last_verdict in ("applied", "unchanged") and not self.held:
            assert self.objects[self.state.target] == self.source
        if self.is_broken(self.source):
            assert self.last_verdict in ("failed", "restart")


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
