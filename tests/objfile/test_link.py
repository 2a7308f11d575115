"""Copies of objects, the stub, and the image that linkers make of them, run in this process."""

import contextlib
import ctypes
import io
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import ObjectError
from hotpatchd.core.unit import Definition
from hotpatchd.objfile import elf
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.image import PAGE, read_image
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX, rewrite
from hotpatchd.objfile.stub import write_stub
from tests.objfile.build import assembled, c_unit, link_image, run
from tests.objfile.region import Region, address_of, callable_at, errno_offset

C_SOURCE = r"""
static int calls;
static int table[4];
int fresh = 5;
extern int host_counter;
extern int host_function(int);
extern unsigned long strlen(const char *);
extern __thread int host_local;
extern __thread int host_early __attribute__((tls_model("initial-exec")));

__attribute__((noinline)) int own(int n) { return n + 1; }
int count(int n) { return calls += n; }
int *third(void) { return &table[3]; }
int *counter(void) { return &host_counter; }
int add_fresh(int n) { return fresh += n; }
int through(int n) { return host_function(n); }
int through_own(int n) { return own(n); }
unsigned long measure(const char *text) { return strlen(text); }
unsigned long (*pointer(void))(const char *) { return strlen; }
int *local(void) { return &host_local; }
int *early(void) { return &host_early; }
"""

RUST_SOURCE = r"""
#![crate_type = "lib"]
#![no_std]
static mut HITS: u64 = 0;
#[no_mangle] pub unsafe fn hit(n: u64) -> u64 { HITS += n; HITS }
"""

PLUS_100 = bytes.fromhex("8d4764c3")
"""`lea 100(%rdi),%eax; ret`"""

LINKERS = ["lld", "bfd"]


def local_state(unit: CodeUnit) -> dict[str, Definition]:
    """The object-local statics of an object, by name."""
    found = [d for section in range(len(unit.obj.sections)) for d in unit.definitions_in(section)]
    return {d.name: d for d in found if d.local and d.kind == "data"}


def section_of(contents: bytes, name: str) -> Section:
    """A section as pyelftools sees it."""
    section = ELFFile(io.BytesIO(contents)).get_section_by_name(name)
    assert section is not None
    return section


def all_sections(unit: CodeUnit) -> frozenset[int]:
    """The sections that are loaded."""
    return frozenset(i for i in range(len(unit.obj.sections)) if unit.kind(i) != "other")


@pytest.fixture
def region() -> Iterator[Region]:
    """Memory for one image."""
    region = Region()
    yield region
    region.close()


class Linked:
    """The C source as a patch: `host_function`, `own` and the statics are the host's."""

    def __init__(self, root: Path, linker: str, region: Region, *, from_archive: bool = False) -> None:
        unit = c_unit(root, C_SOURCE, "-g", from_archive=from_archive)
        code, data = region.place_host(PLUS_100, struct.pack("<8I", 40, 0, 0, 0, 0, 0, 0, 77))
        self.host = {"host_function": code, "own": code, "calls": data, "table": data + 16, "host_counter": data + 8}
        state = local_state(unit)
        copy = rewrite(
            unit,
            sections=all_sections(unit) - {d.section for d in state.values()},
            host_sections={d.section: d for d in state.values()},
            host_names=frozenset(self.host),
            replaced=frozenset({"own"}),
            imports=frozenset({"strlen"}),
        )
        stub = write_stub(
            absolute=self.host,
            thread_locals={"host_local": errno_offset(), "host_early": errno_offset() - 4},
            imports=["strlen"],
        )
        keep = [name for name in unit.exports if name not in ("own", "fresh")] + ["own" + NEW_CODE_SUFFIX]
        self.path = link_image(root, linker, [copy, stub], base_addr=region.addr, keep=keep)
        self.image = read_image(self.path)
        region.load(self.image)

    def call(self, name: str, argument: int | bytes | None = None) -> int:
        """What a function of the patch returns, as an unsigned number."""
        types: list[type] = (
            [] if argument is None else [ctypes.c_char_p if isinstance(argument, bytes) else ctypes.c_int]
        )
        arguments = [] if argument is None else [argument]
        return callable_at(self.image.symbols[name].addr, *types)(*arguments)


@pytest.fixture(params=LINKERS)
def linked(request: pytest.FixtureRequest, tmp_path: Path, region: Region) -> Linked:
    """The C source, linked by each linker and loaded."""
    return Linked(tmp_path, request.param, region)


def test_object_local_statics_are_those_of_the_host(linked: Linked) -> None:
    """Code of the patch reads and writes the host's instance, also at an offset within it."""
    assert linked.call("count", 2) == 42
    assert ctypes.c_int.from_address(linked.host["calls"]).value == 42
    assert linked.call("third") == linked.host["table"] + 12
    assert not {"calls", "table"} & linked.image.symbols.keys()


