"""Tracing what processes open, with the tracer in real programs, compiles and build scripts."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.thinplan import ThinCrate, plan_thin_crates
from hotpatchd.core.trace import Scope, Trace, parse_trace
from hotpatchd.daemon.compiler import Compiler
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.tracing import Tracer, ensure_tracer, find_tracer, scope_of
from tests.daemon.test_fatbuild import MANIFEST, Project

# Runs one function on one path; prints errno.
CALLS = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
int __open_2(const char *, int);
int __open64_2(const char *, int);
int __openat_2(int, const char *, int);
int __openat64_2(int, const char *, int);
// What programs call that were linked with glibc before 2.33.
#ifdef STATIC
#define old_stat(version, path, result) stat(path, result)
#else
int old_stat(int, const char *, struct stat *);
#ifdef __x86_64__
__asm__(".symver old_stat, __xstat@GLIBC_2.2.5");
#else
__asm__(".symver old_stat, __xstat@GLIBC_2.17");
#endif
#endif
#ifdef __x86_64__
enum { OLD_STAT = 1 };
#else
enum { OLD_STAT = 0 };
#endif
static void *many(void *number) {
    char path[64];
    for (int i = 0; i < 500; i++) {
        snprintf(path, sizeof path, "thread-%d-%d", (int)(long)number, i);
        if (open(path, O_RDONLY) >= 0 || errno != ENOENT) abort();
    }
    return 0;
}
int main(int argc, char **argv) {
    const char *call = argv[1], *path = argc > 2 ? argv[2] : "";
    char *run[] = {argv[2], argv[3], 0};
    struct stat st; struct stat64 st64; struct statx stx;
    pid_t child;
    int here = open("/", O_RDONLY | O_DIRECTORY), status;
    char from_root[4096];
    if (*path && *path != '/') snprintf(from_root, sizeof from_root, "%s/%s", getcwd(0, 0) + 1, path);
    errno = 0;
#define CALL(name, code) if (!strcmp(call, name)) { code; }
    CALL("open", open(path, O_RDONLY))
    CALL("open64", open64(path, O_RDONLY))
    CALL("__open_2", __open_2(path, O_RDONLY))
    CALL("__open64_2", __open64_2(path, O_RDONLY))
    CALL("openat", openat(here, from_root, O_RDONLY))
    CALL("openat64", openat64(here, from_root, O_RDONLY))
    CALL("__openat_2", __openat_2(here, from_root, O_RDONLY))
    CALL("__openat64_2", __openat64_2(here, from_root, O_RDONLY))
    CALL("rdwr", open(path, O_RDWR))
    CALL("directory", open(path, O_RDONLY | O_DIRECTORY))
    CALL("append", open(path, O_WRONLY | O_APPEND))
    CALL("truncate", open(path, O_WRONLY | O_TRUNC))
    CALL("create", open(path, O_WRONLY | O_CREAT | O_EXCL, 0640))
    CALL("creat", creat(path, 0600))
    CALL("fopen", fopen(path, "r"))
    CALL("fopen64", fopen64(path, "rb"))
    CALL("fopen-w", fopen(path, "w"))
    CALL("opendir", opendir(path))
    CALL("access", access(path, R_OK))
    CALL("eaccess", eaccess(path, R_OK))
    CALL("faccessat", faccessat(here, from_root, R_OK, 0))
    CALL("stat", stat(path, &st))
    CALL("stat64", stat64(path, &st64))
    CALL("lstat", lstat(path, &st))
    CALL("fstatat", fstatat(here, from_root, &st, 0))
    CALL("statx", statx(AT_FDCWD, path, 0, STATX_SIZE, &stx))
    CALL("old-stat", old_stat(OLD_STAT, path, &st))
    CALL("getenv", getenv(path))
    CALL("secure_getenv", secure_getenv(path))
    CALL("execve", execve(path, run, environ))
    CALL("execv", execv(path, run))
    CALL("execvp", execvp(path, run))
    CALL("execvpe", execvpe(path, run, environ))
    CALL("bare", char *none[] = {0}; execve(path, run, none))
    CALL("posix_spawn", posix_spawn(&child, path, 0, 0, run, environ); waitpid(child, &status, 0))
    CALL("posix_spawnp", posix_spawnp(&child, path, 0, 0, run, environ); waitpid(child, &status, 0))
    CALL("vfork", if (!vfork()) { execv(path, run); _exit(1); } wait(&status))
    int failed = errno;
    if (!strcmp(call, "threads")) {
        pthread_t threads[8];
        for (long i = 0; i < 8; i++) pthread_create(&threads[i], 0, many, (void *)i);
        for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    }
    printf("%d\n", failed);
    return 0;
}
"""


