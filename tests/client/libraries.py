"""A program that has the client as a dependency, and patch libraries for it, made by hand."""

import contextlib
import hashlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.client.conftest import Program, Stage
from tests.client.fake_daemon import FakeDaemon, Peer
from tests.client.images import Sent, Symbol

_CLIENT = Path(__file__).parents[2] / "client"
_PROGRAM = Path(__file__).parent / "programs" / "dependent.rs"
_MANIFEST = """
[package]
name = "dependent"
version = "0.1.0"
edition = "2021"

{crate}
name = "dependent"
path = '{source}'

[dependencies]
hotpatch-client = {{ path = '{client}' }}

[workspace]
"""


def write_package(directory: Path, source: Path = _PROGRAM, *, crate: str = "[[bin]]") -> None:
    """Write a package called `dependent` that has the client as a dependency.

    Args:
        directory: where it goes.
        source: its only source file.
        crate: the beginning of the manifest's table for it.
    """
    (directory / "Cargo.toml").write_text(_MANIFEST.format(crate=crate, source=source, client=_CLIENT))
    shutil.copy(_CLIENT / "Cargo.lock", directory)


class Library(Sent):
    """A linked patch library."""

    def with_jump(self, **changes: Any) -> "Library":
        """The same library under a message whose first jump differs."""
        first, *others = self.message["jumps"]
        return self.with_changes(jumps=[{**first, **changes}, *others])

    def with_content(self, content: bytes) -> "Library":
        """Other bytes under the same name, with their own hash and size."""
        changes = {"patch": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return Library({**self.message, **changes}, content)


class LibraryStage(Stage, ABC):
    """Where a test plays with the program that needs no preloading."""

    suffix = ".so"

    def environment(self, path: Path) -> dict[str, str]:
        """The environment of a program that is to be patched."""
        return {**os.environ, "HOTPATCHD_STATE": str(self.state), "HOTPATCHD_HOST": str(path)}

    @abstractmethod
    def symbols(self, path: Path) -> dict[str, Symbol]:
        """The symbols of the program or of a library."""

    @abstractmethod
    def compiler(self, language: str) -> Sequence[str]:
        """The command that makes a shared library of a source file in C or Rust."""

    @contextlib.asynccontextmanager
    async def loading(self, *args: str, kind: str = "dylib") -> AsyncIterator[tuple[Program, Peer, FakeDaemon]]:
        """Run the program with a client that takes libraries, welcomed."""
        async with (
            FakeDaemon.listening(self.state) as daemon,
            self.running("dependent", *args, HOTPATCHD_KIND=kind) as program,
        ):
            yield program, await daemon.welcome(), daemon

    def link(
        self, source: str, hello: Mapping[str, Any], program: Program, *, language: str = "c", **jumps: str
    ) -> Library:
        """A patch library for the running program.

        Args:
            source: C or Rust.
            hello: what the client said.
            program: the program.
            language: `c` or `rust`.
            jumps: names of functions of the program, and of those in the library that replace them.
        """
        self._images += 1
        library = self._work / f"libpatch-{self._images}{self.suffix}"
        code = library.with_suffix(".source")
        code.write_text(source)
        subprocess.run([*self.compiler(language), "-o", library, code], check=True)
        exported, host = self.symbols(library), self.symbols(program.path)
        content = library.read_bytes()
        anchor = next(iter(jumps.values()))
        message = {
            "type": "dylib",
            "patch": hashlib.sha256(content).hexdigest(),
            "edit": 1,
            "build_id": hello["build_id"],
            "size": len(content),
            "file_name": library.name,
            "url": None,
            "anchor": {"symbol": anchor, "addr": exported[anchor].addr},
            "jumps": [
                {"from": host[old].addr + hello["slide"], "to": exported[new].addr, "size": host[old].size}
                for old, new in jumps.items()
            ],
        }
        return Library(message, content)


def adding(amount: int) -> str:
    """A body, in C, for a function of one integer that adds `amount`."""
    return f"int replaced(int n) {{ return n + {amount}; }}"
