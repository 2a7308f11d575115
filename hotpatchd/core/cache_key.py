"""What a compile or a link is known by in the cache: digests of all that its result depends on.

A compile has two keys. The first, of the command, can be told before rustc runs: arguments, directory, environment,
toolchain, and what the dependencies' metadata is. Compiles with one command have read certain files, which is known
from the last time; the second key, of the result, adds those files with their content. Whoever finds nothing by it has
learned nothing wrong: a file that leads to others is among the files itself, so with the same content of all of them
rustc reads the same files.
"""

import hashlib
import os.path
from collections.abc import Iterable, Mapping, Sequence

from hotpatchd.core.argv import parse_argv, values
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.thinplan import ThinCrate

FORMAT = "1"
"""Of what is kept under these keys: with another one, nothing that was kept before is found."""

DIGEST_SIZE = 20
"""Bytes of a digest: 160 bits do not collide by chance."""

_MODULE_FILE = "mod.rs"


def digest_of(*parts: str) -> str:
    """One digest of several texts, with their bounds: `("ab", "c")` and `("a", "bc")` differ."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()


def command_files(crate: ThinCrate) -> tuple[str, ...]:
    """The files that a compile's command names beside the source: metadata of dependencies, a target specification.

    Args:
        crate: what is compiled.

    Returns:
        Absolute paths, in the order of the command.
    """
    args = parse_argv(crate.edited.argv)
    named = [value.partition("=")[2] for value in values(args, "--extern")]
    named += [target for target in values(args, "--target") if target.endswith(".json")]
    return tuple(os.path.join(crate.capture.cwd, path) for path in named if path)


def command_key(crate: ThinCrate, files: Mapping[str, str]) -> str:
    """The key of a compile's command.

    All variables of the environment count, not only those that dep-info lists: a proc macro may read any.

    Args:
        crate: what is compiled.
        files: those that the command depends on, `command_files` and the metadata of dependencies of dependencies:
            path → digest.
    """
    return digest_of(
        "compile",
        FORMAT,
        crate.capture.toolchain,
        crate.capture.rustc,
        crate.capture.cwd,
        digest_of(*crate.edited.argv),
        _digest_of_pairs(crate.capture.env),
        _digest_of_pairs(sorted(files.items())),
    )


def result_key(command: str, files: Mapping[str, str]) -> str:
    """The key of a compile's result.

    Args:
        command: its `command_key`.
        files: what it read: path → digest of the content, or of there being no such file.
    """
    return digest_of(command, _digest_of_pairs(sorted(files.items())))


def other_places(files: Iterable[str]) -> tuple[str, ...]:
    """Where rustc would have found a module too: `a/mod.rs` for `a.rs`, and the other way round.

    A file there makes the module ambiguous, and the crate does not compile. Dep-info does not list where there was
    nothing.

    Args:
        files: sources of a crate.

    Source: the Rust reference, "Module source filenames".
    """
    found = []
    for file in files:
        directory, name = os.path.split(file)
        if name == _MODULE_FILE:
            found.append(f"{directory}.rs")
        elif name.endswith(".rs"):
            found.append(os.path.join(file.removesuffix(".rs"), _MODULE_FILE))
    return tuple(found)


def link_key(
    argv: Sequence[str],
    response: str,
    line: LinkLine,
    *,
    host: str,
    linker: str,
    inputs: Mapping[str, str],
    output: str,
) -> str:
    """The key of a linked patch. It does not depend on where the inputs and the output are.

    Args:
        argv: the linker's command, without the file that the rest of its arguments is in.
        response: those arguments.
        line: the captured command, in the environment of which it runs.
        host: build id of the program.
        linker: what linker it is, as it says itself.
        inputs: path of each file that is linked → digest of its content.
        output: path of what is linked.
    """
    for path, digest in inputs.items():
        response = response.replace(path, digest)
    return digest_of(
        "link",
        FORMAT,
        host,
        linker,
        digest_of(*("" if word == output else word for word in argv)),
        response,
        _digest_of_pairs(line.env),
        digest_of(*line.unset_env),
    )


def _digest_of_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return digest_of(*(part for pair in pairs for part in pair))
