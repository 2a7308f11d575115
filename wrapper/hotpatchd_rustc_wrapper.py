#!/usr/bin/env -S python3 -ISE
"""Runs rustc for cargo and writes down what it ran: one capture for each compiled crate.

Cargo calls it as `RUSTC_WRAPPER` or `RUSTC_WORKSPACE_WRAPPER`; docs/capture-format.md specifies what it
reads and writes. Two promises shape this file. It never breaks a build: whatever goes wrong here is one line
on standard error, and the compile goes on. And it is cheap: cargo starts it for every crate and every question
to rustc, so that what is slow to import is imported by those who need it.
"""

# ruff: noqa: PLC0415

import os
import sys

TYPE_CHECKING = False  # that of `typing`, without the 6 ms of importing it
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

SCHEMA = 1

# What a linked crate is called: the file name's prefix, and its suffix by operating system.
# Source: rustc_session/src/output.rs, `out_filename`.
LINKED_FILES = {
    "bin": ("", ("", ".exe", ".wasm", ".js")),
    "lib": ("lib", (".rlib",)),
    "rlib": ("lib", (".rlib",)),
    "dylib": ("lib", (".so", ".dylib")),
    "cdylib": ("lib", (".so", ".dylib")),
    "proc-macro": ("lib", (".so", ".dylib")),
    "staticlib": ("lib", (".a",)),
}
# rustc writes no link line for the others: it makes archives itself.
TYPES_WITH_LINK_LINE = {"bin", "dylib", "cdylib", "proc-macro"}
# What the crate that the program is linked from can be.
TIP_TYPES = {"bin", "cdylib"}
# Source: rust-lang/rust pull request 114183, merged for 1.73: `--print KIND=PATH`.
FIRST_WITH_PRINT_TO_FILE = (1, 73)

# What `-C lto` says of programs whose crates are each optimised for themselves.
# Source: rustc_session/src/config.rs, `LtoCli`.
NO_LTO = {None, "off", "no", "n", "false"}
# One of two equal functions becomes a jump to the other, and nothing else leads there.
APART = ("-mergefunc-use-aliases=0", "-mergefunc-preserve-debug-info")
# What a crate is cut into that is not incremental. Source: rustc_session/src/session.rs, `Session::codegen_units`.
DEFAULT_CODEGEN_UNITS = 16
# Sources that nobody edits, below cargo's home.
FETCHED = ("/registry/src/", "/git/checkouts/")

ENV_KEPT = {"OUT_DIR", "PATH", "HOME", "LANG"}
ENV_KEPT_PREFIXES = ("CARGO", "RUST", "LC_")
ENV_DROPPED = {"CARGO_BUILD_JOBS", "CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"}
# `CARGO_REGISTRY_TOKEN`, `CARGO_REGISTRIES_<NAME>_TOKEN`: secrets.
ENV_DROPPED_PREFIXES = ("HOTPATCHD_", "CARGO_REGISTR")


def main() -> "NoReturn":
    """Captures the compile that cargo asks for, or only runs it."""
    restore_locale()
    wrappers, rustc, given = split_command(sys.argv)
    command = [*wrappers, rustc, *given]
    compilation = prepare(rustc, given)
    if compilation is None:
        become(command)
    compilation.start_trace()
    status = run_compiler(command + compilation.added_args)
    try:
        compilation.record(status)
    except Exception as error:
        complain(f"{compilation.stem} is not captured: {error}")
    end_like(status)


def prepare(rustc: str, given: list[str]) -> "Compilation | None":
    """What there is to capture; None for a question to rustc, and where something is wrong."""
    capture_dir = os.environ.get("HOTPATCHD_CAPTURE_DIR")
    try:
        if capture_dir and is_crate(args := expand_args(given)):
            return Compilation(capture_dir, rustc, args)
    except Exception as error:
        complain(f"nothing is captured: {error}")
    return None


