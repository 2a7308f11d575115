"""Images for aarch64: objects, the stub and both linkers, run under emulation."""

from pathlib import Path

import pytest

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import plan_image_link
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.host_index import HostCode, read_host
from hotpatchd.objfile.image import read_image
from hotpatchd.objfile.machines import AARCH64
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX, rewrite
from hotpatchd.objfile.stub import write_stub
from tests.objfile.build import run, target_dir, thin_build
from tests.objfile.sources import PROGRAM
from tests.objfile.test_codeunit import differing, functions
from tests.objfile.test_host_index import C_PROGRAM
from tests.objfile.test_link import C_SOURCE, all_sections, local_state
from tests.targets.toolchains import Toolchain, toolchains

HOST_SOURCE = Path(__file__).parent / "programs" / "region.c"
GCC = "aarch64-linux-gnu-gcc"
REGION = 0x0400_0000
"""Within a branch's reach of a program at the usual fixed address."""

LINKERS = {"bfd": (), "lld": ("-fuse-ld=lld", f"-B{target_dir() / 'bin' / 'gcc-ld'}")}


@pytest.fixture(scope="module")
def aarch64() -> Toolchain:
    """The toolchain."""
    return toolchains()["aarch64-unknown-linux-gnu"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program at a fixed address."""
    program = tmp_path_factory.mktemp("host") / "host"
    run(GCC, "-O1", "-no-pie", "-fno-pie", HOST_SOURCE, "-o", program)
    return program


def c_object(root: Path, source: str, *flags: str) -> CodeUnit:
    """A C source as an object."""
    (root / "unit.c").write_text(source)
    command = (GCC, "-c", "-O1", "-fPIC", "-ffunction-sections", "-fdata-sections", *flags, "unit.c", "-o", "unit.o")
    run(*command, cwd=root)
    return CodeUnit(RelocatableObject((root / "unit.o").read_bytes(), "unit"), "unit", from_archive=False)


class Linked:
    """The C source as a patch of the host: `host_function`, `own` and the statics are the host's."""

    def __init__(self, root: Path, linker: str, aarch64: Toolchain, host: Path) -> None:
        self.root, self.toolchain, self.host = root, aarch64, host
        unit = c_object(root, C_SOURCE, "-g")
        index = read_host(host)
        state = local_state(unit)
        found = {name: index.find(name) for name in ("host_function", "own", "calls", "table", "host_counter")}
        self.addrs = {name: symbol.addr for name, symbol in found.items() if symbol}
        early, local = index.find("host_early"), index.find("host_local")
        assert early
        assert local
        copy = rewrite(
            unit,
            sections=all_sections(unit) - {d.section for d in state.values()},
            host_sections={d.section: d for d in state.values()},
            host_names=frozenset(self.addrs),
            replaced=frozenset({"own"}),
            imports=frozenset({"strlen"}),
        )
        stub = write_stub(
            absolute=self.addrs,
            thread_locals={"host_local": local.addr, "host_early": early.addr},
            imports=["strlen"],
            machine=AARCH64,
        )
        paths = []
        for name, contents in (("copy.o", copy), ("stub.o", stub)):
            (root / name).write_bytes(contents)
            paths.append(str(root / name))
        keep = [name for name in unit.exports if name not in ("own", "fresh")] + ["own" + NEW_CODE_SUFFIX]
        plan = plan_image_link(
            LinkLine(env=(), argv=(GCC, *LINKERS[linker], "main.o", "-pie", "-o", "host")),
            linker="lld" if linker == "lld" else "bfd",
            objects=paths,
            output=str(root / "image.elf"),
            base_addr=REGION,
            keep=keep,
        )
        (root / "args").write_text(plan.response)
        run(*plan.argv, f"@{root / 'args'}")
        self.image = read_image(root / "image.elf")
        (root / "payload").write_bytes(self.image.payload)

    def run(self, *steps: str) -> list[int]:
        """What the host prints when it has the image and goes through these steps."""
        plan = [
            f"segment {s.addr} {s.mem_size} {s.file_size} {s.offset} {s.prot} {self.root / 'payload'}"
            for s in self.image.segments
        ]
        plan += [f"import {wanted.slot} {wanted.name}" for wanted in self.image.imports]
        (self.root / "plan").write_text("\n".join([*plan, *steps]) + "\n")
        finished = self.toolchain.run(self.host, str(self.root / "plan"))
        assert finished.returncode == 0, finished
        return [int(line) for line in finished.stdout.split()]

    def call(self, name: str, argument: int = 0) -> str:
        """The step that calls a function of the image."""
        return f"call {self.image.symbols[name].addr} {argument}"


@pytest.fixture(scope="module", params=LINKERS)
def linked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, aarch64: Toolchain, host: Path
) -> Linked:
    """The C source, linked by each linker."""
    return Linked(tmp_path_factory.mktemp("linked"), request.param, aarch64, host)


def test_state_of_the_host_is_reached(linked: Linked) -> None:
    """Object-local statics are the host's, also at an offset within them, and so is what the GOT leads to."""
    steps = (linked.call("count", 2), "calls", linked.call("third"), linked.call("counter"))
    assert linked.run(*steps) == [42, 42, linked.addrs["table"] + 12, linked.addrs["host_counter"]]


def test_new_state_comes_with_the_image(linked: Linked) -> None:
    """A static that the host does not have is defined by the image, and writable."""
    assert linked.run(linked.call("add_fresh", 2), linked.call("add_fresh", 2)) == [7, 9]


def test_functions_are_those_of_host_and_image(linked: Linked) -> None:
    """Calls of what the host has go there; the new code of a function has a name of its own."""
    steps = (linked.call("through", 1), linked.call("through_own", 1), linked.call("own" + NEW_CODE_SUFFIX, 1))
    assert linked.run(*steps) == [101, 101, 2]


