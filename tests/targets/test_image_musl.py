"""What images for programs with musl rest on: where thread-locals lie, and which archive libc is."""

from pathlib import Path

import pytest

from hotpatchd.core.linkline import LinkLine
from hotpatchd.daemon.native_libraries import static_libraries
from hotpatchd.objfile.host_index import read_host
from tests.objfile.build import run
from tests.objfile.test_host_index import C_PROGRAM


@pytest.mark.parametrize("align", [1, 8, 64, 512])
@pytest.mark.parametrize("kind", ["-pie", "-no-pie", "-static"])
def test_thread_locals_lie_where_the_running_program_has_them(tmp_path: Path, kind: str, align: int) -> None:
    """The offsets from the thread pointer are those that the program itself prints."""
    (tmp_path / "main.c").write_text(C_PROGRAM)
    position = "-fPIE" if kind == "-pie" else "-fno-pie"
    run("musl-gcc", "-O1", f"-DALIGN={align}", kind, position, "main.c", "-o", "main", cwd=tmp_path)
    printed = dict(line.split() for line in run(tmp_path / "main").splitlines())
    assert printed.keys() == {"small", "wide", "spread"}
    index = read_host(tmp_path / "main")
    found = {name: index.find(name) for name in printed}
    assert {name: symbol and str(symbol.addr) for name, symbol in found.items()} == printed


async def test_libc_is_that_of_musl() -> None:
    """The driver is a wrapper around one for another libc, whose archive must not be taken."""
    (libc,) = await static_libraries(LinkLine(env=(), argv=("musl-gcc", "main.o", "-lc", "-static", "-o", "main")))
    symbols = run("nm", "--defined-only", "--print-armap", libc)
    assert "__syscall_cp" in symbols
    assert "__libc_enable_secure" not in symbols
