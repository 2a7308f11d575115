"""Calling conventions of functions, as the source has them.

Nothing in an object tells a function's convention: debug information has no word for it, and neither have symbols of
v0 and names of C.
"""

import re

_WITH_CONVENTION = re.compile(rb'extern\s*(?:r?#*"([^"]*)"#*\s*)?\bfn\s+(?:r#)?(\w+)')
_SAME = {b"": b"C", b"system": b"C"}
"""Other words for a convention. On all 64-bit systems, `system` is `C`."""


def find_conventions(source: bytes) -> frozenset[tuple[str, str]]:
    """The functions of a source file that are defined with a convention of their own, each with that.

    Those of macros are not found; what stands in comments and strings is. Whether a function may unwind makes no
    difference.

    Source: The Rust Reference, "Functions", "Extern function qualifier".
    """
    found = set()
    for written, name in _WITH_CONVENTION.findall(source) if b"extern" in source else ():
        convention = written.removesuffix(b"-unwind")
        found.add((name.decode(errors="replace"), _SAME.get(convention, convention).decode(errors="replace")))
    return frozenset(found - {(name, "Rust") for name, _ in found})