def test_references_of_rust_code_to_its_static_land_on_that_of_the_host(tmp_path: Path, region: Region) -> None:
    """A static that the optimiser made local is redirected as well."""
    (tmp_path / "hits.rs").write_text(RUST_SOURCE)
    run("rustc", "--edition=2021", "--cap-lints=allow", "--emit=obj", "-Copt-level=3", "hits.rs", cwd=tmp_path)
    unit = CodeUnit(elf.RelocatableObject((tmp_path / "hits.o").read_bytes(), "hits"), "hits", from_archive=False)
    (state,) = local_state(unit).values()
    assert "HITS" in demangle(state.name)
    _, data = region.place_host(PLUS_100, struct.pack("<Q", 40))
    copy = rewrite(
        unit,
        sections=all_sections(unit),
        host_sections={state.section: state},
        host_names=frozenset(),
        replaced=frozenset(),
        imports=frozenset(),
    )
    stub = write_stub(absolute={state.name: data}, thread_locals={}, imports=[])
    image = read_image(link_image(tmp_path, "lld", [copy, stub], base_addr=region.addr, keep=["hit"]))
    region.load(image)
    assert callable_at(image.symbols["hit"].addr, ctypes.c_uint64)(2) == 42
    assert ctypes.c_uint64.from_address(data).value == 42


def test_global_data_of_the_host_is_reached_through_the_offset_table(linked: Linked) -> None:
    """A GOT reference to a host symbol yields the host's address."""
    assert linked.call("counter") == linked.host["host_counter"]


def test_new_state_comes_with_the_patch(linked: Linked) -> None:
    """A static that the host does not have is defined by the image, and writable."""
    assert linked.call("add_fresh", 2) == 7
    assert linked.image.symbols["fresh"].kind == "data"


def test_functions_of_the_host_are_called_there(linked: Linked) -> None:
    """An undefined function, and one whose definition in the object was taken out, are the host's."""
    assert linked.call("through", 1) == 101
    assert linked.call("through_own", 1) == 101
    assert "own" not in linked.image.symbols


def test_new_code_of_a_replaced_function_has_a_name_of_its_own(linked: Linked) -> None:
    """The plain name is the host's, and the code in the patch is found under the longer one."""
    assert linked.call("own" + NEW_CODE_SUFFIX, 1) == 2


def test_imports_go_through_slots(linked: Linked) -> None:
    """A call and an address of an import both lead to what the client put into its slot."""
    assert [wanted.name for wanted in linked.image.imports] == ["strlen"]
    assert linked.call("measure", b"seven c") == 7
    assert linked.call("pointer") == address_of("strlen")


def test_thread_locals_come_out_at_the_offsets_asked_for(linked: Linked) -> None:
    """Both ways of reaching a thread-local end at the thread's own copy in this process."""
    here = ctypes.CDLL(None).__errno_location
    here.restype = ctypes.c_uint64
    assert linked.call("local") == here()
    assert linked.call("early") == here() - 4


def test_unwind_tables_end_with_a_zero(linked: Linked) -> None:
    """The tables cover the image's functions and are found where the image says."""
    frames = linked.image.eh_frame
    assert frames is not None
    segment = next(s for s in linked.image.segments if s.addr <= frames.addr < s.addr + s.mem_size)
    place = segment.offset + frames.addr - segment.addr
    table = linked.image.payload[place : place + frames.size]
    section = section_of(linked.path.read_bytes(), ".eh_frame")
    assert (section["sh_addr"], section.data()) == (frames.addr, table)
    assert struct.unpack_from("<I", table, len(table) - 4) == (0,)
    assert struct.unpack_from("<I", table) != (0,)


def test_segments_are_pages_of_their_own_in_order(linked: Linked) -> None:
    """They begin at the base address, on page boundaries, and none shares a page with the next."""
    segments = linked.image.segments
    assert all(segment.addr % PAGE == 0 for segment in segments)
    assert all(segment.file_size <= segment.mem_size for segment in segments)
    for one, other in itertools.pairwise(segments):
        assert one.addr + one.mem_size <= other.addr
    assert {segment.prot for segment in segments} >= {"rx", "rw"}
    assert linked.image.end == segments[-1].addr + segments[-1].mem_size


def has_debug_info(path: Path) -> bool:
    """Whether a linked file says where its functions come from."""
    with path.open("rb") as file:
        return ELFFile(file).get_section_by_name(".debug_info") is not None