class Tools:
    """The tracer, and a program that calls libc's functions."""

    def __init__(self, directory: Path) -> None:
        self.library = asyncio.run(ensure_tracer(Path("rustc")))
        self.calls = directory / "calls"
        source = directory / "calls.c"
        source.write_text(CALLS)
        common = ["cc", "-w", "-pthread", str(source), "-o"]
        subprocess.run([*common, str(self.calls)], check=True)
        self.static = directory / "static"
        subprocess.run([*common, str(self.static), "-static", "-DSTATIC"], check=True)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return Tools(tmp_path_factory.mktemp("tools"))


class Place:
    """A directory in which traced programs run."""

    def __init__(self, tools: Tools, directory: Path) -> None:
        self.tools = tools
        self.root = directory / "w"
        self.root.mkdir()
        (self.root / "there").write_text("text")
        (self.root / "sub").mkdir()
        self.scope = scope_of([self.root], [self.root / "target"])
        self.file = directory / "trace"

    def run(self, *argv: str | Path, traced: bool = True, **environ: str) -> str:
        """Run a program in the directory; returns what it prints."""
        given = {**os.environ, **environ}
        if traced:
            given |= {
                "LD_PRELOAD": str(self.tools.library),
                "HOTPATCHD_TRACE": str(self.file),
                "HOTPATCHD_TRACE_SCOPE": self.scope.text,
            }
        return subprocess.run(argv, cwd=self.root, env=given, check=True, text=True, stdout=subprocess.PIPE).stdout

    def trace(self) -> Trace:
        """What was told."""
        return parse_trace(self.file.read_bytes(), self.scope) if self.file.exists() else Trace()

    def paths(self, *names: str) -> frozenset[str]:
        """Absolute."""
        return frozenset(str(self.root / name) for name in names)


@pytest.fixture
def place(tools: Tools, tmp_path: Path) -> Place:
    """With a file `there` and a directory `sub`."""
    return Place(tools, tmp_path)


OPENS = ["open", "open64", "__open_2", "__open64_2", "openat", "openat64", "__openat_2", "__openat64_2"]
OPENS += ["rdwr", "fopen", "fopen64"]
PROBES = ["access", "eaccess", "faccessat", "stat", "stat64", "lstat", "fstatat", "statx", "old-stat"]


@pytest.mark.parametrize("call", OPENS)
def test_a_file_that_is_opened(place: Place, call: str) -> None:
    """Whichever function does it, and from whichever directory."""
    place.run(place.tools.calls, call, "there")
    assert place.trace() == Trace(opened=place.paths("there"))


@pytest.mark.parametrize("call", [*OPENS, *PROBES, "opendir", "directory", "append", "truncate"])
def test_what_is_missing_is_told_and_the_error_is_as_without_the_tracer(place: Place, call: str) -> None:
    """What is looked for may come later."""
    plain = place.run(place.tools.calls, call, "sub/none", traced=False)
    assert place.run(place.tools.calls, call, "sub/none") == plain == "2\n"
    assert place.trace() == Trace(missing=place.paths("sub/none"))


@pytest.mark.parametrize("call", PROBES)
def test_what_is_found_and_not_opened_is_not_told(place: Place, call: str) -> None:
    """Compilers ask about very many files."""
    assert place.run(place.tools.calls, call, "there") == "0\n"
    assert place.trace() == Trace()


