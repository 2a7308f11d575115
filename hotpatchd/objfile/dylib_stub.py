"""The stub of a patch library: the running program's symbols, by address, for one link against one process.

A patch library has no place within reach of the program, and the loader adds the library's own slide to whatever the
linker left relative. So each kind of symbol takes the way on which the address arrives unchanged:

    =========  ======================  ==============================  ==========================
    kind       ELF                     Mach-O                          COFF
    =========  ======================  ==============================  ==========================
    function   weak hidden jump        weak private external jump      external jump, and a slot
    data       weak hidden SHN_ABS     slot                            slot
    tls        refused                 slot, to the descriptor         refused
    =========  ======================  ==============================  ==========================

A jump holds a 64-bit address and needs no relocation. Being weak, it gives way to a definition that an archive of the
link brings along. In COFF it cannot be: GNU ld reports weak externals as undefined, or imports them on its own behalf
where there is a slot, if anything refers to them by an ordinary undefined symbol. There linkers search no archive for
what the stub defines, and report what is defined twice.

A slot is eight read-only bytes with the address, named `__imp_<symbol>`. In COFF compilers refer to data of other
libraries by that name; `hotpatchd.objfile.dylib_slots` turns other references into loads from slots.

SHN_ABS is right in ELF: lld 22 and mold 1.10 write the value into the GOT and into pointers without a relocation, and
refuse references relative to the instruction by name. GNU ld 2.40 crashes on it (x86-64) or adds a relative relocation
(aarch64): a link plan must choose another linker.

N_ABS is wrong in Mach-O: ld64.lld 22 and zig 0.17 write a rebase for a pointer to an absolute symbol, or turn the load
from the GOT into an address relative to the instruction, and the slide is added either way. IMAGE_SYM_ABSOLUTE holds 32
bits only.

Thread-locals of a Mach-O program have a descriptor at a fixed address, and code calls through whatever descriptor it is
given. Those of ELF and COFF are found by module and offset: a library's code would ask for an offset in a block of its
own, which is another variable.

Source: System V ABI, chapter 4 (SHN_ABS, STB_WEAK, STV_HIDDEN); Apple `mach-o/nlist.h`, `mach-o/loader.h`; dyld,
`ThreadLocalVariables.h`; Microsoft "PE Format", import address table.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hotpatchd.core.errors import ObjectError
from hotpatchd.objfile import coff_writer as coff
from hotpatchd.objfile import elf
from hotpatchd.objfile import macho_writer as macho
from hotpatchd.objfile.elf_writer import ObjectWriter
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX

Format = Literal["elf", "macho", "coff"]
Machine = Literal["x86_64", "aarch64"]

_JUMPS: dict[Machine, tuple[bytes, bytes]] = {
    # movabs $addr, %r11; jmp *%r11; int3 to the next multiple of 16
    "x86_64": (bytes.fromhex("49bb"), bytes.fromhex("41ffe3 cccccc")),
    # ldr x16, .+8; br x16; .quad addr
    "aarch64": (bytes.fromhex("50000058 00021fd6"), b""),
}
"""Machine → what stands before and after the address. r11 and x16 are free between a caller and its callee."""

_JUMP_SIZE = 16
_SLOT_SIZE = 8

_ELF_MACHINES: dict[Machine, int] = {"x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64}
_MACH_CPUS: dict[Machine, tuple[int, int]] = {
    "x86_64": (macho.CPU_TYPE_X86_64, macho.CPU_SUBTYPE_X86_64_ALL),
    "aarch64": (macho.CPU_TYPE_ARM64, macho.CPU_SUBTYPE_ARM64_ALL),
}
_COFF_MACHINES: dict[Machine, int] = {
    "x86_64": coff.IMAGE_FILE_MACHINE_AMD64,
    "aarch64": coff.IMAGE_FILE_MACHINE_ARM64,
}

_PLATFORMS = {"macos": macho.PLATFORM_MACOS, "ios-simulator": macho.PLATFORM_IOSSIMULATOR}


@dataclass(frozen=True, slots=True, kw_only=True)
class StubSymbol:
    """One symbol of the running program.

    Attributes:
        name: as the symbol tables of ELF and COFF have it, without `__imp_`; for Mach-O without the leading underscore.
        kind: what lies there; the thread-locals of Mach-O are given by their descriptors.
        addr: where it is in the process, the slide included.
        size: in bytes; 0 if unknown.
    """

    name: str
    kind: Literal["function", "data", "tls"]
    addr: int
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachPlatform:
    """What a Mach-O file was built for.

    Attributes:
        name: the platform, by the name that the linker's `-platform_version` takes.
        minos: the oldest system that it runs on, `11.0` or `11.0.1`.
        sdk: the system that it was built against.
    """

    name: Literal["macos", "ios-simulator"]
    minos: str
    sdk: str


def write_dylib_stub(
    *,
    format: Format,
    machine: Machine,
    symbols: Iterable[StubSymbol],
    platform: MachPlatform | None = None,
    anchor: str = "",
) -> bytes:
    """Write the stub of one patch library for one process.

    Args:
        format: of the object.
        machine: that it is for.
        symbols: what the patch refers to; unique names.
        platform: for Mach-O, what the patch library is built for.
        anchor: name of a symbol in code that the library is to export, for finding out where it was loaded.

    Returns:
        A relocatable object.

    Raises:
        ObjectError: a thread-local that this format cannot share with a library, by name; a version that cannot be
            written; Mach-O without a platform.
    """
    given = tuple(symbols)
    functions = [symbol for symbol in given if symbol.kind == "function"]
    others = [symbol for symbol in given if symbol.kind != "function"]
    if format == "macho":
        if platform is None:
            raise ObjectError("a Mach-O stub needs the platform, and the versions, that the patch is linked for")
        return _macho_stub(machine, functions, others, platform, anchor)
    for symbol in others:
        if symbol.kind == "tls":
            raise ObjectError(
                f"the thread-local {symbol.name} cannot be reached from a patch library",
                hint="reach it through a function that the program has already, or start the program again",
            )
    if format == "elf":
        return _elf_stub(machine, functions, others, anchor)
    return _coff_stub(machine, functions, others, anchor)


def _elf_stub(machine: Machine, functions: Sequence[StubSymbol], data: Sequence[StubSymbol], anchor: str) -> bytes:
    writer = ObjectWriter(_ELF_MACHINES[machine])
    text = writer.section(
        ".text", _text(machine, functions, anchor), flags=elf.SHF_ALLOC | elf.SHF_EXECINSTR, align=_JUMP_SIZE
    )
    writer.section(".note.GNU-stack", flags=0, align=1)
    for index, symbol in enumerate(functions):
        place = (symbol.name, text, _JUMP_SIZE * index)
        writer.define(*place, type=elf.STT_FUNC, size=_JUMP_SIZE, weak=True, visibility=elf.STV_HIDDEN)
    for symbol in data:
        place = (symbol.name, elf.SHN_ABS, symbol.addr)
        writer.define(*place, type=elf.STT_OBJECT, size=symbol.size, weak=True, visibility=elf.STV_HIDDEN)
    if anchor:
        writer.define(anchor, text, _JUMP_SIZE * len(functions), type=elf.STT_FUNC, size=_JUMP_SIZE)
    return writer.finish()


def _macho_stub(
    machine: Machine,
    functions: Sequence[StubSymbol],
    others: Sequence[StubSymbol],
    platform: MachPlatform,
    anchor: str,
) -> bytes:
    versions = (_packed_version(platform.minos), _packed_version(platform.sdk))
    writer = macho.MachObject(*_MACH_CPUS[machine], build_version=(_PLATFORMS[platform.name], *versions))
    instructions = macho.S_ATTR_PURE_INSTRUCTIONS | macho.S_ATTR_SOME_INSTRUCTIONS
    code = _text(machine, functions, anchor)
    text = writer.section("__TEXT", "__text", code, flags=instructions, align=_JUMP_SIZE)
    slots = writer.section("__TEXT", "__const", _slots(others), flags=macho.S_REGULAR, align=_SLOT_SIZE)
    for index, symbol in enumerate(functions):
        writer.define_private(f"_{symbol.name}", text, _JUMP_SIZE * index, weak=True)
    for index, symbol in enumerate(others):
        writer.define_private(f"_{IMPORT_SLOT_PREFIX}{symbol.name}", slots, _SLOT_SIZE * index)
    if anchor:
        writer.define(f"_{anchor}", text, _JUMP_SIZE * len(functions))
    return writer.finish()


def _coff_stub(machine: Machine, functions: Sequence[StubSymbol], data: Sequence[StubSymbol], anchor: str) -> bytes:
    writer = coff.CoffObject(_COFF_MACHINES[machine])
    text = writer.section(
        ".text",
        _text(machine, functions, anchor),
        characteristics=coff.IMAGE_SCN_CNT_CODE
        | coff.IMAGE_SCN_ALIGN_16BYTES
        | coff.IMAGE_SCN_MEM_EXECUTE
        | coff.IMAGE_SCN_MEM_READ,
    )
    slots = writer.section(
        ".rdata",
        _slots([*functions, *data]),
        characteristics=coff.IMAGE_SCN_CNT_INITIALIZED_DATA | coff.IMAGE_SCN_ALIGN_8BYTES | coff.IMAGE_SCN_MEM_READ,
    )
    for index, symbol in enumerate(functions):
        writer.define(symbol.name, text, _JUMP_SIZE * index, type=coff.IMAGE_SYM_DTYPE_FUNCTION)
    for index, symbol in enumerate([*functions, *data]):
        writer.define(f"{IMPORT_SLOT_PREFIX}{symbol.name}", slots, _SLOT_SIZE * index)
    if anchor:
        writer.define(anchor, text, _JUMP_SIZE * len(functions), type=coff.IMAGE_SYM_DTYPE_FUNCTION)
    return writer.finish()


def _text(machine: Machine, functions: Sequence[StubSymbol], anchor: str) -> bytes:
    """The jumps, and behind them room for an anchor."""
    before, after = _JUMPS[machine]
    jumps = (before + symbol.addr.to_bytes(8, "little") + after for symbol in functions)
    return b"".join([*jumps, bytes(_JUMP_SIZE) if anchor else b""])


def _slots(symbols: Sequence[StubSymbol]) -> bytes:
    return struct.pack(f"<{len(symbols)}Q", *(symbol.addr for symbol in symbols))


def _packed_version(version: str) -> int:
    try:
        major, minor, patch = (int(part) for part in f"{version}.0.0".split(".")[:3])
        return int.from_bytes(struct.pack(">HBB", major, minor, patch), "big")
    except (ValueError, struct.error):
        raise ObjectError(f"{version!r} is not a version that a Mach-O file can name") from None
