"""Programs that are looked at from outside: what they are, what they are sent, and whether they loaded it."""

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpatchd.core.client import Applied, Refused
from hotpatchd.core.dioxus import DevtoolsHello
from hotpatchd.core.errors import ObjectError
from hotpatchd.daemon.carrier import Carrier
from hotpatchd.daemon.jump_tables import NotOursError, has_client_library, open_session, table_for, wait_loaded
from hotpatchd.objfile.host_index import HostIndex, read_host
from hotpatchd.objfile.symbols import read_symbols
from tests.objfile.build import run

TARGET = "x86_64-unknown-linux-gnu"
WAITING = """
#include <stdio.h>
int main(void) { printf("%p\\n", (void *)main); fflush(stdout); return getchar(); }
"""


def waiting_program(root: Path, *flags: str) -> Path:
    """A program that prints where its `main` is and waits."""
    (root / "waiting.c").write_text(WAITING)
    run("cc", *flags, "-Wl,--build-id", "-o", root / "waiting", root / "waiting.c")
    return root / "waiting"


@pytest.fixture(params=["-pie", "-no-pie"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int, HostIndex]]:
    """Such a process: its id, its run-time `main`, and the symbols of its program."""
    program = waiting_program(tmp_path, request.param)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        main = int(process.stdout.readline(), 16)
        yield process.pid, main, read_host(program)
        process.kill()


def test_a_process_is_known_by_its_memory_map(running: tuple[int, int, HostIndex]) -> None:
    """Its slide is what its own pointers say, and its region is free, above it and within reach."""
    pid, main, host = running
    session = open_session(7, pid, host, TARGET)
    found = host.find("main")
    assert found is not None
    assert session.hello.slide == main - found.addr
    assert main < session.next_addr < main + (1 << 31)
    assert (session.client, session.redirect, session.hello.pid) == (7, "jump_table", pid)


def test_a_process_of_another_build_is_left_alone(running: tuple[int, int, HostIndex], tmp_path: Path) -> None:
    """Patches are made for one file only."""
    pid, _, _ = running
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(NotOursError, match="not the build that is watched"):
        open_session(1, pid, read_host(waiting_program(other, "-O2")), TARGET)


def test_a_process_that_is_gone_is_left_alone(running: tuple[int, int, HostIndex]) -> None:
    """It may end before it is looked at."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(NotOursError, match="cannot be looked at"):
        open_session(1, ended.pid, running[2], TARGET)


def test_a_process_without_the_native_client_is_told_from_one_with_it() -> None:
    """By what is mapped into it; a process that is gone has nothing."""
    assert not has_client_library(os.getpid())
    assert not has_client_library((1 << 22) + 1)


def carrier(path: Path, image: range = range(0), jumps: dict[int, int] | None = None) -> Carrier:
    """A library as it was linked."""
    return Carrier(path=path, size=0, symbols=read_symbols(path), jumps=jumps or {}, image=image)


def hello(aslr_reference: int) -> DevtoolsHello:
    """A program whose `main` is there."""
    return DevtoolsHello(aslr_reference=aslr_reference, build_id=0, pid=1)


def test_a_table_counts_from_what_the_program_told(running: tuple[int, int, HostIndex], library: Path) -> None:
    """Link-time addresses for a program that exports its `main`, run-time addresses for one that does not."""
    pid, main, host = running
    session = open_session(7, pid, host, TARGET)
    jumps = {main + 16: 0x1008}
    exported = table_for(hello(main), carrier(library, jumps=jumps), session, host)
    assert exported.map == {main + 16 - session.hello.slide: 0x1008}
    hidden = table_for(hello(0), carrier(library, jumps=jumps), session, host)
    assert (hidden.map, hidden.aslr_reference) == (jumps, 0)


def test_another_librarys_main_is_found_out(running: tuple[int, int, HostIndex], library: Path) -> None:
    """Every address would be wrong by the distance between the two."""
    pid, main, host = running
    with pytest.raises(ObjectError, match=f"the `main` at {main + 4096:#x} is not that of"):
        table_for(hello(main + 4096), carrier(library), open_session(7, pid, host, TARGET), host)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Some library, which nobody has loaded."""
    (tmp_path / "some.c").write_text("int main(void) { return 0; }")
    run("cc", "-shared", "-o", tmp_path / "libsome.so", tmp_path / "some.c")
    return tmp_path / "libsome.so"


def mapped_page() -> int:
    """The address of a mapping of this process that begins there."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    first: int = libc.mmap(None, 4 * 4096, 0, 0x22, -1, 0)
    libc.mprotect(ctypes.c_void_p(first + 4096), 4096, 1)
    return first + 4096


async def test_a_library_that_is_loaded_with_its_image_is_applied(library: Path) -> None:
    """The next image goes behind this one, from the next page on."""
    start = mapped_page()
    waiting = asyncio.create_task(wait_loaded(os.getpid(), carrier(library, range(start, start + 5000))))
    ctypes.CDLL(str(library))
    answer = await waiting
    assert isinstance(answer, Applied)
    assert answer.next == start + 2 * 4096


async def test_a_library_whose_image_found_no_room_is_refused(library: Path) -> None:
    """Something else lies where the image should."""
    start = mapped_page()
    ctypes.CDLL(str(library))
    answer = await wait_loaded(os.getpid(), carrier(library, range(start + 16, start + 32)))
    assert isinstance(answer, Refused)
    assert "took the address space" in answer.detail


async def test_a_library_that_is_not_loaded_is_refused(library: Path) -> None:
    """The program may be stopped, or its handlers may wait for something."""
    answer = await wait_loaded(os.getpid(), carrier(library), timeout_s=0.05)
    assert isinstance(answer, Refused)
    assert "did not load it within 0.05 s" in answer.detail