@pytest.mark.parametrize("call", ["opendir", "directory"])
def test_a_directory_that_is_listed(place: Place, call: str) -> None:
    """It is no file that is opened."""
    place.run(place.tools.calls, call, "sub")
    assert place.trace() == Trace(listed=place.paths("sub"))


@pytest.mark.parametrize("call", ["creat", "fopen-w", "create"])
def test_a_file_that_is_made_is_none_that_is_looked_for(place: Place, call: str) -> None:
    """It gets the mode that was asked for."""
    place.run(place.tools.calls, call, "made")
    assert place.trace() == Trace(written=place.paths("made"))
    if call == "create":
        assert (place.root / "made").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["creat", "fopen-w", "create"])
def test_a_file_that_cannot_be_made_is_not_looked_for(place: Place, call: str) -> None:
    """It is its directory that is missing."""
    assert place.run(place.tools.calls, call, "none/made") == "2\n"
    assert place.trace() == Trace()


def test_a_file_that_is_appended_to_is_neither_read_nor_made(place: Place) -> None:
    """Such as a log."""
    place.run(place.tools.calls, "append", "there")
    assert place.trace() == Trace()


@pytest.mark.parametrize("call", ["getenv", "secure_getenv"])
def test_variables_of_the_package_that_are_asked_for(place: Place, call: str) -> None:
    """Others are of no interest, as they do not change while the daemon runs."""
    place.run(place.tools.calls, call, "CARGO_PKG_DESCRIPTION")
    place.run(place.tools.calls, call, "HOME")
    assert place.trace() == Trace(variables=frozenset({"CARGO_PKG_DESCRIPTION"}))


@pytest.mark.parametrize("path", ["./sub/../there", "../w/there", "{root}/sub/.././there"])
def test_paths_are_told_without_detours(place: Place, path: str) -> None:
    """So that they can be compared."""
    place.run(place.tools.calls, "open", path.format(root=place.root))
    assert place.trace().opened == place.paths("there")


def test_what_is_out_of_scope_is_not_told(place: Place) -> None:
    """The file does not grow by what nobody wants to know."""
    (place.root / "target").mkdir()
    place.run(place.tools.calls, "open", "/etc/hosts")
    place.run(place.tools.calls, "open", "target/none")
    assert not place.file.exists()


def test_the_same_again_is_told_once(place: Place) -> None:
    """A program that looks a thousand times makes no long trace."""
    place.run("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do test -e none || :; done")
    assert place.file.read_bytes().count(b"/none\0") == 1


@pytest.mark.parametrize("call", ["execve", "execv", "execvp", "execvpe", "posix_spawn", "posix_spawnp", "vfork"])
def test_children_are_traced(place: Place, call: str) -> None:
    """However they are started; a program of the sources' own is an input."""
    program = place.root / "show.sh"
    program.write_text("#!/bin/sh\nread line < $1\nexit 0\n")
    program.chmod(0o755)
    place.run(place.tools.calls, call, str(program), "there")
    assert place.trace() == Trace(opened=place.paths("there", "show.sh"))


def test_ordinary_programs_are_traced(place: Place) -> None:
    """A shell, what it runs, and a script's interpreter."""
    code = "import os; open('sub/one'); os.listdir('sub'); os.path.exists('later')"
    (place.root / "sub" / "one").write_text("1")
    place.run("sh", "-c", f'cat there; test -f no-file; "{sys.executable}" -ISE -c "{code}"')
    trace = place.trace()
    assert trace.opened >= place.paths("there", "sub/one")
    assert trace.listed >= place.paths("sub")
    assert trace.missing >= place.paths("no-file", "later")
    assert trace.untraced == frozenset()


@pytest.mark.parametrize("call", ["execve", "posix_spawn", "vfork"])
def test_a_static_program_is_told_of_as_out_of_sight(place: Place, call: str) -> None:
    """Nothing can be preloaded into it."""
    place.run(place.tools.calls, call, str(place.tools.static), "open")
    assert place.trace() == Trace(untraced=frozenset({str(place.tools.static)}))


