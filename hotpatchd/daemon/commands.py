"""What `hotpatchd status`, `undo` and the others ask of the running daemon."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from hotpatchd.core import messages
from hotpatchd.core.errors import UsageError
from hotpatchd.core.events import EditVerdict
from hotpatchd.core.session import Session
from hotpatchd.core.state import State
from hotpatchd.daemon import wire
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.generation import Generation
from hotpatchd.daemon.history import History
from hotpatchd.daemon.proof import Proofs


class Commands:
    """Answers them.

    Args:
        workspace: the directory that is watched.
        events: the events so far.
        history: the edits so far.
        proofs: which of their code has run.
        state: the daemon's.
        generation: the build that is patched; None until there is one.
        dispatch: takes in what somebody asked for.
        rescan: looks now whether these files changed, or all, and takes in what did.
    """

    def __init__(
        self,
        *,
        workspace: Path,
        events: EventBus,
        history: History,
        proofs: Proofs,
        state: Callable[[], State],
        generation: Callable[[], Generation | None],
        dispatch: Callable[[messages.StepEvent], None],
        rescan: Callable[[Sequence[Path]], Awaitable[bool]],
    ) -> None:
        self._workspace = workspace
        self._events = events
        self._history = history
        self._proofs = proofs
        self._state = state
        self._generation = generation
        self._dispatch = dispatch
        self._rescan = rescan
        self._started = time.time()
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Mapping[str, object]]] = {}

    async def answer(self, command: wire.ControlCommand) -> object:
        """Carry out a command.

        Returns:
            plain JSON values.

        Raises:
            HotpatchdError: it cannot be done, and why.
        """
        match command:
            case wire.StatusRequest():
                return self._status()
            case wire.ClientsRequest():
                return [_client_row(session) for session in self._state().sessions.values()]
            case wire.TriggerRequest():
                return await self._trigger([Path(file) for file in command.files])
            case wire.UndoRequest():
                return await self._ask(lambda request: messages.UndoAsked(count=command.count, request=request))
            case wire.LogRequest():
                return [self._with_proof(row) for row in self._history.rows()]
            case wire.ShowRequest():
                return self._with_proof(await self._history.show(command.edit))
            case wire.RestartRequest():
                return await self._ask(
                    lambda request: messages.RestartAsked(request=request, without_last=command.without_last)
                )
            case _:
                raise UsageError(f"the daemon does not know the command {type(command).__name__}")

    def reply(self, reply: messages.Reply) -> None:
        """Hand a decision to whoever asked for it."""
        asked = self._requests.pop(reply.request)
        if asked.cancelled():
            return
        if reply.error:
            asked.set_exception(UsageError(reply.error))
        else:
            asked.set_result(reply.result)

    def _with_proof(self, row: Mapping[str, object]) -> dict[str, object]:
        edit = row["edit"]
        assert isinstance(edit, int)
        return {**row, **self._proofs.row(edit)}

    async def _ask(self, event: Callable[[int], messages.StepEvent]) -> Mapping[str, object]:
        number = next(self._numbers)
        asked: asyncio.Future[Mapping[str, object]] = asyncio.get_running_loop().create_future()
        self._requests[number] = asked
        self._dispatch(event(number))
        return await asked

    def _status(self) -> dict[str, object]:
        state, generation = self._state(), self._generation()
        return {
            "pid": os.getpid(),
            "since": self._started,
            "workspace": str(self._workspace),
            "program": str(generation.fat.executable) if generation else None,
            "programs": (
                {str(host.program.executable): host.build_id for host in generation.hosts} if generation else {}
            ),
            "build_id": generation.hosts[0].build_id if generation else "",
            "phase": state.phase,
            "edit": state.edit,
            "crates": list(generation.crate_names) if generation else [],
            "clients": len(state.sessions),
            "restart_needed_for": dict(state.due),
            "edits": [
                self._with_proof(record) for record in self._events.recent if record["event"] == EditVerdict.event
            ],
        }

    async def _trigger(self, files: Sequence[Path]) -> dict[str, int | None]:
        inputs = self._state().inputs.paths
        for file in files:
            if str(file) not in inputs and not os.path.lexists(file):
                raise UsageError(f"there is no file {file}, and none of that name was watched")
        before = self._state().edit
        changed = await self._rescan(files)
        state = self._state()
        if state.edit > before:
            return {"edit": state.edit}
        return {"edit": before + 1 if changed and state.pending else None}


def _client_row(session: Session) -> dict[str, object]:
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
