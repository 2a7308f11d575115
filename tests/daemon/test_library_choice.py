"""Which of the libraries that cargo builds is the one that programs load, with real cargo and rustc."""

from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.selection import CargoSelection
from tests.daemon.test_fatbuild import MANIFEST, Project


def package(name: str, crate_types: str, dependencies: str = "") -> dict[str, str]:
    """The files of a package with nothing but a library."""
    types = f"crate-type = [{crate_types}]\n" if crate_types else ""
    return {
        f"{name}/Cargo.toml": f"{MANIFEST.format(name=name)}[lib]\n{types}[dependencies]\n{dependencies}",
        f"{name}/src/lib.rs": '#[no_mangle]\npub extern "C" fn answer() -> u32 { 42 }\n',
    }


def workspace(root: Path, *packages: dict[str, str]) -> Project:
    """A workspace of these packages."""
    project = Project(root)
    files = {name: text for files in packages for name, text in files.items()}
    members = sorted({f'"{name.partition("/")[0]}"' for name in files})
    project.write({"Cargo.toml": f'[workspace]\nresolver = "2"\nmembers = [{", ".join(members)}]\n', **files})
    return project


@pytest.mark.parametrize("crate_types", ['"cdylib"', '"cdylib", "rlib"', '"dylib"', '"lib", "staticlib", "cdylib"'])
async def test_shared_library_is_the_tip(tmp_path: Path, crate_types: str) -> None:
    """Whatever else the package's library is, what programs load is taken, with the command that linked it."""
    build = await workspace(tmp_path / "w", package("plug", crate_types)).build(CargoSelection(lib=True))
    assert build.is_library
    assert build.executable == tmp_path / "w" / "target" / "debug" / "libplug.so"
    assert build.executable.samefile(next(o.path for o in build.tip.outputs if o.path.endswith(".so")))
    assert "-shared" in (build.tip.link_line or "")


async def test_package_tells_which(tmp_path: Path) -> None:
    """Of several shared libraries, the one of the named package counts; without a name, that is an error."""
    project = workspace(tmp_path / "w", package("left", '"cdylib"'), package("right", '"cdylib"'))
    with pytest.raises(BuildError, match=r"several shared libraries: left, right"):
        await project.build(CargoSelection(lib=True))
    build = await project.build(CargoSelection(lib=True, package="right"))
    assert build.executable.name == "libright.so"


async def test_dependency_that_is_a_rust_library_is_captured(tmp_path: Path) -> None:
    """The crates that the library is made of are compiled again when they are edited."""
    project = workspace(
        tmp_path / "w", package("plug", '"cdylib"', 'part = { path = "../part" }\n'), package("part", "")
    )
    project.write({"part/src/lib.rs": "pub fn part() {}\n"})
    build = await project.build(CargoSelection(lib=True, package="plug"))
    assert [capture.crate_name for capture in build.captures] == ["part", "plug"]


@pytest.mark.parametrize(
    ("crate_types", "message", "hint"),
    [
        ("", "no shared library, but plug", "--bin"),
        ('"rlib"', "no shared library, but plug", "cdylib"),
        ('"staticlib"', "the library plug is static", "cdylib"),
    ],
)
async def test_other_libraries_are_refused(tmp_path: Path, crate_types: str, message: str, hint: str) -> None:
    """What is no file of its own in the running program cannot be patched there; the error says what to do."""
    with pytest.raises(BuildError, match=message) as raised:
        await workspace(tmp_path / "w", package("plug", crate_types)).build(CargoSelection(lib=True, package="plug"))
    assert hint in str(raised.value)
