"""The virtual tables of an object: which method is where in the table of a type for a trait.

Source: `rustc_middle::ty::vtable` (drop glue, size, alignment, then the methods); `rustc_codegen_llvm::debuginfo`,
`create_vtable_di_node`.
"""

from collections.abc import Mapping

from hotpatchd.core.layout import TraitObject, VirtualTable
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.debug_entries import read_unsigned

_ADDRESS, _ADDRESS_INDEX = 0x03, 0xA1
"""DW_OP_addr, with 8 bytes; DW_OP_addrx, with an index into `.debug_addr`."""

_ADDRESSES_HEADER = 8

HEAD = 24
"""Bytes of drop glue, size and alignment."""

_SLOT = 8


def read_tables(unit: CodeUnit) -> Mapping[TraitObject, VirtualTable]:
    """Trait object → its table.

    Args:
        unit: an object with debug information.

    Raises:
        ObjectError: the debug information cannot be read.
    """
    tables = unit.types.virtual_tables
    if not tables:
        return {}
    info = unit.obj.named_contents(".debug_info")
    direct, indexed = _symbols(unit, ".debug_info"), _symbols(unit, ".debug_addr")
    found = {}
    for made, place in tables.items():
        if info[place] == _ADDRESS:
            target = direct.get(place + 1)
        elif info[place] == _ADDRESS_INDEX:
            target = indexed.get(_ADDRESSES_HEADER + _SLOT * read_unsigned(info, place + 1)[0])
        else:
            target = None
        if target is not None:
            found[made] = _table(unit, *target)
    return found


def find_table_shapes(unit: CodeUnit) -> set[VirtualTable]:
    """What may be virtual tables, by the contents of constants: what `read_tables` finds is among it."""
    return {
        _table(unit, section, 0)
        for section, kind in enumerate(unit.kinds)
        if kind == "constant" and unit.obj.sections[section].size >= HEAD
    }


def _symbols(unit: CodeUnit, name: str) -> dict[int, tuple[int, int]]:
    """Place in a section of debug information → the section and the offset in it that is referred to there."""
    index = unit.obj.section_named(name)
    found = {}
    for reloc in unit.obj.relocs(index) if index is not None else ():
        symbol = unit.obj.symbols[reloc.symbol]
        found[reloc.offset] = (symbol.shndx, symbol.value + reloc.addend)
    return found


def _table(unit: CodeUnit, section: int, start: int) -> VirtualTable:
    size = unit.obj.sections[section].size
    named = [""] * max((size - start - HEAD) // _SLOT, 0)
    drops = False
    for reloc in unit.obj.relocs(section):
        drops |= reloc.offset == start
        slot, rest = divmod(reloc.offset - start - HEAD, _SLOT)
        if 0 <= slot < len(named) and not rest:
            named[slot] = unit.reference(reloc.symbol, section).name
    return VirtualTable(methods=tuple(named), drops=drops)
