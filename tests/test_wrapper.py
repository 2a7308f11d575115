"""The rustc wrapper, run as cargo runs it, around a compiler that does what a test says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotpatchd.daemon.fatbuild import install_shim

GOLDENS = sorted((Path(__file__).parents[1] / "fixtures" / "captures").glob("*.json"))
TOOLCHAIN = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\n"
COMPILE = ("--crate-name", "app", "src/main.rs", "-C", "metadata=12ab", "-C", "extra-filename=-34cd")


class Bench:
    """A shim, a compiler in a sysroot, and an environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.captures = root / "captures"
        self.shim = install_shim(root)
        self.rustc = root / "toolchain" / "bin" / "rustc"
        (root / "toolchain" / "lib" / "rustlib").mkdir(parents=True)
        self.rustc.parent.mkdir()
        self.base_env = root / "base-env.json"
        self.env = {"PATH": os.environ["PATH"], "HOME": "/home/dev", "LANG": "C.UTF-8"}
        self.write_base_env()
        self.write_rustc("touch out/app-34cd")
        (root / "out").mkdir()

    def write_rustc(self, compile_script: str, toolchain: str = TOOLCHAIN) -> None:
        """Makes the compiler run a script, in `root`, with `$LINK_ARGS`."""
        (self.root / "toolchain.txt").write_text(toolchain)
        self.rustc.write_text(
            f"""#!/bin/sh
            if [ "$*" = -vV ]; then echo asked >> {self.root}/asked; exec cat {self.root}/toolchain.txt; fi
            for arg; do case $arg in --print=link-args=*) LINK_ARGS=${{arg#--print=link-args=}};; esac; done
            cd {self.root}
            {compile_script}
            """
        )
        self.rustc.chmod(0o755)

    def write_base_env(self) -> None:
        """Declares the environment to be what cargo was started with."""
        self.base_env.write_text(json.dumps(self.env))

    def start(self, *args: str | bytes, wrappers: tuple[str | Path, ...] = (), **env: str) -> Any:
        """Runs the shim with `args` for rustc."""
        given = {"HOTPATCHD_CAPTURE_DIR": str(self.captures), "HOTPATCHD_BASE_ENV": str(self.base_env)}
        return subprocess.Popen(
            [self.shim, *wrappers, self.rustc, *args],
            env=self.env | given | env,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def run(self, *args: str | bytes, wrappers: tuple[str | Path, ...] = (), **env: str) -> tuple[int, str, str]:
        """Runs the shim; returns its status and what it printed."""
        process = self.start(*args, wrappers=wrappers, **env)
        stdout, stderr = process.communicate(timeout=20)
        return process.returncode, stdout.decode(), stderr.decode()

    def compile(self, *args: str | bytes, **env: str) -> dict[str, Any]:
        """Runs a compile that must succeed quietly, and returns its capture."""
        assert self.run(*COMPILE, "--out-dir", "out", *args, wrappers=(), **env) == (0, "", "")
        (path,) = self.files()
        return dict(json.loads(path.read_text()))

    def files(self) -> list[Path]:
        """The captures."""
        return [path for path in self.captures.glob("*") if path.is_file()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A new bench."""
    return Bench(tmp_path)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.name)
def test_golden_captures_are_written_again(bench: Bench, golden: Path) -> None:
    """The arguments and the environment of a real compile give the capture that stands in the fixtures."""
    text = golden.read_text().replace("/src/", f"{bench.root}/src/").replace("/toolchain/", f"{bench.root}/toolchain/")
    expected = json.loads(text)
    script = ["exec 2>&1"]
    for output in expected["outputs"]:
        seconds, nanoseconds = divmod(output["mtime_ns"], 10**9)
        path = Path(output["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        script += [f"truncate -s {output['size']} {path}", f"touch -d @{seconds}.{nanoseconds:09} {path}"]
    if expected["link_line"] is not None:
        (bench.root / "link_line").write_text(expected["link_line"])
        script.append(f'cp {bench.root}/link_line "$LINK_ARGS"')
    bench.write_rustc("\n".join(script), expected["toolchain"])
    Path(expected["cwd"]).mkdir(parents=True, exist_ok=True)
    bench.env = {"PATH": "/usr/bin:/bin", "HOME": "/home/dev", "LANG": "C.UTF-8", "UNRELATED": "1"}
    bench.write_base_env()
    bench.env |= {"CARGO_MAKEFLAGS": "-j", "RUSTC_WRAPPER": "w", "CARGO_REGISTRY_TOKEN": "secret"}
    command = [bench.shim, bench.rustc, *expected["argv"]]
    env = bench.env | expected["env"]
    env |= {"HOTPATCHD_CAPTURE_DIR": str(bench.captures), "HOTPATCHD_BASE_ENV": str(bench.base_env)}
    subprocess.run(command, env=env, cwd=expected["cwd"], check=True)
    assert json.loads((bench.captures / golden.name).read_text()) == expected


@pytest.mark.parametrize(
    "args",
    [
        ("-vV",),
        ("--version",),
        ("--print", "cfg"),
        ("-", "--crate-name", "___", "--print=file-names", "-C", "metadata=1"),
        ("--crate-name", "probe", "-", "-C", "metadata=1"),
        ("--crate-name", "probe", "build/probe.rs"),
    ],
    ids=" ".join,
)
def test_questions_to_rustc_replace_the_shim(bench: Bench, args: tuple[str, ...]) -> None:
    """Anything but a compile of cargo's becomes the compiler at once, with its output and status, uncaptured."""
    bench.rustc.write_text("#!/bin/sh\necho $$\nexit 3\n")
    process = bench.start(*args)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout.decode(), stderr) == (3, f"{process.pid}\n", b"")
    assert not bench.captures.exists()


def test_response_files_follow_rustcs_rules(bench: Bench) -> None:
    """One argument a line; `\\r\\n` ends a line too; no trimming, quoting or nesting; empty lines count."""
    (bench.root / "args").write_bytes(b'--cfg\r\nfeature="a b"\n  spaced  \n\n@nested\n--cfg\nlast')
    capture = bench.compile("@args")
    expanded = ["--cfg", 'feature="a b"', "  spaced  ", "", "@nested", "--cfg", "last"]
    assert capture["argv"] == [*COMPILE, "--out-dir", "out", *expanded]


def test_response_files_reach_rustc_as_they_are(bench: Bench) -> None:
    """The compiler itself is given `@file`."""
    bench.write_rustc('echo "$@" > seen; touch out/app-34cd')
    (bench.root / "args").write_text("--cfg\nx\n")
    bench.compile("@args")
    assert (bench.root / "seen").read_text().split()[-2] == "@args"


def test_a_whole_compile_in_a_response_file_is_captured(bench: Bench) -> None:
    """Cargo puts all arguments into a file when there are many."""
    (bench.root / "args").write_text("\n".join([*COMPILE, "--out-dir", "out"]))
    assert bench.run("@args") == (0, "", "")
    (path,) = bench.files()
    assert json.loads(path.read_text())["argv"] == [*COMPILE, "--out-dir", "out"]


def test_arguments_that_are_not_utf8_are_kept(bench: Bench) -> None:
    """Such bytes become lone surrogates, which go back byte for byte."""
    capture = bench.compile(b"--cfg=\xff")
    assert os.fsencode(capture["argv"][-1]) == b"--cfg=\xff"


def test_a_failed_compile_removes_its_capture(bench: Bench) -> None:
    """The exit status passes through, and a capture that no longer describes the disk goes."""
    bench.compile()
    bench.write_rustc("echo broken >&2; exit 101")
    assert bench.run(*COMPILE, "--out-dir", "out") == (101, "", "broken\n")
    assert bench.files() == []


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_death_by_a_signal_passes_through(bench: Bench, number: signal.Signals) -> None:
    """Cargo sees how the compiler ended, and no capture is left."""
    bench.compile()
    bench.write_rustc(f"ulimit -c 0; kill -{number.value} $$")
    assert bench.run(*COMPILE, "--out-dir", "out") == (-number, "", "")
    assert bench.files() == []


def interrupt_group(process: Any) -> None:
    """What a terminal does on Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def terminate_shim(process: Any) -> None:
    """What `kill` does."""
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("end", [interrupt_group, terminate_shim] * 5)
def test_signals_end_compiler_and_shim(bench: Bench, end: Callable[[Any], None]) -> None:
    """Both end of the signal, quietly; nothing is left behind."""
    bench.write_rustc("echo started; exec sleep 60")
    process = bench.start(*COMPILE, "--out-dir", "out")
    assert process.stdout.readline() == b"started\n"
    end(process)
    # End of file: nobody holds the pipe any more, the compiler included.
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM)
    assert bench.files() == []


@pytest.mark.parametrize("obstacle", ["captures", "base-env.json", "args"])
def test_errors_of_the_shim_do_not_break_the_build(bench: Bench, obstacle: str) -> None:
    """One line on standard error, and the compile succeeds all the same."""
    broken = {"captures": "a file", "base-env.json": "{", "args": None}[obstacle]
    if broken:
        (bench.root / obstacle).write_text(broken)
    status, stdout, stderr = bench.run(*COMPILE, "--out-dir", "out", *(["@args"] if broken is None else []))
    assert (status, stdout, stderr.count("\n")) == (0, "", 1)
    assert stderr.startswith("hotpatchd: ")
    assert (bench.root / "out" / "app-34cd").exists()


def test_a_missing_compiler_ends_as_in_a_shell(bench: Bench) -> None:
    """Status 127 and its name."""
    bench.rustc.unlink()
    status, _, stderr = bench.run("-vV")
    assert (status, stderr) == (127, f"hotpatchd: cannot run {bench.rustc}: No such file or directory\n")


def test_without_a_capture_directory_it_only_runs_the_compiler(bench: Bench) -> None:
    """A cargo that somebody else starts with the wrapper works."""
    assert bench.run(*COMPILE, "--out-dir", "out", HOTPATCHD_CAPTURE_DIR="") == (0, "", "")
    assert not bench.captures.exists()


def test_the_developers_own_wrapper_is_chained(bench: Bench) -> None:
    """It runs as `WRAPPER rustc ARGS…`; the capture is that of rustc."""
    wrapper = bench.root / "sccache"
    wrapper.write_text(f'#!/bin/sh\necho "$1" > {bench.root}/wrapped\nexec "$@"\n')
    wrapper.chmod(0o755)
    capture = bench.compile(HOTPATCHD_CHAIN_WRAPPER=str(wrapper))
    assert (bench.root / "wrapped").read_text() == f"{bench.rustc}\n"
    assert capture["rustc"] == str(bench.rustc)


def test_it_can_be_both_wrappers(bench: Bench) -> None:
    """Cargo then calls it with itself as the first argument."""
    assert bench.run(*COMPILE, "--out-dir", "out", wrappers=(bench.shim,)) == (0, "", "")
    (path,) = bench.files()
    assert json.loads(path.read_text())["rustc"] == str(bench.rustc)


def test_a_workspace_wrapper_between_it_and_rustc_is_run(bench: Bench) -> None:
    """Cargo's order is `RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER rustc`."""
    wrapper = bench.root / "inner"
    wrapper.write_text(f'#!/bin/sh\ntouch {bench.root}/wrapped\nexec "$@"\n')
    wrapper.chmod(0o755)
    args = (*COMPILE, "--out-dir", "out")
    assert bench.run(*args, wrappers=(wrapper,), RUSTC_WORKSPACE_WRAPPER=str(wrapper)) == (0, "", "")
    assert (bench.root / "wrapped").exists()
    assert json.loads(bench.files()[0].read_text())["rustc"] == str(bench.rustc)


def test_the_toolchain_is_asked_once(bench: Bench) -> None:
    """A second compile reads what the first wrote down; another rustc at the same path is asked again."""
    bench.compile()
    bench.compile()
    assert (bench.root / "asked").read_text() == "asked\n"
    bench.write_rustc("touch out/app-34cd  # updated", TOOLCHAIN.replace("95", "96"))
    assert bench.compile()["toolchain"] == TOOLCHAIN.replace("95", "96")


def test_a_toolchain_proxy_is_asked_each_time(bench: Bench) -> None:
    """A rustup proxy stays the same file when its toolchain changes."""
    (bench.root / "toolchain" / "lib" / "rustlib").rmdir()
    bench.compile()
    bench.compile()
    assert (bench.root / "asked").read_text() == "asked\nasked\n"


@pytest.mark.parametrize(
    ("args", "toolchain", "asked"),
    [
        (("--emit=dep-info,link",), TOOLCHAIN, True),
        (("--crate-type", "cdylib"), TOOLCHAIN, True),
        (("--test", "--crate-type", "lib"), TOOLCHAIN, True),
        (("--emit=dep-info,metadata",), TOOLCHAIN, False),
        (("--crate-type", "lib"), TOOLCHAIN, False),
        (("--crate-type=staticlib",), TOOLCHAIN, False),
        ((), TOOLCHAIN.replace("1.95", "1.72"), False),
    ],
)
def test_the_link_line_is_asked_for_where_there_is_one(
    bench: Bench, args: tuple[str, ...], toolchain: str, asked: bool
) -> None:
    """Crates that link get one more argument, other crates and older compilers get cargo's own."""
    bench.write_rustc('echo "$@" > seen; echo "${LINK_ARGS:-none}" > link', toolchain)
    assert bench.run(*COMPILE, *args) == (0, "", "")
    assert ((bench.root / "link").read_text() != "none\n") == asked
    given = (bench.root / "seen").read_text().split()
    assert (given[:-1] if asked else given) == [*COMPILE, *args]


TIP_ARGS = {"HOTPATCHD_TIP_ARGS": '["-Clink-arg=-Wl,--export-dynamic-symbol=main", "-lm"]'}


@pytest.mark.parametrize("kind", ["bin", "cdylib,rlib"])
def test_tip_arguments_reach_a_program_and_its_capture(bench: Bench, kind: str) -> None:
    """They stand behind cargo's own, and are told apart."""
    bench.write_rustc('echo "$@" > seen; touch out/app-34cd out/libapp-34cd.so')
    capture = bench.compile("--crate-type", kind, **TIP_ARGS, CARGO_PRIMARY_PACKAGE="1")
    added = ["-Clink-arg=-Wl,--export-dynamic-symbol=main", "-lm"]
    seen = (bench.root / "seen").read_text().split()
    assert seen[:-1] == capture["argv"] == [*COMPILE, "--out-dir", "out", "--crate-type", kind, *added]
    assert capture["tip_args"] == added


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--crate-type", "lib"), {"CARGO_PRIMARY_PACKAGE": "1"}),
        (("--crate-type", "proc-macro"), {"CARGO_PRIMARY_PACKAGE": "1"}),
        (("--crate-name", "build_script_build"), {"CARGO_PRIMARY_PACKAGE": "1"}),
        ((), {}),
    ],
    ids=["library", "proc macro", "build script", "dependency"],
)
def test_tip_arguments_reach_nothing_else(bench: Bench, args: tuple[str, ...], env: dict[str, str]) -> None:
    """What only runs during the build, or is linked into a program, is compiled as cargo says."""
    bench.write_rustc('echo "$@" > seen')
    assert bench.run(*COMPILE, *args, wrappers=(), **TIP_ARGS, **env) == (0, "", "")
    assert "-lm" not in (bench.root / "seen").read_text().split()


