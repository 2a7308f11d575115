"""The symbols of a host binary: read once, kept on disk by build id, looked up without loading.

A large program has some hundred thousand symbols. They are columns here, not objects: sorted names in one block, and
arrays of addresses, sizes and kinds beside it, mapped into memory from a file.
"""

import hashlib
import json
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Container, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import HostSymbol
from hotpatchd.objfile import elf
from hotpatchd.objfile.machines import MACHINES, Machine
from hotpatchd.objfile.stub import TlsBlock

_MAGIC = b"hpdidx\x00\x06"
_HEADER = struct.Struct("<8sQ")
"""Magic with a format version, length of the JSON header in bytes."""

_KINDS: tuple[Literal["function", "data", "tls"], ...] = ("function", "data", "tls", "function")
_FUNCTION, _PRIVATE_FUNCTION = 0, 3
"""The latter was object-local when it was compiled."""

_KIND_OF_TYPE = {
    elf.STT_FUNC: _FUNCTION,
    elf.STT_GNU_IFUNC: _FUNCTION,
    elf.STT_OBJECT: 1,
    elf.STT_NOTYPE: 1,
    elf.STT_TLS: 2,
}

_WAY_SIZE = 32
"""Bytes of the longest function that counts as nothing but a way to another, to which it passes its arguments."""

