"""Native libraries that a static program was linked from: a patch takes from them what the program lacks."""

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from hotpatchd.core.linkline import InputKind, LinkLine, link_inputs
from hotpatchd.core.linkplan import plan_search_query
from hotpatchd.daemon.linking import link_environ
from hotpatchd.daemon.processes import run_process


async def static_libraries(line: LinkLine) -> tuple[Path, ...]:
    """The archives that the linker found for `-l` arguments of a static program, in their order.

    A driver such as `musl-gcc` has directories of its own, and `-print-file-name` does not know them: what it would
    run does.

    Args:
        line: the captured command.
    """
    commands = [line.argv]
    query = plan_search_query(line)
    if query is not None:
        finished = await run_process(query, env=link_environ(line))
        commands += map(_words, os.fsdecode(finished.stderr).splitlines())
    directories = [directory for command in commands for directory in _search_directories(command)]
    found = (_find(name, directories) for name in dict.fromkeys(_archive_names(line)))
    return tuple(path for path in found if path is not None)


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


def _archive_names(line: LinkLine) -> Iterator[str]:
    """File names, by the rules of ld(1) for `-l`."""
    for item in link_inputs(line):
        if item.kind is InputKind.LIBRARY and item.words[0].startswith("-l"):
            name = item.words[-1].removeprefix("-l")
            wanted = name[1:] if name.startswith(":") else f"lib{name}.a"
            if wanted.endswith(".a"):
                yield wanted


def _find(name: str, directories: Iterable[Path]) -> Path | None:
    return next((path for path in (directory / name for directory in directories) if path.is_file()), None)