def given_to_rustc(bench: Bench, *args: str, **env: str) -> list[str]:
    """What the compiler gets besides the arguments, which the capture has, and the question for the link line."""
    bench.write_rustc('printf "%s\\n" "$@" > given; touch out/app-34cd out/libapp-34cd.so')
    assert bench.compile(*args, **env)["argv"][-len(args) :] == list(args)
    given = (bench.root / "given").read_text().splitlines()
    added = given[given.index(args[-1], len(COMPILE) + 2) + 1 :]
    return [arg for arg in added if not arg.startswith("--print=link-args=")]


APART = ["-Cllvm-args=-mergefunc-use-aliases=0", "-Cllvm-args=-mergefunc-preserve-debug-info"]


def test_an_optimised_crate_keeps_names_and_signatures(bench: Bench) -> None:
    """The arguments that see to it reach rustc, and are the shim's own: the capture is without them."""
    assert given_to_rustc(bench, "-C", "opt-level=3", "-C", "incremental=i") == [
        *APART,
        "-Clink-dead-code=yes",
        "-Clink-arg=-Wl,--gc-sections",
    ]


@pytest.mark.parametrize(
    ("args", "units"), [((), ["-Ccodegen-units=16"]), (("-C", "codegen-units=1"), [])], ids=["default", "one unit"]
)
def test_an_optimised_crate_keeps_its_units_when_it_is_made_incremental(
    bench: Bench, args: tuple[str, ...], units: list[str]
) -> None:
    """Rustc would cut it into 256 otherwise."""
    given = given_to_rustc(bench, "-C", "opt-level=3", *args)
    assert given[4:] == [f"-Cincremental={bench.captures / 'incremental'}", *units]


