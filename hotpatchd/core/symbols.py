"""The symbols of one file, whatever its format."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

SymbolKind = Literal["function", "data", "tls"]
FileFormat = Literal["elf", "macho", "pe", "coff"]
FileType = Literal["executable", "library", "object"]


class Symbol(NamedTuple):
    """One symbol.

    Args:
        name: without the underscore that Mach-O puts before every name, and without the `.llvm.<n>` that link-time
            optimisation puts behind some.
        addr: link-time address, with the image base in it; in an object, the offset in its section (Mach-O: the
            address that the object gives its section, plus that).
        size: in bytes; see `SymbolTable.sizes`.
        kind: `data` includes constants, and whatever is undefined and not known to be anything else.
        is_defined: the file has what the name stands for.
        is_local: the name is not bound to uses of it in other objects.
        is_absolute: `addr` is a number that loading elsewhere does not change.
        is_stub: a jump, or a choice of one, to code that has another address: import thunks, range extension thunks,
            entries of the procedure linkage table, indirect functions.
    """

    name: str
    addr: int
    size: int
    kind: SymbolKind
    is_defined: bool
    is_local: bool
    is_absolute: bool
    is_stub: bool


@dataclass(frozen=True, kw_only=True)
class SymbolTable:
    """The symbols of an executable, a shared library or a relocatable object.

    Args:
        origin: what to call the file in a message.
        format: `pe` is linked, `coff` is an object.
        type: what the file is for.
        os: `linux`, `android`, `macos`, `ios`, `ios-simulator`, `windows`, or the format's own word for another; an
            ELF file that names none is one for `linux`.
        arch: `x86_64` or `aarch64`.
        build_id: tells builds apart, in hex: the GNU build-id note, LC_UUID, or signature and age of the PDB;
            where there is none, `sha256-` and the file's SHA-256.
        image_base: link-time address of the file's beginning; 0 in ELF files and objects.
        position_independent: it may be loaded elsewhere.
        sizes: `stated` by the file, or `derived`: the distance to the next symbol of the same section or to its end,
            padding included.
        symbols: in no particular order; neither sections nor source files nor debug entries among them.
    """

    origin: str
    format: FileFormat
    type: FileType
    os: str
    arch: str
    build_id: str
    image_base: int
    position_independent: bool
    sizes: Literal["stated", "derived"]
    symbols: tuple[Symbol, ...]

    @cached_property
    def _own_functions(self) -> tuple[Symbol, ...]:
        return tuple(
            symbol
            for symbol in self.symbols
            if symbol.kind == "function" and symbol.is_defined and not symbol.is_absolute and not symbol.is_stub
        )

    @cached_property
    def _by_name(self) -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for symbol in self._own_functions:
            found.setdefault(symbol.name, {})[symbol.addr] = symbol.size
        return found

    @cached_property
    def _by_addr(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for symbol in self._own_functions:
            found.setdefault(symbol.addr, []).append(symbol.name)
        return found

    def function_names(self) -> Iterable[str]:
        """Names of the functions whose code the file has."""
        return self._by_name

    def functions(self, name: str) -> tuple[tuple[int, int], ...]:
        """All functions of that name whose code the file has: (link-time address, size), by address."""
        return tuple(sorted(self._by_name.get(name, {}).items()))

    def function_names_at(self, addr: int) -> tuple[str, ...]:
        """All names of the function at a link-time address."""
        return tuple(self._by_addr.get(addr, ()))
