"""The link plan `image`: the captured linker command, edited so that it links a patch at a fixed address.

Nothing is built from scratch: the driver and whatever chooses target, sysroot and linker stay. What brings in the
program's own objects and libraries, makes its file what it is, or would write beside it, is taken out; each row of the
table says why.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkedit import COMMON_DROPPED, edit_words, quote_gnu, rows, wrap
from hotpatchd.core.linkline import InputKind, LinkLine, linker_flavour, program_words

Linker = Literal["lld", "bfd", "mold"]

# mold says that it is compatible with GNU ld, so it comes first.
_VERSION_MARKS: tuple[tuple[str, Linker], ...] = (("LLD ", "lld"), ("mold ", "mold"), ("GNU ld", "bfd"))

_BASE_ADDRESS: dict[Linker, str] = {"lld": "--image-base=", "mold": "--image-base=", "bfd": "-Ttext-segment="}

PAGE_SIZE = 4096


DROPPED = (
    *rows("the patch has its own kind of output", "-pie -no-pie -static-pie -shared -static -rdynamic", "-o"),
    *rows("the patch brings no start-up code and no libraries", "-nodefaultlibs -nostartfiles -nostdlib"),
    *rows(
        "it concerns libraries, and none are linked",
        "--as-needed --no-as-needed -Bstatic -Bdynamic -Bsymbolic --start-group --end-group -( -) --push-state"
        " --pop-state --whole-archive --no-whole-archive --enable-new-dtags --disable-new-dtags",
        "-rpath --rpath -rpath-link --rpath-link -soname --soname -h -dynamic-linker --dynamic-linker",
    ),
    *rows(
        "it exports the program's symbols, and a patch exports none",
        "--export-dynamic -E -export-dynamic",
        "--version-script --dynamic-list --export-dynamic-symbol --export-dynamic-symbol-list",
    ),
    *rows(
        "the plan sets it", "--gc-sections --no-gc-sections --build-id --image-base -Ttext", "-e --entry -T --script"
    ),
    *rows("unwind tables are registered by address", "--eh-frame-hdr --no-eh-frame-hdr"),
    *COMMON_DROPPED,
)
"""Flags of drivers and linkers that a patch link does without."""

_DROPPED_Z = dict.fromkeys(
    ("relro", "norelro", "now", "lazy", "separate-code", "noseparate-code", "max-page-size", "text"),
    "the plan lays out the segments",
)


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
    return linker_flavour(line) != "driver"


def plan_version_query(line: LinkLine) -> tuple[str, ...]:
    """The command that makes the linker of a captured command print its version."""
    kept, _ = _kept_flags(line)
    return (line.driver, *kept, *wrap(["--version"], direct=is_direct(line)))


def plan_search_query(line: LinkLine) -> tuple[str, ...] | None:
    """The command that makes the driver of a captured command print how it would run the linker, directories included.

    None where the command runs a linker itself: it says all there is to say.
    """
    if is_direct(line):
        return None
    kept, _ = _kept_flags(line)
    return (line.driver, *kept, "-static", "-###", "-lc")


def plan_image_link(
    line: LinkLine,
    *,
    linker: Linker,
    objects: Sequence[str],
    output: str,
    base_addr: int,
    keep: Iterable[str],
    page_size: int = PAGE_SIZE,
) -> LinkPlan:
    """Plan the link of an image.

    Args:
        line: the captured command.
        linker: what it runs.
        objects: paths, the stub last.
        output: path of the linked patch.
        base_addr: where its first segment goes, a multiple of the page size.
        keep: symbols that must be there though nothing in the patch refers to them.
        page_size: of the process that it is for, in bytes.

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
        *("-z", "noseparate-code", "-z", "norelro", "-z", f"max-page-size={page_size}"),
        *("-e", "0"),
    ]
    kind = ["-static"] if direct else ["-static", "-nostdlib", "-no-pie"]
    roots = wrap([f"--undefined={name}" for name in keep], direct=direct)
    many = [*roots, *objects]
    return LinkPlan(
        argv=(line.driver, *kept, *kind, *wrap(settings, direct=direct), "-o", output),
        response="".join(f"{quote_gnu(word)}\n" for word in many),
        dropped=dropped,
    )


def _kept_flags(line: LinkLine) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    kept, dropped = edit_words(line, table=DROPPED, settings=_DROPPED_Z, kept_kinds=(InputKind.FLAG,))
    words = [word for entry in kept for word in wrap(entry.item.words, direct=not entry.is_wrapped)]
    return [*program_words(line)[1:], *words], dropped
