"""Native libraries that a program could be linked from: a patch takes from them what the program lacks."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from hotpatchd.core.linkline import InputKind, LinkLine, link_inputs
from hotpatchd.core.linkplan import plan_search_query
from hotpatchd.daemon.linking import link_environ
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.archive import MAGIC

_NAMED_LIBRARY = re.compile(rb"/[^\s()]+\.so[^\s()]*")
"""As the linker's scripts that stand for libraries have it: `GROUP ( /lib/libm.so.6 AS_NEEDED ( ... ) )`."""


async def static_libraries(line: LinkLine) -> tuple[Path, ...]:
    """The archives that the linker found for `-l` arguments of a static program, in their order.

    A driver such as `musl-gcc` has directories of its own, and `-print-file-name` does not know them: what it would
    run does.

    Args:
        line: the captured command.
    """
    directories = await _all_directories(line)
    wanted = (name for name in _file_names(line, ".a") if name.endswith(".a"))
    found = (_find(name, directories) for name in dict.fromkeys(wanted))
    return tuple(path for path in found if path is not None)


async def shared_libraries(line: LinkLine) -> tuple[Path, ...]:
    """The shared libraries that the linker found for `-l` arguments, in their order.

    The program need not have been linked with all of them: the linker leaves out what nothing of it needed.

    Args:
        line: the captured command.
    """
    directories = await _all_directories(line)
    found = (_find(name, directories) for name in dict.fromkeys(_file_names(line, ".so")))
    return tuple(library for path in found if path is not None for library in _loadable(path))


def _loadable(path: Path) -> Iterator[Path]:
    """The file itself, or the libraries that it names where it is a linker's script."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    if data.startswith(b"\x7fELF"):
        yield path
    elif not data.startswith(MAGIC):
        yield from (Path(os.fsdecode(name)) for name in _NAMED_LIBRARY.findall(data))


async def _all_directories(line: LinkLine) -> list[Path]:
    """Where the linker looks for libraries."""
    commands = [line.argv]
    query = plan_search_query(line)
    if query is not None:
        finished = await run_process(query, env=link_environ(line))
        commands += map(_words, os.fsdecode(finished.stderr).splitlines())
    return [directory for command in commands for directory in _search_directories(command)]


def _words(text: str) -> tuple[str, ...]:
    """A line of `-###`; it has other lines than commands, with quotes that do not match."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def _search_directories(command: Iterable[str]) -> Iterator[Path]:
    words = iter(command)
    for word in words:
        if word.startswith("-L"):
            yield Path(word[2:] or next(words, ""))


def _file_names(line: LinkLine, suffix: str) -> Iterator[str]:
    """File names, by the rules of ld(1) for `-l`; the suffix is for those that are not given in full."""
    for item in link_inputs(line):
        if item.kind is InputKind.LIBRARY and item.words[0].startswith("-l"):
            name = item.words[-1].removeprefix("-l")
            yield name[1:] if name.startswith(":") else f"lib{name}{suffix}"


def _find(name: str, directories: Iterable[Path]) -> Path | None:
    return next((path for path in (directory / name for directory in directories) if path.is_file()), None)
