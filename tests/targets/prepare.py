"""Installs and builds what the tests of foreign targets need: `python -m tests.targets.prepare`.

It needs Debian on x86-64. Packages come from apt: a Rust compiler with the sources of its standard library (rustup's
stable compiler has no matching ones), cross linkers, qemu and wine. zig comes from PyPI and links for macOS.
The rest is built once, and kept in `$XDG_CACHE_HOME/hotpatchd/targets/`.
"""

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PACKAGES = (
    *("rustc-web", "cargo-web", "rust-web-src"),
    *("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"),
    *("musl-tools", "gcc-mingw-w64-x86-64-win32", "wine", "wine64", "lld-19"),
)

STD_TARGETS = (
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-musl",
    "x86_64-pc-windows-gnu",
    "aarch64-apple-darwin",
    "x86_64-apple-darwin",
    "aarch64-linux-android",
)

RUSTC = "/usr/bin/rustc"
HOST = "x86_64-unknown-linux-gnu"
ZIG_VERSION = "0.17.0"

# libgcc's own unwinder needs glibc; std asks for this one by the name that is linked statically and by libgcc's.
_UNWINDER_SOURCES = (
    *("UnwindLevel1.c", "UnwindLevel1-gcc-ext.c", "UnwindRegistersRestore.S", "UnwindRegistersSave.S"),
    "libunwind.cpp",
)

# There is no bionic here. What a program takes from it stays undefined, as it is in any shared library.
_ANDROID_LIBRARIES = ("c", "dl", "gcc", "log", "m", "unwind")

# Wine 8 lacks this library, from which std takes its random numbers; advapi32 has the same function by another name.
_PROCESS_PRNG = """\
__declspec(dllimport) unsigned char SystemFunction036(void *, unsigned long);
__declspec(dllexport) int ProcessPrng(void *bytes, unsigned long long size) { return SystemFunction036(bytes, size); }
"""

# rustc believes that it drives Apple's clang; zig knows the target by its own name and takes no SDK.
_MACOS_CC = """\
#!/bin/sh
count=$#
while [ "$count" -gt 0 ]; do
  argument=$1
  shift
  count=$((count - 1))
  case $argument in
    -arch | -isysroot | -target) shift; count=$((count - 1)) ;;
    --target=* | -mmacosx-version-min=*) ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec '{zig}' cc -target {arch}-macos "$@"
"""


class PreparationError(Exception):
    """Something that the tests of foreign targets need cannot be had."""


