"""The linker command that rustc ran, as `--print=link-args` writes it, and what its words are.

    LC_ALL="C" PATH="/usr/bin" "cc" "-m64" "/target/deps/app.1abc.2def.rcgu.o" "-Wl,--as-needed" ...
    env -u IPHONEOS_DEPLOYMENT_TARGET LC_ALL="C" "cc" ...

It is one line: variables taken out of the environment, variables set, then the command, every word quoted as Rust's
`{:?}` does.

Source: `impl Debug for Command` in the standard library (`std/src/sys/process/unix/common.rs`);
`rustc_codegen_ssa::back::link`
"""

import os
import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from hotpatchd.core.errors import ArgvError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLine:
    """A linker command.

    Attributes:
        unset_env: variables to remove from the environment.
        env: variables to set.
        argv: the program and its arguments, `os.fsdecode`d.
    """

    unset_env: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...]
    argv: tuple[str, ...]

    @property
    def driver(self) -> str:
        """The program: a compiler driver such as `cc`, or a linker."""
        return self.argv[0]


LinkerFlavour = Literal["driver", "gnu-ld", "darwin-ld", "msvc-link"]
"""Whose manner of arguments a command follows: a compiler driver's, or that of a linker which is run itself."""


class InputKind(Enum):
    """What an argument brings into the link."""

    CRATE_OBJECT = "crate object"
    """A codegen unit of the linked crate (with LTO, of any crate), `*.rcgu.o`; may be gone after the build."""
    TEMPORARY = "temporary"
    """Names rustc's temporary directory `rustcXXXXXX`: symbols.o, version scripts, bundled archives. It is gone."""
    ARCHIVE = "archive"
    """An `.rlib` or `.a`."""
    LIBRARY = "library"
    """`-lname`, or a shared or import library by path."""
    FILE = "file"
    """Any other file given by path: an object, a linker script."""
    FLAG = "flag"
    """Everything else, with its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInput:
    """An argument: its kind, and its words (two or more for a flag with separate values)."""

    kind: InputKind
    words: tuple[str, ...]


# Flags of compiler drivers and linkers that take the next words as values, and how many. Attached values
# (`-L/dir`, `-Wl,…`) need no entry.
_SEPARATE_VALUES = dict.fromkeys(
    (
        "-o -L -l -B -T -u -e -z -m -x -I -F -h -R -U -Xlinker -Xclang -Xassembler -Xpreprocessor -arch -target"
        " -isysroot -syslibroot -framework -install_name -undefined -flavor -current_version -compatibility_version"
        " -exported_symbol -exported_symbols_list -unexported_symbol -unexported_symbols_list -reexported_symbols_list"
        " -weak_framework -needed_framework -reexport_framework -upward_framework -lazy_framework"
        " -weak_library -needed_library -reexport_library -upward_library -lazy_library -load_hidden -force_load"
        " -macosx_version_min -ios_simulator_version_min -bundle_loader -filelist -order_file -map -lto_library"
        " -object_path_lto -dependency_info -umbrella -allowable_client -client_name -image_base -sub_library"
        " -soname -rpath -rpath-link -dynamic-linker -plugin -plugin-opt --sysroot --version-script --dynamic-list"
        " --defsym --undefined --entry --script"
    ).split(),
    1,
) | {"-platform_version": 3, "-sectcreate": 3, "-alias": 2}

# Libraries of a Darwin linker by name, with a wish how they are loaded.
_NAMED_LIBRARY = ("-l", "-Wl,-l", "-weak-l", "-needed-l", "-hidden-l", "-reexport-l", "-upward-l")

_LLD_FLAVOURS: dict[str, LinkerFlavour] = {"darwin": "darwin-ld", "ld64": "darwin-ld", "link": "msvc-link"}

_DARWIN_LD = re.compile(r"ld64(?:\.lld)?|ld-classic|ld-prime")
_LD = re.compile(r"(?:.+-)?ld(?:\.(?:lld|bfd|gold|mold))?|(?:rust-)?lld|mold|gold")
_DARWIN_WORDS = frozenset({"-platform_version", "-macosx_version_min", "-ios_simulator_version_min", "-syslibroot"})


# A path has a dot or a second slash before any colon.
_MSVC_FLAG = re.compile(r"[/-][A-Za-z0-9_?]+(?::.*)?", re.DOTALL)

_TEMPORARY = re.compile(r"(?:^|[/\\=,])rustc[0-9A-Za-z]{6}[/\\][^/\\]+$")

_TOKEN = re.compile(
    r' *(?:(?:(?P<name>[^\s"=]+)=)?"(?P<quoted>(?:[^"\\]|\\.)*)"(?= |$)|-u (?P<unset>\S+)|env(?= ))', re.DOTALL
)
_ESCAPE = re.compile(r"\\(?:u\{(?P<code>[0-9a-fA-F]+)\}|x(?P<byte>[0-9a-fA-F]{2})|(?P<char>.))", re.DOTALL)
_CHARS = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "'": "'", "\\": "\\"}


def parse_link_line(text: str) -> LinkLine:
    """Read what `--print=link-args` wrote.

    Raises:
        ArgvError: the text is not one command in the form that rustc prints.
    """
    unset: list[str] = []
    env: list[tuple[str, str]] = []
    argv: list[str] = []
    text = text.strip()
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or (argv and (token["name"] or token["quoted"] is None)):
            raise ArgvError(f"cannot read the linker command that rustc printed, at `{text[at : at + 40]}`")
        if token["unset"]:
            unset.append(token["unset"])
        elif token["name"]:
            env.append((token["name"], _unquote(token["quoted"])))
        elif token["quoted"] is not None:
            argv.append(_unquote(token["quoted"]))
        at = token.end()
    if not argv:
        raise ArgvError("rustc printed no linker command", hint="build the crate again")
    return LinkLine(unset_env=tuple(unset), env=tuple(env), argv=tuple(argv))


def program_words(line: LinkLine) -> tuple[str, ...]:
    """The words that say what is run: one, or more for `zig cc`, `python -m ziglang cc` and `lld -flavor gnu`."""
    argv = line.argv
    if argv[1:2] == ("-flavor",):
        return argv[:3]
    for count, before in ((2, ()), (4, ("-m", "ziglang"))):
        if argv[count - 1 : count] in (("cc",), ("c++",)) and argv[1 : count - 1] == before:
            return argv[:count]
    return argv[:1]


def linker_flavour(line: LinkLine) -> LinkerFlavour:
    """Tell by the program's name, and for `ld` by the arguments, in whose manner a command is written.

    Source: `lld/tools/lld/lld.cpp` (`-flavor`, and names of lld)
    """
    program = program_words(line)
    if program[1:2] == ("-flavor",):
        return _LLD_FLAVOURS.get(program[-1], "gnu-ld")
    name = re.split(r"[/\\]", line.driver)[-1].lower().removesuffix(".exe")
    name = re.sub(r"-[0-9.]+$", "", name)
    if name in ("link", "lld-link"):
        return "msvc-link"
    if _DARWIN_LD.fullmatch(name):
        return "darwin-ld"
    if _LD.fullmatch(name):
        return "gnu-ld" if _DARWIN_WORDS.isdisjoint(line.argv) else "darwin-ld"
    return "driver"


def is_msvc(line: LinkLine) -> bool:
    """Whether arguments are written in the manner of Microsoft's linker."""
    return linker_flavour(line) == "msvc-link"


