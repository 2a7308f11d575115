"""Relocatable objects as graphs of sections, with fingerprints.

Two builds of the same source give objects that differ in the names of anonymous constants, in the order of sections
and in debug information. A fingerprint sees through that: it covers a section's bytes and, for every relocation, what
it refers to: symbols with a real name by that name, anonymous constants and local functions by their own content.
"""

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from hotpatchd.core.closures import owner_of_closure
from hotpatchd.core.demangle import demangle, of_shim
from hotpatchd.core.unit import Definition, Fingerprint, NewThreadLocal, Reference, SectionKind, Unit, is_rust_name
from hotpatchd.objfile import elf
from hotpatchd.objfile.machines import MACHINES
from hotpatchd.objfile.type_layouts import ObjectTypes

LOCATION_SIZE = 24
"""Bytes of `core::panic::Location`: pointer and length of the file's name, line, column (u32 each)."""

LOCATION_NUMBERS = slice(16, 24)
"""Where in that line and column are."""

_CALL_DISTANCE = 16
"""Bytes from a reference to a call's last argument to the reference to what is called: an instruction or two."""

_CALL_SITE = re.compile(r"10_?__CALLSITE4META")
"""Names of the statics that tracing's macros describe themselves by, in either mangling.

Source: `tracing_core::Metadata`, whose line is an `Option<u32>`: the tag 1, and behind it the number.
"""

_EVENT_NAME = re.compile(rb"event .*\.rs:\d+", re.DOTALL)
"""The name of an event is where it is in the source. Source: `tracing::event!`."""


def _section_kind(section: elf.Section) -> SectionKind:
    if not section.flags & elf.SHF_ALLOC:
        return "other"
    if section.flags & elf.SHF_TLS:
        return "tls"
    if section.flags & elf.SHF_EXECINSTR:
        return "function"
    if section.type == elf.SHT_INIT_ARRAY or section.name.startswith((".init_array", ".ctors", ".fini_array")):
        return "init"
    if section.name.startswith((".eh_frame", ".gcc_except_table")):
        return "other"
    if section.flags & elf.SHF_WRITE and not section.name.startswith((".data.rel.ro", ".data.DW.ref.")):
        return "data"
    return "constant"


class _Own(NamedTuple):
    """Digests of what a section holds by itself, and the anonymous sections that it refers to, in its order."""

    strict: bytes
    blind: bytes
    targets: tuple[int, ...]