def cache_root() -> Path:
    """Where everything that is built here is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotpatchd" / "targets"


def zig() -> Path:
    """The zig executable."""
    return cache_root() / f"zig-{ZIG_VERSION}" / "ziglang" / "zig"


def entry() -> Path:
    """The directory of what is built with this compiler by this version of this file."""
    return cache_root() / hashlib.sha256(_version().encode() + Path(__file__).read_bytes()).hexdigest()[:16]


@functools.cache
def _version() -> str:
    return _run([RUSTC, "-vV"], "the Debian compiler does not run")


def prepared() -> Path:
    """The directory of what is built, for tests to use.

    Raises:
        PreparationError: it is not complete.
    """
    if not os.path.exists(RUSTC) or not all(path.exists() for path in (zig(), *_parts())):
        raise PreparationError("the toolchains of foreign targets are not ready: run `make test-targets`")
    return entry()


def prepare() -> Path:
    """Install and build what is missing. Processes that do so at once wait for each other.

    Returns:
        The directory of what is built.

    Raises:
        PreparationError: something is missing and cannot be had.
    """
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in cache_root().glob("making-*"):
            shutil.rmtree(unfinished)
        _install_packages()
        _make(zig().parents[1], _install_zig)
        for path, build in _parts().items():
            _make(path, build)
    return entry()


def _parts() -> Mapping[Path, Callable[[Path], None]]:
    """The parts of the entry, each a directory that is there when it is complete, and how it is made."""
    rustlib = entry() / "sysroot" / "lib" / "rustlib"
    return {
        entry() / "bin": _write_programs,
        rustlib / HOST: _link_host_std,
        **{rustlib / target: functools.partial(_build_std, target) for target in STD_TARGETS},
        entry() / "unwinder": _build_unwinder,
        entry() / "android": _write_android_tools,
        entry() / "wine": _make_wine_prefix,
        entry() / "macos-sdk": _leave_empty,
    }


def _make(path: Path, build: Callable[[Path], None]) -> None:
    """Let a directory be filled at another place, and move it to its own when it is complete."""
    if path.exists():
        return
    started = time.monotonic()
    print(f"{path.relative_to(cache_root())} ... ", end="", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="making-") as scratch:
        made = Path(scratch, path.name)
        made.mkdir()
        build(made)
        made.replace(path)
    print(f"{time.monotonic() - started:.0f} s", flush=True)


def _run(
    argv: Sequence[str], problem: str, *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """What a command prints.

    Raises:
        PreparationError: it failed, with what it printed.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise PreparationError(f"{problem}: {argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise PreparationError(f"{problem}: `{' '.join(argv)}` ended with status {done.returncode}\n{done.stdout}")
    return done.stdout


def _missing_packages() -> list[str]:
    if platform.machine() != "x86_64":
        raise PreparationError(f"tests of foreign targets need an x86-64 machine, and this one is {platform.machine()}")
    try:
        known = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *PACKAGES],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.splitlines()
    except FileNotFoundError as error:
        raise PreparationError("tests of foreign targets need Debian's packages, and there is no dpkg here") from error
    return [package for package in PACKAGES if f"installed {package}" not in known]