def quote_windows(word: str) -> str:
    """A word as a Windows command line or response file has it.

    Source: "Parsing C command-line arguments" in Microsoft's C reference
    """
    if word and not re.search(r'[\s"]', word):
        return word
    return '"' + re.sub(r'(\\*)("|\Z)', lambda part: part[1] * 2 + ("\\" + part[2] if part[2] else ""), word) + '"'


def link_inputs(line: LinkLine) -> tuple[LinkInput, ...]:
    """All arguments, `program_words` left out, in order; their words joined are the command again."""
    msvc = is_msvc(line)
    inputs = []
    words = iter(line.argv[len(program_words(line)) :])
    for word in words:
        count = 0 if msvc else count_values(word)
        group = (word, *(value for _, value in zip(range(count), words, strict=False)))
        inputs.append(LinkInput(kind=classify(group, msvc=msvc), words=group))
    return tuple(inputs)


def count_values(word: str) -> int:
    """How many of the next words belong to a flag; none do in the manner of Microsoft's linker."""
    return _SEPARATE_VALUES.get(word, 0)


def classify(words: tuple[str, ...], *, msvc: bool) -> InputKind:
    """What a flag with its values, or an input, brings into the link.

    Args:
        words: as `link_inputs` groups them.
        msvc: whether flags are those of Microsoft's linker.
    """
    word = words[0]
    if any(_TEMPORARY.search(word) for word in words):
        return InputKind.TEMPORARY
    if not msvc and word.startswith(_NAMED_LIBRARY):
        return InputKind.LIBRARY
    if _MSVC_FLAG.fullmatch(word) if msvc else word.startswith("-"):
        return InputKind.FLAG
    if word.endswith(".rcgu.o"):
        return InputKind.CRATE_OBJECT
    if word.lower().endswith((".dll.a", ".lib", ".dylib", ".tbd")) or re.search(r"\.so(\.\d+)*$", word):
        return InputKind.LIBRARY
    if ".framework/" in word:
        return InputKind.LIBRARY
    if word.endswith((".rlib", ".a")):
        return InputKind.ARCHIVE
    return InputKind.FILE


def archives(line: LinkLine) -> tuple[str, ...]:
    """Paths of the archives that outlive the build, in link order."""
    return tuple(item.words[0] for item in link_inputs(line) if item.kind is InputKind.ARCHIVE)


def _unquote(text: str) -> str:
    """Undo Rust's `{:?}` of a string: `\\xNN` are bytes, all else is UTF-8."""
    decoded = bytearray()
    at = 0
    for escape in _ESCAPE.finditer(text):
        decoded += os.fsencode(text[at : escape.start()])
        at = escape.end()
        if escape["byte"]:
            decoded.append(int(escape["byte"], 16))
        elif escape["code"]:
            decoded += os.fsencode(chr(int(escape["code"], 16)))
        elif escape["char"] in _CHARS:
            decoded += os.fsencode(_CHARS[escape["char"]])
        else:
            raise ArgvError(f"unknown escape `{escape[0]}` in the linker command that rustc printed")
    return os.fsdecode(bytes(decoded + os.fsencode(text[at:])))
