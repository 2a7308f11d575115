"""Promises of the daemon's decisions, whatever happens in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from hotpatchd.core.client import Applied, Refused
from hotpatchd.core.events import EditSettled, EditVerdict, Event, PatchSent, Refusal
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.messages import (
    Answered,
    BaselineReady,
    Command,
    Emit,
    Joined,
    Left,
    Prepare,
    Prepared,
    Rebuild,
    Rebuilt,
    Reply,
    Send,
    SendUndo,
    Settled,
    StepEvent,
    UndoAsked,
)
from hotpatchd.core.state import State
from hotpatchd.core.step import step
from tests.core.fakes import content, fingerprint, session

CRATE_OF = {"lib.rs": "lib", "main.rs": "app"}
INPUTS = BuildInputs(
    crates_of={file: (crate,) for file, crate in CRATE_OF.items()}, full_build={"Cargo.toml": "manifest"}
)
FILES = st.sets(st.sampled_from(["lib.rs", "main.rs", "Cargo.toml", "notes.txt"]), min_size=1).map(sorted)


class World(RuleBasedStateMachine):
    """Compiler, clients and people around `step`: they carry its commands out late and in any order."""

    clients: Bundle[int] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.connected: set[int] = set()
        self.numbers = 0
        self.building: frozenset[str] | None = None
        self.preparing: dict[int, int] = {}
        self.prepared: dict[int, str] = {}
        self.unanswered: dict[int, str | None] = {}
        self.requests: set[int] = set()
        self.edits = 0
        self.open_edits: list[int] = []
        self.facts: set[str] = set()
        self.newer_than_objects: set[str] = set()
        self.objects = 0
        self.published = 0
        self.objects_seen: dict[int, int] = {}

    def feed(self, event: StepEvent) -> None:
        """One event in, and its commands checked against what the world knows."""
        self.state, commands = step(self.state, event)
        for command in commands:
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        """A command makes sense when it is given."""
        match command:
            case Emit():
                self.hear(command.event)
            case Rebuild():
                assert self.building is None
                assert command.crates >= self.newer_than_objects
                self.building = command.crates
                self.newer_than_objects.clear()
            case Prepare(session=known):
                assert self.building is None
                assert known.client in self.connected - self.preparing.keys() - self.unanswered.keys()
                assert known == self.state.sessions[known.client]
                self.preparing[known.client] = command.edit
                self.objects_seen[known.client] = self.objects
            case Send():
                assert command.client in self.connected
                assert self.prepared.pop(command.client) == command.patch
                self.unanswered[command.client] = command.patch
            case SendUndo():
                known = self.state.sessions[command.client]
                assert command.client in self.connected - self.unanswered.keys()
                assert command.to is None or command.to in [patch.patch for patch in known.history[:-1]]
                self.unanswered[command.client] = command.to
            case Reply():
                self.requests.remove(command.request)

    def hear(self, event: Event) -> None:
        """Events tell the truth; a settled edit has one verdict, and only one that is carried waits for the next."""
        match event:
            case EditSettled():
                assert tuple(self.open_edits) == self.state.carried
                assert event.edit == self.edits + 1
                self.edits = event.edit
                self.open_edits.append(event.edit)
                self.facts = {"full_build"} & {"full_build" for file in event.files if file in INPUTS.full_build}
            case EditVerdict():
                assert event.edit == self.open_edits.pop(0)
                assert event.verdict.verdict == self.expected_verdict()
                assert bool(event.verdict.refusals) == (
                    event.verdict.verdict in ("refused", "restart") or "tool" in self.facts
                )
            case PatchSent():
                assert event.client in self.unanswered
            case _:
                pass

    def expected_verdict(self) -> str:
        """The worst of what happened during the edit in hand."""
        order = ("full_build", "restart"), ("broken", "failed"), ("tool", "failed"), ("refusal", "refused")
        for fact, verdict in order:
            if fact in self.facts:
                return verdict
        return "applied" if self.facts else "unchanged"

    @precondition(lambda self: self.state.phase == "waiting")
    @rule()
    def baseline(self) -> None:
        """The first objects are ready."""
        self.feed(BaselineReady(inputs=INPUTS))

    @rule(files=FILES)
    def settle(self, files: list[str]) -> None:
        """Somebody saves files."""
        self.newer_than_objects |= {CRATE_OF[file] for file in files if file in CRATE_OF}
        self.feed(Settled(files=tuple(files), last_write=1.0, settle_ms=20.0))

    @precondition(lambda self: self.building is not None)
    @rule(compiles=st.booleans())
    def finish_build(self, compiles: bool) -> None:
        """The compiler is done."""
        self.end_build(compiles)

    def end_build(self, compiles: bool) -> None:
        """The compiler says whether the source is in order."""
        assert self.building is not None
        crates, self.building = self.building, None
        if compiles:
            self.objects += 1
            self.facts |= set() if self.connected else {"refusal"}
        else:
            self.facts.add("broken")
            self.newer_than_objects |= crates
        failed = frozenset() if compiles else crates
        event = Rebuilt(crates=tuple(crates), failed=failed, diagnostics=(), compile_ms=1.0, inputs=INPUTS)
        self.feed(event)
        if compiles and not self.state.carried:
            self.published = self.objects

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), how=st.sampled_from(["patch", "nothing", "refusal", "tool"]))
    def finish_prepare(self, data: st.DataObject, how: str) -> None:
        """A patch is linked, or not; perhaps for a client that has gone meanwhile."""
        client = data.draw(st.sampled_from(sorted(self.preparing)))
        edit = self.preparing.pop(client)
        if how == "patch":
            name = f"patch-{client}-{edit}-{self.objects}-{len(self.unanswered)}"
            self.prepared[client] = name
            made = content(name, {"f": fingerprint(name)}, edit=edit)
            self.feed(Prepared(client=client, content=made, bytes=1))
            if client not in self.connected:
                assert self.prepared.pop(client) == name
            return
        if how != "nothing" and client in self.connected:
            self.facts.add(how)
        refusals = (Refusal(symbol=None, reason=how, detail=""),) if how != "nothing" else ()
        self.feed(Prepared(client=client, refusals=refusals, failed=how == "tool"))

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), agrees=st.booleans())
    def answer(self, data: st.DataObject, agrees: bool) -> None:
        """A client answers."""
        client = data.draw(st.sampled_from(sorted(self.unanswered)))
        self.give_answer(client, agrees)

    def give_answer(self, client: int, agrees: bool) -> None:
        """A client did what it was told, or refused."""
        del self.unanswered[client]
        self.facts.add("applied" if agrees else "refusal")
        reply: Applied | Refused
        if agrees:
            reply = Applied(next=0x20000, threads=1, timings_us={}, on_stack=())
        else:
            reply = Refused(reason="park", detail="", symbol=None)
        self.feed(Answered(client=client, answer=reply, now=2.0, since_sent_ms=1.0))

    @precondition(lambda self: len(self.connected) < 3)
    @rule(target=clients)
    def join(self) -> int:
        """A program starts."""
        self.numbers += 1
        self.connected.add(self.numbers)
        self.objects_seen[self.numbers] = 0
        self.feed(Joined(session=session(self.numbers)))
        return self.numbers

    @rule(client=consumes(clients))
    def leave(self, client: int) -> None:
        """A program ends."""
        self.connected.remove(client)
        if client in self.state.awaited:
            self.facts.add("refusal")
        self.unanswered.pop(client, None)
        self.feed(Left(client=client))

    @rule(count=st.integers(1, 3))
    def undo(self, count: int) -> None:
        """Somebody asks for an undo."""
        self.numbers += 1
        self.requests.add(self.numbers)
        self.feed(UndoAsked(count=count, request=self.numbers))

    @invariant()
    def something_is_in_hand_unless_idle(self) -> None:
        """The phase says what is being waited for."""
        state = self.state
        assert state.sessions.keys() == self.connected
        assert (state.phase == "building") == (self.building is not None)
        assert set(state.awaited) == (self.preparing.keys() & self.connected) | self.unanswered.keys()
        assert (state.phase in ("applying", "undoing")) == bool(state.awaited)
        if state.phase in ("waiting", "idle"):
            assert self.open_edits == []
        if state.phase == "idle":
            assert state.pending == ()
            assert state.late == frozenset()

    def teardown(self) -> None:
        """Once everybody has done what they were told, nothing is left over."""
        if self.state.phase == "waiting":
            self.feed(BaselineReady(inputs=INPUTS))
        for _ in range(9):
            if self.building is not None:
                self.end_build(True)
            for client in sorted(self.preparing):
                del self.preparing[client]
                self.feed(Prepared(client=client))
            for client in sorted(self.unanswered):
                self.give_answer(client, True)
        assert self.state.phase == "idle"
        assert self.open_edits == []
        assert self.requests == set()
        assert self.state.dirty == self.newer_than_objects
        # Newer ones were made while their source changed, into something that does not compile.
        assert all(self.published <= self.objects_seen[client] <= self.objects for client in self.connected)


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
