"""How each crate of the program is compiled again: edited arguments, directories, and who depends on whom."""

import os.path
from collections import Counter
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from hotpatchd.core.argv import artifact_stem, codegen, parse_argv, values
from hotpatchd.core.capture import Capture, CaptureKey
from hotpatchd.core.errors import ArgvError
from hotpatchd.core.recipe import EditedArgv, edit_cgu, edit_single_object, find_refusal

Recipe = Literal["cgu", "single-object"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCrate:
    """One crate as the daemon compiles it.

    Args:
        name: unique among the crates of all programs; the crate's name, with what tells it apart where two share it.
        capture: the invocation that it comes from.
        edited: its arguments.
        out_dir: where rustc writes.
        incremental_dir: the incremental cache.
        metadata: the `.rmeta` file that dependents read; None for the tip.
        dependencies: names of other crates of these programs that it is compiled against.
    """

    name: str
    capture: Capture
    edited: EditedArgv
    out_dir: str
    incremental_dir: str
    metadata: str | None
    dependencies: tuple[str, ...]

    @property
    def is_tip(self) -> bool:
        """Whether a program is linked from it, so that nothing is compiled against it."""
        return self.metadata is None

    @property
    def is_optimised(self) -> bool:
        """Whether the objects are compiled with an opt-level above 0."""
        return opt_level_of(self.edited.argv) != "0"


def opt_level_of(argv: Sequence[str]) -> str:
    """The optimisation level that a command asks for, `0` where it asks for none."""
    return codegen(parse_argv(argv), "opt-level") or "0"


def lto_of(argv: Sequence[str]) -> str | None:
    """The link-time optimisation that a command asks for, `fat` or `thin`; None for none beyond the crate itself.

    Source: rustc_session, `config::LtoCli`.
    """
    asked = codegen(parse_argv(argv), "lto")
    if asked in (None, "off", "no", "n", "false"):
        return None
    return "thin" if asked == "thin" else "fat"


def plan_thin_crates(
    captures: Sequence[Capture],
    *,
    thin_dir: str,
    tips: Collection[Capture] | None = None,
    recipe: Recipe = "cgu",
    opt_level: Literal["0", "match"] | None = None,
    ansi: bool = False,
) -> tuple[ThinCrate, ...]:
    """Plan the thin rebuild of one or more programs.

    Args:
        captures: the programs' own crates, each after those that it depends on; repeats count once, so those of several
            programs can follow each other.
        thin_dir: directory for all output; each crate gets its own within it.
        tips: of `captures`, what programs are linked from; None for the last one alone. A library that is one, and
            that another program is compiled against, is planned for each purpose.
        recipe: see `hotpatchd.core.recipe`.
        opt_level: `match` keeps each crate's level. None: `match` for crates that are optimised, else `0`.
        ansi: coloured diagnostics.

    Returns:
        The crates in the same order, without those that never run in a program (proc macros, build scripts).

    Raises:
        ArgvError: a captured command cannot be understood, or a tip cannot be compiled alone.
    """
    tip_keys = {tip.key for tip in (captures[-1:] if tips is None else tips)}
    by_key = {capture.key: capture for capture in captures}
    compiled = [capture for capture in by_key.values() if find_refusal(capture.argv) is None]
    if not tip_keys or not tip_keys <= {capture.key for capture in compiled}:
        raise ArgvError("the selected target is not a program that can be patched")
    roles = _roles(compiled, tip_keys)
    names = _unique_names(roles)
    planned: list[ThinCrate] = []
    metadata_of: dict[str, str] = {}
    name_of: dict[str, str] = {}
    reached_from: dict[str, set[str]] = {}
    for (capture, is_tip), name in zip(roles, names, strict=True):
        stem = _stem(capture)
        directory = os.path.join(thin_dir, f"{stem.removeprefix('lib')}-{'bin' if is_tip else 'lib'}-{recipe}")
        externs = _extern_stems(capture)
        reached = {found for extern in externs if extern in name_of for found in reached_from[extern]}
        out_dir, incremental_dir = os.path.join(directory, "out"), os.path.join(directory, "incremental")
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
                thin_crates={found: path for found, path in metadata_of.items() if found in reached},
            )
        else:
            edited = edit_single_object(capture.argv, out_dir=out_dir, incremental_dir=incremental_dir)
        crate = ThinCrate(
            name=name,
            capture=capture,
            edited=edited,
            out_dir=out_dir,
            incremental_dir=incremental_dir,
            metadata=None if is_tip else os.path.join(out_dir, f"{stem}.rmeta"),
            dependencies=tuple(name_of[extern] for extern in externs if extern in name_of),
        )
        planned.append(crate)
        if crate.metadata:
            metadata_of[stem], name_of[stem], reached_from[stem] = crate.metadata, crate.name, {stem, *reached}
    return tuple(planned)


def _roles(captures: Sequence[Capture], tips: Set[CaptureKey]) -> list[tuple[Capture, bool]]:
    """The crates, each with whether it is compiled as a tip; one that is also used as a library comes as that first."""
    used = {extern for capture in captures for extern in _extern_stems(capture)}
    return [
        (capture, is_tip)
        for capture in captures
        for is_tip in (False, True)
        if (capture.key in tips if is_tip else capture.key not in tips or _stem(capture) in used)
    ]


def _unique_names(roles: Sequence[tuple[Capture, bool]]) -> list[str]:
    """A name for each crate: the first that no other crate could have as well."""
    options = []
    for capture, is_tip in roles:
        name, role = capture.crate_name, "bin" if is_tip else "lib"
        version = dict(capture.env).get("CARGO_PKG_VERSION", "")
        options.append((name, f"{name} ({role})", f"{name} {version}", f"{name}{capture.extra_filename} ({role})"))
    times = Counter(option for of_crate in options for option in of_crate)
    return [next((option for option in of_crate if times[option] == 1), of_crate[-1]) for of_crate in options]


def _stem(capture: Capture) -> str:
    return artifact_stem(parse_argv(capture.argv))


def _extern_stems(capture: Capture) -> tuple[str, ...]:
    """The file names, without extension, of the libraries that a crate was compiled against."""
    paths = (value.partition("=")[2] for value in values(parse_argv(capture.argv), "--extern"))
    return tuple(os.path.splitext(os.path.basename(path))[0] for path in paths if path)
