"""Recipes: how a captured rustc command becomes one that yields objects only.

A recipe is a table that says for every flag and codegen option what becomes of it, and why. `keep` leaves
the argument where it is, `drop` takes every spelling of it out, `set` takes every spelling out and adds the
recipe's own once, at the end. So nothing is ever given twice (rustc refuses some flags then), and editing
an edited command changes nothing. An option that no row names, because it is newer than the table, is kept.

`cgu`            one object per codegen unit, built incrementally: only what an edit touches is compiled.
                 Executables stay executables (being one is hashed into every symbol name).
`single-object`  one object with everything in it, by an explicit `--emit` path, which makes rustc use
                 a single codegen unit. Slower, and for library crates only.
"""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hotpatchd.core.argv import (
    Arg,
    codegen,
    codegen_arg,
    crate_name,
    crate_types,
    emit_argv,
    long_arg,
    parse_argv,
)
from hotpatchd.core.errors import ArgvError

Action = Literal["keep", "drop", "set"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a recipe does with a setting (see `Arg.setting`), and why."""

    action: Action
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgvEdit:
    """A row that fired: the argument's words (`-C opt-level=0`), what was done with it, and why."""

    flag: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedArgv:
    """An edited command, without rustc itself, and every row that fired, in the order of the command."""

    argv: tuple[str, ...]
    edits: tuple[ArgvEdit, ...]


def _rows(*rows: tuple[str, Action, str]) -> dict[str, Row]:
    """Table rows; the first column holds settings, separated by commas."""
    return {
        setting: Row(action=action, reason=reason)
        for settings, action, reason in rows
        for setting in settings.split(", ")
    }


def _options(names: str) -> str:
    return ", ".join(f"-C {name}" for name in names.split())


_IDENTITY = "symbol and file names must be those of the host"
_SOURCE = "the same source must be compiled"
_CODE = "the code must behave as the host's does"
_LINK = "nothing is linked here, so it does no harm"
_INSTEAD = "rustc would print this instead of compiling"
_MESSAGES = "the daemon reads the diagnostics and shows them itself"
_REBUILT = "the dependency was rebuilt, and its new metadata is there"
_AS_CAPTURED = "this value suits the recipe"
_LTO = "objects are needed, not bitcode for a later link"

_COMMON = _rows(
    (f"--crate-name, {_options('metadata extra-filename symbol-mangling-version')}", "keep", _IDENTITY),
    ("--cfg, --check-cfg, --edition, --test, --env-set, --target, --sysroot", "keep", _SOURCE),
    ("--extern, -L", "keep", "dependencies are those of the host, where they were not rebuilt themselves"),
    ("-l", "keep", _LINK),
    ("-A, -W, --force-warn, -D, -F, --cap-lints", "keep", "the developer sees the usual lints"),
    ("-v", "keep", "it only prints more"),
    ("--remap-path-prefix, --remap-path-scope", "keep", "paths in panics and debug info are the host's"),
    ("-h, -V, --explain, --print, -C help", "drop", _INSTEAD),
    ("--color, --diagnostic-width", "drop", _MESSAGES),
    ("-o", "drop", "it would win over --out-dir"),
    ("--out-dir", "set", "the build's own output is left alone"),
    ("-C incremental", "set", "the next rebuild starts from this one, and cargo's cache is left alone"),
    ("-C debug-assertions", "keep", "cfg(debug_assertions) must select what it selects in the host"),
    ("-C debuginfo, -C dwarf-version", "keep", "debug info is what the developer asked for"),
    ("-C split-debuginfo", "drop", "debug info is read from the objects themselves"),
    ("-C save-temps", "drop", "it litters the output directory"),
    ("-C linker-plugin-lto", "drop", _LTO),
    ("-C embed-bitcode", "keep", "without linking, rustc embeds none"),
    (
        _options(
            "code-model collapse-macro-debuginfo control-flow-guard force-frame-pointers force-unwind-tables"
            " inline-threshold instrument-coverage jump-tables no-prepopulate-passes no-redzone"
            " no-stack-check no-vectorize-loops no-vectorize-slp overflow-checks panic passes prefer-dynamic"
            " profile-generate profile-use relocation-model remark soft-float target-cpu target-feature"
            " unsafe-allow-abi-mismatch"
        ),
        "keep",
        _CODE,
    ),
    ("-C llvm-args", "keep", "the code must behave as the host's does, and each function have an address of its own"),
    (
        _options(
            "ar default-linker-libraries dlltool link-arg link-args link-self-contained linker"
            " linker-features linker-flavor relro-level rpath strip"
        ),
        "keep",
        _LINK,
    ),
)

CGU: Mapping[str, Row] = _COMMON | _rows(
    ("--crate-type", "set", "a shared library drops mangled names; an rlib keeps them and needs no linker"),
    ("--emit", "set", "no path for the objects: a path would mean one codegen unit"),
    ("-C codegen-units", "set", "the smaller the units, the less an edit compiles"),
    ("-C link-dead-code", "set", "functions and statics keep global names, also unused ones"),
    ("-C opt-level", "set", "compiles fastest; symbol names do not depend on it"),
    ("-C lto", "set", "across units it would change objects that an edit does not touch, and rename their constants"),
    ("--error-format, --json", "set", _MESSAGES),
    ("-C debuginfo", "set", "layouts of types are read from the objects; the program keeps what it has"),
)

SINGLE_OBJECT: Mapping[str, Row] = _COMMON | _rows(
    ("--crate-type", "set", "objects come without linking, whatever the crate is"),
    ("--emit", "set", "one object at a known place"),
    ("-C codegen-units", "drop", "with more than one, rustc ignores the path of --emit"),
    ("-C link-dead-code", "keep", _CODE),
    ("-C opt-level", "set", "compiles fastest"),
    ("-C lto", "drop", _LTO),
    ("--error-format, --json", "drop", "diagnostics go to the terminal as rustc prints them"),
)

_NEEDS_NO_LINKER = {"bin", "lib", "rlib"}


def find_refusal(argv: Sequence[str]) -> str | None:
    """Why this crate is never thin-rebuilt; None if it can be.

    Build scripts are known by the kind of crate name that cargo gives them.
    """
    args = parse_argv(argv)
    if "proc-macro" in crate_types(args):
        return "a proc macro runs inside the compiler, not inside the program"
    if crate_types(args) == ("bin",) and crate_name(args).startswith("build_script_"):
        return "a build script runs before the build, not inside the program"
    return None


def edit_cgu(
    argv: Sequence[str],
    *,
    out_dir: str,
    incremental_dir: str,
    opt_level: Literal["0", "match"] = "0",
    with_metadata: bool = False,
    link_dead_code: bool = True,
    ansi: bool = False,
    thin_crates: Mapping[str, str] | None = None,
) -> EditedArgv:
    """Edit a captured command by the recipe `cgu`.

    rustc then writes `<crate><extra-filename>.<cgu>.<session>.rcgu.o` files into `out_dir`, which must exist,
    beside `<crate><extra-filename>.d`; where there is one unit only, also a copy, `<crate><extra-filename>.o`.
    Diagnostics are JSON lines on standard error.

    Args:
        argv: the captured arguments, without rustc itself.
        out_dir: directory for objects, dep-info and metadata.
        incremental_dir: this recipe's own incremental cache.
        opt_level: `match` keeps the captured level.
        link_dead_code: compile what nothing uses as well, and give all symbols global binding.
        with_metadata: write `lib<crate><extra-filename>.rmeta` too, for dependents, and say when it is there.
        ansi: the `rendered` field of diagnostics is coloured.
        thin_crates: for each dependency rebuilt with metadata, its `artifact_stem` and its new `.rmeta`.

    Raises:
        ArgvError: the command cannot be understood, or the crate is never thin-rebuilt.
    """
    args = _parse_rebuildable(argv)
    kept = set()
    inferred: list[Arg] = []
    if _NEEDS_NO_LINKER.issuperset(crate_types(args)):
        kept.add("--crate-type")
    else:
        inferred.append(long_arg("--crate-type", "rlib"))
    added = [
        long_arg("--emit", "obj,dep-info,metadata" if with_metadata else "obj,dep-info"),
        long_arg("--out-dir", out_dir),
        codegen_arg("codegen-units", "256"),
        codegen_arg("incremental", incremental_dir),
        codegen_arg("lto", "off"),
        codegen_arg("debuginfo", "2"),
        *([codegen_arg("link-dead-code", "yes")] if link_dead_code else []),
        long_arg("--error-format", "json"),
    ]
    told = [*(["artifacts"] if with_metadata else []), *(["diagnostic-rendered-ansi"] if ansi else [])]
    if told:
        added.append(long_arg("--json", ",".join(told)))
    if opt_level == "match":
        kept.add("-C opt-level")
        inferred += _keep_addresses_apart(args)
    else:
        inferred += _pin_debug_assertions(args)
        added.append(codegen_arg("opt-level", "0"))
    return _edit(args, rows=CGU, kept=kept, inferred=inferred, added=added, thin_crates=thin_crates or {})


def edit_single_object(argv: Sequence[str], *, out_dir: str, incremental_dir: str) -> EditedArgv:
    """Edit a captured command by the recipe `single-object`.

    rustc then writes the one object `<out_dir>/<crate>.o`.

    Args:
        argv: the captured arguments, without rustc itself.
        out_dir: directory for the object.
        incremental_dir: this recipe's own incremental cache.

    Raises:
        ArgvError: the command cannot be understood, or the crate is never thin-rebuilt.
    """
    args = _parse_rebuildable(argv)
    added = [
        long_arg("--crate-type", "rlib"),
        long_arg("--emit", f"obj={os.path.join(out_dir, crate_name(args))}.o"),
        long_arg("--out-dir", out_dir),
        codegen_arg("incremental", incremental_dir),
        codegen_arg("opt-level", "0"),
    ]
    inferred = _pin_debug_assertions(args)
    return _edit(args, rows=SINGLE_OBJECT, kept=set(), inferred=inferred, added=added, thin_crates={})


def _parse_rebuildable(argv: Sequence[str]) -> tuple[Arg, ...]:
    args = parse_argv(argv)
    if refusal := find_refusal(argv):
        raise ArgvError(f"crate `{crate_name(args)}` cannot be rebuilt alone: {refusal}", hint="run a full build")
    return args


def _pin_debug_assertions(args: Sequence[Arg]) -> list[Arg]:
    """Keep debug assertions off in a crate whose level is lowered: rustc turns them on at level 0 by default."""
    is_as_wanted = codegen(args, "opt-level") in (None, "0") or codegen(args, "debug-assertions") is not None
    return [] if is_as_wanted else [codegen_arg("debug-assertions", "no")]


def _keep_addresses_apart(args: Sequence[Arg]) -> list[Arg]:
    """Let no function stand for an equal one: a later edit may change one of them, and its users must reach that.

    Without aliases and with debug information preserved, one that is equal to another becomes a jump to it, and what
    refers to it, calls, virtual tables and function pointers, goes on to do so.

    Source: LLVM's `MergeFunctions`, which rustc runs from level 2 on; it refuses an option that is given twice.
    """
    given = " ".join(arg.setting_value for arg in args if arg.setting == "-C llvm-args")
    return [codegen_arg("llvm-args", value) for name, value in _MERGED_BY_JUMPS.items() if name not in given]


_MERGED_BY_JUMPS = {
    "-mergefunc-use-aliases": "-mergefunc-use-aliases=0",
    "-mergefunc-preserve-debug-info": "-mergefunc-preserve-debug-info",
}


def _is_rebuilt(arg: Arg, thin_crates: Mapping[str, str]) -> bool:
    return arg.flag == "--extern" and _extern_stem(arg) in thin_crates


def _extern_stem(arg: Arg) -> str:
    return os.path.splitext(os.path.basename((arg.value or "").partition("=")[2]))[0]


def _edit(
    args: Sequence[Arg],
    *,
    rows: Mapping[str, Row],
    kept: set[str],
    inferred: Sequence[Arg],
    added: Sequence[Arg],
    thin_crates: Mapping[str, str],
) -> EditedArgv:
    """Apply a table.

    Args:
        args: the command.
        rows: the table.
        kept: settings that stay as captured this time, whatever their row says.
        inferred: what has to be added to this command, and would not have to be any more if it were there.
        added: what the recipe adds to every command.
        thin_crates: see `edit_cgu`.
    """
    # Dependencies of dependencies are found here.
    first = [
        Arg(flag="-L", value=f"dependency={directory}", spelled="-L", join=None)
        for directory in dict.fromkeys(os.path.dirname(path) for path in thin_crates.values())
    ]
    externs = [
        replace(arg, value=f"{(arg.value or '').partition('=')[0]}={thin_crates[_extern_stem(arg)]}")
        for arg in args
        if _is_rebuilt(arg, thin_crates)
    ]
    middle: list[Arg] = []
    edits: list[ArgvEdit] = []

    def record(arg: Arg, action: Action, reason: str) -> None:
        edits.append(ArgvEdit(flag=" ".join(emit_argv([arg])), action=action, reason=reason))

    for arg in first:
        record(arg, "set", _REBUILT)
    for arg in args:
        row = rows.get(arg.setting)
        if arg in first or _is_rebuilt(arg, thin_crates):
            record(arg, "drop", _REBUILT)
        elif row is None or row.action == "keep" or arg.setting in kept:
            middle.append(arg)
            if row is not None:
                record(arg, "keep", row.reason if row.action == "keep" else _AS_CAPTURED)
        else:
            record(arg, "drop", row.reason)
    for arg in inferred:
        record(arg, "set", rows[arg.setting].reason)
    for arg in externs:
        record(arg, "set", _REBUILT)
    for arg in added:
        record(arg, "set", rows[arg.setting].reason)
    end_of_flags = next((at for at, arg in enumerate(middle) if arg.flag == "--"), len(middle))
    edited = [*first, *middle[:end_of_flags], *inferred, *externs, *added, *middle[end_of_flags:]]
    return EditedArgv(argv=tuple(emit_argv(edited)), edits=tuple(edits))
