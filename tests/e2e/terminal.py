"""Runs a command on a terminal of its own: `terminal.py KEYBOARD COMMAND…`.

What others write into the fifo KEYBOARD is typed; what the terminal shows goes to standard output.
"""

import os
import pty
import sys
import threading


def _type_all(keyboard: str, terminal: int) -> None:
    while True:
        with open(keyboard, "rb", buffering=0) as typed:
            while keys := typed.read(64):
                os.write(terminal, keys)


def main() -> int:
    """Returns the command's exit status."""
    keyboard, *command = sys.argv[1:]
    pid, terminal = pty.fork()
    if not pid:
        os.execvp(command[0], command)
    threading.Thread(target=_type_all, args=(keyboard, terminal), daemon=True).start()
    try:
        while shown := os.read(terminal, 1 << 16):
            os.write(1, shown)
    except OSError:  # The last process that had the terminal closed it.
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
