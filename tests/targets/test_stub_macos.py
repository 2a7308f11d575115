"""Stubs of patch libraries for macOS: linked by zig, and arm64 code of such a library run in a program of Linux."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import lief
import pytest

from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.dylib_stub import Machine, MachPlatform, StubSymbol, write_dylib_stub
from tests.objfile.build import run, target_dir
from tests.targets.toolchains import Name, Toolchain

PATCH = """
extern int total;
extern __thread int depth;
int half(int);
int *where = &total;
int count = 7;
int *place(void) { return &count; }
int answer(int x) { return half(x) + total; }
int *local(void) { return &depth; }
"""

DATA = {"total": 0x7FFE_9ABC_DEF0, "depth": 0x7FFE_9ABC_0000, "count": 0x7FFE_9ABC_DEF4}
HALF = StubSymbol(name="half", kind="function", addr=0x7FFF_1234_5678)
JUMP = {
    "x86_64": bytes.fromhex("49bb 78563412ff7f0000 41ffe3"),
    "aarch64": bytes.fromhex("50000058 00021fd6 78563412ff7f0000"),
}

HOST = r"""
#include <stdio.h>
#include <sys/mman.h>
int total = 40, count = 5;
int half(int x) { return x / 2; }
static __thread int value = 3;
static void *locate(void *descriptor) { return &value; }
void *depth[3] = {locate};
int main(void) {
    char path[4096];
    unsigned long size, answer, local, where, place;
    printf("half=%lx total=%lx depth=%lx count=%lx\n", (long)half, (long)&total, (long)depth, (long)&count);
    fflush(stdout);
    if (scanf("%4095s %lu %lu %lu %lu %lu", path, &size, &answer, &local, &where, &place) != 6) return 1;
    char *image = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fread(image, 1, size, fopen(path, "rb")) != size) return 2;
    mprotect(image, size, PROT_READ | PROT_EXEC);
    total = 100;
    value = 9;
    count = 77;
    printf("%d %d %d %d\n", ((int (*)(int))(image + answer))(10), *((int *(*)(void))(image + local))(),
           **(int **)(image + where), *((int *(*)(void))(image + place))());
    return 0;
}
"""


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_zig_links_what_lies_where_the_program_has_it(
    tmp_path: Path, toolchain: Callable[[Name], Toolchain], machine: Machine
) -> None:
    """The linked library has the jump, and addresses of data and of a descriptor that nothing will move."""
    tools = toolchain("x86_64-apple-darwin" if machine == "x86_64" else "aarch64-apple-darwin")
    (tmp_path / "patch.c").write_text(PATCH)
    run(tools.linker, "-O1", "-c", "patch.c", "-o", "patch.o", cwd=tmp_path)
    (tmp_path / "slots.o").write_bytes(reach_through_slots((tmp_path / "patch.o").read_bytes(), DATA, "patch.o"))
    symbols = [HALF, *(StubSymbol(name=name, kind="data", addr=addr) for name, addr in DATA.items())]
    platform = MachPlatform(name="macos", minos="13.0", sdk="13.0")
    stub = write_dylib_stub(format="macho", machine=machine, symbols=symbols, platform=platform)
    (tmp_path / "stub.o").write_bytes(stub)
    run(tools.linker, "-shared", "slots.o", "stub.o", "-o", "patch.dylib", cwd=tmp_path)

    fat = lief.MachO.parse(tmp_path / "patch.dylib")
    assert fat is not None
    library = fat.at(0)
    assert library is not None
    assert {"_answer", "_local", "_where", "_place"} <= {symbol.name for symbol in library.exported_symbols}
    content = {section.name: bytes(section.content) for section in library.sections}
    assert JUMP[machine] in content["__text"]
    assert b"".join(addr.to_bytes(8, "little") for addr in DATA.values()) in content["__const"]
    assert DATA["total"].to_bytes(8, "little") in content["__data"]
    moved = {library.section_from_virtual_address(relocation.address) for relocation in library.relocations}
    assert not {section.name for section in moved if section is not None} & {"__const", "__data"}


def test_arm64_code_reaches_the_program(tmp_path: Path, toolchain: Callable[[Name], Toolchain]) -> None:
    """A library for arm64 calls the program and finds its static and its thread-local, wherever it was put."""
    linux = toolchain("aarch64-unknown-linux-gnu")
    (tmp_path / "host.c").write_text(HOST)
    run(linux.linker, "-O1", "host.c", "-o", "host", cwd=tmp_path)
    (tmp_path / "patch.c").write_text(PATCH)
    run(toolchain("aarch64-apple-darwin").linker, "-O1", "-c", "patch.c", "-o", "patch.o", cwd=tmp_path)
    with subprocess.Popen(
        (*linux.runner, tmp_path / "host"),
        env=linux.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as host:
        assert host.stdout is not None
        addrs = {name: int(addr, 16) for name, addr in (word.split("=") for word in host.stdout.readline().split())}
        symbols = [
            StubSymbol(name=name, kind="function" if name == "half" else "data", addr=addr)
            for name, addr in addrs.items()
        ]
        platform = MachPlatform(name="macos", minos="11.0", sdk="11.0")
        stub = write_dylib_stub(format="macho", machine="aarch64", symbols=symbols, platform=platform)
        (tmp_path / "stub.o").write_bytes(stub)
        data = {symbol.name: symbol.addr for symbol in symbols if symbol.kind == "data"}
        (tmp_path / "slots.o").write_bytes(reach_through_slots((tmp_path / "patch.o").read_bytes(), data, "patch.o"))
        options = "-dylib -arch arm64 -platform_version macos 11.0 11.0 slots.o stub.o -o patch.dylib"
        run(target_dir() / "bin" / "gcc-ld" / "ld64.lld", *options.split(), cwd=tmp_path)
        fat = lief.MachO.parse(tmp_path / "patch.dylib")
        assert fat is not None
        library = fat.at(0)
        assert library is not None
        image = bytearray(library.virtual_size)
        for segment in library.segments:
            image[segment.virtual_address : segment.virtual_address + segment.file_size] = bytes(segment.content)
        (tmp_path / "image").write_bytes(image)
        at = {symbol.name: symbol.value for symbol in library.exported_symbols}
        places = f"{at['_answer']} {at['_local']} {at['_where']} {at['_place']}"
        shown, _ = host.communicate(f"{tmp_path / 'image'} {len(image)} {places}\n", timeout=60)
    assert shown == "105 9 100 77\n"