_UNREADABLE = (OSError, ELFError, ConstructError, ValueError, OverflowError, struct.error)
"""What reading a damaged binary raises; pyelftools lets the errors of its parser through in places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostHeader:
    """What is known of a host binary besides its symbols.

    Args:
        build_id: content of the GNU build-id note, or `sha256-` and the file's SHA-256, in hex.
        machine: `e_machine`.
        position_independent: ET_DYN; otherwise run-time addresses are link-time addresses.
        tls: its PT_TLS segment.
        code: executable PT_LOAD segments: (link-time address, offset in the file, size in the file).
    """

    build_id: str
    machine: int
    position_independent: bool
    tls: TlsBlock | None
    code: tuple[tuple[int, int, int], ...]


class HostIndex:
    """The symbols of one host binary.

    Args:
        header: what else is known of it.
        names: symbol names, sorted, as one block of bytes.
        starts: offset of each name in the block, with the block's length at the end.
        addrs: link-time addresses, parallel to the names.
        sizes: in bytes.
        kinds: indices into function, data, tls, private function.
        by_addr: row numbers of the functions, sorted by address.
        hidden: addresses of private functions that are not found by their names.
    """

    def __init__(
        self,
        header: HostHeader,
        names: bytes | memoryview,
        starts: "memoryview | array[int]",
        addrs: "memoryview | array[int]",
        sizes: "memoryview | array[int]",
        kinds: "memoryview | array[int]",
        by_addr: "memoryview | array[int]",
        *,
        hidden: Set[int] = frozenset(),
    ) -> None:
        self.header = header
        self._names = names
        self._starts = starts
        self._addrs = addrs
        self._sizes = sizes
        self._kinds = kinds
        self._by_addr = by_addr
        self._hidden = hidden

    def __len__(self) -> int:
        return len(self._addrs)

    def _name(self, row: int) -> bytes:
        return bytes(self._names[self._starts[row] : self._starts[row + 1]])

    def _first_row(self, name: bytes) -> int:
        low, high = 0, len(self._addrs)
        while low < high:
            middle = (low + high) // 2
            if self._name(middle) < name:
                low = middle + 1
            else:
                high = middle
        return low

    def _rows(self, name: str) -> Iterator[int]:
        wanted = name.encode("utf-8", "surrogateescape")
        row = self._first_row(wanted)
        while row < len(self._addrs) and self._name(row) == wanted:
            if self._kinds[row] != _PRIVATE_FUNCTION or self._addrs[row] not in self._hidden:
                yield row
            row += 1

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name, with the number of different addresses that carry it."""
        rows = list(self._rows(name))
        if not rows:
            return None
        first = rows[0]
        addrs = {self._addrs[row] for row in rows}
        addr, kind = self._addrs[first], _KINDS[self._kinds[first]]
        if kind == "tls" and self.header.tls:
            addr = self.header.tls.offset(addr)
        return HostSymbol(addr, self._sizes[first], kind, len(addrs))

    def functions(self, name: str) -> tuple[tuple[int, int], ...]:
        """All functions of that name: (link-time address, size); a local name may occur several times."""
        found = (row for row in self._rows(name) if _KINDS[self._kinds[row]] == "function")
        return tuple({(self._addrs[row], self._sizes[row]) for row in found})

    def without_private(self, taken: Container[int]) -> "HostIndex":
        """The same symbols, but functions whose signature the optimiser may have changed are not found by name.

        Those are the ones that only their own object could call when it was compiled, and whose address nobody has:
        arguments that no caller needs may be missing, or one that all callers agree on be taken for granted. Code that
        is compiled anew must neither call them nor be called in their place.

        Source: LLVM's passes `deadargelim`, `argpromotion` and `ipsccp`, all for functions with local linkage.

        Args:
            taken: link-time addresses that the program has as values.
        """
        hidden = {
            addr
            for addr, kind in zip(self._addrs, self._kinds, strict=True)
            if kind == _PRIVATE_FUNCTION and addr not in taken
        }
        return HostIndex(
            self.header, self._names, self._starts, self._addrs, self._sizes, self._kinds, self._by_addr, hidden=hidden
        )

    def function_names_at(self, addr: int) -> tuple[str, ...]:
        """All names of the function at a link-time address; several where the compiler or linker folded functions."""
        found = []
        place = self._first_at(addr)
        while place < len(self._by_addr) and self._addrs[self._by_addr[place]] == addr:
            found.append(self._name(self._by_addr[place]).decode("utf-8", "surrogateescape"))
            place += 1
        return tuple(found)

    def _first_at(self, addr: int) -> int:
        low, high = 0, len(self._by_addr)
        while low < high:
            middle = (low + high) // 2
            if self._addrs[self._by_addr[middle]] < addr:
                low = middle + 1
            else:
                high = middle
        return low

    def short_functions(self, limit: int) -> Iterator[tuple[int, int]]:
        """The functions of at most so many bytes: (link-time address, size)."""
        for addr, size, kind in zip(self._addrs, self._sizes, self._kinds, strict=True):
            if 0 < size <= limit and _KINDS[kind] == "function":
                yield addr, size

    def functions_around(self, first: int, last: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Functions by link-time address, those next to a range included.

        Args:
            first: the functions begin with the last that starts before this address.
            last: they end with the first that starts after this one.

        Yields:
            (address, size, names); the largest size, where several names have one address.
        """
        place = self._first_at(first)
        if place:
            place = self._first_at(self._addrs[self._by_addr[place - 1]])
        while place < len(self._by_addr):
            addr = self._addrs[self._by_addr[place]]
            names = self.function_names_at(addr)
            rows = self._by_addr[place : place + len(names)]
            yield addr, max(self._sizes[row] for row in rows), names
            if addr > last:
                return
            place += len(names)

    def room_at(self, addr: int) -> int:
        """Bytes from a function's start to the next function's start (or the end of its segment)."""
        place = self._first_at(addr)
        while place < len(self._by_addr) and self._addrs[self._by_addr[place]] == addr:
            place += 1
        if place < len(self._by_addr):
            return self._addrs[self._by_addr[place]] - addr
        for start, _, size in self.header.code:
            if start <= addr < start + size:
                return start + size - addr
        return 0

    def __iter__(self) -> Iterator[tuple[str, int, int, str]]:
        """All symbols, sorted by name: (name, address, size, kind)."""
        for row in range(len(self)):
            name = self._name(row).decode("utf-8", "surrogateescape")
            yield name, self._addrs[row], self._sizes[row], _KINDS[self._kinds[row]]

    def columns(self) -> tuple["memoryview | array[int]", ...]:
        """The columns in the order in which a file holds them: u32, u64, u64, u8, u32."""
        return (self._starts, self._addrs, self._sizes, self._kinds, self._by_addr)

    @property
    def names(self) -> bytes | memoryview:
        """All names as one block."""
        return self._names


def save_index(index: HostIndex, path: Path) -> None:
    """Write the index file atomically; its columns are 8-byte aligned, in this machine's byte order."""
    lengths = [len(column) for column in index.columns()]
    fields = {**asdict(index.header), "lengths": lengths, "names": len(index.names), "order": sys.byteorder}
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, len(header)))
        file.write(header)
        for column in index.columns():
            data = column.tobytes()
            file.write(data + bytes(-len(data) % 8))
        file.write(index.names)
    temporary.replace(path)


