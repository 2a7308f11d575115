"""Single keys of the developer's terminal, while no program reads from it."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any


class Keys:
    """Hands over each key as it is pressed, from `start` until `stop`.

    The terminal echoes nothing meanwhile; Ctrl-C and its like work as ever.

    Args:
        pressed: receives each key.
    """

    def __init__(self, pressed: Callable[[str], None]) -> None:
        self._pressed = pressed
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._settings: list[Any] | None = None

    @property
    def are_there(self) -> bool:
        """Whether there is a terminal at all, and this process is in its foreground."""
        return self._fd >= 0 and os.tcgetpgrp(self._fd) == os.getpgrp()

    def start(self) -> None:
        """Listen from now on."""
        if self._settings is None and self.are_there:
            self._settings = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def stop(self) -> None:
        """Leave the terminal to others, as it was."""
        if self._settings is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)
            self._settings = None

    def _read(self) -> None:
        for key in os.read(self._fd, 64).decode("utf-8", "replace"):
            self._pressed(key)
