"""COFF objects as graphs of what can be taken into a patch or left out of it.

rustc gives functions no sections of their own there. What stands in for a section is an *atom*: from one symbol to the
next, and in read-only data also from one place that something refers to until the next such place.

Source: Microsoft, "PE Format"; Intel SDM volume 2, "NOP" (recommended multi-byte sequences).
"""

import hashlib
import mmap
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from hotpatchd.core.unit import Definition, Fingerprint, NewThreadLocal, Reference, SectionKind, is_rust_name
from hotpatchd.objfile import coff_writer as coff
from hotpatchd.objfile.codeunit import LOCATION_NUMBERS, LOCATION_SIZE, find_referrers
from hotpatchd.objfile.coff import (
    IMAGE_REL_AMD64_ADDR64,
    IMAGE_SCN_LNK_INFO,
    IMAGE_SCN_LNK_REMOVE,
    IMAGE_SCN_MEM_DISCARDABLE,
    IMAGE_SCN_MEM_WRITE,
    IMAGE_SYM_CLASS_STATIC,
    CoffFile,
    Reloc,
    Section,
    Symbol,
)
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX
from hotpatchd.objfile.type_layouts import ObjectTypes

_PADDING = re.compile(rb"(?:\x66*\x2e?\x0f\x1f(?:\x00|\x40.|\x44..|\x80.{4}|\x84.{5})|\x66*\x90|\xcc)+\Z", re.DOTALL)
"""What compilers put between functions."""

_UNWIND_TABLES = (".pdata", ".xdata")
_START_UP = (".CRT$", ".ctors", ".init_array")


@dataclass(slots=True, kw_only=True)
class Atom:
    """A stretch of a section.

    Args:
        section: number of the section.
        start: offset of its first byte there.
        end: offset behind its last.
        names: indices of the symbols at its start.
        relocs: the relocations inside it.
    """

    section: int
    start: int
    end: int
    names: list[int] = field(default_factory=list)
    relocs: list[Reloc] = field(default_factory=list)


def section_kind(section: Section) -> SectionKind:
    """What a section holds."""
    if section.flags & (IMAGE_SCN_LNK_INFO | IMAGE_SCN_LNK_REMOVE | IMAGE_SCN_MEM_DISCARDABLE):
        return "other"
    if section.name.startswith(_UNWIND_TABLES):
        return "other"
    if section.name.startswith(".tls"):
        return "tls"
    if section.name.startswith(_START_UP):
        return "init"
    if section.flags & coff.IMAGE_SCN_CNT_CODE:
        return "function"
    return "data" if section.flags & IMAGE_SCN_MEM_WRITE else "constant"


