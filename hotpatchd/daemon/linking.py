"""Running the linker of a captured command."""

import os
from collections.abc import Sequence
from pathlib import Path

from hotpatchd.core.errors import BuildError
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import Linker, identify_linker, plan_version_query
from hotpatchd.daemon.processes import run_process


async def identify(line: LinkLine) -> Linker:
    """Ask the linker of a captured command what it is.

    Raises:
        HotpatchdError: it cannot be run, or is not known.
    """
    finished = await run_process(plan_version_query(line), env=link_environ(line))
    return identify_linker((finished.stdout + finished.stderr).decode("utf-8", "replace"))


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
