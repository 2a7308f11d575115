"""The program that a daemon runs: its starts, its end, and the keys by which the developer decides about it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from hotpatchd.core import messages
from hotpatchd.daemon.crash_report import CrashReports
from hotpatchd.daemon.keys import Keys
from hotpatchd.daemon.program import RunningProgram, client_environ, program_command, start_program
from hotpatchd.daemon.report import Terminal


class RunControl:
    """Starts the program, as often as it is wanted, and tells of its end.

    Args:
        args: the program's arguments; None where others start it.
        triple: its target.
        client: the client to be preloaded into it, if any.
        cwd: where it starts.
        state_dir: the daemon's directory.
        takes_keys: the terminal's keys are the daemon's while the program runs, too.
        crashes: what was sent to programs, to tell where they fail.
        terminal: what a person sees.
        dispatch: takes in what happened.
        spawn: runs something beside everything else.
        undo: takes the last edit back.
        leave: ends the daemon.
    """

    def __init__(
        self,
        *,
        args: Sequence[str] | None,
        triple: str,
        client: Path | None,
        cwd: Path,
        state_dir: Path,
        takes_keys: bool,
        crashes: CrashReports,
        terminal: Terminal,
        dispatch: Callable[[messages.StepEvent], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        undo: Callable[[], Coroutine[Any, Any, None]],
        leave: Callable[[], None],
    ) -> None:
        self._args = args
        self._triple = triple
        self._client = client
        self._cwd = cwd
        self._state_dir = state_dir
        self._takes_keys = takes_keys
        self._crashes = crashes
        self._terminal = terminal
        self._dispatch = dispatch
        self._spawn = spawn
        self._undo = undo
        self._leave = leave
        self._keys = Keys(self._on_key)
        self._program: RunningProgram | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the daemon runs the program, and not others."""
        return self._args is not None

    @property
    def can_ask(self) -> bool:
        """Whether there is somebody who could decide after a crash."""
        return self._keys.are_there

    async def start(self, executable: Path, environ: Mapping[str, str]) -> None:
        """Start the program in the terminal's foreground, with the client in it.

        Args:
            executable: it.
            environ: the environment that it would have otherwise.

        Raises:
            UsageError: it cannot be started.
        """
        assert self._args is not None
        command = program_command(executable, self._args, self._triple, cwd=self._cwd, environ=environ)
        environ = client_environ(environ, self._client, self._state_dir, executable, self._triple)
        if not self._takes_keys:
            self._keys.stop()
        program = self._program = await start_program(
            command, environ, cwd=self._cwd, reads_terminal=not self._takes_keys
        )
        self._terminal.say("Running", f"{command[0]} (process {program.pid})")
        self._dispatch(messages.ProgramStarted(pid=program.pid))
        self._spawn(self._await_end(program))

    async def end(self, *, interrupted: bool = False) -> None:
        """End the program, if it runs; nothing tells of this end.

        Args:
            interrupted: a Ctrl-C reached it as well.
        """
        program, self._program = self._program, None
        if program is not None:
            await program.end(interrupted=interrupted)

    def take_keys(self) -> None:
        """Take the terminal's keys from now on, unless they are the program's."""
        if self._takes_keys or not self.is_ours:
            self._keys.start()

    def leave_keys(self) -> None:
        """Leave the terminal as it was."""
        self._keys.stop()

    def offer_restart(self, leaves_out: int | None) -> None:
        """Ask the developer what is to become of a program that crashed.

        Args:
            leaves_out: the edit that it could be started without, if there is one.
        """
        keys = {"r": "build and start it again", "d": f"start it again as it was before edit {leaves_out}", "q": "end"}
        if leaves_out is None:
            del keys["d"]
        self._terminal.say("Crashed", ", ".join(f"{key}: {what}" for key, what in keys.items()), "bold red")
        self._keys.start()

    async def _await_end(self, program: RunningProgram) -> None:
        status = await program.wait()
        ending = await asyncio.to_thread(self._crashes.take, program.pid, status)
        if self._program is program:
            self._program = None
            for panic in ending.panics:
                self._dispatch(messages.Panicked(pid=program.pid, panic=panic))
            self._dispatch(messages.ProgramEnded(pid=program.pid, status=status, crash=ending.crash))

    def _on_key(self, key: str) -> None:
        match key:
            case "r":
                self._dispatch(messages.RestartAsked())
            case "d":
                self._dispatch(messages.RestartAsked(without_last=True))
            case "u":
                self._spawn(self._undo())
            case "q":
                self._leave()