def test_imports_go_through_slots(linked: Linked) -> None:
    """A call and an address of an import both lead to what the client put into its slot."""
    measured, pointer, expected = linked.run(
        f"text {linked.image.symbols['measure'].addr} seven_c", linked.call("pointer"), "address strlen"
    )
    assert [wanted.name for wanted in linked.image.imports] == ["strlen"]
    assert (measured, pointer) == (7, expected)


def test_thread_locals_are_those_of_the_thread(linked: Linked) -> None:
    """Descriptors and offsets from the GOT, as compilers use them, both end at the thread's own copy."""
    local, early, here, before = linked.run(
        linked.call("local"), linked.call("early"), "address local", "address early"
    )
    assert (local, early) == (here, before)


def test_unwind_tables_are_there(linked: Linked) -> None:
    """They lie inside a segment, and end as the client wants them to."""
    frames = linked.image.eh_frame
    assert frames is not None
    assert any(
        s.addr <= frames.addr and frames.addr + frames.size <= s.addr + s.mem_size for s in linked.image.segments
    )


@pytest.mark.parametrize("align", [1, 8, 64, 512])
@pytest.mark.parametrize("kind", ["-pie", "-no-pie", "-static", "-static-pie"])
def test_thread_locals_lie_where_the_running_program_has_them(
    tmp_path: Path, aarch64: Toolchain, kind: str, align: int
) -> None:
    """The offsets from the thread pointer are those that the program itself prints."""
    (tmp_path / "main.c").write_text(C_PROGRAM)
    position = "-fPIE" if kind in ("-pie", "-static-pie") else "-fno-pie"
    run(GCC, "-O1", f"-DALIGN={align}", kind, position, "main.c", "-o", "main", cwd=tmp_path)
    printed = dict(line.split() for line in aarch64.run(tmp_path / "main").stdout.splitlines())
    assert printed.keys() == {"small", "wide", "spread"}
    index = read_host(tmp_path / "main")
    found = {name: index.find(name) for name in printed}
    assert {name: symbol and str(symbol.addr) for name, symbol in found.items()} == printed


CALLERS = """
int counted(int n) { return n * 3; }
int twice(int n) { return counted(n) + counted(n + 1); }
int (*taken(void))(int) { return counted; }
int both(int (*apply)(int (*)(int)), int n) { return apply(counted) + counted(n); }
int none(int n) { return n + 1; }
int main(void) { return twice(1) + !taken() + both(0, 2) + none(3); }
"""


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("flags", [("-fPIE", "-pie"), ("-fno-pie", "-no-pie")], ids=["pie", "fixed"])
def test_references_in_a_linked_program_are_those_of_its_object(
    tmp_path: Path, linker: str, flags: tuple[str, str]
) -> None:
    """Calls count once, addresses twice, in the object and after the linker."""
    (tmp_path / "main.c").write_text(CALLERS)
    options = ("-O1", "-fno-inline", "-ffunction-sections", *flags)
    run(GCC, "-c", *options, "main.c", "-o", "main.o", cwd=tmp_path)
    run(GCC, *LINKERS[linker], *options, "main.o", "-o", "main", cwd=tmp_path)
    unit = CodeUnit(RelocatableObject((tmp_path / "main.o").read_bytes(), "main"), "main", from_archive=False)
    index = read_host(tmp_path / "main")
    code = HostCode(tmp_path / "main", index.header)
    ((target, _),) = index.functions("counted")
    places = {name: index.functions(name) for name in ("twice", "taken", "both", "none", "main")}
    counts = {name: code.count_references(addr, size, target) for name, ((addr, size),) in places.items()}
    assert counts == {"twice": 2, "taken": 2, "both": 3, "none": 0, "main": 0}
    assert {name: count for name, count in counts.items() if count} == unit.calls["counted"]


@pytest.mark.parametrize("opt_level", [0, 3])
def test_edits_change_the_edited_function_alone(tmp_path: Path, aarch64: Toolchain, opt_level: int) -> None:
    """The same source gives the same fingerprints; a comment moves functions with panic locations."""
    compiler = (aarch64.rustc, f"--target={aarch64.target}", "-Clto=off")

    def built(source: str, incremental: str = "one") -> BuildObjects:
        return thin_build(tmp_path, source, opt_level=opt_level, incremental=incremental, compiler=compiler)

    before = built(PROGRAM)
    assert len(functions(before)) > 50
    assert differing(before, built(PROGRAM, "two")) == (set(), set())
    changed, moved = differing(before, built(f"// a comment\n{PROGRAM}"))
    assert (changed, "pick" in moved, "plain" in moved) == (set(), True, False)
    assert differing(before, built(PROGRAM.replace("n ^ 0x55", "n ^ 0x56"))) == ({"plain"}, set())


def test_symbols_that_only_mark_code_and_data_are_no_definitions(tmp_path: Path, host: Path) -> None:
    """They are found neither in objects nor in programs."""
    unit = c_object(tmp_path, C_SOURCE)
    assert any(symbol.name.startswith("$") for symbol in unit.obj.symbols)
    names = [d.name for section in range(len(unit.obj.sections)) for d in unit.definitions_in(section)]
    assert not [name for name in [*names, *(name for name, *_ in read_host(host))] if name.startswith("$")]


def test_a_program_for_another_processor_is_refused_by_name(tmp_path: Path, host: Path) -> None:
    """The error says which there are."""
    data = bytearray(host.read_bytes())
    data[18:20] = (243).to_bytes(2, "little")
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(ObjectError, match="machine 243, not x86-64 or aarch64"):
        read_host(tmp_path / "other")
