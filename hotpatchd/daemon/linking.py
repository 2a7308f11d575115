"""Running the linker of a captured command."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from hotpatchd.core.cache_key import link_key
from hotpatchd.core.errors import BuildError
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import Linker, identify_linker, plan_version_query
from hotpatchd.daemon import logs
from hotpatchd.daemon.object_cache import ObjectCache, digest_of_file
from hotpatchd.daemon.processes import run_process

_log = structlog.get_logger()

_LINKED = "linked"


class LinkCache:
    """Links patches with a cache: what was linked before from the same objects is not linked again.

    Addresses are in the command and in the objects, and most systems load a program at another address each time; and
    in one process each patch has an address of its own. So this is of use where addresses are the same again: programs
    linked for fixed addresses, or run without randomisation (in debuggers, under Wine), and patch libraries for a
    process that outlives the daemon.

    What is linked goes into the cache, and comes out of it, as a copy: tools that run after the linker write into it.

    Args:
        cache: may be shared.
        host: build id of the program.
        linker: what linker it is, as it says itself; another one makes other files.
    """

    def __init__(self, cache: ObjectCache, *, host: str, linker: str) -> None:
        self._cache = cache
        self._host = host
        self._linker = linker

    async def run(
        self, argv: Sequence[str], response: Path, line: LinkLine, output: Path, inputs: Sequence[Path]
    ) -> None:
        """Do what `run_linker` does, or take what it did earlier.

        Args:
            argv: the command without the response file, which is added to it.
            response: the file with the rest of its arguments.
            line: the captured command.
            output: path of what is linked; nothing is there yet.
            inputs: the files that the response file names and that differ from patch to patch.

        Raises:
            BuildError: the linker failed.
        """
        key = await asyncio.to_thread(self._key, argv, response, line, output, inputs)
        if await asyncio.to_thread(self._take_out, key, output):
            return
        await run_linker([*argv, f"@{response}"], line, output)
        await asyncio.to_thread(self._store, key, output)

    def _key(self, argv: Sequence[str], response: Path, line: LinkLine, output: Path, inputs: Sequence[Path]) -> str:
        return link_key(
            argv,
            response.read_text("utf-8", "surrogateescape"),
            line,
            host=self._host,
            linker=self._linker,
            inputs={str(path): digest_of_file(path) for path in inputs},
            output=str(output),
        )

    def _take_out(self, key: str, output: Path) -> bool:
        try:
            entry = self._cache.load(key)
            if entry is None:
                return False
            if self._cache.take_out(entry.files[_LINKED], output, copied=True):
                return True
            self._cache.drop(key)
        except OSError as error:
            _log.warning(logs.CACHE_RESTORE_FAILED, file=str(output), error=str(error))
        return False

    def _store(self, key: str, output: Path) -> None:
        try:
            self._cache.store(key, {_LINKED: output}, copied=True)
        except OSError as error:
            _log.warning(logs.CACHE_STORE_FAILED, file=str(output), error=str(error))


async def identify(line: LinkLine) -> Linker:
    """Ask the linker of a captured command what it is.

    Raises:
        HotpatchdError: it cannot be run, or is not known.
    """
    return identify_linker(await linker_version(line))


async def linker_version(line: LinkLine) -> str:
    """What the linker of a captured command prints for `--version`, be it an error.

    Raises:
        HotpatchdError: it cannot be run.
    """
    finished = await run_process(plan_version_query(line), env=link_environ(line))
    return (finished.stdout + finished.stderr).decode("utf-8", "replace")


async def run_linker(argv: Sequence[str], line: LinkLine, output: Path) -> None:
    """Run a planned command in the environment of the captured one.

    Raises:
        BuildError: it failed; its exit status counts, and that the file is there.
    """
    finished = await run_process(argv, env=link_environ(line))
    if finished.status or not output.exists():
        raise BuildError(
            f"the linker `{argv[0]}` failed with exit status {finished.status}",
            output=finished.stderr.decode("utf-8", "replace"),
        )


def link_environ(line: LinkLine) -> dict[str, str]:
    """The environment in which a captured linker command runs again."""
    # rustc prunes PATH for the linker; the developer's own stands behind it, so that `ld` is found.
    env = {name: value for name, value in os.environ.items() if name not in line.unset_env}
    for name, value in line.env:
        env[name] = f"{value}{os.pathsep}{env['PATH']}" if name == "PATH" and "PATH" in env else value
    return env
