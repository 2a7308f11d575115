"""Editing a linker command by a table: which flags a link plan leaves out, and why.

A compiler driver hands words to the linker by `-Wl,` and `-Xlinker`; a linker that is run itself gets them bare. Both
are read as one sequence of words here, each with a mark for whom it is meant, so that one table does for both.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from hotpatchd.core.linkline import InputKind, LinkInput, LinkLine, classify, count_values, is_msvc, program_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row of a table: how a flag begins, whether separate values may follow, and why it goes."""

    flag: str
    takes_value: bool
    reason: str


def rows(reason: str, bare: str, valued: str = "") -> tuple[Dropped, ...]:
    """Rows with one reason: flags without a separate value, then flags that may have one."""
    return (
        *(Dropped(flag=flag, takes_value=False, reason=reason) for flag in bare.split()),
        *(Dropped(flag=flag, takes_value=True, reason=reason) for flag in valued.split()),
    )


COMMON_DROPPED = (
    *rows("the daemon reads the patch's symbols", "-s -S --strip-all --strip-debug -strip-all"),
    *rows("functions with the same code must stay apart", "--icf"),
    *rows("it names the program's own functions", "", "-u --undefined -init --init -fini --fini --defsym"),
    *rows("it would write over a file of the program's build", "-M --print-map --cref", "-Map --Map --dependency-file"),
    *rows("the objects are machine code already", "-flto -fuse-linker-plugin", "-plugin --plugin -plugin-opt"),
)
"""What no link plan keeps, given to drivers and linkers in the manner of GNU."""

# Flags that come with more behind them than a value after `=`.
_PREFIXES = ("-Ttext", "-flto")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWords:
    """A flag with its separate values, or an input, that stays.

    Attributes:
        item: what it is.
        is_wrapped: it stood behind `-Wl,` or `-Xlinker`.
    """

    item: LinkInput
    is_wrapped: bool


def edit_words(
    line: LinkLine,
    *,
    table: Sequence[Dropped],
    settings: Mapping[str, str],
    kept_kinds: Collection[InputKind],
) -> tuple[tuple[KeptWords, ...], tuple[tuple[str, str], ...]]:
    """Take out of a command what the table names.

    Args:
        line: the captured command.
        table: the rows.
        settings: of `-z`, the names that go (what stands before `=`), with the reason.
        kept_kinds: inputs of other kinds go, too.

    Returns:
        What stays, in order, and what goes, with the reason. The program itself is in neither.
    """
    words = _linker_and_driver_words(line)
    msvc = is_msvc(line)
    by_flag = {row.flag: row for row in table}
    used: set[int] = set()

    def values(at: int, count: int) -> tuple[str, ...]:
        """The next words that are meant for the same reader."""
        same_reader = (i for i in range(at + 1, len(words)) if words[i][1] == words[at][1] and i not in used)
        after = tuple(islice(same_reader, count))
        used.update(after)
        return tuple(words[i][0] for i in after)

    kept: list[KeptWords] = []
    dropped: list[tuple[str, str]] = []
    for at, (word, is_wrapped) in enumerate(words):
        if at in used:
            continue
        name = flag_name(word, msvc=msvc)
        row = by_flag.get(name) or next((by_flag[p] for p in _PREFIXES if p in by_flag and name.startswith(p)), None)
        if row is not None:
            count = max(1, count_values(word)) if row.takes_value and word == row.flag else 0
            group = (word, *values(at, count))
            dropped.append((" ".join(group), row.reason))
            continue
        group = (word, *values(at, 0 if msvc else count_values(word)))
        item = LinkInput(kind=classify(group, msvc=msvc), words=group)
        setting = "".join(group).removeprefix("-z").partition("=")[0] if word.startswith("-z") else ""
        if reason := settings.get(setting):
            dropped.append((" ".join(group), reason))
        elif item.kind in kept_kinds:
            kept.append(KeptWords(item=item, is_wrapped=is_wrapped))
        else:
            dropped.append((" ".join(group), f"{item.kind.value} of the program"))
    return tuple(kept), tuple(dropped)


def flag_name(word: str, *, msvc: bool) -> str:
    """What a table calls a flag: without an attached value; Microsoft's with a slash, in capitals."""
    if not msvc:
        return word.partition("=")[0]
    return "/" + word[1:].partition(":")[0].upper() if word.startswith(("/", "-")) else word


def wrap(words: Sequence[str], *, direct: bool) -> list[str]:
    """Linker arguments as the program takes them: bare if it is the linker itself (`direct`)."""
    if direct:
        return list(words)
    return [part for word in words for part in ("-Xlinker", word)]


def quote_gnu(word: str) -> str:
    """A word for a response file that is read by GNU rules."""
    return "".join(f"\\{char}" if char in " \t\n\r\f\v\\'\"" else char for char in word) or '""'


def _linker_and_driver_words(line: LinkLine) -> list[tuple[str, bool]]:
    words: list[tuple[str, bool]] = []
    rest = iter(line.argv[len(program_words(line)) :])
    for word in rest:
        if word == "-Xlinker":
            words += ((value, True) for value in (next(rest, None),) if value is not None)
        elif word.startswith("-Wl,"):
            words += ((part, True) for part in word.split(",")[1:])
        else:
            words.append((word, False))
    return words
