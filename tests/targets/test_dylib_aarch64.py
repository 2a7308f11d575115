"""A program for 64-bit ARM that has the client as a dependency takes patch libraries; it runs under qemu."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.client.images import Symbol, read_symbols
from tests.client.libraries import LibraryStage, adding, write_package
from tests.targets.toolchains import Name, Toolchain

TARGET: Name = "aarch64-unknown-linux-gnu"


class Aarch64Stage(LibraryStage):
    """Where a test plays under qemu."""

    def __init__(self, directory: Path, program: Path, toolchain: Toolchain) -> None:
        super().__init__(directory, Path(), {"dependent": program})
        self.runner = toolchain.runner
        self._linker = toolchain.linker

    def symbols(self, path: Path) -> dict[str, Symbol]:
        """The symbols of the program or of a library."""
        return read_symbols(path)

    def compiler(self, language: str) -> Sequence[str]:
        """The command that makes a shared library of a C source file."""
        return (self._linker, f"-x{language}", "-shared", "-fPIC", "-O1")


@pytest.fixture
def stage(tmp_path: Path, pytestconfig: pytest.Config, toolchain: Callable[[Name], Toolchain]) -> Aarch64Stage:
    """A state directory without a daemon, and the program."""
    assert pytestconfig.cache
    aarch64 = toolchain(TARGET)
    package = tmp_path / "package"
    package.mkdir()
    write_package(package)
    built = aarch64.build(package, target_dir=pytestconfig.cache.mkdir("dependent"))
    return Aarch64Stage(tmp_path, built / "dependent", aarch64)


async def test_function_is_replaced_and_brought_back(stage: Aarch64Stage) -> None:
    """Calls run the library's function, which is far away, with the program's statics, until it is taken back."""
    async with stage.loading() as (program, peer, _):
        assert (peer.hello["target"], peer.hello["kind"], peer.hello["in_place"]) == (TARGET, "dylib", True)
        assert await program.ask("answer") == "2"
        count = stage.symbols(program.path)["COUNT"].addr + peer.hello["slide"]
        source = f"int replaced(int n) {{ return n + 100 * ++*(int *){count:#x}; }}"
        library = stage.link(source, peer.hello, program, answer="replaced")
        applied = await peer.apply(library.message, library.content)
        assert applied["type"] == "applied", applied
        assert await program.ask("answer") == "201"
        assert (await peer.undo(None))["type"] == "applied"
        assert (await program.ask("answer"), await program.ask("count")) == ("2", "3")


async def test_second_library_replaces_the_first(stage: Aarch64Stage) -> None:
    """Two libraries in a row are two libraries to the loader, and undo goes back to the first."""
    async with stage.loading() as (program, peer, _):
        first, second = (stage.link(adding(amount), peer.hello, program, answer="replaced") for amount in (10, 20))
        for library, answer in ((first, "11"), (second, "21")):
            assert (await peer.apply(library.message, library.content))["type"] == "applied"
            assert await program.ask("answer") == answer
        await peer.undo(first.id)
        assert await program.ask("answer") == "11"
