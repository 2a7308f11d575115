"""The foreign targets that can be built for on this machine, and how their programs are run."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.targets.prepare import prepared

Name = Literal[
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-musl",
    "x86_64-unknown-linux-musl dynamic",
    "x86_64-pc-windows-gnu",
    "aarch64-apple-darwin",
    "x86_64-apple-darwin",
    "aarch64-linux-android",
]

CrateType = Literal["bin", "lib", "rlib", "dylib", "cdylib", "staticlib"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What builds and runs programs of one target.

    Args:
        root: directory of what was prepared.
        target: the triple.
        linker: what rustc links with.
        rustflags: what rustc needs to be told for every crate of the target.
        runner: the command that runs its programs; empty where this machine runs them itself.
        runs: whether its programs can be run at all.
        variables: what the compiler or the runner want in the environment.
    """

    root: Path
    target: str
    linker: str
    rustflags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()
    runs: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def rustc(self) -> Path:
        """The compiler; all foreign targets are installed in it, as `rustup target add` would do."""
        return self.root / "bin" / "rustc"

    @property
    def cargo(self) -> Path:
        """The cargo that belongs to it."""
        return self.root / "bin" / "cargo"

    @property
    def sysroot(self) -> Path:
        """Where the standard libraries are."""
        return self.root / "sysroot"

    @property
    def std(self) -> Path:
        """The directory of the target's standard library."""
        return self.sysroot / "lib" / "rustlib" / self.target / "lib"

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which cargo, also when others run it, builds for the target and runs what it built."""
        prefix = f"CARGO_TARGET_{self.target.upper().replace('-', '_')}"
        runner = {f"{prefix}_RUNNER": " ".join(self.runner)} if self.runner else {}
        # Cargo would take these in place of the target's own.
        flags = ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")
        return {
            **{name: value for name, value in os.environ.items() if name not in flags},
            **self.variables,
            "PATH": f"{self.rustc.parent}:{os.environ['PATH']}",
            "RUSTC": str(self.rustc),
            f"{prefix}_LINKER": self.linker,
            f"{prefix}_RUSTFLAGS": " ".join(self.rustflags),
            **runner,
        }

    def compile(
        self, source: Path, output: Path, *, crate_type: CrateType = "bin", args: Sequence[str | Path] = ()
    ) -> Path:
        """Compile one file.

        Args:
            source: the crate's root.
            output: the file to be made.
            crate_type: its crate type.
            args: further arguments.

        Returns:
            `output`.
        """
        what = (f"--crate-type={crate_type}", f"--target={self.target}", f"-Clinker={self.linker}", *self.rustflags)
        self._check([self.rustc, "--edition=2021", *what, source, "-o", output, *args])
        return output

    def build(self, project: Path, *args: str, target_dir: Path | None = None) -> Path:
        """Run `cargo build` for the target.

        Args:
            project: directory of the package or workspace.
            args: further arguments, such as `--release`.
            target_dir: where to build; `target` in the project if it is not given.

        Returns:
            The directory that has the programs.
        """
        # Cargo does not notice that std is another one than last time.
        place = (target_dir or project / "target") / self.root.name
        where = ("--target", self.target, "--target-dir", place)
        self._check([self.cargo, "build", "--quiet", *where, *args], cwd=project)
        return place / self.target / ("release" if "--release" in args else "debug")

    def run(self, program: Path, *args: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end, with its output as text.

        Args:
            program: the program's file.
            args: its arguments.
            timeout: seconds that it may take.
        """
        argv = (*self.runner, str(program), *args)
        environ, null = self.environ, subprocess.DEVNULL
        return subprocess.run(
            argv, env=environ, stdin=null, capture_output=True, text=True, timeout=timeout, check=False
        )

    def _check(self, argv: Sequence[str | Path], cwd: Path | None = None) -> None:
        done = subprocess.run(argv, cwd=cwd, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, argv))}\n{done.stdout}{done.stderr}"


def _native(path: Path) -> str:
    return f"-Lnative={path}"


def toolchains() -> dict[Name, Toolchain]:
    """All of them, by name: the triple, and for musl how libc is linked.

    Raises:
        PreparationError: they are not installed.
    """
    root = prepared()
    # musl's linker driver knows where musl is; what Debian's compiler would add of its own is not there.
    musl = ("-Clink-self-contained=no", _native(root / "unwinder"))
    # In place of the NDK: its linker, its page size and its loader, without C library and start files.
    android = (
        _native(root / "android"),
        *(f"-Clink-arg={argument}" for argument in ("-nostartfiles", "-fuse-ld=lld", f"-B{root / 'android'}")),
        "-Clink-arg=-Wl,--unresolved-symbols=ignore-all,-zmax-page-size=16384,--dynamic-linker=/system/bin/linker64",
    )
    return {
        "aarch64-unknown-linux-gnu": Toolchain(
            root=root,
            target="aarch64-unknown-linux-gnu",
            linker="aarch64-linux-gnu-gcc",
            runner=("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
        ),
        "x86_64-unknown-linux-musl": Toolchain(
            root=root,
            target="x86_64-unknown-linux-musl",
            linker="musl-gcc",
            rustflags=(*musl, "-Crelocation-model=static"),
        ),
        "x86_64-unknown-linux-musl dynamic": Toolchain(
            root=root,
            target="x86_64-unknown-linux-musl",
            linker="musl-gcc",
            rustflags=(*musl, "-Ctarget-feature=-crt-static", f"-Clink-arg=-Wl,-rpath,{root / 'unwinder'}"),
        ),
        "x86_64-pc-windows-gnu": Toolchain(
            root=root,
            target="x86_64-pc-windows-gnu",
            linker="x86_64-w64-mingw32-gcc",
            runner=("wine",),
            variables={"WINEPREFIX": str(root / "wine"), "WINEDEBUG": "-all", "DISPLAY": ""},
        ),
        "aarch64-apple-darwin": _macos(root, "aarch64-apple-darwin"),
        "x86_64-apple-darwin": _macos(root, "x86_64-apple-darwin"),
        "aarch64-linux-android": Toolchain(
            root=root,
            target="aarch64-linux-android",
            linker="aarch64-linux-gnu-gcc",
            rustflags=android,
            runs=False,
        ),
    }


def _macos(root: Path, target: str) -> Toolchain:
    return Toolchain(
        root=root,
        target=target,
        linker=str(root / "bin" / f"{target}-cc"),
        # Without an SDK, what libSystem has is looked up when the program is loaded.
        rustflags=("-Clink-arg=-Wl,-undefined,dynamic_lookup",),
        runs=False,
        variables={"SDKROOT": str(root / "macos-sdk")},
    )
