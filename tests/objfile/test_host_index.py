"""The symbols of host binaries: as other tools see them, kept on disk, and refused where there are none."""

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import HostSymbol
from hotpatchd.objfile.host_index import HostCode, HostIndex, build_id_of, host_index, load_index, read_host, save_index
from hotpatchd.objfile.stub import TlsBlock
from tests.objfile.build import run, target_dir
from tests.objfile.sources import PROGRAM

KINDS = {"STT_FUNC": "function", "STT_LOOS": "function", "STT_OBJECT": "data", "STT_NOTYPE": "data", "STT_TLS": "tls"}

C_PROGRAM = r"""
#include <stdio.h>
static int twin = 1;
int first(void) { return twin++; }
int second(void) __attribute__((alias("first")));
__attribute__((aligned(64))) int third(void) { return 3; }
__thread char small = 1;
__thread long wide;
__thread char spread __attribute__((aligned(ALIGN)));
#define SHOW(name) printf(#name " %ld\n", (long)((char *)&name - (char *)__builtin_thread_pointer()))
int main(void) { SHOW(small); SHOW(wide); SHOW(spread); return 0; }
"""


def c_program(root: Path, *flags: str, align: int = 8) -> Path:
    """The C program, compiled and linked."""
    (root / "main.c").write_text(C_PROGRAM)
    (root / "twin.c").write_text("static int twin = 2;\nint other(void) { return twin++; }\n")
    run("gcc", "-O1", f"-DALIGN={align}", *flags, "main.c", "twin.c", "-o", "main", cwd=root)
    return root / "main"


CALLS = r"""
#define SECTION(name) __attribute__((noinline, noclone, section(".text." #name)))
typedef int function(int);
static SECTION(alone) int alone(int n) { return n * 3; }
static SECTION(listed) int listed(int n) { return n * 5; }
static SECTION(passed) int passed(int n) { return n * 7; }
__attribute__((visibility("hidden"))) SECTION(hidden) int hidden(int n) { return n * 9; }
SECTION(open) int open_to_all(int n) { return n * 11; }
function *const table[] = {listed, listed};
function *volatile kept;
int main(int argc, char **argv) {
    kept = passed;
    return alone(argc) + hidden(argc) + open_to_all(argc) + table[argc % 2](argc) + kept(argc);
}
"""


