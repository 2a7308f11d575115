"""Which files need a full build when they are edited: what cargo itself, build scripts and proc macros are made from.

A build script that tells cargo what it reads (`cargo::rerun-if-changed`) is run again when that changes, and only then.
What it read besides is known from its trace; cargo is then made to run it again.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.manifest import Kind, Use, why_harmless
from hotpatchd.core.trace import Trace
from hotpatchd.daemon.cargo_config import config_files
from hotpatchd.daemon.crate_inputs import captured_files, captured_variables
from hotpatchd.daemon.tracing import Tracer, build_script_trace_file

_SCRIPT_INPUT = "input of a build script"
_TOOL_CODE = "code that runs while building"
_COMPARED: Mapping[str, Kind] = {
    "manifest": "manifest",
    "workspace manifest": "manifest",
    "lock file": "lock file",
    "cargo configuration": "cargo configuration",
}
_TOLD_PREFIXES = ("cargo:rerun-if-", "cargo::rerun-if-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRun:
    """A build script that cargo ran, or whose last run it holds for the newest.

    Args:
        package_dir: directory of its package.
        out_dir: its `OUT_DIR`.
    """

    package_dir: Path
    out_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptManifests:
    """What manifests, the lock file and cargo's configuration said when the program was built.

    Args:
        texts: file → what kind of file it is, and its text.
        use: what the program makes of them.
    """

    texts: Mapping[str, tuple[Kind, str]]
    use: Use

    def harmless(self, files: Iterable[str], variables: frozenset[str] = frozenset()) -> dict[str, str]:
        """Compare files with what they said; reads them.

        Args:
            files: absolute paths, of any files.
            variables: that are asked for by crates, as far as that is only known since they were compiled again.

        Returns:
            Those whose change makes no difference → why.
        """
        use = Use(profile=self.use.profile, variables=self.use.variables | variables, packages=self.use.packages)
        found = {}
        for file in files:
            if file not in self.texts or (text := _read(file)) is None:
                continue
            kind, before = self.texts[file]
            if reason := why_harmless(kind, before, text, use):
                found[file] = reason
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FullBuildInputs:
    """What a full build depends on, besides what rustc lists of the program's crates.

    Args:
        files: absolute path → what it is; also of directories, which stand for the names in them, and of files that
            are not there and would count if they were.
        macro_inputs: paths that proc macros of the program's crates read, as `BuildInputs.macro_inputs` has them
            later; an edit of them does not need a full build.
        manifests: for telling edits of them that make no difference.
        untraced: programs that build scripts ran, and of which it is not known what they read.
    """

    files: Mapping[str, str]
    macro_inputs: frozenset[str]
    manifests: KeptManifests
    untraced: tuple[str, ...]


def full_build_inputs(
    *,
    root: Path,
    manifests: Sequence[Path],
    scripts: Iterable[Path],
    runs: Iterable[ScriptRun],
    captures: Sequence[Capture],
    build_time: Sequence[Capture],
    profile: str,
    cwd: Path,
    environ: Mapping[str, str],
    tracer: Tracer | None = None,
) -> FullBuildInputs:
    """Gather what a full build depends on, right after one.

    Args:
        root: of the workspace.
        manifests: of the packages that the developer can edit and that are part of the build.
        scripts: their build scripts.
        runs: of these.
        captures: crates of the program.
        build_time: crates that run during the build, as far as they can be edited.
        profile: cargo profile.
        cwd: where cargo ran.
        environ: cargo's environment.
        tracer: that traced the build scripts; None if nothing did.
    """
    files = {
        **{file: _TOOL_CODE for capture in build_time for file in _compiled_from(capture, tracer)},
        **{str(directory / "build.rs"): "build script" for directory in (manifest.parent for manifest in manifests)},
        **{str(script): "build script" for script in scripts},
        **{str(file): "toolchain file" for file in _toolchain_files(root, cwd)},
        **{str(root / ".cargo" / name): "cargo configuration" for name in ("config", "config.toml")},
        **{str(file): "cargo configuration" for file in config_files(cwd, environ)},
        **{str(manifest): "manifest" for manifest in manifests},
        str(root / "Cargo.toml"): "workspace manifest" if root / "Cargo.toml" not in manifests else "manifest",
        str(root / "Cargo.lock"): "lock file",
    }
    linked = dict.fromkeys(_linker_inputs(captures, tracer), "input of the linker")
    files |= linked
    traces = {run: trace for run in runs if (trace := tracer and tracer.build_script_trace(run.out_dir))}
    read = {path for trace in traces.values() for path in trace.paths}
    code = {file for capture in captures for file in captured_files(capture)}
    read.update(path for run in runs for path in _told_inputs(run, traces.get(run), code))
    files = dict.fromkeys(read, _SCRIPT_INPUT) | files
    variables = {name for trace in traces.values() for name in trace.variables}
    variables.update(name for capture in (*captures, *build_time) for name in captured_variables(capture))
    # Cargo gives the package's name to every crate; it is that of the lock file.
    names = {dict(capture.env).get("CARGO_PKG_NAME", "") for capture in (*captures, *build_time)}
    texts = {
        file: (_COMPARED[what], text)
        for file, what in files.items()
        # What a build script reads, it may read in any way.
        if what in _COMPARED and file not in read and (text := _read(file)) is not None
    }
    return FullBuildInputs(
        files=files,
        macro_inputs=frozenset(path for capture in captures for path in _compiled_from(capture, tracer))
        - code
        - linked.keys(),
        manifests=KeptManifests(
            texts=texts, use=Use(profile=profile, variables=frozenset(variables), packages=frozenset(names))
        ),
        untraced=tuple(sorted({program for trace in traces.values() for program in trace.untraced})),
    )


def outdated_scripts(runs: Iterable[ScriptRun], tracer: Tracer) -> list[ScriptRun]:
    """The build scripts that have to run again though cargo holds their last run for the newest.

    That is so where something changed that was read and not told, and where it is not known what was read.
    """
    return [run for run in runs if _is_outdated(run, tracer.build_script_trace(run.out_dir))]


def is_outdated(capture: Capture, tracer: Tracer) -> bool:
    """Whether a proc macro read something, while a crate was compiled, that changed since; cargo does not know that."""
    trace = tracer.captured_trace(capture)
    # It is written when all macros have run.
    since = _mtime_ns(Path(capture.cwd, capture.dep_info)) if capture.dep_info else None
    if trace is None or since is None:
        return False
    return any(_changed_since(path, trace, since) for path in trace.paths.difference(captured_files(capture)))


def make_outdated(run: ScriptRun) -> None:
    """Have cargo run a build script again.

    Source: cargo's `custom_build.rs` and `fingerprint/mod.rs`: the saved output is what times are compared with, and
    without it the script is run.
    """
    _output(run).unlink(missing_ok=True)


def accept_untraced(runs: Iterable[ScriptRun], tracer: Tracer) -> None:
    """Note of scripts that ran and left no trace that they cannot be traced; they are not run again for that."""
    for run in runs:
        if tracer.build_script_trace(run.out_dir) is None:
            build_script_trace_file(run.out_dir).write_bytes(b"u" + os.fsencode(f"build script in {run.package_dir}\0"))


def _is_outdated(run: ScriptRun, trace: Trace | None) -> bool:
    if trace is None:
        return True
    # Source: cargo's `custom_build.rs`: the first is written before the script is started, the last when it has ended;
    # the output gets the time of the first.
    started, ended = (_mtime_ns(run.out_dir.with_name(name)) for name in ("invoked.timestamp", "root-output"))
    if started is None or ended is None:
        return False
    told = _told(run)
    if told is None:
        # Cargo looks at all files of the package.
        told = (run.package_dir,)
    # What the script itself writes is newer than its start.
    own = trace.listed | trace.written
    return any(
        _changed_since(path, trace, ended if path in own else started)
        for path in trace.paths
        if not any(Path(path).is_relative_to(place) for place in told)
    )


def _changed_since(path: str, trace: Trace, moment_ns: int) -> bool:
    """Whether something came, went, or was written to."""
    changed = _mtime_ns(Path(path))
    if path in trace.missing:
        return changed is not None
    return changed is None or changed > moment_ns


def _linker_inputs(captures: Sequence[Capture], tracer: Tracer | None) -> Iterator[str]:
    """The files among the sources that a captured link line names: linker scripts, libraries."""
    for capture in captures:
        trace = tracer and tracer.captured_trace(capture)
        for file in trace.opened if trace and capture.link_line else ():
            stem, extension = os.path.splitext(os.path.basename(file))
            option = f"-l{stem.removeprefix('lib')}" if extension in (".a", ".so") else stem + extension
            if option in str(capture.link_line) and file not in captured_files(capture):
                yield file


def _compiled_from(capture: Capture, tracer: Tracer | None) -> Iterator[str]:
    yield from captured_files(capture)
    trace = tracer and tracer.captured_trace(capture)
    yield from trace.paths if trace else ()


def _toolchain_files(root: Path, cwd: Path) -> Iterator[Path]:
    """Those that are there, and those of the workspace that could come."""
    for directory in (cwd, *cwd.parents):
        for name in ("rust-toolchain", "rust-toolchain.toml"):
            if directory.is_relative_to(root) or (directory / name).is_file():
                yield directory / name


def _told(run: ScriptRun) -> tuple[Path, ...] | None:
    """The files and directories whose change makes cargo run the script again; None for all of its package.

    Source: the cargo book, "Build scripts": their output is saved beside `out`.
    """
    try:
        lines = _output(run).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    told = [line.partition("rerun-if-")[2].partition("=") for line in lines if line.startswith(_TOLD_PREFIXES)]
    return tuple(run.package_dir / path for what, _, path in told if what == "changed") if told else None


def _told_inputs(run: ScriptRun, trace: Trace | None, code: Set[str]) -> Iterator[str]:
    """The same; a directory means all files in it.

    Scripts tell of `src` as a whole, and read little of it or nothing. Where it is known what they read, the program's
    code is no input for being told alone, nor are the names in a directory that is not listed.
    """
    known = trace.paths if trace and not trace.untraced else None
    for named in _told(run) or ():
        for path in (named, *named.rglob("*")) if named.is_dir() else (named,):
            is_spared = str(path) in code or path.is_dir()
            if known is None or not is_spared or str(path) in known:
                yield str(path)


def _output(run: ScriptRun) -> Path:
    return run.out_dir.with_name("output")


def _mtime_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _read(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
