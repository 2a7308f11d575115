"""What selection needs to know of one relocatable object, whatever its format.

rustc gives every function, static and constant a section of its own. So a *section* is the smallest thing that can be
taken into a patch or left out of it, and an object is a graph of sections that refer to each other.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

SectionKind = Literal["function", "data", "tls", "constant", "init", "other"]
"""`data` is writable, `constant` is not (once relocated); `init` runs at start-up; `other` is never loaded."""


_LEGACY_HASH = re.compile(r"17h[0-9a-f]{16}E")


def is_rust_name(symbol: str) -> bool:
    """Whether a symbol's name is mangled by rustc: then it tells one item of one crate from all others.

    Source: RFC 2603 (v0, `_R`), and `rustc_symbol_mangling::legacy` (`_ZN…17h<hash>E`).
    """
    return symbol.startswith("_R") or (symbol.startswith("_ZN") and _LEGACY_HASH.search(symbol) is not None)


class Fingerprint(NamedTuple):
    """Digests of a section and of everything anonymous that it refers to.

    Two sections with the same `strict` digest do the same. Those that differ in `strict` and agree in `blind` differ
    only in the line and column numbers of panic locations, or in those that tracing's call sites are described by.
    """

    strict: bytes
    blind: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A symbol that an object defines.

    Args:
        name: the symbol's name.
        section: index of the section it lies in.
        offset: where in that section, in bytes.
        size: in bytes, 0 where the object does not say.
        kind: of its section.
        local: bound inside the object only.
    """

    name: str
    section: int
    offset: int
    size: int
    kind: SectionKind
    local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewThreadLocal:
    """A thread-local that the program does not have.

    Args:
        name: its symbol.
        size: of its section, in bytes.
        align: of its section, in bytes.
        image: its initial content; empty for zeros.
    """

    name: str
    size: int
    align: int
    image: bytes


class Reference(NamedTuple):
    """One relocation's target.

    Args:
        name: the symbol's name, empty for an anonymous place in a section of this object.
        section: where this object defines it, -1 where it does not.
        local: the name is bound inside this object only.
        weak: it may stay undefined, and its address is 0 then.
    """

    name: str
    section: int
    local: bool
    weak: bool = False


class Unit(Protocol):
    """One relocatable object: a CGU of a crate, or a member of an archive."""

    @property
    def name(self) -> str:
        """Unique among the units of one selection."""

    @property
    def from_archive(self) -> bool:
        """It is a member of an archive, compiled together with the host."""

    @property
    def exports(self) -> Mapping[str, Definition]:
        """Global and weak definitions, by name."""

    @property
    def statics(self) -> Mapping[str, Definition]:
        """Statics and thread-locals, constants and object-local ones that Rust named included, by name."""

    def definitions_in(self, section: int) -> tuple[Definition, ...]:
        """All named definitions in one section, local ones included."""

    def kind(self, section: int) -> SectionKind:
        """What the section holds."""

    def references(self, section: int) -> Iterable[Reference]:
        """What the section's relocations lead to, exception tables included."""

    def frame_references(self) -> Iterable[Reference]:
        """What the unwind tables of any function in the unit lead to: personality routines."""

    def fingerprint(self, section: int) -> Fingerprint:
        """Digest of the section."""

    @property
    def collected(self) -> Mapping[bytes, str]:
        """Sections that a linker gathers into tables, for start-up code or crates such as linkme: digest → name."""

    def thread_local(self, definition: Definition) -> NewThreadLocal | None:
        """A thread-local's layout and content; None where the content holds addresses."""


class HostSymbol(NamedTuple):
    """A symbol of the running program: of the host binary, or of a patch applied earlier.

    Args:
        addr: link-time address; for a thread-local its offset from the thread pointer.
        size: in bytes.
        kind: `function`, `data` (constants included) or `tls`.
        homonyms: how many different addresses carry the name.
    """

    addr: int
    size: int
    kind: Literal["function", "data", "tls"]
    homonyms: int


class Host(Protocol):
    """The symbols that the running program has."""

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name."""


class Archives(Protocol):
    """The archives of the captured link line, in its order."""

    def member_defining(self, name: str) -> Unit | None:
        """The first member whose archive symbol table lists `name`."""


class Definers(Protocol):
    """Which object of a build defines a symbol."""

    def get(self, symbol: str, /) -> Unit | None:
        """The object that exports `symbol`."""
