"""Objects, archives, programs and clients made up for tests of the core."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotpatchd.core.client import Hello, Region, ThreadLocalReserve
from hotpatchd.core.session import PatchContent, Session
from hotpatchd.core.unit import (
    Definition,
    Fingerprint,
    HostSymbol,
    NewThreadLocal,
    Reference,
    SectionKind,
    Unit,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section of a fake object, with the names that it defines.

    `to` are names that it refers to, of which those in `weak` need not exist, `inside` sections of the same object that
    it refers to without a name. `shared` names are known beyond the object though they are local. Sections with the
    same `code` differ in line numbers at most, and those are in `lines`. A thread-local without an `image` cannot be
    laid out.
    """

    kind: SectionKind
    names: tuple[str, ...] = ()
    local: bool = False
    shared: bool = False
    to: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    inside: tuple[int, ...] = ()
    size: int = 8
    code: str = ""
    lines: str = ""
    image: bytes | None = None


class FakeUnit:
    """An object; its sections are numbered from 1."""

    def __init__(
        self,
        name: str,
        *sections: Section,
        frames: Iterable[Reference] = (),
        from_archive: bool = False,
        collected: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.collected: Mapping[bytes, str] = {section.encode(): section for section in collected}
        self.from_archive = from_archive
        self.frames = tuple(frames)
        self.frames_read = 0
        self.sections = dict(enumerate(sections, 1))
        self.exports: Mapping[str, Definition] = {
            definition.name: definition
            for index in self.sections
            for definition in self.definitions_in(index)
            if not definition.local or self.sections[index].shared
        }

    @property
    def statics(self) -> Mapping[str, Definition]:
        """All that is no function."""
        found = (definition for index in self.sections for definition in self.definitions_in(index))
        return {definition.name: definition for definition in found if definition.kind != "function"}

    def definitions_in(self, section: int) -> tuple[Definition, ...]:
        """All named definitions in one section."""
        what = self.sections[section]
        return tuple(
            Definition(name=name, section=section, offset=0, size=what.size, kind=what.kind, local=what.local)
            for name in what.names
        )

    def kind(self, section: int) -> SectionKind:
        """What the section holds."""
        return self.sections[section].kind

    def references(self, section: int) -> Iterable[Reference]:
        """Named references first."""
        what = self.sections[section]
        for name in what.to:
            own = self.exports.get(name)
            yield Reference(name, own.section if own else -1, local=False, weak=name in what.weak)
        for index in what.inside:
            yield Reference("", index, local=True)

    def frame_references(self) -> Iterable[Reference]:
        """Counts how often it is asked."""
        self.frames_read += 1
        return self.frames

    def fingerprint(self, section: int) -> Fingerprint:
        """Digests that are the section's texts."""
        what = self.sections[section]
        return fingerprint(what.code, what.lines)

    def thread_local(self, definition: Definition) -> NewThreadLocal | None:
        """The layout, where the section has an image."""
        what = self.sections[definition.section]
        return (
            None
            if what.image is None
            else NewThreadLocal(name=definition.name, size=what.size, align=8, image=what.image)
        )


class FakeHost:
    """A program with these symbols."""

    def __init__(self, symbols: Mapping[str, HostSymbol] | None = None) -> None:
        self.symbols = symbols or {}

    def find(self, name: str) -> HostSymbol | None:
        """The symbol of that name."""
        return self.symbols.get(name)


class FakeArchives:
    """Archives with these members."""

    def __init__(self, *members: Unit) -> None:
        self.members = members

    def member_defining(self, name: str) -> Unit | None:
        """The first member that exports the name."""
        return next((member for member in self.members if name in member.exports), None)


def fingerprint(code: str, lines: str = "") -> Fingerprint:
    """A function's digests."""
    return Fingerprint(strict=f"{code}@{lines}".encode(), blind=code.encode())


def session(client: int, **fields: object) -> Session:
    """A client that just connected."""
    region = Region(addr=0x10000, size=0x100000, slot_size=0x10000, next=0x10000)
    hello = Hello(
        instance=f"instance{client}",
        build_id="b1",
        pid=1000 + client,
        exe="/app",
        target="x86_64-unknown-linux-gnu",
        slide=0,
        region=region,
        thread_locals=ThreadLocalReserve(offset=-64, size=64),
        page_size=4096,
        patches=(),
    )
    return Session(client=client, hello=hello, next_addr=region.next, **fields)  # type: ignore[arg-type]


def content(
    patch: str,
    functions: Mapping[str, Fingerprint] | None = None,
    added: Iterable[str] = (),
    *,
    edit: int = 1,
) -> PatchContent:
    """A patch that defines these functions, some of which are new to the program."""
    return PatchContent(
        patch=patch,
        edit=edit,
        functions=functions or {},
        symbols={name: HostSymbol(0x5000, 16, "function", 1) for name in added},
        thread_locals=0,
    )