class CodeUnit:
    """A `RelocatableObject` as a `Unit`.

    Args:
        obj: the object.
        name: unique among the units of one selection.
        from_archive: it is a member of an archive.
        shares_locals: it was compiled without optimisation: then an object-local function is the same function,
            with the same signature, wherever it has the same name.
    """

    def __init__(
        self, obj: elf.RelocatableObject, name: str, *, from_archive: bool, shares_locals: bool = False
    ) -> None:
        self.obj = obj
        self.machine = MACHINES[obj.header.machine]
        self.name = name
        self.from_archive = from_archive
        self.shares_locals = shares_locals
        self._fingerprints: dict[int, Fingerprint] = {}
        self._owns: dict[int, _Own] = {}

    @cached_property
    def kinds(self) -> tuple[SectionKind, ...]:
        """Kind of each section, by index."""
        return tuple(_section_kind(section) for section in self.obj.sections)

    def kind(self, section: int) -> SectionKind:
        """What the section holds."""
        return self.kinds[section]

    def _definition(self, index: int) -> Definition:
        symbol = self.obj.symbols[index]
        return Definition(
            name=symbol.name,
            section=symbol.shndx,
            offset=symbol.value,
            size=symbol.size,
            kind=self.kinds[symbol.shndx],
            local=symbol.bind == elf.STB_LOCAL,
        )

    @cached_property
    def exports(self) -> dict[str, Definition]:
        """Definitions in loaded sections that have a meaning beyond the object, by name.

        These are the global and weak ones, and object-local functions where those are shared.
        """
        kinds = self.kinds
        return {
            symbol.name: self._definition(index)
            for index, symbol in enumerate(self.obj.symbols)
            if (symbol.bind != elf.STB_LOCAL or self._is_shared_local(symbol))
            and symbol.shndx > 0
            and kinds[symbol.shndx] != "other"
        }

    @cached_property
    def statics(self) -> dict[str, Definition]:
        """Statics and thread-locals, constants and object-local ones that Rust named included, by name."""
        return {
            symbol.name: self._definition(index)
            for index, symbol in enumerate(self.obj.symbols)
            if symbol.shndx > 0
            and self.kinds[symbol.shndx] in ("data", "tls", "constant")
            and (symbol.bind != elf.STB_LOCAL or is_rust_name(symbol.name))
        }

    def _is_shared_local(self, symbol: elf.Symbol) -> bool:
        return self.shares_locals and symbol.type == elf.STT_FUNC and is_rust_name(symbol.name)

    def _shared_function(self, section: int) -> str:
        """Name of the shared object-local function that a section consists of; empty if it does not."""
        if not self.shares_locals or section <= 0 or self.kinds[section] != "function":
            return ""
        symbols = [self.obj.symbols[index] for index in self._named_in(section)]
        return symbols[0].name if len(symbols) == 1 and self._is_shared_local(symbols[0]) else ""

    def _named_in(self, section: int) -> list[int]:
        """Indices of the symbols that name something in the section."""
        indices = self.obj.symbols_of_section.get(section, [])
        return [index for index in indices if not self.machine.is_mapping_symbol(self.obj.symbols[index].name)]

    def definitions_in(self, section: int) -> tuple[Definition, ...]:
        """All named definitions in one section, local ones included."""
        return tuple(map(self._definition, self._named_in(section)))

    @cached_property
    def collected(self) -> dict[bytes, str]:
        """Sections that a linker gathers into tables, for start-up code or crates such as linkme: digest → name.

        Source: ld(1), on orphan sections: one whose name is a C identifier gets `__start_` and `__stop_` symbols.
        """
        return {
            self.fingerprint(index).strict: section.name
            for index, section in enumerate(self.obj.sections)
            if self.kinds[index] == "init" or (section.flags & elf.SHF_ALLOC and section.name.isidentifier())
        }

    @cached_property
    def types(self) -> ObjectTypes:
        """The types that its debug information describes."""
        return ObjectTypes(self.obj)

    def thread_local(self, definition: Definition) -> NewThreadLocal | None:
        """A thread-local's layout and content; None where the content holds addresses."""
        if self.obj.relocs(definition.section):
            return None
        section = self.obj.sections[definition.section]
        image = self.obj.contents(section)
        return NewThreadLocal(
            name=definition.name, size=section.size, align=max(section.align, 1), image=image if any(image) else b""
        )

    def _exception_table(self, section: int) -> int | None:
        for index in self._named_in(section):
            table = self.obj.section_named(f".gcc_except_table.{self.obj.symbols[index].name}")
            if table is not None:
                return table
        return None

    def is_internal(self, source: int, target: int) -> bool:
        """Whether a reference stays within one function: in its own code, or from its jump tables.

        Source: LLVM's `TargetLoweringObjectFileELF::getSectionForJumpTable` (`.rodata.<function>`).
        """
        name = self.obj.sections[source].name
        return source == target or name == f".rodata.{self.obj.sections[target].name.removeprefix('.text.')}"

    def reference(self, symbol_index: int, source: int) -> Reference:
        """What a relocation in the section `source` with that symbol leads to."""
        symbol = self.obj.symbols[symbol_index]
        if symbol.is_bound_by_name:
            is_weak = symbol.bind == elf.STB_WEAK and symbol.shndx == elf.SHN_UNDEF
            return Reference(symbol.name, symbol.shndx or -1, local=False, weak=is_weak)
        shared = self._shared_function(symbol.shndx)
        if shared and not self.is_internal(source, symbol.shndx):
            return Reference(shared, symbol.shndx, local=False)
        return Reference("", symbol.shndx, local=True)

    def references(self, section: int) -> Iterator[Reference]:
        """What the section's relocations lead to, those of its exception table included."""
        for reloc in self.obj.relocs(section):
            yield self.reference(reloc.symbol, section)
        table = self._exception_table(section)
        if table is not None:
            for reloc in self.obj.relocs(table):
                yield self.reference(reloc.symbol, table)

    @cached_property
    def _frame_references(self) -> tuple[Reference, ...]:
        frames = self.obj.section_named(".eh_frame")
        if frames is None:
            return ()
        targets = {reloc.symbol for reloc in self.obj.relocs(frames)}
        found = (self.reference(target, frames) for target in sorted(targets))
        return tuple(
            reference
            for reference in found
            if reference.section < 0 or self.kinds[reference.section] in ("constant", "data")
        )

    def frame_references(self) -> tuple[Reference, ...]:
        """Personality routines, or the slots that hold their addresses."""
        return self._frame_references

    @cached_property
    def calls(self) -> dict[str, Counter[str]]:
        """Named function → the exported functions whose code refers to it, and how often.

        References inside object-local functions count for every exported function that reaches these.
        """
        return find_referrers(self, frozenset({"function"}))

    @cached_property
    def users(self) -> dict[str, Counter[str]]:
        """As `calls`, with references by way of constants, such as vtables."""
        return find_referrers(self, frozenset({"function", "constant"}))

    @cached_property
    def holders(self) -> dict[str, Counter[str]]:
        """Symbol → the exported statics that hold its address, by way of anonymous constants, too."""
        return find_referrers(self, frozenset({"constant"}), frozenset({"constant", "data"}))

    @cached_property
    def pointed(self) -> frozenset[str]:
        """Names of which the object takes the address, in code other than by a call, or as part of what it stores.

        Code has the address of a closure's code for a call only: pointers to closures lead to the library's shims.
        """
        found: set[str] = set()
        for index, header in enumerate(self.obj.sections):
            kind = self.kinds[index]
            if kind not in ("function", "constant", "data", "tls"):
                continue
            code = self.obj.contents(header) if kind == "function" else b""
            for reloc in self.obj.relocs(index):
                if code and self.machine.is_call(code, reloc.offset, reloc.type):
                    continue
                reference = self.reference(reloc.symbol, index)
                if not (reference.local or (code and owner_of_closure(reference.name))):
                    found.add(reference.name)
        return frozenset(found)

    def fingerprint(self, section: int) -> Fingerprint:
        """Digest of the section and of everything anonymous that it refers to.

        Anonymous sections count by content and by the order in which a breadth-first walk first meets them, so
        functions that call each other in a circle are no special case.
        """
        known = self._fingerprints.get(section)
        if known is None:
            strict, blind = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
            numbers = {section: 0}
            order = [section]
            for current in order:
                own = self._own(current)
                strict.update(own.strict)
                blind.update(own.blind)
                for target in own.targets:
                    if target not in numbers:
                        numbers[target] = len(order)
                        order.append(target)
                    for digest in (strict, blind):
                        digest.update(b"%d:" % numbers[target])
            known = self._fingerprints[section] = Fingerprint(strict.digest(), blind.digest())
        return known

    @cached_property
    def content(self) -> frozenset[tuple[bytes, tuple[str, ...]]]:
        """What is loaded of it: a digest, which is the same where only lines and columns differ, with names for each.

        Names are those that are the same in every build of the same source.
        """
        return frozenset(
            (self.fingerprint(section).blind, tuple(self._lasting_names(section)))
            for section, kind in enumerate(self.kinds)
            if kind != "other"
        )

    def _lasting_names(self, section: int) -> list[str]:
        found = self.definitions_in(section)
        return sorted(one.name for one in found if not one.local or is_rust_name(one.name))

    def _own(self, section: int) -> _Own:
        known = self._owns.get(section)
        if known is not None:
            return known
        header = self.obj.sections[section]
        contents = self.obj.contents(header)
        relocs = self.obj.relocs(section)
        shared = hashlib.blake2b(b"%d:%d:" % (header.size, header.flags & 0x7FF), digest_size=16)
        targets = []
        places = []
        is_call_site = any(_CALL_SITE.search(self.obj.symbols[index].name) for index in self._named_in(section))
        for reloc in relocs:
            label, target = self._label(reloc, section)
            shared.update(label)
            if target is None:
                continue
            text = self.obj.contents(self.obj.sections[target]) if is_call_site else b""
            if _EVENT_NAME.fullmatch(text):
                places.append(text)
            else:
                targets.append(target)
        table = self._exception_table(section)
        if table is not None:
            shared.update(self.obj.contents(self.obj.sections[table]))
        blind = shared.copy()
        shared.update(contents + b"".join(places))
        blind.update(
            _without_line(contents, relocs) if is_call_site else self._without_location(section, contents, relocs)
        )
        known = self._owns[section] = _Own(shared.digest(), blind.digest(), tuple(targets))
        return known

    def _label(self, reloc: elf.Reloc, source: int) -> tuple[bytes, int | None]:
        """A relocation by what it refers to: bytes for the digest, and the section that counts by its content."""
        symbol = self.obj.symbols[reloc.symbol]
        place = b"%d:%d:%d:" % (reloc.offset, reloc.type, reloc.addend)
        if symbol.is_bound_by_name:
            return place + symbol.name.encode("utf-8", "surrogateescape") + b"\0", None
        target = symbol.shndx
        if target <= 0:
            return place + b"absolute:%d" % symbol.value, None
        named = self._state_name(target)
        if not named and not self.is_internal(source, target):
            named = self._shared_function(target)
        if named:
            return place + named.encode("utf-8", "surrogateescape") + b":%d\0" % symbol.value, None
        header = self.obj.sections[target]
        if header.flags & elf.SHF_MERGE:
            is_section = symbol.type == elf.STT_SECTION
            start = symbol.value + (reloc.addend if is_section else 0)
            place = b"%d:%d:%d:" % (reloc.offset, reloc.type, 0 if is_section else reloc.addend)
            piece = hashlib.blake2b(self._piece(header, start, symbol.size), digest_size=16).digest()
            return place + b"piece:" + piece, None
        return place + b"%d:" % symbol.value, target

    def _state_name(self, section: int) -> str:
        """The name by which writable data counts as the same in two builds; empty for what counts by content."""
        if self.kinds[section] not in ("data", "tls"):
            return ""
        for definition in self.definitions_in(section):
            if is_rust_name(definition.name):
                return definition.name
        return ""

    def _piece(self, header: elf.Section, start: int, size: int) -> bytes:
        """The element of a SHF_MERGE section at `start`: up to its NUL for strings, `sh_entsize` bytes otherwise."""
        contents = self.obj.contents(header)
        if size:
            return contents[start : start + size]
        if header.flags & elf.SHF_STRINGS:
            end = contents.find(b"\0", start)
            return contents[start : end if end >= 0 else len(contents)]
        return contents[start : start + header.entsize]

    def _without_location(self, section: int, contents: bytes, relocs: list[elf.Reloc]) -> bytes:
        """The contents with line and column zeroed, where the section is a panic location."""
        if not self._is_location(section, contents, relocs):
            return contents
        masked = bytearray(contents)
        masked[LOCATION_NUMBERS] = bytes(8)
        return bytes(masked)

    def _is_location(self, section: int, contents: bytes, relocs: list[elf.Reloc]) -> bool:
        if len(contents) != LOCATION_SIZE or len(relocs) != 1 or self.kinds[section] != "constant":
            return False
        reloc = relocs[0]
        symbol = self.obj.symbols[reloc.symbol]
        if reloc.offset or reloc.type != self.machine.absolute or symbol.shndx <= 0:
            return False
        name_length = int.from_bytes(contents[8:16], "little")
        header = self.obj.sections[symbol.shndx]
        start = symbol.value + reloc.addend
        file_name = self.obj.contents(header)[start : start + name_length]
        return len(file_name) == name_length and file_name.endswith(b".rs")

    @cached_property
    def told_callers(self) -> frozenset[str]:
        """Paths of the functions that get the place of their call as one argument more, which no name or type shows.

        The last thing that code refers to before such a call is that place. Pointers to them lead to a shim that has
        one of its own.

        Source: `#[track_caller]` in the Rust reference; rustc_codegen_ssa, `caller_location`.
        """
        found = {of_shim(symbol.name) for symbol in self.obj.symbols if "reify" in symbol.name}
        for section, kind in enumerate(self.kinds):
            if kind != "function":
                continue
            for place, call in pairwise(self.obj.relocs(section)):
                target = self.obj.symbols[place.symbol].shndx
                if target <= 0 or not 0 < call.offset - place.offset <= _CALL_DISTANCE:
                    continue
                contents = self.obj.contents(self.obj.sections[target])
                if self._is_location(target, contents, self.obj.relocs(target)):
                    found.add(demangle(self._called(call)))
        return frozenset(found - {""})

    def _called(self, call: elf.Reloc) -> str:
        symbol = self.obj.symbols[call.symbol]
        if symbol.type != elf.STT_SECTION:
            return symbol.name
        return next((definition.name for definition in self.definitions_in(symbol.shndx)), "")