@pytest.mark.parametrize("option", ["lto=fat", "linker-plugin-lto"])
def test_crates_that_are_optimised_together_keep_equal_functions_apart(bench: Bench, option: str) -> None:
    """Nothing else: rustc refuses incremental compilation with them."""
    assert given_to_rustc(bench, "-C", "opt-level=3", "-C", option) == APART


@pytest.mark.parametrize(
    ("args", "added"),
    [
        (("-C", "link-dead-code=no"), APART),
        (("-C", "link-dead-code=no", "-C", "llvm-args=-mergefunc-use-aliases=1"), APART[1:]),
    ],
    ids=["names", "aliases"],
)
def test_what_the_developer_chose_for_an_optimised_crate_is_kept(
    bench: Bench, args: tuple[str, ...], added: list[str]
) -> None:
    """LLVM takes an argument once."""
    assert given_to_rustc(bench, "-C", "opt-level=3", *args) == added


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("-C", "opt-level=0"), {}),
        (("-C", "opt-level=3", "--target", "aarch64-apple-darwin"), {}),
        (("-C", "opt-level=3", "-C", "linker=rust-lld"), {}),
        (("-C", "opt-level=3", "-C", "linker-flavor=ld.lld"), {}),
        (("-C", "opt-level=3", "--crate-type=proc-macro"), {}),
        (("-C", "opt-level=3"), {"CARGO_MANIFEST_DIR": "/home/dev/.cargo/registry/src/index/app-1.0.0"}),
    ],
    ids=str,
)
def test_other_crates_are_compiled_as_cargo_says(bench: Bench, args: tuple[str, ...], env: dict[str, str]) -> None:
    """Not optimised, not ELF, not run in a program, or not edited: nothing is added."""
    assert given_to_rustc(bench, *args, **env) == []