def _install_packages() -> None:
    missing = _missing_packages()
    if missing:
        wanted = f"`apt-get install {' '.join(missing)}`"
        sudo: tuple[str, ...] = ()
        if os.geteuid() != 0:
            if shutil.which("sudo") is None:
                raise PreparationError(f"packages are missing, and only root can install them: run {wanted} as root")
            sudo = ("sudo", "-n")
        print(f"{wanted} ... ", flush=True)
        apt = (*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y")
        _run([*apt, "update"], f"packages are missing, and apt-get failed; try {wanted} yourself")
        _run(
            [*apt, "install", "--no-install-recommends", *missing],
            f"packages are missing, and apt-get failed; try {wanted} yourself",
        )
    if os.path.exists("/lib/aarch64-linux-gnu/libc.so.6"):
        raise PreparationError(
            "libc6:arm64 is installed: under qemu, programs would mix it with the cross compiler's C library "
            "and hang; remove it (`apt-get remove libc6:arm64`)"
        )


def _install_zig(made: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile")
    _run([*pip, "--target", str(made), f"ziglang=={ZIG_VERSION}"], "zig cannot be installed from PyPI")


def _write_programs(made: Path) -> None:
    """A toolchain as rustup would have it: `rustc` and `cargo` side by side, the targets' std in the sysroot."""
    sysroot = entry() / "sysroot"
    programs = {
        "rustc": f"#!/bin/sh\nexec {RUSTC} --sysroot '{sysroot}' \"$@\"\n",
        "cargo": '#!/bin/sh\nexec /usr/bin/cargo "$@"\n',
        **{f"{arch}-apple-darwin-cc": _MACOS_CC.format(zig=zig(), arch=arch) for arch in ("aarch64", "x86_64")},
    }
    for name, text in programs.items():
        (made / name).write_text(text)
        (made / name).chmod(0o755)


def _link_host_std(made: Path) -> None:
    (made / "lib").symlink_to(f"/usr/lib/rustlib/{HOST}/lib")


def _build_std(target: str, made: Path) -> None:
    """Build the standard library from the sources that Debian ships, its dependencies among them."""
    [release] = re.findall(r"^release: (.*)$", _version(), re.MULTILINE)
    sources = Path(f"/usr/src/rustc-{release}/library")
    package = made.parent / "package"
    (package / "src").mkdir(parents=True)
    (package / "src" / "lib.rs").touch()
    (package / "Cargo.toml").write_text('[package]\nname = "probe"\nedition = "2021"\n[workspace]\n')
    (package / "home").mkdir()
    (package / "home" / "config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "{sources / "vendor"}"\n'
    )
    environ = {
        "RUSTC": RUSTC,
        "RUSTC_BOOTSTRAP": "1",
        "CARGO_HOME": str(package / "home"),
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TARGET_DIR": str(package / "target"),
        **dict.fromkeys(("CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"), ""),
    }
    cargo = (
        "/usr/bin/cargo",
        "build",
        "--quiet",
        "--release",
        "-Zbuild-std=std,panic_unwind,panic_abort",
        "--target",
        target,
    )
    _run(cargo, f"std cannot be built for {target}", cwd=package, environ=environ)
    (made / "lib").mkdir()
    for library in (package / "target" / target / "release" / "deps").glob("lib*.rlib"):
        if not library.name.startswith("libprobe"):
            shutil.copy(library, made / "lib")


def _build_unwinder(made: Path) -> None:
    """Build LLVM's unwinder for musl, from the sources that come with zig, as static and as shared library."""
    source = zig().parent / "lib" / "libunwind"
    flags = ("-target", "x86_64-linux-musl", "-O2", "-fPIC", "-fno-sanitize=all", "-fno-exceptions", "-funwind-tables")
    defines = ("-D_LIBUNWIND_IS_NATIVE_ONLY", "-DNDEBUG", f"-I{source / 'include'}")
    problem = "the unwinder for musl cannot be built"
    objects = []
    for name in _UNWINDER_SOURCES:
        compiler = ("c++", "-std=c++17", "-fno-rtti") if name.endswith(".cpp") else ("cc",)
        objects.append(str(made.parent / f"{name}.o"))
        argv = [str(zig()), *compiler, *flags, *defines, "-c", str(source / "src" / name), "-o", objects[-1]]
        _run(argv, problem)
    _run(["ar", "rcs", str(made / "libunwind.a"), *objects], problem)
    shared = made / "libgcc_s.so.1"
    # Without the standard libraries: the compiler would add libgcc's unwinder, which defines the same.
    link = ("musl-gcc", "-shared", "-nostdlib", "-Wl,--eh-frame-hdr", f"-Wl,-soname,{shared.name}")
    _run([*link, "-o", str(shared), *objects, "-lc"], problem)
    (made / "libgcc_s.so").symlink_to(shared.name)


def _write_android_tools(made: Path) -> None:
    (made / "ld.lld").symlink_to("/usr/bin/ld.lld-19")
    for name in _ANDROID_LIBRARIES:
        (made / f"lib{name}.a").write_bytes(b"!<arch>\n")


def _leave_empty(made: Path) -> None:
    """An SDK in which nothing is found."""


def _make_wine_prefix(made: Path) -> None:
    environ = {"WINEPREFIX": str(made), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml=", "DISPLAY": ""}
    _run(["wineboot", "--init"], "wine cannot be set up", environ=environ)
    _run(["wineserver", "--wait"], "wine cannot be set up", environ=environ)
    source = made.parent / "bcryptprimitives.c"
    source.write_text(_PROCESS_PRNG)
    library = made / "drive_c" / "windows" / "system32" / "bcryptprimitives.dll"
    _run(
        ["x86_64-w64-mingw32-gcc", "-shared", "-o", str(library), str(source), "-ladvapi32"],
        "a library that wine lacks cannot be built",
    )


def main() -> None:
    """Entry point: prints what is built, and ends with a message where something cannot be had."""
    try:
        prepare()
    except PreparationError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