def test_a_static_program_that_is_found_on_path(place: Place) -> None:
    """It is told by where it was found."""
    place.run(place.tools.calls, "posix_spawnp", "static", "open", PATH=str(place.tools.static.parent))
    assert place.trace().untraced == {str(place.tools.static)}


def test_a_script_whose_interpreter_is_static(place: Place) -> None:
    """The script itself is no program."""
    script = place.root / "script"
    script.write_text(f"#! {place.tools.static} open\n")
    script.chmod(0o755)
    place.run(place.tools.calls, "posix_spawn", str(script))
    assert place.trace() == Trace(opened=place.paths("script"), untraced=frozenset({str(script)}))


def test_a_program_with_privileges_of_its_own(place: Place) -> None:
    """The loader preloads nothing into it."""
    program = place.tools.calls.with_name("privileged")
    program.write_bytes(place.tools.calls.read_bytes())
    program.chmod(0o4755)
    place.run(place.tools.calls, "posix_spawn", str(program), "exit")
    assert place.trace().untraced == {str(program)}


def test_a_program_in_an_environment_of_its_own(place: Place) -> None:
    """It does not get the tracer."""
    place.run(place.tools.calls, "bare", "/bin/true")
    assert place.trace().untraced == {"/bin/true"}


def test_threads_that_open_files_at_once(place: Place) -> None:
    """No record is lost or torn."""
    place.run(place.tools.calls, "threads")
    names = (f"thread-{thread}-{number}" for thread in range(8) for number in range(500))
    assert place.trace() == Trace(missing=place.paths(*names))


def test_a_long_path_is_left_out_and_breaks_nothing(place: Place) -> None:
    """The program gets the error that it would get anyway."""
    path = "sub/" * 1200 + "none"
    assert place.run(place.tools.calls, "open", path) == place.run(place.tools.calls, "open", path, traced=False)


def test_without_a_trace_to_write_nothing_happens(place: Place) -> None:
    """All of cargo has it preloaded, and build scripts alone are traced."""
    for environ in ({}, {"HOTPATCHD_TRACE_BUILD_SCRIPTS": "1"}, {"OUT_DIR": str(place.root / "sub" / "out")}):
        preloaded = {"LD_PRELOAD": str(place.tools.library), "HOTPATCHD_TRACE_SCOPE": place.scope.text, **environ}
        assert place.run(place.tools.calls, "open", "there", traced=False, **preloaded) == "0\n"
    assert sorted(path.name for path in place.root.rglob("*")) == ["sub", "there"]


def test_a_build_script_begins_a_trace_and_its_children_go_on(place: Place) -> None:
    """What the last run left is gone."""
    out_dir = place.root / "target" / "build" / "out"
    out_dir.mkdir(parents=True)
    file = out_dir.with_name("hotpatchd-trace")
    file.write_bytes(b"r%s/old\0" % bytes(place.root))
    environ = {
        "LD_PRELOAD": str(place.tools.library),
        "HOTPATCHD_TRACE_SCOPE": place.scope.text,
        "HOTPATCHD_TRACE_BUILD_SCRIPTS": "1",
        "OUT_DIR": str(out_dir),
    }
    place.run("sh", "-c", "test -e none; cat there", traced=False, **environ)
    assert parse_trace(file.read_bytes(), place.scope) == Trace(
        opened=place.paths("there"), missing=place.paths("none")
    )
    place.run("cat", "there", traced=False, CARGO_CRATE_NAME="app", **environ)
    assert parse_trace(file.read_bytes(), place.scope).missing == place.paths("none")


def test_a_root_behind_a_link(place: Place, tmp_path: Path) -> None:
    """Files are told by the name that was given for it."""
    (tmp_path / "link").symlink_to(place.root)
    place.scope = scope_of([tmp_path / "link"], [tmp_path / "link" / "target"])
    (place.root / "target").mkdir()
    place.run("cat", "there", tmp_path / "link" / "there")
    place.run(place.tools.calls, "open", "target/none")
    assert place.trace().paths == {str(tmp_path / "link" / "there")}