def test_only_what_the_compile_may_read_is_kept_of_the_environment(bench: Bench) -> None:
    """What cargo added is kept; what was there before, secrets and settings of wrappers are not."""
    bench.env["EDITOR"] = "vi"
    bench.write_base_env()
    kept = {"OUT_DIR": "/o", "GIT_SHA": "1", "CARGO_PKG_NAME": "a", "RUST_BACKTRACE": "1", "LC_ALL": "C"}
    dropped = {"MAKEFLAGS": "-j", "RUSTC_WRAPPER": "w", "CARGO_REGISTRIES_X_TOKEN": "t"}
    expected = {"PATH": bench.env["PATH"], "HOME": "/home/dev", "LANG": "C.UTF-8"} | kept
    assert bench.compile(**kept, **dropped)["env"] == expected


def test_the_compiler_sees_the_environment_of_cargo(bench: Bench) -> None:
    """Python's own addition in the C locale is taken back."""
    bench.write_rustc("env > seen; touch out/app-34cd")
    bench.compile(LANG="", PWD=str(bench.root))
    seen = dict(line.split("=", 1) for line in (bench.root / "seen").read_text().splitlines())
    assert "LC_CTYPE" not in seen


def test_the_compiler_has_default_signals(bench: Bench) -> None:
    """Python ignores SIGPIPE and SIGXFSZ for itself; the compiler must not inherit that."""
    bench.write_rustc("grep SigIgn /proc/self/status > seen; touch out/app-34cd")
    bench.compile()
    ignored = int((bench.root / "seen").read_text().split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_the_key_is_safe_as_a_file_name(bench: Bench) -> None:
    """A target specification gives its stem; odd characters are escaped."""
    bench.write_rustc("touch out/app-34cd")
    bench.compile("--target", "/specs/my board/é.json", "--crate-type", "bin,cdylib")
    assert [path.name for path in bench.files()] == ["app-12ab-bin+cdylib-%C3%A9.json"]


def test_captures_are_readable_by_the_owner_only(bench: Bench) -> None:
    """They hold parts of the environment."""
    bench.compile()
    assert bench.files()[0].stat().st_mode & 0o777 == 0o600


def test_it_imports_nothing_of_the_package(bench: Bench) -> None:
    """The installed shim runs with the standard library alone, without site packages."""
    assert bench.shim.read_text().startswith(f"#!{os.path.realpath(sys.executable)} -ISE\n")
    assert "import hotpatchd" not in bench.shim.read_text()