@pytest.mark.parametrize("linker", LINKERS)
def test_debug_info_of_crates_is_kept_and_of_archive_members_is_not(
    tmp_path: Path, region: Region, linker: str
) -> None:
    """The patch on disk has names and lines for the code that the developer writes."""
    assert has_debug_info(Linked(tmp_path, linker, region).path)
    assert not has_debug_info(Linked(tmp_path, linker, Region(), from_archive=True).path)


def rewritten(unit: CodeUnit, *, host_names: frozenset[str], replaced: frozenset[str] = frozenset()) -> bytes:
    """The copy of an object whose local state, if any, is its own."""
    return rewrite(
        unit,
        sections=all_sections(unit),
        host_sections={},
        host_names=host_names,
        replaced=replaced,
        imports=frozenset(),
    )


def test_a_copy_differs_in_its_symbol_table_alone(tmp_path: Path) -> None:
    """Sections keep their bytes and names, undefined symbols are strong, and readelf finds nothing wrong."""
    unit = c_unit(tmp_path, "__attribute__((weak)) int f(int n) { return n; } int g(int n) { return f(n); }", "-g")
    copy = rewritten(unit, host_names=frozenset({"f"}))
    (tmp_path / "copy.o").write_bytes(copy)
    run("readelf", "-aW", tmp_path / "copy.o")
    file = ELFFile(io.BytesIO(copy))
    for mine, theirs in zip(
        ELFFile(io.BytesIO(bytes(unit.obj.data))).iter_sections(), file.iter_sections(), strict=True
    ):
        assert mine.name == theirs.name
        assert theirs.data().startswith(mine.data()) or mine["sh_type"] in ("SHT_SYMTAB", "SHT_RELA")
    (f,) = (symbol for symbol in elf.RelocatableObject(copy, "copy").symbols if symbol.name == "f")
    assert (f.shndx, f.bind) == (elf.SHN_UNDEF, elf.STB_GLOBAL)


def test_an_object_with_extended_section_indices_can_be_copied(tmp_path: Path, region: Region) -> None:
    """The copy's extra symbols have their places in SHT_SYMTAB_SHNDX, and it links."""
    lines = [
        f'.section .text.f{n},"ax",@progbits\n.globl f{n}\n.type f{n},@function\nf{n}: lea {n}(%rdi),%eax\nret\n'
        for n in range(65_400)
    ]
    unit = assembled(tmp_path, "".join(lines), "wide")
    names = frozenset({"f1", "f65399"})
    copy = rewritten(unit, host_names=names, replaced=names)
    stub = write_stub(absolute=dict.fromkeys(names, region.host_addr), thread_locals={}, imports=[])
    keep = [name + NEW_CODE_SUFFIX for name in names]
    image = read_image(link_image(tmp_path, "lld", [copy, stub], base_addr=region.addr, keep=keep))
    region.load(image)
    assert callable_at(image.symbols["f65399" + NEW_CODE_SUFFIX].addr, ctypes.c_int)(1) == 65_400


def test_a_stub_reads_as_pyelftools_reads_it() -> None:
    """The stub is a sound object, with every symbol at the place asked for."""
    contents = write_stub(absolute={"far": 0x5555_0000_1234}, thread_locals={"tl": -200}, imports=["b", "a"])
    table = section_of(contents, ".symtab")
    assert isinstance(table, SymbolTableSection)
    symbols = {symbol.name: symbol for symbol in table.iter_symbols()}
    assert symbols.keys() == {"", "far", "tl", "a", "b", "__imp_a", "__imp_b"}
    assert (symbols["far"]["st_shndx"], symbols["far"]["st_value"]) == ("SHN_ABS", 0x5555_0000_1234)
    block = section_of(contents, ".tbss.host")
    assert symbols["tl"]["st_value"] - block["sh_size"] == -200
    assert block["sh_size"] % block["sh_addralign"] == 0


@pytest.mark.parametrize("linker", LINKERS)
def test_two_functions_of_one_name_are_counted(tmp_path: Path, region: Region, linker: str) -> None:
    """Local functions of the same name in two objects are homonyms in the image."""
    source = ".globl {0}\n{0}: call inner\nret\n.type inner,@function\ninner: ret\n.size inner,1\n"
    units = [assembled(tmp_path, source.format(name), name) for name in ("one", "two")]
    copies = [rewritten(unit, host_names=frozenset()) for unit in units]
    stub = write_stub(absolute={}, thread_locals={}, imports=[])
    image = read_image(link_image(tmp_path, linker, [*copies, stub], base_addr=region.addr, keep=["one", "two"]))
    assert image.symbols["inner"].homonyms == 2
    assert image.imports == ()