class AtomUnit:
    """A COFF object as a `Unit`, whose sections are atoms.

    Args:
        data: the object.
        name: unique among the units of one selection.
        origin: what to call it in an error.
        from_archive: it is a member of an archive.
        shares_locals: see `CodeUnit`.
    """

    def __init__(
        self, data: bytes | mmap.mmap, name: str, *, origin: str, from_archive: bool, shares_locals: bool = False
    ) -> None:
        self.file = CoffFile(data, origin)
        self.name = name
        self.from_archive = from_archive
        self._shares_locals = shares_locals
        self._fingerprints: dict[int, Fingerprint] = {}

    @cached_property
    def _kinds(self) -> dict[int, SectionKind]:
        return {number: section_kind(section) for number, section in self.file.sections.items()}

    @cached_property
    def _relocs(self) -> dict[int, list[Reloc]]:
        return {number: self.file.relocs(section) for number, section in self.file.sections.items()}

    def target(self, section: int, reloc: Reloc) -> int:
        """Where a relocation leads, as an offset in the section of its symbol."""
        return self.file.target(self.file.sections[section], reloc)

    @cached_property
    def atoms(self) -> list[Atom]:
        """All atoms by index; the first stands for none."""
        starts: dict[int, set[int]] = {
            number: {0} for number, kind in self._kinds.items() if kind != "other" and self.file.sections[number].size
        }
        for symbol in self.file.symbols.values():
            if symbol.section in starts and not symbol.is_section:
                starts[symbol.section].add(symbol.value)
        for number in starts:
            for reloc in self._relocs[number]:
                symbol = self.file.symbols[reloc.symbol]
                # Places inside functions are jumped to; they begin nothing.
                if symbol.is_section and symbol.section in starts and self._kinds[symbol.section] != "function":
                    starts[symbol.section].add(self.target(number, reloc))
        found = [Atom(section=0, start=0, end=0)]
        for number, places in starts.items():
            size = self.file.sections[number].size
            ordered = sorted(place for place in places if 0 <= place < size)
            found += (
                Atom(section=number, start=start, end=end)
                for start, end in zip(ordered, [*ordered[1:], size], strict=True)
            )
        return found

    @cached_property
    def _places(self) -> dict[int, tuple[list[int], int]]:
        """Section → where its atoms start, and the index of the first one; the atoms' content is filled in."""
        found: dict[int, tuple[list[int], int]] = {}
        for index, atom in enumerate(self.atoms):
            if index:
                found.setdefault(atom.section, ([], index))[0].append(atom.start)
        for index, symbol in self.file.symbols.items():
            if symbol.section in found and not symbol.is_section:
                starts, first = found[symbol.section]
                self.atoms[first + bisect_right(starts, symbol.value) - 1].names.append(index)
        for number, (starts, first) in found.items():
            for reloc in self._relocs[number]:
                self.atoms[first + bisect_right(starts, reloc.offset) - 1].relocs.append(reloc)
        return found

    def atom_at(self, section: int, offset: int) -> int:
        """Index of the atom that has a byte of a section; 0 where none has."""
        starts, first = self._places.get(section, ([], 0))
        place = bisect_right(starts, offset)
        return first + place - 1 if place else 0

    def atom(self, index: int) -> Atom:
        """An atom, complete."""
        _ = self._places
        return self.atoms[index]

    def extent(self, name: str) -> int:
        """Bytes from a symbol to the next thing behind it; 0 for one that the object does not define."""
        definition = self.exports.get(name)
        if definition is None:
            return 0
        atom = self.atom(definition.section)
        return atom.end - atom.start

    def kind(self, section: int) -> SectionKind:
        """What the atom holds."""
        return self._kinds.get(self.atoms[section].section, "other")

    def _definition(self, symbol: Symbol) -> Definition:
        atom = self.atom_at(symbol.section, symbol.value)
        return Definition(
            name=symbol.name,
            section=atom,
            offset=symbol.value - self.atoms[atom].start,
            size=0,
            kind=self.kind(atom),
            local=symbol.storage_class == IMAGE_SYM_CLASS_STATIC,
        )

    def _is_shared(self, symbol: Symbol) -> bool:
        """Whether the symbol's name counts beyond the object."""
        if symbol.storage_class == coff.IMAGE_SYM_CLASS_EXTERNAL:
            return True
        is_function = self._kinds.get(symbol.section) == "function"
        return self._shares_locals and is_function and is_rust_name(symbol.name)

    def _is_state(self, symbol: Symbol) -> bool:
        """Whether it is state that counts as the same in two builds, whatever its initialiser is."""
        return self._kinds.get(symbol.section) in ("data", "tls") and is_rust_name(symbol.name)

    @cached_property
    def exports(self) -> dict[str, Definition]:
        """Definitions that have a meaning beyond the object, by name."""
        return {
            symbol.name: self._definition(symbol)
            for symbol in self.file.symbols.values()
            if self._kinds.get(symbol.section, "other") != "other" and not symbol.is_section and self._is_shared(symbol)
        }

    @property
    def statics(self) -> dict[str, Definition]:
        """Statics and thread-locals, constants included, by name; none that are bound inside the object."""
        return {name: found for name, found in self.exports.items() if found.kind in ("data", "tls", "constant")}

    def definitions_in(self, section: int) -> tuple[Definition, ...]:
        """All named definitions in one atom."""
        return tuple(self._definition(self.file.symbols[index]) for index in self.atom(section).names)

    def _reference(self, section: int, reloc: Reloc) -> Reference:
        symbol = self.file.symbols[reloc.symbol]
        if symbol.section <= 0 or (not symbol.is_section and self._is_shared(symbol)):
            # "The import slot of X" leads to X: the stub has slots for all that it defines.
            name = symbol.name if symbol.section > 0 else symbol.name.removeprefix(IMPORT_SLOT_PREFIX)
            return Reference(name, -1, local=False)
        return Reference("", self.atom_at(symbol.section, self.target(section, reloc)), local=True)

    def references(self, section: int) -> Iterator[Reference]:
        """What the atom's relocations lead to."""
        atom = self.atom(section)
        for reloc in atom.relocs:
            yield self._reference(atom.section, reloc)

    def frame_references(self) -> tuple[Reference, ...]:
        """Personality routines."""
        names = {
            self.file.symbols[reloc.symbol].name
            for number, section in self.file.sections.items()
            if section.name.startswith(_UNWIND_TABLES)
            for reloc in self._relocs[number]
            if self.file.symbols[reloc.symbol].section == 0
        }
        return tuple(Reference(name, -1, local=False) for name in sorted(names))

    @property
    def collected(self) -> dict[bytes, str]:
        """Start-up code: digest → name of its section."""
        return {
            self.fingerprint(index).strict: self.file.sections[atom.section].name
            for index, atom in enumerate(self.atoms)
            if index and self.kind(index) == "init"
        }

    @cached_property
    def types(self) -> ObjectTypes:
        """The types that its debug information describes, where that is DWARF."""
        return ObjectTypes(self.file)

    def thread_local(self, definition: Definition) -> NewThreadLocal | None:
        """Its layout and content."""
        atom = self.atom(definition.section)
        image = self._content(atom)
        return NewThreadLocal(name=definition.name, size=atom.end - atom.start, align=16, image=image)

    @cached_property
    def calls(self) -> dict[str, Counter[str]]:
        """As of a `CodeUnit`."""
        return find_referrers(self, frozenset({"function"}))

    @cached_property
    def users(self) -> dict[str, Counter[str]]:
        """As of a `CodeUnit`."""
        return find_referrers(self, frozenset({"function", "constant"}))

    @cached_property
    def holders(self) -> dict[str, Counter[str]]:
        """As of a `CodeUnit`."""
        return find_referrers(self, frozenset({"constant"}), frozenset({"constant", "data"}))

    def _content(self, atom: Atom) -> bytes:
        contents = self.file.contents(self.file.sections[atom.section])
        return contents[atom.start : atom.end]

    def fingerprint(self, section: int) -> Fingerprint:
        """Digest of the atom and of everything anonymous that it refers to, as `CodeUnit.fingerprint` has it."""
        known = self._fingerprints.get(section)
        if known is None:
            strict, blind = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
            numbers = {section: 0}
            order = [section]
            for current in order:
                atom = self.atom(current)
                raw = self._content(atom)
                content = bytearray(raw)
                labels = []
                for reloc in atom.relocs:
                    width = 8 if reloc.type == IMAGE_REL_AMD64_ADDR64 else 4
                    at = reloc.offset - atom.start
                    addend = int.from_bytes(content[at : at + width], "little")
                    content[at : at + width] = bytes(width)
                    labels.append(b"%d:%d:" % (at, reloc.type) + self._label(atom, reloc, addend, numbers, order))
                is_code = self.kind(current) == "function"
                kept = _PADDING.sub(b"", bytes(content)) if is_code else bytes(content).rstrip(b"\0")
                for digest, part in ((strict, kept), (blind, self._without_location(atom, raw, kept))):
                    digest.update(b"%d:" % len(part) + part + b"".join(labels))
            known = self._fingerprints[section] = Fingerprint(strict.digest(), blind.digest())
        return known

    def _label(self, atom: Atom, reloc: Reloc, addend: int, numbers: dict[int, int], order: list[int]) -> bytes:
        """What a relocation leads to: a name that counts, or the number of an atom that counts by its content."""
        symbol = self.file.symbols[reloc.symbol]
        if symbol.section <= 0 or (not symbol.is_section and (self._is_shared(symbol) or self._is_state(symbol))):
            return b"%d:" % addend + symbol.name.encode("utf-8", "surrogateescape") + b"\0"
        offset = self.target(atom.section, reloc)
        target = self.atom_at(symbol.section, offset)
        if target not in numbers:
            numbers[target] = len(order)
            if target:
                order.append(target)
        return b"#%d+%d:" % (numbers[target], offset - self.atoms[target].start)

    def _without_location(self, atom: Atom, content: bytes, kept: bytes) -> bytes:
        """The content with line and column zeroed, where the atom is a panic location."""
        is_location = len(content) >= LOCATION_SIZE and not any(content[LOCATION_SIZE:])
        if not is_location or len(atom.relocs) != 1 or atom.relocs[0].offset != atom.start:
            return kept
        symbol = self.file.symbols[atom.relocs[0].symbol]
        if atom.relocs[0].type != IMAGE_REL_AMD64_ADDR64 or symbol.section <= 0:
            return kept
        length = int.from_bytes(content[8:16], "little")
        start = self.target(atom.section, atom.relocs[0])
        file_name = self.file.contents(self.file.sections[symbol.section])[start : start + length]
        if len(file_name) != length or not file_name.endswith(b".rs"):
            return kept
        masked = bytearray(content[:LOCATION_SIZE])
        masked[:8] = masked[LOCATION_NUMBERS] = bytes(8)
        return bytes(masked)
