"""What depends on the processor, without programs that run."""

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.machines import AARCH64, MACHINES, X86_64, Machine
from hotpatchd.objfile.rewrite import IMPORT_SLOT_PREFIX, rewrite
from hotpatchd.objfile.stub import write_stub
from tests.objfile.bare import bare_object

NOP = 0xD503201F
IMPORTER = """
extern "C" { fn imported(n: i32) -> i32; }
#[no_mangle] pub unsafe extern "C" fn user() -> unsafe extern "C" fn(i32) -> i32 { imported }
"""


def words(*instructions: int) -> bytes:
    """Instructions in memory."""
    return struct.pack(f"<{len(instructions)}I", *instructions)


def address_word(opcode: int, register: int, distance: int) -> int:
    """`adr` or `adrp`."""
    return opcode | (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5 | register


@given(addr=st.integers(0, 2**30), distance=st.integers(-(2**25), 2**25 - 1), opcode=st.sampled_from([0x94, 0x14]))
def test_branches_count_once(addr: int, distance: int, opcode: int) -> None:
    """`bl` and `b`, as far as they reach, wherever they are in a function."""
    addr *= 4
    code = words(NOP, opcode << 24 | distance & 0x3FFFFFF, NOP)
    target = addr + 4 + 4 * distance
    assert AARCH64.count_references(code, addr, target) == 1
    assert AARCH64.count_references(code, addr, target + 4) == 0
    assert list(AARCH64.branches(code, addr)) == [target]


@given(addr=st.integers(0, 2**40), distance=st.integers(-(2**31), 2**31 - 1), opcode=st.sampled_from([0xE8, 0xE9]))
def test_branches_of_x86_are_found_where_others_seem_to_begin(addr: int, distance: int, opcode: int) -> None:
    """`call` and `jmp`, behind an operand that looks like the same."""
    code = bytes((0x6A, opcode, opcode)) + struct.pack("<i", distance) + b"\xc3\xc3"
    assert addr + 7 + distance in X86_64.branches(code, addr)


@given(addr=st.integers(0, 2**30), target=st.integers(0, 2**32 - 1), register=st.integers(0, 30))
def test_addresses_of_two_instructions_count_twice(addr: int, target: int, register: int) -> None:
    """`adrp` and `add` need not stand together, and another register in between does not matter."""
    addr *= 4
    pages = (target >> 12) - (addr >> 12)
    add = 0x91000000 | (target & 0xFFF) << 10 | register << 5
    other = address_word(0x90000000, (register + 1) % 31, 7)
    code = words(address_word(0x90000000, register, pages), other, NOP, add)
    assert AARCH64.count_references(code, addr, target) == 2
    assert AARCH64.count_references(code, addr, target ^ 8) == 0


@given(addr=st.integers(0, 2**30), target=st.integers(0, 2**32 - 1), register=st.integers(0, 30))
def test_an_address_that_code_computes_is_taken(addr: int, target: int, register: int) -> None:
    """One that it branches to is not."""
    addr *= 4
    page = address_word(0x90000000, register, (target >> 12) - (addr >> 12))
    add = 0x91000000 | (target & 0xFFF) << 10 | register << 5
    branch = 0x94000000 | 5
    assert set(AARCH64.addresses_taken(words(page, branch, add), addr)) == {target}


@given(addr=st.integers(2**19, 2**30), distance=st.integers(-(2**20), 2**20 - 1))
def test_addresses_that_the_linker_shortened_count_twice(addr: int, distance: int) -> None:
    """`adr` and `nop` are what two relocations became."""
    addr *= 4
    code = words(address_word(0x10000000, 3, distance), NOP)
    assert AARCH64.count_references(code, addr, addr + distance) == 2


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda machine: str(machine.e_machine))
def test_a_stub_is_an_object_for_its_machine(machine: Machine) -> None:
    """Each import has a jump of its own and a slot, and the relocations lead from one to the other."""
    contents = write_stub(absolute={"far": 8}, thread_locals={}, imports=["b", "a"], machine=machine)
    file = ELFFile(io.BytesIO(contents))
    assert file["e_machine"] == {X86_64.e_machine: "EM_X86_64", AARCH64.e_machine: "EM_AARCH64"}[machine.e_machine]
    obj = RelocatableObject(contents, "stub")
    (text,) = (index for index, section in enumerate(obj.sections) if section.name == ".text.imports")
    jumps = {symbol.name: symbol.value for symbol in obj.symbols if symbol.shndx == text}
    assert jumps == {"a": 0, "b": machine.jump_stride}
    found = [(reloc.offset, reloc.type, obj.symbols[reloc.symbol].name) for reloc in obj.relocs(text)]
    assert found == [
        (jumps[name] + offset, kind, IMPORT_SLOT_PREFIX + name)
        for name in ("a", "b")
        for offset, kind, _ in machine.jump_relocs
    ]


