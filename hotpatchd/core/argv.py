"""rustc's command line as data.

rustc reads its arguments with the getopts crate, whose rules are these. A long flag's value is attached
with `=` or is the next word; a short flag's value is attached with nothing between or is the next word.
Short flags without a value may share one word, and the last of them may take a value
(`-gCopt-level=3`). `--` ends the flags, `-` means standard input, every other word is an input, wherever
it stands. Long names are never abbreviated.

So the table below only has to say how a flag is spelled and whether it takes a value; a flag that is
missing in it is refused, since its value would otherwise be taken for an input.

Source: `rustc_session::config::rustc_optgroups`, https://docs.rs/getopts,
https://doc.rust-lang.org/rustc/command-line-arguments.html
"""

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotpatchd.core.errors import ArgvError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag that rustc knows: its spellings, the canonical one first, and whether it takes a value."""

    names: tuple[str, ...]
    takes_value: bool


_VALUE, _BARE = True, False

FLAGS = tuple(
    Flag(names=tuple(names.split()), takes_value=takes_value)
    for names, takes_value in (
        ("-h --help", _BARE),
        ("--cfg", _VALUE),
        ("--check-cfg", _VALUE),
        ("-L", _VALUE),
        ("-l", _VALUE),
        ("--crate-type", _VALUE),
        ("--crate-name", _VALUE),
        ("--edition", _VALUE),
        ("--emit", _VALUE),
        ("--print", _VALUE),
        ("-g", _BARE),
        ("-O", _BARE),
        ("-o", _VALUE),
        ("--out-dir", _VALUE),
        ("--explain", _VALUE),
        ("--test", _BARE),
        ("--target", _VALUE),
        ("-A --allow", _VALUE),
        ("-W --warn", _VALUE),
        ("--force-warn", _VALUE),
        ("-D --deny", _VALUE),
        ("-F --forbid", _VALUE),
        ("--cap-lints", _VALUE),
        ("-C --codegen", _VALUE),
        ("-V --version", _BARE),
        ("-v --verbose", _BARE),
        ("--extern", _VALUE),
        ("--sysroot", _VALUE),
        ("--error-format", _VALUE),
        ("--json", _VALUE),
        ("--color", _VALUE),
        ("--diagnostic-width", _VALUE),
        ("--remap-path-prefix", _VALUE),
        ("--remap-path-scope", _VALUE),
        ("--env-set", _VALUE),
        ("-Z", _VALUE),
    )
)

_BY_NAME = {name: flag for flag in FLAGS for name in flag.names}

# Flags that are short for a codegen option.
_CODEGEN_SHORTHANDS = {"-O": ("opt-level", "3"), "-g": ("debuginfo", "2")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """A flag with its value, or an input, spelled as the command spells it.

    Attributes:
        flag: canonical name (`-C` for `--codegen`); `--` for the end of flags; empty for an input.
        value: None where the flag takes none; the path for an input.
        spelled: the flag as written; empty for an input.
        join: what stands between flag and value; None where the value is the next word.
        clustered: written in one word with the short flags before it.
    """

    flag: str
    value: str | None = None
    spelled: str
    join: str | None = ""
    clustered: bool = False

    @property
    def setting(self) -> str:
        """What the argument sets: the flag, or for `-C` and `-Z` the option (`-C opt-level`, also for `-O`).

        rustc takes `_` and `-` in option names for the same.
        """
        if self.flag in _CODEGEN_SHORTHANDS:
            return f"-C {_CODEGEN_SHORTHANDS[self.flag][0]}"
        if self.flag in ("-C", "-Z"):
            return f"{self.flag} {(self.value or '').partition('=')[0].replace('_', '-')}"
        return self.flag

    @property
    def setting_value(self) -> str:
        """The value that goes with `setting`; empty where there is none (`-C save-temps`, `--test`)."""
        if self.flag in _CODEGEN_SHORTHANDS:
            return _CODEGEN_SHORTHANDS[self.flag][1]
        if self.flag in ("-C", "-Z"):
            return (self.value or "").partition("=")[2]
        return self.value or ""


def codegen_arg(option: str, value: str) -> Arg:
    """`-C option=value`."""
    return Arg(flag="-C", value=f"{option}={value}", spelled="-C", join=None)


def long_arg(flag: str, value: str) -> Arg:
    """`--flag=value`."""
    return Arg(flag=flag, value=value, spelled=flag, join="=")


def parse_argv(argv: Sequence[str]) -> tuple[Arg, ...]:
    """Split a rustc command, without rustc itself, into flags and inputs.

    Raises:
        ArgvError: for an unknown flag, a missing or superfluous value, or an `@file` that was not expanded.
    """
    for word in argv:
        if word.startswith("@"):
            raise ArgvError(
                f"rustc argument `{word}` names a file of arguments",
                hint="put the file's lines in its place first",
            )
    args: list[Arg] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            args.append(Arg(flag="--", spelled="--"))
            args.extend(_input(path) for path in words)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if not _flag(name, word).takes_value:
                if equals:
                    raise ArgvError(f"rustc flag `{name}` takes no value, but got `{word}`")
                args.append(Arg(flag=_flag(name, word).names[0], spelled=name))
            elif equals:
                args.append(Arg(flag=_flag(name, word).names[0], value=value, spelled=name, join="="))
            else:
                args.append(_with_next_word(name, words, clustered=False))
        elif word.startswith("-") and word != "-":
            args.extend(_parse_short_flags(word, words))
        else:
            args.append(_input(word))
    return tuple(args)


def emit_argv(args: Iterable[Arg]) -> list[str]:
    """Write arguments as words; the inverse of `parse_argv`, also after arguments were added or removed."""
    words: list[str] = []
    can_share_word = False
    for arg in args:
        is_separate = arg.value is not None and arg.join is None
        word = arg.spelled if arg.value is None or arg.join is None else arg.spelled + arg.join + arg.value
        if arg.clustered and can_share_word:
            words[-1] += word[1:]
        else:
            words.append(word)
        if is_separate:
            words.append(arg.value or "")
        can_share_word = arg.value is None and not arg.spelled.startswith("--")
    return words


def values(args: Iterable[Arg], flag: str) -> tuple[str, ...]:
    """All values of the flag with this canonical name, in order."""
    return tuple(arg.value for arg in args if arg.flag == flag and arg.value is not None)


def codegen(args: Iterable[Arg], option: str) -> str | None:
    """The codegen option's value in force (the last one; `-O` and `-g` count), empty if given without one."""
    found = [arg.setting_value for arg in args if arg.setting == f"-C {option}"]
    return found[-1] if found else None