def restore_locale() -> None:
    """Takes back what Python itself put into the environment in the C locale (PEP 538)."""
    if "LC_ALL" in os.environ or "LC_CTYPE" not in os.environ:
        return
    try:
        with open("/proc/self/environ", "rb") as file:
            given = [entry for entry in file.read().split(b"\0") if entry.startswith(b"LC_CTYPE=")]
    except OSError:
        return
    del os.environ["LC_CTYPE"]
    for entry in given:
        os.environb[b"LC_CTYPE"] = entry.partition(b"=")[2]


def split_command(argv: list[str]) -> tuple[list[str], str, list[str]]:
    """`SHIM [SHIM | WORKSPACE_WRAPPER] RUSTC ARGS…` → the wrappers to run, rustc, its arguments.

    Cargo puts `RUSTC_WORKSPACE_WRAPPER` between `RUSTC_WRAPPER` and rustc; the shim can be both.
    """
    shim, *rest = argv
    wrappers = [wrapper] if (wrapper := os.environ.get("HOTPATCHD_CHAIN_WRAPPER")) else []
    if rest and rest[0] == shim:
        del rest[0]
    elif rest and rest[0] == os.environ.get("RUSTC_WORKSPACE_WRAPPER"):
        wrappers.append(rest.pop(0))
    if not rest:
        sys.exit("hotpatchd: the rustc wrapper is for cargo to call: WRAPPER RUSTC ARGS…")
    return wrappers, rest[0], rest[1:]


