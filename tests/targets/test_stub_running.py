"""Stubs of patch libraries in programs of other targets: linked for a process that waits, and loaded into it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpatchd.objfile.dylib_slots import reach_through_slots
from hotpatchd.objfile.dylib_stub import Format, Machine, StubSymbol, write_dylib_stub
from tests.objfile.bare import bare_object
from tests.objfile.build import run, target_dir
from tests.targets.toolchains import Name, Toolchain

HOST = r"""
#include <stdio.h>
#include <string.h>
#ifdef _WIN32
#include <windows.h>
#define FIND(path, name) (void *)GetProcAddress(LoadLibraryA(path), name)
#else
#include <dlfcn.h>
#define FIND(path, name) dlsym(dlopen(path, RTLD_NOW), name)
#endif
int total = 40, count = 5;
int half(int x) { return x / 2; }
int third(int x) { return x / 3; }
int main(void) {
    char path[4096];
    printf("half=%llx third=%llx total=%llx count=%llx\n", (unsigned long long)half,
           (unsigned long long)third, (unsigned long long)&total, (unsigned long long)&count);
    fflush(stdout);
    if (!fgets(path, sizeof path, stdin)) return 1;
    path[strcspn(path, "\r\n")] = 0;
    int (*answer)(void) = (int (*)(void))FIND(path, "answer");
    int *(*place)(void) = (int *(*)(void))FIND(path, "place");
    total = 1200;
    count = 77;
    printf("%d %d\n", answer(), *place());
    return 0;
}
"""

PATCH = """
unsafe extern "C" { fn half(x: i32) -> i32; }
#[link(name = "host", kind = "dylib")] unsafe extern "C" { fn third(x: i32) -> i32; static total: i32; }
#[no_mangle] pub extern "C" fn answer() -> i32 { unsafe { half(third(total)) } }
#[no_mangle] pub extern "C" fn place() -> *const i32 { &raw const count }
"""
COUNT: dict[Name, str] = {
    "aarch64-unknown-linux-gnu": 'unsafe extern "C" { static count: i32; }',
    "x86_64-pc-windows-gnu": "#[no_mangle] pub static count: i32 = 7;",
}

FUNCTIONS = ("half", "third")

WINDOWS: Name = "x86_64-pc-windows-gnu"
AARCH64: Name = "aarch64-unknown-linux-gnu"

GCC_LD = target_dir() / "bin" / "gcc-ld"
LINKERS: dict[str, tuple[Name, Format, Machine, tuple[str | Path, ...]]] = {
    "aarch64-lld": (AARCH64, "elf", "aarch64", (GCC_LD / "ld.lld", "-shared", "-o", "library.dll")),
    "windows-bfd": (WINDOWS, "coff", "x86_64", ("x86_64-w64-mingw32-gcc", "-shared", "-o", "library.dll")),
    "windows-lld": (
        *(WINDOWS, "coff", "x86_64"),
        (GCC_LD / "lld-link", "/dll", "/noentry", "/export:answer", "/export:place", "/out:library.dll"),
    ),
}


@pytest.mark.parametrize(("target", "format", "machine", "linker"), LINKERS.values(), ids=LINKERS)
def test_library_calls_and_reads_the_program(
    tmp_path: Path,
    toolchain: Callable[[Name], Toolchain],
    target: Name,
    format: Format,
    machine: Machine,
    linker: tuple[str | Path, ...],
) -> None:
    """A patch library calls functions of the running program, directly and by import, and has its statics."""
    tools = toolchain(target)
    (tmp_path / "host.c").write_text(HOST)
    run(tools.linker, "-O1", "host.c", "-o", "host.exe", cwd=tmp_path)
    patch = bare_object(tmp_path, target, PATCH + COUNT[target])
    with subprocess.Popen(
        (*tools.runner, tmp_path / "host.exe"),
        env=tools.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as host:
        assert host.stdout is not None
        addrs = dict(word.split("=") for word in host.stdout.readline().split())
        symbols = [
            StubSymbol(name=name, kind="function" if name in FUNCTIONS else "data", addr=int(addr, 16))
            for name, addr in addrs.items()
        ]
        (tmp_path / "stub.o").write_bytes(write_dylib_stub(format=format, machine=machine, symbols=symbols))
        if target == WINDOWS:
            data = {symbol.name: symbol.addr for symbol in symbols if symbol.kind == "data"}
            patch.write_bytes(reach_through_slots(patch.read_bytes(), data, "patch.o"))
        run(*linker, "patch.o", "stub.o", cwd=tmp_path)
        library = str(tmp_path / "library.dll")
        path = "Z:" + library.replace("/", "\\") if target == WINDOWS else library
        assert host.communicate(f"{path}\n", timeout=60)[0] == "200 77\n"
