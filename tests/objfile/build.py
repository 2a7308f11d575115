"""Real compilers, assemblers and linkers, run on sources that a test brings."""

import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.objects import BuildObjects, object_file

TARGET = "x86_64-unknown-linux-gnu"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; it must succeed."""
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{command}: {finished.stderr}"
    return finished.stdout


@cache
def target_dir() -> Path:
    """The toolchain's own directory for the target, with `bin` and `lib`."""
    return Path(run("rustc", "--print", "sysroot").strip()) / "lib" / "rustlib" / TARGET


def std_rlib() -> Path:
    """The archive of the standard library."""
    return next((target_dir() / "lib").glob("libstd-*.rlib"))


def thin_build(
    root: Path,
    source: str,
    *,
    opt_level: int = 0,
    incremental: str = "incremental",
    compiler: Sequence[str | Path] = ("rustc",),
) -> BuildObjects:
    """The objects of the program `demo`, compiled like a thin rebuild, in a new directory under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "main.rs").write_text(source)
    out = root / f"out{len(list(root.iterdir()))}"
    out.mkdir()
    run(
        *(*compiler, "--edition=2021", "--cap-lints=allow", "--crate-name=demo", "--crate-type=bin", "--emit=obj"),
        *("--out-dir", out, "-Ccodegen-units=256", "-Clink-dead-code", f"-Copt-level={opt_level}"),
        *("-Cdebuginfo=2", f"-Cincremental={incremental}", "main.rs"),
        cwd=root,
    )
    return objects_in(out, is_optimised=opt_level > 0)


def objects_in(out: Path, *, is_optimised: bool = False) -> BuildObjects:
    """The objects that a thin rebuild left in a directory."""
    files = {path.name.split(".")[1]: object_file(path, is_optimised=is_optimised) for path in out.glob("*.o")}
    return BuildObjects(files)


def c_unit(root: Path, source: str, *flags: str, name: str = "unit", from_archive: bool = False) -> CodeUnit:
    """A C source as an object."""
    (root / f"{name}.c").write_text(source)
    path = root / f"{name}.o"
    run(
        "gcc", "-c", "-O1", "-fPIC", "-ffunction-sections", "-fdata-sections", *flags, f"{name}.c", "-o", path, cwd=root
    )
    return CodeUnit(RelocatableObject(path.read_bytes(), name), name, from_archive=from_archive)


def assembled(root: Path, source: str, name: str = "unit") -> CodeUnit:
    """An assembler source as an object."""
    path = root / f"{name}.o"
    (root / f"{name}.s").write_text(source)
    run("as", root / f"{name}.s", "-o", path)
    return CodeUnit(RelocatableObject(path.read_bytes(), name), name, from_archive=False)


def link_image(
    root: Path, linker: str, objects: Iterable[bytes], *, base_addr: int, keep: Iterable[str] = (), flags: str = ""
) -> Path:
    """Objects, the stub last, linked at a fixed address by `lld` or `bfd`."""
    paths = []
    for number, contents in enumerate(objects):
        path = root / f"{number}.o"
        path.write_bytes(contents)
        paths.append(path)
    output = root / f"image.{linker}.elf"
    # GNU ld would turn loads from the GOT into 32-bit immediates, which do not reach the base address.
    programs: dict[str, tuple[str | Path, ...]] = {
        "lld": (target_dir() / "bin" / "gcc-ld" / "ld.lld", f"--image-base={base_addr:#x}"),
        "bfd": ("ld.bfd", f"-Ttext-segment={base_addr:#x}", "--no-relax"),
    }
    settings = f"-static --gc-sections --build-id=none -z noseparate-code -z norelro -z max-page-size=4096 -e 0 {flags}"
    roots = [f"--undefined={name}" for name in keep]
    run(*programs[linker], *settings.split(), *roots, "-o", output, *paths)
    return output