def test_the_developers_own_library_stays_preloaded(place: Place) -> None:
    """It comes first."""
    environ = Tracer(place.tools.library, place.scope, place.root).build_environ(
        {"LD_PRELOAD": "/lib/own.so", "A": "b"}
    )
    assert environ["LD_PRELOAD"] == f"/lib/own.so {place.tools.library}"
    assert (environ["A"], environ["HOTPATCHD_TRACE_SCOPE"]) == ("b", place.scope.text)


async def test_several_that_want_the_tracer_build_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a later one finds it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    log = tmp_path / "log"
    rustc = tmp_path / "rustc"
    rustc.write_text(f'#!/bin/sh\ncase "$*" in -vV) ;; *) echo built >> "{log}";; esac\nexec rustc "$@"\n')
    rustc.chmod(0o755)
    libraries = await asyncio.gather(*(ensure_tracer(rustc) for _ in range(3)))
    assert len({*libraries, await ensure_tracer(rustc)}) == 1
    assert log.read_text() == "built\n"


async def test_a_tracer_that_cannot_be_built_is_told_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits of what rustc lists still work."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    assert await find_tracer(Path("/bin/false"), Scope(roots=(), excluded=()), tmp_path, told.append) is None
    assert told == ["what proc macros and build scripts read is not traced: `/bin/false` cannot compile tracer.rs"]


async def test_a_cache_whose_path_cannot_be_preloaded_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader would take it for two."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with space"))
    with pytest.raises(BuildError, match="space or a colon"):
        await ensure_tracer(Path("rustc"))


MACROS = r"""
use proc_macro::TokenStream;
fn path(input: &TokenStream) -> std::path::PathBuf {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    std::path::Path::new(&dir).join(input.to_string().trim_matches('"'))
}
fn number(value: usize) -> TokenStream { value.to_string().parse().unwrap() }
#[proc_macro]
pub fn length(input: TokenStream) -> TokenStream { number(std::fs::read(path(&input)).unwrap().len()) }
#[proc_macro]
pub fn count(input: TokenStream) -> TokenStream { number(std::fs::read_dir(path(&input)).unwrap().count()) }
#[proc_macro]
pub fn exists(input: TokenStream) -> TokenStream { number(path(&input).exists() as usize) }
#[proc_macro]
pub fn shell(input: TokenStream) -> TokenStream {
    let output = std::process::Command::new("cat").arg(path(&input)).output().unwrap();
    number(output.stdout.len())
}
#[proc_macro]
pub fn about(_: TokenStream) -> TokenStream { number(std::env::var("CARGO_PKG_DESCRIPTION").unwrap().len()) }
"""
WORKSPACE = {
    "Cargo.toml": '[workspace]\nmembers = ["macros", "app"]\nresolver = "2"\n',
    "macros/Cargo.toml": MANIFEST.format(name="macros") + "[lib]\nproc-macro = true\n",
    "macros/src/lib.rs": MACROS,
    "app/Cargo.toml": MANIFEST.format(name="app") + '[dependencies]\nmacros = { path = "../macros" }\n',
    "app/src/main.rs": 'fn main() { println!("{}", 1); }\n',
    "app/page.html": "one",
    "app/pages/a.html": "a",
    "shared/query.sql": "select",
}


class Compiles:
    """A workspace with a proc macro, and its program's crate compiled with the tracer."""

    def __init__(self, place: Place, directory: Path, project: Project) -> None:
        self.project = project
        self.tracer = Tracer(
            place.tools.library,
            scope_of([project.root], [project.root / "target"]),
            project.state_dir / "captures",
        )
        self.compiler = Compiler(tracer=self.tracer)
        self.directory = directory
        self.crate: ThinCrate | None = None

    async def compile(self, body: str) -> bool:
        """Compile the program with another `main`; returns whether that works."""
        self.project.write({"app/src/main.rs": f'fn main() {{ println!("{{}}", {body}); }}\n'})
        if self.crate is None:
            build = await self.project.build()
            (self.crate,) = plan_thin_crates(build.captures, thin_dir=str(self.directory))
        return (await self.compiler.compile(self.crate)).ok

    @property
    def inputs(self) -> BuildInputs:
        """What the program is made from by now."""
        assert self.crate is not None
        return inputs_of([self.crate], {}, tracer=self.tracer)

    def macro_inputs(self) -> set[str]:
        """Those of the program's crate, by their path in the workspace."""
        found = self.inputs.macro_inputs
        assert set(found.values()) <= {("app",)}
        return {str(Path(path).relative_to(self.project.root)) for path in found}