def load_index(path: Path) -> HostIndex | None:
    """Map an index file; None where there is none, or one of another format or cut short (it is then made anew)."""
    try:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        magic, header_size = _HEADER.unpack_from(view)
        place = _HEADER.size
        fields = json.loads(bytes(view[place : place + header_size])) if magic == _MAGIC else {}
        place += header_size
        if fields.get("order") != sys.byteorder:
            return None
        columns = []
        codes: tuple[Literal["I", "Q", "B"], ...] = ("I", "Q", "Q", "B", "I")
        for code, length in zip(codes, fields["lengths"], strict=True):
            size = struct.calcsize(code) * length
            columns.append(view[place : place + size].cast(code))
            place += size + -size % 8
        names = view[place:]
        if len(names) != fields["names"]:
            return None
        header = HostHeader(
            build_id=fields["build_id"],
            machine=fields["machine"],
            position_independent=fields["position_independent"],
            tls=TlsBlock(**fields["tls"]) if fields["tls"] else None,
            code=tuple((start, offset, size) for start, offset, size in fields["code"]),
        )
        return HostIndex(header, names, *columns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def read_host(path: Path) -> HostIndex:
    """Read the symbols of a host binary.

    Args:
        path: an ELF executable or shared library with a symbol table.

    Raises:
        ObjectError: not an ELF file, damaged, or stripped.
    """
    try:
        build_id = build_id_of(path)
        data = path.read_bytes()
        with path.open("rb") as file:
            binary = ELFFile(file)
            header = _host_header(binary, elf.ElfFile(data, str(path)).header.machine, build_id)
            symtab = binary.get_section_by_name(".symtab")
            if symtab is None:
                raise ObjectError(
                    f"{path} is stripped: it has no symbol table",
                    hint="set `strip = false` in the profile, and build again",
                )
            strtab = binary.get_section(symtab["sh_link"])
            rows = data[symtab["sh_offset"] : symtab["sh_offset"] + symtab["sh_size"]]
            strings = data[strtab["sh_offset"] : strtab["sh_offset"] + strtab["sh_size"]]
        return _index_symbols(header, MACHINES[header.machine], rows, strings)
    except _UNREADABLE as error:
        raise ObjectError(f"cannot read the symbols of {path}: {error}") from error


def build_id_of(path: Path) -> str:
    """Content of the GNU build-id note, or `sha256-` and the file's SHA-256, in hex.

    Raises:
        ObjectError: not a readable ELF file.
    """
    try:
        with path.open("rb") as file:
            for section in ELFFile(file).iter_sections("SHT_NOTE"):
                assert isinstance(section, NoteSection)
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID" and note["n_name"] == "GNU":
                        return str(note["n_desc"])
            file.seek(0)
            return "sha256-" + hashlib.file_digest(file, "sha256").hexdigest()
    except _UNREADABLE as error:
        raise ObjectError(f"cannot read {path}: {error}") from error


def _host_header(binary: ELFFile, machine: int, build_id: str) -> HostHeader:
    segments = list(binary.iter_segments())
    tls = next((s for s in segments if s["p_type"] == "PT_TLS"), None)
    return HostHeader(
        build_id=build_id,
        machine=machine,
        position_independent=binary["e_type"] == "ET_DYN",
        tls=TlsBlock(
            addr=tls["p_vaddr"],
            size=tls["p_memsz"],
            align=tls["p_align"],
            variant=MACHINES[machine].tls_variant,
        )
        if tls
        else None,
        code=tuple(
            (s["p_vaddr"], s["p_offset"], s["p_filesz"])
            for s in segments
            if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1
        ),
    )


def _labels(name: bytes) -> tuple[bytes, ...]:
    """The name as the members of libraries have it, and as thin objects have it.

    Link-time optimisation adds `.llvm.<n>` to local symbols that it makes global, also when a library is built.
    """
    plain, suffix, _ = name.partition(b".llvm.")
    return (name, plain) if suffix else (name,)


_END_OF_FILES = elf.SYM.pack(0, elf.STT_FILE, 0, elf.SHN_ABS, 0, 0)
"""The symbol behind which GNU ld puts what it made local itself.

Source: `elf_link_output_extsym` in binutils' `bfd/elflink.c`.
"""


def _kind(info: int, other: int, *, made_local: bool, is_promoted: bool) -> int:
    """Index of a symbol's kind.

    Linkers make local what is hidden from other modules. All but GNU ld leave its visibility as it was; mold hides more
    than that, all of which counts as private then.

    Args:
        info: `st_info`.
        other: `st_other`.
        made_local: the linker made it local, if it is.
        is_promoted: link-time optimisation made it global.
    """
    kind = _KIND_OF_TYPE[info & 15]
    was_local = info >> 4 == elf.STB_LOCAL and other & 3 == elf.STV_DEFAULT and not made_local
    return _PRIVATE_FUNCTION if kind == _FUNCTION and (was_local or is_promoted) else kind


def _index_symbols(header: HostHeader, machine: Machine, rows: bytes, strings: bytes) -> HostIndex:
    skipped = b"$" if machine.has_mapping_symbols else b"\0"
    end_of_files = rows.rfind(_END_OF_FILES)
    first_made_local = end_of_files // elf.SYM.size if end_of_files >= 0 else len(rows)
    found = sorted(
        (
            label,
            value,
            size,
            # An assembler's function need not say what it is.
            _FUNCTION
            if info & 15 == elf.STT_NOTYPE and any(start <= value < start + length for start, _, length in header.code)
            else _kind(info, other, made_local=number > first_made_local, is_promoted=len(labels) > 1),
        )
        for number, (name, info, other, shndx, value, size) in enumerate(elf.SYM.iter_unpack(rows))
        if name
        and 0 < shndx < elf.SHN_LORESERVE
        and info & 15 in _KIND_OF_TYPE
        and not strings.startswith(skipped, name)
        for labels in [_labels(strings[name : strings.index(b"\0", name)])]
        for label in labels
    )
    starts = array("I", [0])
    place = 0
    for name, _, _, _ in found:
        place += len(name)
        starts.append(place)
    addrs = array("Q", [row[1] for row in found])
    functions = [row for row, (_, _, _, kind) in enumerate(found) if _KINDS[kind] == "function"]
    return HostIndex(
        header,
        b"".join(row[0] for row in found),
        starts,
        addrs,
        array("Q", [row[2] for row in found]),
        array("B", [row[3] for row in found]),
        array("I", sorted(functions, key=addrs.__getitem__)),
    )


class HostCode:
    """The machine code of a host binary. The file is kept open: a later build may put another in its place.

    Args:
        path: the binary.
        header: of the same binary.

    Raises:
        ObjectError: it cannot be read.
    """

    def __init__(self, path: Path, header: HostHeader) -> None:
        self._segments = header.code
        self._origin = str(path)
        self._machine = MACHINES[header.machine]
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ObjectError(f"cannot read {path}: {error}") from error

    def read(self, addr: int, size: int) -> bytes:
        """The code at a link-time address; empty where there is none."""
        for start, offset, length in self._segments:
            if start <= addr and addr + size <= start + length:
                return self._data[offset + addr - start : offset + addr - start + size]
        return b""

    def count_references(self, addr: int, size: int, target: int) -> int:
        """How often the code at `addr` refers to `target`: see `Machine.count_references`."""
        return self._machine.count_references(self.read(addr, size), addr, target)

    def short_ways(self, index: HostIndex) -> Mapping[int, frozenset[int]]:
        """Functions that are so short that they may do nothing but call or jump to another.

        Args:
            index: the symbols of the same binary.

        Returns:
            Link-time address of a place → those of such functions that lead there.
        """
        found: dict[int, set[int]] = {}
        for addr, size in index.short_functions(_WAY_SIZE):
            for target in self._machine.branches(self.read(addr, size), addr):
                found.setdefault(target, set()).add(addr)
        return {target: frozenset(addrs) for target, addrs in found.items()}

    def addresses_taken(self) -> frozenset[int]:
        """Link-time addresses that the program has as values: computed by its code, or in its data."""
        found: set[int] = set()
        for start, offset, length in self._segments:
            found.update(self._machine.addresses_taken(self._data[offset : offset + length], start))
        binary = elf.ElfFile(self._data, self._origin)
        loaded = [section for section in binary.sections if section.flags & elf.SHF_ALLOC]
        # A fixed program's data has addresses as they are; a movable one's is written by the loader.
        in_place = binary.header.type == elf.ET_EXEC or any(section.type == elf.SHT_RELR for section in loaded)
        for section in loaded:
            if section.type == elf.SHT_RELA:
                found.update(addend for _, _, addend in elf.RELA.iter_unpack(binary.contents(section)))
            elif in_place and section.type == elf.SHT_PROGBITS and not section.flags & elf.SHF_EXECINSTR:
                content = binary.contents(section)
                found.update(memoryview(content[: len(content) & ~7]).cast("Q"))
        return frozenset(found)


def host_index(path: Path, cache_dir: Path) -> HostIndex:
    """The symbols of a host binary, from the cache where it is there.

    Args:
        path: the binary.
        cache_dir: where index files are kept, named by build id.

    Raises:
        ObjectError: as `read_host`.
    """
    place = cache_dir / f"{build_id_of(path)}.idx"
    index = load_index(place)
    if index is None:
        index = read_host(path)
        save_index(index, place)
    return index