@pytest.mark.parametrize(
    ("machine", "offset", "value"), [(AARCH64, 16, 0), (AARCH64, 4112, 4096), (X86_64, -8, 56), (X86_64, -64, 0)]
)
def test_thread_locals_lie_in_the_stubs_block_as_in_the_threads(machine: Machine, offset: int, value: int) -> None:
    """Above the thread pointer and its 16 bytes on one, below it on the other."""
    contents = write_stub(absolute={}, thread_locals={"local": offset}, imports=[], machine=machine)
    table = ELFFile(io.BytesIO(contents)).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    (symbol,) = (symbol for symbol in table.iter_symbols() if symbol.name == "local")
    assert (symbol["st_value"], symbol["st_info"]["type"]) == (value, "STT_TLS")


@pytest.mark.parametrize(("machine", "target"), [(X86_64, "x86_64"), (AARCH64, "aarch64")])
def test_references_to_an_imports_entry_become_references_to_its_slot(
    tmp_path: Path, machine: Machine, target: str
) -> None:
    """Each relocation type that reaches the GOT has one that reaches a symbol in the same way."""
    path = bare_object(tmp_path, f"{target}-unknown-linux-gnu", IMPORTER)
    unit = CodeUnit(RelocatableObject(path.read_bytes(), "patch"), "patch", from_archive=False)
    section = unit.exports["user"].section
    before = [reloc.type for reloc in unit.obj.relocs(section)]
    copy = rewrite(
        unit,
        sections=frozenset({section}),
        host_sections={},
        host_names=frozenset(),
        replaced=frozenset(),
        imports=frozenset({"imported"}),
    )
    obj = RelocatableObject(copy, "copy")
    after = [(reloc.type, obj.symbols[reloc.symbol].name) for reloc in obj.relocs(section)]
    assert before
    assert after == [(machine.slot_types[kind], IMPORT_SLOT_PREFIX + "imported") for kind in before]


@pytest.mark.parametrize(
    ("between", "is_call"),
    [
        ("", True),
        ("488d7c2438", True),  # lea 0x38(%rsp), %rdi
        ("4c8b842400010000be07000000", True),  # mov 0x100(%rsp), %r8; mov $7, %esi
        ("31c989ce", True),  # xor %ecx, %ecx; mov %ecx, %esi
        ("488d15000000000fb67c240f", True),  # lea 0(%rip), %rdx; movzbl 0xf(%rsp), %edi
        ("f20f10442408660f6e4c2410", False),  # movsd 8(%rsp), %xmm0; movd, which is not known
        ("f20f104424084531c04989f1", True),  # movsd 8(%rsp), %xmm0; xor %r8d, %r8d; mov %rsi, %r9
        ("83e10148895424104c89442418", True),  # and $1, %ecx; mov %rdx, 0x10(%rsp); mov %r8, 0x18(%rsp)
        ("4989c0", False),  # mov %rax, %r8
        ("660f6ec0", False),  # movd %eax, %xmm0
        ("4889442408", False),  # mov %rax, 8(%rsp)
        ("4889c7", False),  # mov %rax, %rdi
    ],
)
def test_an_address_that_a_register_has_for_a_call_only_is_called(between: str, is_call: bool) -> None:
    """Unoptimised code loads it, then arguments, then calls it; what is copied in between may stay."""
    code = bytes.fromhex(f"488b0500000000{between}ffd0")
    assert X86_64.is_call(code, 3, 9) == is_call