@pytest.fixture
def compiles(place: Place, tmp_path: Path) -> Compiles:
    """A project of its own, not built yet."""
    project = Project(tmp_path / "project")
    project.write(WORKSPACE)
    return Compiles(place, tmp_path / "thin", project)


async def test_what_macros_read_is_an_input_of_the_crate(compiles: Compiles) -> None:
    """Of the newest compile: what it does not read any more is none."""
    assert await compiles.compile("1")
    assert compiles.macro_inputs() == set()
    assert await compiles.compile('macros::length!("page.html") + macros::shell!("../shared/query.sql")')
    assert compiles.macro_inputs() == {"app/page.html", "shared/query.sql"}
    assert await compiles.compile('macros::count!("pages") + macros::exists!("later.html")')
    assert compiles.macro_inputs() == {"app/pages", "app/later.html"}


async def test_a_file_that_rustc_lists_is_code_and_no_macro_input(compiles: Compiles) -> None:
    """Each has one class."""
    assert await compiles.compile('macros::length!("page.html") + include_str!("../page.html").len()')
    assert compiles.macro_inputs() == set()
    assert compiles.inputs.crates_of[str(compiles.project.root / "app/page.html")] == ("app",)


async def test_what_a_failed_compile_looked_for_is_an_input(compiles: Compiles) -> None:
    """As is what the last good one read; rustc lists neither then."""
    assert await compiles.compile('macros::length!("page.html")')
    assert not await compiles.compile('macros::length!("new.html")')
    assert compiles.macro_inputs() == {"app/page.html", "app/new.html"}
    (compiles.project.root / "app/new.html").write_text("new")
    assert await compiles.compile('macros::length!("new.html")')
    assert compiles.macro_inputs() == {"app/new.html"}


async def test_a_module_that_is_missing_is_code(compiles: Compiles) -> None:
    """Both places where rustc looks for it."""
    assert await compiles.compile("1")
    assert not await compiles.compile("deep::two()); } mod deep; fn other() { drop(0")
    missing = {str(compiles.project.root / "app/src" / name) for name in ("deep.rs", "deep/mod.rs")}
    assert missing <= compiles.inputs.crates_of.keys()


async def test_variables_that_macros_ask_for_are_known(compiles: Compiles) -> None:
    """As well as those of `env!`, which rustc lists."""
    assert await compiles.compile("macros::about!()")
    assert compiles.inputs.variables == {"CARGO_PKG_DESCRIPTION"}
    assert await compiles.compile('env!("CARGO_PKG_VERSION").len()')
    assert compiles.inputs.variables == {"CARGO_PKG_VERSION"}


async def test_the_trace_of_an_earlier_compile_can_be_used_again(compiles: Compiles) -> None:
    """With its objects."""
    assert await compiles.compile('macros::length!("page.html")')
    assert compiles.crate is not None
    record = compiles.tracer.record_of(compiles.crate)
    assert await compiles.compile("1")
    compiles.tracer.recall(compiles.crate, record)
    assert compiles.macro_inputs() == {"app/page.html"}


async def test_crates_have_traces_of_their_own(compiles: Compiles) -> None:
    """One that was not compiled has an empty one."""
    assert await compiles.compile('macros::length!("page.html")')
    assert compiles.crate is not None
    other = replace(compiles.crate, name="other")
    assert compiles.tracer.trace_of(other) == Trace()
