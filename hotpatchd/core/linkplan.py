"""The link plan `image`: the captured linker command, edited so that it links a patch at a fixed address.

Nothing is built from scratch: the driver and whatever chooses target, sysroot and linker stay. What brings in the
program's own objects and libraries, makes its file what it is, or would write beside it, is taken out; each row of the
table says why.
"""

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkline import InputKind, LinkLine, link_inputs

Linker = Literal["lld", "bfd", "mold"]

# mold says that it is compatible with GNU ld, so it comes first.
_VERSION_MARKS: tuple[tuple[str, Linker], ...] = (("LLD ", "lld"), ("mold ", "mold"), ("GNU ld", "bfd"))

_BASE_ADDRESS: dict[Linker, str] = {"lld": "--image-base=", "mold": "--image-base=", "bfd": "-Ttext-segment="}

PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row of the table: how a flag begins, whether a separate value may follow, and why it goes."""

    flag: str
    takes_value: bool
    reason: str


def _rows(reason: str, bare: str, valued: str = "") -> tuple[Dropped, ...]:
    return (
        *(Dropped(flag=flag, takes_value=False, reason=reason) for flag in bare.split()),
        *(Dropped(flag=flag, takes_value=True, reason=reason) for flag in valued.split()),
    )


DROPPED = (
    *_rows("the patch has its own kind of output", "-pie -no-pie -static-pie -shared -static -rdynamic", "-o"),
    *_rows("the patch brings no start-up code and no libraries", "-nodefaultlibs -nostartfiles -nostdlib"),
    *_rows(
        "it concerns libraries, and none are linked",
        "--as-needed --no-as-needed -Bstatic -Bdynamic -Bsymbolic --start-group --end-group -( -) --push-state"
        " --pop-state --whole-archive --no-whole-archive --enable-new-dtags --disable-new-dtags",
        "-rpath --rpath -rpath-link --rpath-link -soname --soname -h -dynamic-linker --dynamic-linker",
    ),
    *_rows(
        "it exports the program's symbols, and a patch exports none",
        "--export-dynamic -E -export-dynamic",
        "--version-script --dynamic-list --export-dynamic-symbol --export-dynamic-symbol-list",
    ),
    *_rows("the daemon reads the patch's symbols", "-s -S --strip-all --strip-debug -strip-all"),
    *_rows("functions with the same code must stay apart", "--icf"),
    *_rows(
        "the plan sets it", "--gc-sections --no-gc-sections --build-id --image-base -Ttext", "-e --entry -T --script"
    ),
    *_rows("unwind tables are registered by address", "--eh-frame-hdr --no-eh-frame-hdr"),
    *_rows("it names the program's own functions", "", "-u --undefined -init --init -fini --fini --defsym"),
    *_rows(
        "it would write over a file of the program's build", "-M --print-map --cref", "-Map --Map --dependency-file"
    ),
    *_rows("the objects are machine code already", "-flto -fuse-linker-plugin", "-plugin --plugin -plugin-opt"),
)
"""Flags of drivers and linkers that a patch link does without."""

_DROPPED_Z = frozenset({"relro", "norelro", "now", "lazy", "separate-code", "noseparate-code", "max-page-size", "text"})

_DIRECT = ("ld", "ld.lld", "ld.bfd", "ld.mold", "ld64.lld", "rust-lld", "lld", "mold")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """A linker command.

    Args:
        argv: the program and its arguments; the last to come is `@file`, a file with `response` in it.
        response: the arguments that may be many, quoted as GNU response files are.
        dropped: what was taken out of the captured command, with the reason.
    """

    argv: tuple[str, ...]
    response: str
    dropped: tuple[tuple[str, str], ...]


def identify_linker(version: str) -> Linker:
    """Tell the linker by what it prints for `--version`.

    Raises:
        ArgvError: none of those that image patches were made to work with.
    """
    for line in version.splitlines():
        for mark, linker in _VERSION_MARKS:
            if mark in line:
                return linker
    shown = next(iter(version.splitlines()), "nothing")
    raise ArgvError(
        f"the program is linked by a linker that is not known here (`--version` says: {shown})",
        hint="link with lld (rustc ships it), GNU ld or mold",
    )


def is_direct(line: LinkLine) -> bool:
    """Whether the command runs a linker itself, not a compiler that runs one."""
    return os.path.basename(line.driver) in _DIRECT


def plan_version_query(line: LinkLine) -> tuple[str, ...]:
    """The command that makes the linker of a captured command print its version."""
    kept, _ = _kept_flags(line)
    return (line.driver, *kept, *_wrapped(["--version"], direct=is_direct(line)))


def plan_image_link(
    line: LinkLine,
    *,
    linker: Linker,
    objects: Sequence[str],
    output: str,
    base_addr: int,
    keep: Iterable[str],
) -> LinkPlan:
    """Plan the link of an image.

    Args:
        line: the captured command.
        linker: what it runs.
        objects: paths, the stub last.
        output: path of the linked patch.
        base_addr: where its first segment goes, a multiple of the page size.
        keep: symbols that must be there though nothing in the patch refers to them.

    Returns:
        A command that links a static executable without entry point, its first byte at `base_addr`.
    """
    direct = is_direct(line)
    kept, dropped = _kept_flags(line)
    # Above 2 GiB GNU ld cannot relax loads from the GOT, tries all the same, and fails.
    relax = ["--no-relax"] if linker == "bfd" else []
    settings = [
        *relax,
        f"{_BASE_ADDRESS[linker]}{base_addr:#x}",
        "--gc-sections",
        "--build-id=none",
        *("-z", "noseparate-code", "-z", "norelro", "-z", f"max-page-size={PAGE_SIZE}"),
        *("-e", "0"),
    ]
    kind = ["-static"] if direct else ["-static", "-nostdlib", "-no-pie"]
    roots = _wrapped([f"--undefined={name}" for name in keep], direct=direct)
    many = [*roots, *objects]
    return LinkPlan(
        argv=(line.driver, *kept, *kind, *_wrapped(settings, direct=direct), "-o", output),
        response="".join(f"{_quoted(word)}\n" for word in many),
        dropped=dropped,
    )


def _kept_flags(line: LinkLine) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    driver_words: list[str] = []
    linker_words: list[str] = []
    for item in link_inputs(line):
        if item.words[0].startswith("-Wl,"):
            linker_words += item.words[0].split(",")[1:]
        elif item.words[0] == "-Xlinker":
            linker_words += item.words[1:]
        else:
            driver_words += item.words
    dropped: list[tuple[str, str]] = []
    kept = [*_filtered(driver_words, dropped), *_wrapped(_filtered(linker_words, dropped), direct=False)]
    return kept, tuple(dropped)


def _filtered(words: Sequence[str], dropped: list[tuple[str, str]]) -> list[str]:
    """The words less inputs and dropped flags, which are noted with the reason."""
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-z":
            setting = next(rest, "")
            if setting.partition("=")[0] in _DROPPED_Z:
                dropped.append((f"-z {setting}", "the plan lays out the segments"))
            else:
                left += [word, setting]
            continue
        row = next((row for row in DROPPED if _matches(row, word)), None)
        if row is None:
            left.append(word)
            continue
        value = f" {next(rest, '')}" if row.takes_value and word == row.flag else ""
        dropped.append((word + value, row.reason))
    kept: list[str] = []
    for item in link_inputs(LinkLine(env=(), argv=("", *left))):
        if item.kind is InputKind.FLAG:
            kept += item.words
        else:
            dropped.append((" ".join(item.words), f"{item.kind.value} of the program"))
    return kept


def _matches(row: Dropped, word: str) -> bool:
    name = word.partition("=")[0]
    return name == row.flag or (row.flag in ("-Ttext", "-flto") and name.startswith(row.flag))


def _wrapped(words: Sequence[str], *, direct: bool) -> list[str]:
    """Linker arguments as the driver takes them."""
    if direct:
        return list(words)
    return [part for word in words for part in ("-Xlinker", word)]


def _quoted(word: str) -> str:
    return "".join(f"\\{char}" if char in " \t\n\r\f\v\\'\"" else char for char in word)