def _without_line(contents: bytes, relocs: list[elf.Reloc]) -> bytes:
    """The contents of a call site's description without its line."""
    places = {reloc.offset for reloc in relocs}
    words = enumerate(struct.unpack_from(f"<{len(contents) // 8}Q", contents))
    kept = [word for i, word in words if 8 * i in places or word & 0xFFFFFFFF != 1 or not word >> 32]
    return struct.pack(f"<{len(kept)}Q", *kept)


def find_referrers(
    unit: Unit,
    passable: frozenset[SectionKind],
    referring: frozenset[SectionKind] = frozenset({"function"}),
) -> dict[str, Counter[str]]:
    """Symbol → the exported functions of an object that refer to it, and how often.

    Args:
        unit: the object.
        passable: kinds of anonymous sections by way of which a reference counts.
        referring: what is asked for in place of functions.
    """
    found: dict[str, Counter[str]] = {}
    for name, definition in unit.exports.items():
        if definition.kind not in referring:
            continue
        sections, waiting = {definition.section}, [definition.section]
        while waiting:
            for reference in unit.references(waiting.pop()):
                if not reference.local:
                    found.setdefault(reference.name, Counter())[name] += 1
                elif (
                    reference.section > 0
                    and reference.section not in sections
                    and unit.kind(reference.section) in passable
                ):
                    sections.add(reference.section)
                    waiting.append(reference.section)
    return found