def become(command: list[str]) -> "NoReturn":
    """Runs `command` in place of the shim."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        cannot_run(command, error)


def cannot_run(command: list[str], error: OSError) -> "NoReturn":
    """Ends as a shell does."""
    complain(f"cannot run {command[0]}: {error.strerror}")
    sys.exit(127)


def complain(what: object) -> None:
    """Says what went wrong, on one line."""
    print(f"hotpatchd: {what}".replace("\n", " "), file=sys.stderr, flush=True)


def expand_args(args: list[str]) -> list[str]:
    """Replaces each `@file` by the file's lines.

    Source: rustc_driver_impl/src/args.rs: one argument a line, no nesting, no trimming, no quoting.
    """
    expanded = []
    for arg in args:
        if not arg.startswith("@"):
            expanded.append(arg)
            continue
        with open(arg[1:], encoding="utf-8", newline="") as file:
            lines = file.read().split("\n")
        if not lines[-1]:
            lines.pop()
        expanded += [line.removesuffix("\r") for line in lines]
    return expanded


def is_crate(args: list[str]) -> bool:
    """Whether cargo compiles a crate here, or something (cargo, a build script) asks rustc a question."""
    return (
        last_value(args, "--crate-name") not in (None, "___")
        and "-" not in args
        and codegen_value(args, "metadata") is not None
    )


def values(args: list[str], *spellings: str) -> list[str]:
    """The values of a flag, in order: `--flag V`, `--flag=V`, and `-FV` for a short one."""
    found = []
    rest = iter(args)
    for arg in rest:
        for flag in spellings:
            if arg == flag:
                found.append(next(rest, ""))
                break
            attached = flag + "=" if flag.startswith("--") else flag
            if arg.startswith(attached):
                found.append(arg[len(attached) :])
                break
    return found


def last_value(args: list[str], *spellings: str) -> str | None:
    """The value that counts where a flag is given more than once."""
    return next(reversed(values(args, *spellings)), None)


def codegen_value(args: list[str], key: str) -> str | None:
    """The value of a `-C key=value` option."""
    options = [option.partition("=") for option in values(args, "--codegen", "-C")]
    return next((value for name, _, value in reversed(options) if name == key), None)


def escape(text: str) -> str:
    """Keeps what is safe in a file name; writes the rest as `%XX` of its UTF-8 bytes."""
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or byte in b"_.+-") else f"%{byte:02X}"
        for byte in os.fsencode(text)
    )


class Compilation:
    """One crate's compile: what cargo asked for, and what came of it."""

    def __init__(self, capture_dir: str, rustc: str, args: list[str]) -> None:
        self.capture_dir = capture_dir
        self.rustc = find_program(rustc)
        self.args = args
        os.makedirs(capture_dir, mode=0o700, exist_ok=True)
        self.toolchain = read_toolchain(capture_dir, self.rustc)
        self.tip_args: list[str] = []
        self.types = ["test"] if "--test" in args else split_values(args, "--crate-type") or ["bin"]
        self.linked = ["bin" if crate_type == "test" else crate_type for crate_type in self.types]
        self.emits = [emit.partition("=")[::2] for emit in split_values(args, "--emit") or ["link"]]
        self.stem = (last_value(args, "--crate-name") or "") + (codegen_value(args, "extra-filename") or "")
        self.out_dir = os.path.join(os.getcwd(), last_value(args, "--out-dir") or "")
        self.link_args: str | None = None
        if tip_args := os.environ.get("HOTPATCHD_TIP_ARGS"):
            self.tip_args = read_tip_args(tip_args) if self.is_tip() else []
        if self.is_linked and "link" in dict(self.emits) and release(self.toolchain) >= FIRST_WITH_PRINT_TO_FILE:
            self.link_args = os.path.join(capture_dir, f".{os.getpid()}.link-args")

    @property
    def added_args(self) -> list[str]:
        """What the compiler gets besides cargo's own arguments."""
        link_args = [f"--print=link-args={self.link_args}"] if self.link_args else []
        return [*self.tip_args, *(self.patchable_args() if self.is_patchable() else []), *link_args]

    def is_patchable(self) -> bool:
        """Whether it is an optimised crate of an ELF program that somebody may edit."""
        manifest = os.environ.get("CARGO_MANIFEST_DIR", "")
        return (
            (codegen_value(self.args, "opt-level") or ("3" if "-O" in self.args else "0")) != "0"
            and "linux" in (last_value(self.args, "--target") or sys.platform)
            and not any(part in manifest for part in FETCHED)
            and "proc-macro" not in self.types
            and not (last_value(self.args, "--crate-name") or "").startswith("build_script_")
            and not (self.is_linked and self.runs_linker())
        )

    @property
    def is_linked(self) -> bool:
        """Whether rustc has something linked."""
        return not TYPES_WITH_LINK_LINE.isdisjoint(self.linked)

    def runs_linker(self) -> bool:
        """Whether what links is a linker itself, and not a compiler that runs one."""
        linker = os.path.basename(codegen_value(self.args, "linker") or "cc")
        flavor = codegen_value(self.args, "linker-flavor") or "gcc"
        return linker.endswith("ld") or linker.startswith("ld.") or not flavor.endswith(("gcc", "-cc"))

    def patchable_args(self) -> list[str]:
        """Keeps functions apart that are equal, and the names and signatures of what stays in an optimised program.

        An edit may make equal functions differ. Otherwise LLVM makes them one, and what refers to them refers to that.
        Source: LLVM's `MergeFunctions`, which refuses an option that is given twice.
        """
        given = " ".join(options.partition("=")[2] for options in self.llvm_args())
        apart = [f"-Cllvm-args={option}" for option in APART if option.partition("=")[0] not in given]
        is_together = codegen_value(self.args, "lto") not in NO_LTO or self.has_codegen("linker-plugin-lto")
        return apart + ([] if is_together or self.has_codegen("link-dead-code") else self.named_args())

    def has_codegen(self, key: str) -> bool:
        """Whether cargo gives a `-C` option, with a value or without."""
        return codegen_value(self.args, key) is not None

    def llvm_args(self) -> "Iterator[str]":
        """The options for LLVM among cargo's arguments."""
        return (option for option in values(self.args, "--codegen", "-C") if option.startswith("llvm-args="))

    def named_args(self) -> list[str]:
        """Keeps the names and signatures of the functions and statics that stay in an optimised program.

        Otherwise the optimiser takes arguments out of private functions, and statics apart. What nothing uses is left
        to the linker to take out. Without incremental compilation, rustc would make small functions `#[inline]`, and
        those have another hash in each crate then; the thin rebuild, which is incremental, would not find them.
        Source: rustc_mir_transform, `cross_crate_inlinable`; rustc_symbol_mangling, `compute_symbol_name`.
        """
        added = ["-Clink-dead-code=yes", *(["-Clink-arg=-Wl,--gc-sections"] if self.is_linked else [])]
        if not self.has_codegen("incremental"):
            added.append(f"-Cincremental={os.path.join(self.capture_dir, 'incremental')}")
            if not self.has_codegen("codegen-units"):
                added.append(f"-Ccodegen-units={DEFAULT_CODEGEN_UNITS}")
        return added

    def start_trace(self) -> None:
        """Has the tracer, where it is preloaded, write down what proc macros read."""
        if "HOTPATCHD_TRACE_SCOPE" not in os.environ:
            return
        path = os.path.join(self.capture_dir, "traces", self.file_name().removesuffix(".json"))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            remove_file(path)
        except OSError as error:
            complain(f"{self.stem} is not traced: {error}")
            return
        os.environ["HOTPATCHD_TRACE"] = path

    def is_tip(self) -> bool:
        """Whether it is a crate that a program is linked from: not one that only runs during the build."""
        name = last_value(self.args, "--crate-name") or ""
        return (
            not TIP_TYPES.isdisjoint(self.types)
            and not name.startswith("build_script_")
            and "CARGO_PRIMARY_PACKAGE" in os.environ
        )

    def record(self, status: int) -> None:
        """Leaves a capture of a compile that left something, and none of any other."""
        link_line = take_file(self.link_args) if self.link_args else None
        path = os.path.join(self.capture_dir, self.file_name())
        outputs = self.outputs() if status == 0 else []
        if outputs:
            write_json(path, self.capture(outputs, link_line))
        else:
            remove_file(path)

    def file_name(self) -> str:
        """The key of the capture, as the name of its file."""
        name, metadata = last_value(self.args, "--crate-name"), codegen_value(self.args, "metadata")
        target = last_value(self.args, "--target") or "host"
        if target.endswith(".json"):
            target = os.path.basename(target).removesuffix(".json")
        return escape(f"{name}-{metadata}-{'+'.join(self.types)}-{target}") + ".json"

    def capture(self, outputs: "list[dict[str, Any]]", link_line: str | None) -> "dict[str, Any]":
        """The capture, as docs/capture-format.md has it."""
        dep_info = dict(self.emits).get("dep-info")
        return {
            "schema": SCHEMA,
            "rustc": self.rustc,
            "argv": [*self.args, *self.tip_args],
            "tip_args": self.tip_args,
            "cwd": os.getcwd(),
            "env": compile_env(),
            "toolchain": self.toolchain,
            "outputs": outputs,
            "dep_info": None if dep_info is None else self.path(dep_info, f"{self.stem}.d"),
            "link_line": link_line,
            "exit_status": 0,
        }

    def outputs(self) -> "list[dict[str, Any]]":
        """The files that are there, among those that this compile can leave."""
        found = []
        for path in self.output_paths():
            if os.path.isfile(path):
                stat = os.stat(path)
                found.append({"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        return found

    def output_paths(self) -> "Iterator[str]":
        """Every name that an output of this compile can have on some system."""
        for kind, explicit in self.emits:
            if kind == "metadata":
                yield self.path(explicit, f"lib{self.stem}.rmeta")
            elif kind == "link":
                for crate_type in self.linked:
                    prefix, suffixes = LINKED_FILES[crate_type]
                    yield from (self.path(explicit, prefix + self.stem + suffix) for suffix in suffixes)

    def path(self, explicit: str, name: str) -> str:
        """An output's path: that of `--emit KIND=PATH`, or the name in the output directory."""
        return os.path.abspath(explicit) if explicit else os.path.join(self.out_dir, name)


def release(toolchain: str) -> tuple[int, int]:
    """`release: 1.95.0-nightly` → (1, 95)."""
    text = next(line for line in toolchain.splitlines() if line.startswith("release: "))
    major, minor = text.removeprefix("release: ").split(".")[:2]
    return int(major), int(minor)


def split_values(args: list[str], flag: str) -> list[str]:
    """The values of a flag whose value is a list with commas."""
    return [part for value in values(args, flag) for part in value.split(",")]


def find_program(name: str) -> str:
    """The absolute path of a program, as `execvp` would find it."""
    if "/" in name:
        return os.path.abspath(name)
    for directory in os.get_exec_path():
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"{name} is not on PATH")


def read_tip_args(text: str) -> list[str]:
    """The value of `HOTPATCHD_TIP_ARGS`."""
    import json

    return [str(arg) for arg in json.loads(text)]


def read_toolchain(capture_dir: str, rustc: str) -> str:
    """`rustc -vV`, asked once.

    A rustup proxy stands for several toolchains and stays the same when they change, so that only the answer
    of a rustc that sits in its own sysroot is kept.
    """
    import json

    real = os.path.realpath(rustc)
    if not os.path.isdir(os.path.join(os.path.dirname(os.path.dirname(real)), "lib", "rustlib")):
        return ask_toolchain(rustc)
    stat = os.stat(real)
    key = {"rustc": real, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    path = os.path.join(capture_dir, "toolchains", escape(real)[-120:] + ".json")
    try:
        with open(path, encoding="ascii") as file:
            known = json.load(file)
        if known["key"] == key:
            return str(known["toolchain"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    toolchain = ask_toolchain(rustc)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_json(path, {"key": key, "toolchain": toolchain})
    return toolchain


def ask_toolchain(rustc: str) -> str:
    """The text of `rustc -vV`."""
    import subprocess

    return subprocess.run([rustc, "-vV"], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def run_compiler(command: list[str]) -> int:
    """Runs `command`; returns its exit status, or minus the signal that it died of.

    The compiler gets the signal mask and dispositions that the shim was started with (Python ignores SIGPIPE
    and SIGXFSZ), and every signal that would end the shim: a `kill` of the shim alone ends both.
    """
    import signal

    ending = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    python_ignores = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigmask=mask, setsigdef=python_ignores)
    except OSError as error:
        cannot_run(command, error)
    for number in ending:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # The handlers need the process until they are gone, and it must not be another one by then: reaped afterwards.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in ending:
        signal.signal(number, signal.SIG_IGN)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_like(status: int) -> "NoReturn":
    """Ends with the compiler's exit status, or of the signal that it died of."""
    if status < 0:
        import signal

        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def compile_env() -> dict[str, str]:
    """The variables that the compile may read; docs/capture-format.md says which."""
    import json

    base = dict(os.environ)
    if base_path := os.environ.get("HOTPATCHD_BASE_ENV"):
        with open(base_path, encoding="ascii") as file:
            base = json.load(file)
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name not in ENV_DROPPED
        and not name.startswith(ENV_DROPPED_PREFIXES)
        and (name in ENV_KEPT or name.startswith(ENV_KEPT_PREFIXES) or base.get(name) != value)
    }


def take_file(path: str) -> str | None:
    """Reads a file and removes it; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    os.unlink(path)
    return text


def remove_file(path: str) -> None:
    """Removes a file that may not be there."""
    if os.path.lexists(path):
        os.unlink(path)


def write_json(path: str, value: "dict[str, Any]") -> None:
    """Writes a file that is there as a whole or not at all, readable by the owner only."""
    import json

    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{os.getpid()}.{name[-100:]}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps(value, indent=1))
        os.replace(temporary, path)
    except BaseException:
        remove_file(temporary)
        raise


if __name__ == "__main__":
    main()
