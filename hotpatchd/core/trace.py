"""What processes opened, listed, or looked for in vain, as the tracer wrote it down (wrapper/tracer.rs)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from hotpatchd.core.settle import IGNORED_DIRS


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where the files are of which traces tell.

    Args:
        roots: directories that sources are in.
        excluded: directories below them that results go to.
        real: root → where it is, if a symbolic link leads there: processes see their directory without links.
    """

    roots: tuple[str, ...]
    excluded: tuple[str, ...]
    real: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As the tracer reads it."""
        return "\n".join((*self.roots, *self.real.values(), *(f"-{path}" for path in self.excluded)))

    def place(self, path: str) -> str | None:
        """The path by which a file is known to those who watch it; None for one that is out of scope.

        Args:
            path: absolute, without `.` and `..`.
        """
        for root, real in self.real.items():
            if PurePath(path).is_relative_to(real):
                path = str(root / PurePath(path).relative_to(real))
        pure = PurePath(path)
        inside = any(pure.is_relative_to(root) for root in self.roots)
        outside = any(pure.is_relative_to(directory) for directory in self.excluded)
        return path if inside and not outside and IGNORED_DIRS.isdisjoint(pure.parts) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a compile, or a build script with all programs that it ran, depends on. All paths absolute.

    Attributes:
        opened: files that were read; those that were first written by the same processes are not among them.
        written: files that were made, or made anew.
        listed: directories whose entries were listed.
        missing: paths that were looked for, and led nowhere.
        variables: `CARGO_PKG_*` variables that were asked for.
        untraced: programs that were run and of which nothing else is known.
    """

    opened: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    untraced: frozenset[str] = frozenset()

    @property
    def paths(self) -> frozenset[str]:
        """Everything that makes a difference when it changes, comes or goes."""
        return self.opened | self.listed | self.missing

    def __or__(self, other: "Trace") -> "Trace":
        return Trace(
            opened=self.opened | other.opened,
            written=self.written | other.written,
            listed=self.listed | other.listed,
            missing=self.missing | other.missing,
            variables=self.variables | other.variables,
            untraced=self.untraced | other.untraced,
        )


def parse_trace(data: bytes, scope: Scope) -> Trace:
    """Read a trace.

    Args:
        data: the file; a record at its end that is cut short counts as none.
        scope: what to keep of it.
    """
    found: dict[str, set[str]] = {kind: set() for kind in "rwlmue"}
    for record in data.split(b"\0")[:-1]:
        text = record.decode("utf-8", "surrogateescape")
        kind, subject = text[:1], text[1:]
        if kind in ("r", "w", "l", "m"):
            place = scope.place(subject)
            # Who writes a file and then reads it depends on nothing; who reads it first does.
            if place is None or (kind == "r" and place in found["w"]):
                continue
            found[kind].add(place)
        elif kind in found:
            found[kind].add(subject)
    return Trace(
        opened=frozenset(found["r"]),
        written=frozenset(found["w"]),
        listed=frozenset(found["l"]),
        missing=frozenset(found["m"] - found["w"]),
        variables=frozenset(found["e"]),
        untraced=frozenset(found["u"]),
    )
