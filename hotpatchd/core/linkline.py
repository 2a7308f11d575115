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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

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
        "-o -L -l -B -T -u -e -z -m -x -I -F -h -R -Xlinker -Xclang -Xassembler -Xpreprocessor -arch -target"
        " -isysroot -syslibroot -framework -weak_framework -install_name -exported_symbols_list -undefined"
        " -current_version -compatibility_version -flavor -soname -rpath -rpath-link -dynamic-linker -plugin"
        " -plugin-opt --sysroot --version-script --dynamic-list --defsym --undefined --entry --script"
    ).split(),
    1,
) | {"-platform_version": 3, "-sectcreate": 3}

_LINKER_CHOICE = ("-fuse-ld=", "--ld-path=", "-B")

_MSVC_FLAG = re.compile(r"/[A-Z0-9]+(?::|$)")

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


def expand_response_files(line: LinkLine, texts: Mapping[str, str]) -> LinkLine:
    """Put the words of response files (`@path`) in the place of their names, also of those named in others.

    Args:
        line: the command.
        texts: content of each response file by its path as the command names it.

    Raises:
        ArgvError: a file is not in `texts`, or names itself.
    """
    return replace(line, argv=tuple(_expand(line.argv, texts, ())))


def parse_response_file(text: str) -> tuple[str, ...]:
    """Split a response file by GNU rules: white space separates, quotes group, a backslash takes the next one as it is.

    Source: the GNU ld manual, option `@file`
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    chars = iter(text)
    for char in chars:
        if char == "\\":
            word = (word or "") + next(chars, "")
        elif char == quote:
            quote = ""
        elif quote:
            word = (word or "") + char
        elif char in "'\"":
            quote = char
            word = word or ""
        elif char not in " \t\n\r\f\v":
            word = (word or "") + char
        elif word is not None:
            words.append(word)
            word = None
    return tuple(words if word is None else [*words, word])


def link_inputs(line: LinkLine) -> tuple[LinkInput, ...]:
    """All arguments, the program left out, in order; their words joined are the command again."""
    inputs = []
    words = iter(line.argv[1:])
    for word in words:
        count = _SEPARATE_VALUES.get(word, 0)
        group = (word, *(value for _, value in zip(range(count), words, strict=False)))
        inputs.append(LinkInput(kind=_classify(group), words=group))
    return tuple(inputs)


def archives(line: LinkLine) -> tuple[str, ...]:
    """Paths of the archives that outlive the build, in link order."""
    return tuple(item.words[0] for item in link_inputs(line) if item.kind is InputKind.ARCHIVE)


def linker_choice(line: LinkLine) -> tuple[str, ...]:
    """The words that tell a compiler driver which linker to run, in order: `-fuse-ld=`, `--ld-path=`, `-B`."""
    return tuple(word for item in link_inputs(line) if item.words[0].startswith(_LINKER_CHOICE) for word in item.words)


def linker_flags(line: LinkLine) -> tuple[str, ...]:
    """What the driver hands on to the linker: the parts of `-Wl,a,b` and the values of `-Xlinker`, in order."""
    flags: list[str] = []
    for item in link_inputs(line):
        if item.words[0].startswith("-Wl,"):
            flags += item.words[0].split(",")[1:]
        elif item.words[0] == "-Xlinker":
            flags += item.words[1:]
    return tuple(flags)


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


def _expand(words: Sequence[str], texts: Mapping[str, str], inside: tuple[str, ...]) -> list[str]:
    expanded: list[str] = []
    for word in words:
        path = word[1:]
        if not word.startswith("@"):
            expanded.append(word)
        elif path in inside or path not in texts:
            trouble = "names itself" if path in inside else "is gone"
            raise ArgvError(f"response file `{path}` of the linker command {trouble}")
        else:
            expanded += _expand(parse_response_file(texts[path]), texts, (*inside, path))
    return expanded


def _classify(words: tuple[str, ...]) -> InputKind:
    word = words[0]
    if any(_TEMPORARY.search(word) for word in words):
        return InputKind.TEMPORARY
    if word.startswith(("-l", "-Wl,-l")):
        return InputKind.LIBRARY
    if word.startswith("-") or _MSVC_FLAG.match(word):
        return InputKind.FLAG
    if word.endswith(".rcgu.o"):
        return InputKind.CRATE_OBJECT
    if word.endswith((".dll.a", ".lib", ".dylib", ".tbd")) or re.search(r"\.so(\.\d+)*$", word):
        return InputKind.LIBRARY
    if word.endswith((".rlib", ".a")):
        return InputKind.ARCHIVE
    return InputKind.FILE