@pytest.mark.parametrize("linker", LINKERS)
def test_a_later_jump_has_room_at_every_function(tmp_path: Path, region: Region, linker: str) -> None:
    """Functions shorter than a jump, and not aligned, leave room for one before the next and before the image's end."""
    source = '.section .text.{0},"ax",@progbits\n.globl {0}\n.type {0},@function\n{0}: ret\n.size {0},1\n'
    unit = assembled(tmp_path, "".join(source.format(name) for name in "abc"))
    stub = write_stub(absolute={}, thread_locals={}, imports=[])
    copy = rewritten(unit, host_names=frozenset())
    image = read_image(link_image(tmp_path, linker, [copy, stub], base_addr=region.addr, keep="abc"))
    starts = sorted(image.symbols[name].addr for name in "abc")
    (end,) = (segment.addr + segment.mem_size for segment in image.segments if segment.prot == "rx")
    assert all(after - before >= unit.machine.detour_size for before, after in itertools.pairwise([*starts, end]))


STARTS = """
void missing(void);
__attribute__((constructor)) static void start(void) { missing(); }
int f(int n) { return n + 1; }
"""


@pytest.mark.parametrize("linker", LINKERS)
def test_what_runs_at_start_up_is_left_out(tmp_path: Path, region: Region, linker: str) -> None:
    """The program has started; what its start-up code would need does not have to be there."""
    unit = c_unit(tmp_path, STARTS)
    (f,) = (definition for definition in unit.exports.values() if definition.name == "f")
    copy = rewrite(
        unit,
        sections=frozenset({f.section}),
        host_sections={},
        host_names=frozenset(),
        replaced=frozenset(),
        imports=frozenset(),
    )
    stub = write_stub(absolute={}, thread_locals={}, imports=[])
    image = read_image(link_image(tmp_path, linker, [copy, stub], base_addr=region.addr, keep=["f"]))
    region.load(image)
    assert callable_at(image.symbols["f"].addr, ctypes.c_int)(1) == 2
    assert "start" not in image.symbols


SMALL = "int data = 1; int f(int n) { return data += n; }"


def small_image(root: Path, linker: str, *, flags: str = "", with_stub: bool = True) -> Path:
    """A linked patch of one function and one static."""
    objects = [rewritten(c_unit(root, SMALL), host_names=frozenset())]
    if with_stub:
        objects.append(write_stub(absolute={}, thread_locals={}, imports=[]))
    return link_image(root, linker, objects, base_addr=0x1000_0000, keep=["f"], flags=flags)


@pytest.mark.parametrize("linker", LINKERS)
def test_memory_that_is_writable_and_executable_is_refused(tmp_path: Path, linker: str) -> None:
    """A link that puts code and data into one segment is not applied."""
    with pytest.raises(ObjectError, match="writable and executable"):
        read_image(small_image(tmp_path, linker, flags="--omagic"))


def test_unwind_tables_without_end_are_refused(tmp_path: Path) -> None:
    """Without the stub nothing ends the tables, though the last entry's padding is zeros; lld adds an end itself."""
    path = small_image(tmp_path, "bfd", with_stub=False)
    assert section_of(path.read_bytes(), ".eh_frame").data().endswith(bytes(4))
    with pytest.raises(ObjectError, match="terminating zero"):
        read_image(path)


def test_a_patch_without_code_that_unwinds_has_no_tables(tmp_path: Path) -> None:
    """A terminator alone is no table."""
    unit = assembled(tmp_path, ".globl f\nf: ret\n")
    stub = write_stub(absolute={}, thread_locals={}, imports=[])
    objects = [rewritten(unit, host_names=frozenset()), stub]
    assert read_image(link_image(tmp_path, "lld", objects, base_addr=0x1000_0000, keep=["f"])).eh_frame is None


def test_a_missing_image_is_an_object_error(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(ObjectError, match=r"none\.elf"):
        read_image(tmp_path / "none.elf")


@pytest.fixture(scope="module")
def sound_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linked patch."""
    return small_image(tmp_path_factory.mktemp("image"), "lld")


def test_a_cut_image_is_refused(sound_image: Path, tmp_path: Path) -> None:
    """A linker that was killed while writing leaves no patch."""
    data = sound_image.read_bytes()
    path = tmp_path / "cut.elf"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(ObjectError, match=r"cut\.elf"):
            read_image(path)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_headers_raise_nothing_but_object_errors(
    sound_image: Path, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    """File header and program headers may hold anything."""
    data = bytearray(sound_image.read_bytes())
    for place, value in flips:
        data[place % 400] = value
    path = tmp_path_factory.getbasetemp() / "flipped.elf"
    path.write_bytes(data)
    with contextlib.suppress(ObjectError):
        read_image(path)
