"""How each crate of the program is compiled again: edited arguments, directories, and who depends on whom."""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hotpatchd.core.argv import artifact_stem, codegen, parse_argv, values
from hotpatchd.core.capture import Capture
from hotpatchd.core.errors import ArgvError
from hotpatchd.core.recipe import EditedArgv, edit_cgu, edit_single_object, find_refusal

Recipe = Literal["cgu", "single-object"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCrate:
    """One crate as the daemon compiles it.

    Args:
        name: unique among the crates of the program; the crate's name, with its metadata where two share it.
        capture: the invocation that it comes from.
        edited: its arguments.
        out_dir: where rustc writes.
        incremental_dir: the incremental cache.
        metadata: the `.rmeta` file that dependents read; None for the tip.
        dependencies: names of other crates of the program that it is compiled against.
    """

    name: str
    capture: Capture
    edited: EditedArgv
    out_dir: str
    incremental_dir: str
    metadata: str | None
    dependencies: tuple[str, ...]

    @property
    def is_optimised(self) -> bool:
        """Whether the objects are compiled with an opt-level above 0."""
        return opt_level_of(self.edited.argv) != "0"


def opt_level_of(argv: Sequence[str]) -> str:
    """The optimisation level that a command asks for, `0` where it asks for none."""
    return codegen(parse_argv(argv), "opt-level") or "0"


def plan_thin_crates(
    captures: Sequence[Capture],
    *,
    thin_dir: str,
    recipe: Recipe = "cgu",
    opt_level: Literal["0", "match"] | None = None,
    ansi: bool = False,
) -> tuple[ThinCrate, ...]:
    """Plan the thin rebuild of a program.

    Args:
        captures: the program's own crates, each after those that it depends on; the tip last.
        thin_dir: directory for all output; each crate gets its own within it.
        recipe: see `hotpatchd.core.recipe`.
        opt_level: `match` keeps each crate's level. None: `match` for crates that are optimised, else `0`.
        ansi: coloured diagnostics.

    Returns:
        The crates in the same order, without those that never run in the program (proc macros, build scripts).

    Raises:
        ArgvError: a captured command cannot be understood, or the tip itself cannot be compiled alone.
    """
    compiled = [capture for capture in captures if find_refusal(capture.argv) is None]
    if not compiled or compiled[-1] is not captures[-1]:
        raise ArgvError("the selected target is not a program that can be patched")
    names = [capture.crate_name for capture in compiled]
    planned: list[ThinCrate] = []
    metadata_of: dict[str, str] = {}
    name_of: dict[str, str] = {}
    for capture in compiled:
        args = parse_argv(capture.argv)
        stem = artifact_stem(args)
        is_tip = capture is captures[-1]
        directory = os.path.join(thin_dir, f"{stem.removeprefix('lib')}-{'bin' if is_tip else 'lib'}-{recipe}")
        out_dir, incremental_dir = os.path.join(directory, "out"), os.path.join(directory, "incremental")
        dependencies = tuple(
            name_of[found]
            for found in (os.path.splitext(os.path.basename(v.partition("=")[2]))[0] for v in values(args, "--extern"))
            if found in name_of
        )
        if recipe == "cgu":
            level = opt_level or ("0" if opt_level_of(capture.argv) == "0" else "match")
            edited = edit_cgu(
                capture.argv,
                out_dir=out_dir,
                incremental_dir=incremental_dir,
                opt_level=level,
                with_metadata=not is_tip,
                # At level 0 a library's dead code would be seen by the tip, which then uses the library's instances of
                # generic functions where the host, built without it, has its own under other names.
                link_dead_code=is_tip or level != "0",
                ansi=ansi,
                thin_crates=metadata_of,
            )
        else:
            edited = edit_single_object(capture.argv, out_dir=out_dir, incremental_dir=incremental_dir)
        shares_name = names.count(capture.crate_name) > 1
        crate = ThinCrate(
            name=f"{capture.crate_name}@{directory.rpartition('/')[2]}" if shares_name else capture.crate_name,
            capture=capture,
            edited=edited,
            out_dir=out_dir,
            incremental_dir=incremental_dir,
            metadata=None if is_tip else os.path.join(out_dir, f"{stem}.rmeta"),
            dependencies=dependencies,
        )
        planned.append(crate)
        if crate.metadata:
            metadata_of[stem], name_of[stem] = crate.metadata, crate.name
    return tuple(planned)
