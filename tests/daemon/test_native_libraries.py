"""Where the linker of a static program found its native libraries."""

from pathlib import Path

from hotpatchd.core.linkline import LinkLine
from hotpatchd.daemon.native_libraries import shared_libraries, static_libraries
from hotpatchd.daemon.processes import run_process


def archive(path: Path) -> Path:
    """An archive, as far as its name goes."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


async def found(*argv: str) -> tuple[Path, ...]:
    """What is found for a captured command."""
    return await static_libraries(LinkLine(env=(), argv=argv))


async def test_libraries_come_from_the_lines_own_directories_first(tmp_path: Path) -> None:
    """In the order of `-L`; a name after a colon is a file's; what nobody has is left out."""
    first, second = archive(tmp_path / "a" / "libone.a"), archive(tmp_path / "b" / "exact.a")
    archive(tmp_path / "b" / "libone.a")
    line = (
        "gcc",
        "-L",
        str(tmp_path / "a"),
        f"-L{tmp_path / 'b'}",
        "main.o",
        "-lone",
        "-l:exact.a",
        "-lnobody",
        "-static",
    )
    assert await found(*line) == (first, second)


async def test_libraries_of_the_driver_are_found_where_the_linker_looks() -> None:
    """It is told more directories than the command has."""
    (libc,) = await found("gcc", "main.o", "-lc", "-static", "-o", "main")
    finished = await run_process(["gcc", "-print-file-name=libc.a"])
    assert libc.samefile(finished.stdout.decode().strip())


async def test_a_linker_that_is_run_itself_says_all(tmp_path: Path) -> None:
    """There is no driver that could be asked."""
    own = archive(tmp_path / "a" / "libone.a")
    assert await found("ld.lld", f"-L{own.parent}", "main.o", "-lone", "-lc") == (own,)


async def test_shared_libraries_are_those_that_can_be_loaded(tmp_path: Path) -> None:
    """The linker's scripts say which those are; what nobody has, and archives, are left out."""
    own = tmp_path / "libown.so"
    (tmp_path / "source.c").write_text("int own(void) { return 1; }\n")
    await run_process(["gcc", "-shared", "-o", str(own), str(tmp_path / "source.c")])
    (tmp_path / "libscript.so").write_text("GROUP ( /lib/libfirst.so.6 AS_NEEDED ( /lib/libsecond.so.1 ) )")
    (tmp_path / "libstatic.so").write_bytes(b"!<arch>\n/lib/libno.so.1")
    line = LinkLine(env=(), argv=("ld.lld", f"-L{tmp_path}", "-lown", "-lscript", "-lstatic", "-lnobody", "main.o"))
    assert await shared_libraries(line) == (own, Path("/lib/libfirst.so.6"), Path("/lib/libsecond.so.1"))


async def test_the_mathematics_library_is_found() -> None:
    """Programs are linked with it by name, and most need nothing of it."""
    found = await shared_libraries(LinkLine(env=(), argv=("cc", "main.o", "-lm", "-lc", "-o", "main")))
    assert any(path.name.startswith("libm.so") or path.name.startswith("libm-") for path in found), found


async def test_archives_by_path_and_shared_libraries_are_not_looked_for(tmp_path: Path) -> None:
    """The former are known already, the latter have no members."""
    own = archive(tmp_path / "a" / "libone.a")
    assert await found("ld.lld", f"-L{own.parent}", str(own), "-l:libtwo.so", "main.o") == ()