@pytest.fixture(scope="module")
def rust_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linked Rust program with its symbol table."""
    root = tmp_path_factory.mktemp("program")
    (root / "main.rs").write_text(PROGRAM)
    run("rustc", "--edition=2021", "--cap-lints=allow", "main.rs", cwd=root)
    return root / "main"


@pytest.mark.parametrize("linker", ["lld", "bfd"])
@pytest.mark.parametrize("flags", [("-fPIE", "-pie"), ("-fno-pie", "-no-pie")], ids=["movable", "fixed"])
def test_functions_that_only_their_object_could_call_can_be_left_out(
    tmp_path: Path, linker: str, flags: tuple[str, ...]
) -> None:
    """But not where the program has their address, and not those that are merely hidden from other programs."""
    (tmp_path / "calls.c").write_text(CALLS)
    rust_lld = f"-B{target_dir() / 'bin' / 'gcc-ld'}"
    run("gcc", "-O1", *flags, rust_lld, f"-fuse-ld={linker}", "calls.c", "-o", "calls", cwd=tmp_path)
    whole = read_host(tmp_path / "calls")
    code = HostCode(tmp_path / "calls", whole.header)
    index = whole.without_private(code.addresses_taken())
    wanted = {"alone", "listed", "passed", "hidden", "open_to_all"}
    assert {name for name in wanted if whole.find(name)} == wanted
    assert {name for name in wanted if index.find(name)} == wanted - {"alone"}
    assert index.functions("alone") == ()
    assert [name for addr, _ in whole.functions("alone") for name in index.function_names_at(addr)] == ["alone"]


def test_short_ways_to_a_function_are_found(tmp_path: Path) -> None:
    """A function that only jumps there is one, one that does much besides is none."""
    (tmp_path / "calls.c").write_text(
        CALLS + "__attribute__((noinline)) int way(int n) { return open_to_all(n); }\n"
        "int much(int *n) { return open_to_all(n[3] * 7 + n[5] / 11 + n[7] * 13 + n[9] / 17) + n[11] / 19; }\n"
    )
    run("gcc", "-O2", "calls.c", "-o", "calls", cwd=tmp_path)
    index = read_host(tmp_path / "calls")
    (place,), (way,) = (index.functions(name) for name in ("open_to_all", "way"))
    assert HostCode(tmp_path / "calls", index.header).short_ways(index)[place[0]] == {way[0]}


STEPPING = """
struct World { turn: u64 }
#[inline(never)]
fn step(world: &mut World, by: u64) -> u64 { world.turn += by; println!("{}", world.turn); world.turn }
trait Shape { fn area(&self) -> u64; }
struct Square(u64);
impl Shape for Square { #[inline(never)] fn area(&self) -> u64 { println!("area"); self.0 * self.0 } }
fn main() {
    let shapes: Vec<Box<dyn Shape>> = std::env::args().map(|text| Box::new(Square(text.len() as u64)) as _).collect();
    let mut world = World { turn: 0 };
    while step(&mut world, 1) < shapes.iter().map(|shape| shape.area()).sum() {}
}
"""


def test_a_function_from_which_the_optimiser_took_an_argument_can_be_left_out(tmp_path: Path) -> None:
    """All callers agree on the number, so it is not passed; a trait's method is as its trait says."""
    (tmp_path / "main.rs").write_text(STEPPING)
    run("rustc", "--edition=2021", "-O", "-Ccodegen-units=1", "main.rs", cwd=tmp_path)
    whole = read_host(tmp_path / "main")
    index = whole.without_private(HostCode(tmp_path / "main", whole.header).addresses_taken())
    (step,), (area,) = ([name for name, _, _, _ in whole if part in name] for part in ("4step", "4area"))
    assert [len(symbols.functions(name)) for symbols in (whole, index) for name in (step, area)] == [1, 1, 0, 1]


def reference_rows(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name, address, size and kind of all defined symbols, as pyelftools finds them."""
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        for symbol in table.iter_symbols():
            kind = KINDS.get(symbol["st_info"]["type"])
            if symbol.name and kind and isinstance(symbol["st_shndx"], int):
                yield symbol.name, symbol["st_value"], symbol["st_size"], kind


def test_the_symbols_of_a_program_are_those_that_pyelftools_finds(rust_program: Path) -> None:
    """Names, addresses, sizes and kinds agree with the reference, in the order of the names."""
    rows = list(read_host(rust_program))
    assert len(rows) > 1000
    assert sorted(rows) == sorted(reference_rows(rust_program))
    assert [row[0].encode() for row in rows] == sorted(row[0].encode() for row in rows)


def test_the_functions_of_a_program_are_those_that_nm_prints(rust_program: Path) -> None:
    """Every text symbol of nm is found by its name, at its address."""
    index = read_host(rust_program)
    lines = [line.split(" ", 2) for line in run("nm", "--defined-only", rust_program).splitlines()]
    text = [(name, int(addr, 16)) for addr, kind, name in lines if kind in "tT" and index.functions(name)]
    assert len(text) > 500
    assert all(addr in {place for place, _ in index.functions(name)} for name, addr in text)


def test_a_name_that_is_not_there_is_not_found(rust_program: Path) -> None:
    """Names before, between and after all others lead to nothing."""
    index = read_host(rust_program)
    for name in ("", "\x01", "main_", "\x7f", "µ"):
        assert index.find(name) is None
        assert index.functions(name) == ()


def test_a_local_name_in_two_objects_has_a_homonym(tmp_path: Path) -> None:
    """Two statics of the same name are told from one."""
    index = read_host(c_program(tmp_path))
    twin, single = index.find("twin"), index.find("main")
    assert twin is not None
    assert (twin.kind, twin.size, twin.homonyms) == ("data", 4, 2)
    assert single is not None
    assert single.homonyms == 1


def test_all_names_of_a_function_are_found_by_its_address(tmp_path: Path) -> None:
    """An alias is a name of the same function."""
    index = read_host(c_program(tmp_path))
    first = index.find("first")
    assert first is not None
    assert index.function_names_at(first.addr) == ("first", "second")
    assert index.function_names_at(first.addr + 1) == ()


def test_a_function_of_an_assembler_need_not_say_that_it_is_one(tmp_path: Path) -> None:
    """It is told by where it lies, and so is data without a type."""
    source = ".globl _start, plain, word\n_start: nop\nplain: ret\n.data\nword: .quad 1\n"
    (tmp_path / "host.s").write_text(source)
    run("cc", "-nostdlib", "-static", "-o", tmp_path / "host", tmp_path / "host.s")
    index = read_host(tmp_path / "host")
    found = {name: index.find(name) for name in ("plain", "word")}
    assert {name: symbol and symbol.kind for name, symbol in found.items()} == {"plain": "function", "word": "data"}
    assert len(index.functions("plain")) == 1


def test_the_room_of_a_function_ends_where_the_next_begins(tmp_path: Path) -> None:
    """Padding counts, aliases do not; the last function has room to the end of its segment."""
    index = read_host(c_program(tmp_path))
    first, third = index.find("first"), index.find("third")
    assert first is not None
    assert third is not None
    assert index.room_at(first.addr) == third.addr - first.addr > first.size
    functions = sorted(addr for _, addr, _, kind in index if kind == "function")
    ends = [start + size for start, _, size in index.header.code]
    assert functions[-1] + index.room_at(functions[-1]) in ends
    assert index.room_at(max(ends) + 1) == 0


def test_what_link_time_optimisation_renamed_is_found_by_both_names(tmp_path: Path) -> None:
    """Thin objects have the plain name, and members of optimised libraries the long one."""
    (tmp_path / "renamed.s").write_text(
        ".data\n.globl state.llvm.42\n.type state.llvm.42,@object\n.size state.llvm.42,8\nstate.llvm.42: .quad 1\n"
    )
    program = c_program(tmp_path, "renamed.s")
    found = read_host(program).find("state.llvm.42")
    assert found == read_host(program).find("state") == HostSymbol(found.addr if found else 0, 8, "data", 1)


@pytest.mark.parametrize("align", [1, 8, 64, 512])
@pytest.mark.parametrize("kind", ["-pie", "-no-pie", "-static", "-static-pie"])
def test_thread_locals_lie_where_the_running_program_has_them(tmp_path: Path, kind: str, align: int) -> None:
    """The offsets from the thread pointer are those that the program itself prints."""
    flags = (kind, "-fPIE") if kind.endswith("-pie") and kind != "-no-pie" else (kind, "-fno-pie")
    program = c_program(tmp_path, *flags, align=align)
    printed = dict(line.split() for line in subprocess.check_output([program], text=True).splitlines())
    index = read_host(program)
    assert printed.keys() == {"small", "wide", "spread"}
    for name, offset in printed.items():
        found = index.find(name)
        assert isinstance(found, HostSymbol)
        assert (found.kind, found.addr) == ("tls", int(offset))


@given(addr=st.integers(0, 2**20), size=st.integers(1, 2**12), power=st.integers(0, 12))
def test_a_thread_local_segment_is_placed_as_its_address_demands(addr: int, size: int, power: int) -> None:
    """It lies as near to the thread pointer, or its 16 bytes, as its start's place within the alignment allows."""
    align = 1 << power
    below = TlsBlock(addr=addr, size=size, align=align, variant=2).offset(0)
    above = TlsBlock(addr=addr, size=size, align=align, variant=1).offset(0)
    assert (below - addr) % align == (above - addr) % align == 0
    assert size <= -below < size + align
    assert 16 <= above < 16 + align


@pytest.mark.parametrize(("flag", "expected"), [("-pie", True), ("-no-pie", False)])
def test_position_independence_is_read_from_the_file(tmp_path: Path, flag: str, expected: bool) -> None:
    """A program that is always loaded where it was linked is told from others."""
    assert read_host(c_program(tmp_path, flag)).header.position_independent is expected


def test_the_build_id_is_that_of_the_note(tmp_path: Path) -> None:
    """The note's content in hex, as readelf prints it."""
    program = c_program(tmp_path, "-Wl,--build-id=sha1")
    assert f"Build ID: {build_id_of(program)}\n" in run("readelf", "-n", program)


def test_a_program_without_build_id_is_known_by_its_content(tmp_path: Path) -> None:
    """The file's SHA-256 takes the note's place."""
    program = c_program(tmp_path, "-Wl,--build-id=none")
    assert build_id_of(program) == "sha256-" + hashlib.sha256(program.read_bytes()).hexdigest()
    assert read_host(program).header.build_id == build_id_of(program)


def test_a_stripped_program_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The hint names the setting that keeps the symbols."""
    program = c_program(tmp_path)
    run("strip", program)
    with pytest.raises(ObjectError, match="stripped") as caught:
        read_host(program)
    assert "strip = false" in caught.value.hint


def same(one: HostIndex | None, other: HostIndex | None) -> bool:
    """Whether two indices hold the same."""
    assert one is not None
    assert other is not None
    columns = zip(one.columns(), other.columns(), strict=True)
    return (
        one.header == other.header
        and bytes(one.names) == bytes(other.names)
        and all(mine.tolist() == theirs.tolist() for mine, theirs in columns)
    )


def test_an_index_reads_back_as_it_was_saved(rust_program: Path, tmp_path: Path) -> None:
    """Header, names and all columns survive the file."""
    index = read_host(rust_program)
    save_index(index, tmp_path / "deep" / "host.idx")
    assert same(index, load_index(tmp_path / "deep" / "host.idx"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["host.idx"]


def test_a_program_is_read_once(rust_program: Path, tmp_path: Path) -> None:
    """The second index comes from the file that the first left."""
    first = host_index(rust_program, tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat()
    assert same(first, host_index(rust_program, tmp_path))
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


BREAKAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-1],
    "cut in the columns": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\xff" * 500,
    "other version": lambda data: data[:7] + bytes([data[7] + 1]) + data[8:],
    "other byte order": lambda data: data.replace(b'"order": "little"', b'"order": "bigend"'),
    "header of another shape": lambda data: data[:8] + (8).to_bytes(8, "little") + b"[1,2,3] ",
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_an_index_file_that_cannot_be_used_is_made_anew(tmp_path: Path, breakage: str) -> None:
    """Damage and foreign formats cost one more reading of the program, nothing else."""
    program = c_program(tmp_path)
    cache = tmp_path / "cache"
    index = host_index(program, cache)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(BREAKAGES[breakage](good))
    assert load_index(kept) is None
    assert same(index, host_index(program, cache))
    assert kept.read_bytes() == good


@pytest.fixture(scope="module")
def c_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, linked once."""
    return c_program(tmp_path_factory.mktemp("binary"))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 500, 4000, 12000])
def test_a_cut_program_is_refused(c_binary: Path, tmp_path: Path, length: int) -> None:
    """A binary that is not all there is an ObjectError that names it."""
    path = tmp_path / "cut"
    path.write_bytes(c_binary.read_bytes()[:length])
    with pytest.raises(ObjectError, match="cut"):
        read_host(path)


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_program_with_damaged_headers_raises_nothing_but_object_errors(
    c_binary: Path, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    """File header and section headers may hold anything."""
    data = bytearray(c_binary.read_bytes())
    headers = int.from_bytes(data[40:48], "little")
    for place, value in flips:
        data[place % 64 if place % 3 == 0 else headers + place % (len(data) - headers)] = value
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(data)
    with contextlib.suppress(ObjectError):
        list(read_host(path))