def crate_types(args: Iterable[Arg]) -> tuple[str, ...]:
    """The crate types named on the command, in order, without repeats; empty where the source decides."""
    named = (kind for value in values(args, "--crate-type") for kind in value.split(","))
    return tuple(dict.fromkeys(named))


def source_input(args: Iterable[Arg]) -> str:
    """The crate's root source file.

    Raises:
        ArgvError: there is none, or more than one.
    """
    inputs = [arg.value or "" for arg in args if not arg.flag]
    if len(inputs) != 1:
        raise ArgvError(f"a rustc command has one source file, but this one has {len(inputs)}: {inputs}")
    return inputs[0]


def crate_name(args: Sequence[Arg]) -> str:
    """The crate's name: `--crate-name`, or what rustc makes of the source file's name.

    Source: `rustc_session::output::find_crate_name`
    """
    named = values(args, "--crate-name")
    stem = os.path.splitext(os.path.basename(source_input(args)))[0] if not named else ""
    return named[-1] if named else stem.replace("-", "_")


def artifact_stem(args: Sequence[Arg]) -> str:
    """The file name, without its extension, of the library that the crate is compiled to (`libapp-5e8578f6`).

    It tells same-named crates of different packages apart.
    """
    return f"lib{crate_name(args)}{codegen(args, 'extra-filename') or ''}"


def _input(path: str) -> Arg:
    return Arg(flag="", value=path, spelled="")


def _flag(name: str, word: str) -> Flag:
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ArgvError(
            f"unknown rustc flag `{name}` in `{word}`",
            hint="this rustc may be newer than hotpatchd: update hotpatchd, or do without the flag",
        ) from None


def _with_next_word(name: str, words: Iterable[str], *, clustered: bool) -> Arg:
    for value in words:
        return Arg(flag=_BY_NAME[name].names[0], value=value, spelled=name, join=None, clustered=clustered)
    raise ArgvError(f"rustc flag `{name}` needs a value, but the command ends there")


def _parse_short_flags(word: str, words: Iterable[str]) -> Iterable[Arg]:
    for at in range(1, len(word)):
        name = f"-{word[at]}"
        flag, attached, clustered = _flag(name, word), word[at + 1 :], at > 1
        if not flag.takes_value:
            yield Arg(flag=flag.names[0], spelled=name, clustered=clustered)
        elif attached:
            yield Arg(flag=flag.names[0], value=attached, spelled=name, clustered=clustered)
            return
        else:
            yield _with_next_word(name, words, clustered=clustered)
