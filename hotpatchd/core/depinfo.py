"""The Makefile-style list of the files and environment variables that a compile read (`--emit=dep-info`).

    target/app.d: src/main.rs src/with\\ space.rs
    (one such rule for each output; then one for each source, so that make does not stop at a deleted one)

    src/main.rs:
    src/with\\ space.rs:

    # env-dep:GIT_SHA=abc
    # env-dep:NOT_SET

In the paths of sources only spaces are escaped; in variables `\\\\`, `\\n` and `\\r`.

Source: `rustc_interface::passes::write_out_deps`
"""

import re
from dataclasses import dataclass

from hotpatchd.core.errors import CaptureError

_SOURCE_RULE = re.compile(r"(?!# )(?:[^ ]|(?<=\\) )+:")
_ENV_PREFIX = "# env-dep:"
_ENV_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DepInfo:
    """What a compile read.

    Attributes:
        files: paths as rustc wrote them, relative ones to the compile's directory; the crate root first.
        env: variables that the source asks for, with the value found; None where it was not set.
    """

    files: tuple[str, ...]
    env: tuple[tuple[str, str | None], ...]


def parse_dep_info(text: str) -> DepInfo:
    """Read a `.d` file.

    Raises:
        CaptureError: the text has no rule, or was cut short.
    """
    rules: list[str] = []
    sources: list[str] = []
    env: list[tuple[str, str | None]] = []
    for line in text.split("\n"):
        if line.startswith(_ENV_PREFIX):
            name, equals, value = line.removeprefix(_ENV_PREFIX).partition("=")
            env.append((_unescape_env(name), _unescape_env(value) if equals else None))
        elif _SOURCE_RULE.fullmatch(line):
            sources.append(line[:-1])
        else:
            rules.append(line)
    # The rule of an output cannot be split, since spaces in its own path are not escaped; but its end is known.
    if not sources or not any(rule.endswith(f": {' '.join(sources)}") for rule in rules):
        raise CaptureError("the dep-info file is cut short or is not rustc's", hint="build the crate again")
    return DepInfo(files=tuple(source.replace("\\ ", " ") for source in sources), env=tuple(env))


def _unescape_env(text: str) -> str:
    return re.sub(r"\\[\\nr]", lambda match: _ENV_ESCAPES[match[0]], text)
