"""Reads what plans for linkers write: the words of response files, and what a driver is told of its linker."""

import re

from hotpatchd.core.linkline import LinkLine, link_inputs

_LINKER_CHOICE = ("-fuse-ld=", "--ld-path=", "-B")


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


def split_windows(text: str) -> tuple[str, ...]:
    """Split a Windows command line or response file into words.

    Backslashes are themselves, but before a quote: there two are one, and an odd one makes the quote a character. Two
    quotes inside quotes are one.

    Source: "Parsing C command-line arguments" in Microsoft's C reference
    """
    words: list[str] = []
    word: str | None = None
    is_quoted = False
    for part in re.finditer(r'(?P<slashes>\\*)(?P<quotes>""?)|(?P<space>[ \t\r\n]+)|(?P<char>\\+|.)', text, re.DOTALL):
        if part["quotes"] is None:
            if part["space"] is None or is_quoted:
                word = (word or "") + part[0]
            elif word is not None:
                words.append(word)
                word = None
            continue
        count = len(part["slashes"])
        word = (word or "") + "\\" * (count // 2)
        quotes = len(part["quotes"])
        if count % 2:
            word += '"'
            quotes -= 1
        elif quotes == 2 and is_quoted:
            word += '"'
            quotes = 0
        is_quoted ^= quotes % 2 == 1
    return tuple(words if word is None else [*words, word])


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
