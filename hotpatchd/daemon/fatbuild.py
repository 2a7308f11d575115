"""The fat build: an ordinary `cargo build`, during which the shim captures every crate that can be edited."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpatchd.core.capture import Capture, link_order, with_externs
from hotpatchd.core.devtools import HOT_CALL_CRATES
from hotpatchd.core.errors import BuildError
from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon.capture_store import CaptureListing, CaptureProblem, CaptureStore
from hotpatchd.daemon.cargo import run_cargo
from hotpatchd.daemon.cargo_config import manifest_lto, profile_variable, rustc_of, user_wrapper
from hotpatchd.daemon.full_build import (
    FullBuildInputs,
    ScriptRun,
    accept_untraced,
    full_build_inputs,
    is_outdated,
    make_outdated,
    outdated_scripts,
)
from hotpatchd.daemon.tracing import Tracer, find_tracer, scope_of

_SHIM = "hotpatchd_rustc_wrapper.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that the developer can edit: a workspace member, or a path dependency of one.

    Args:
        id: cargo's.
        name: of the package.
        manifest_path: of its `Cargo.toml`.
        build_script: None where there is none.
        default_run: the binary that it names as its default.
    """

    id: str
    name: str
    manifest_path: Path
    build_script: Path | None
    default_run: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What `cargo metadata` says.

    Args:
        root: of the workspace.
        target_dir: where results go; the daemon's state too.
        build_dir: where intermediate files go; cargo's default is the same.
        packages: all that can be edited.
        spills: whether such a package, or one that depends on such a package, is outside the workspace.
        hot_call_crates: which of the crates for hot calls any package uses.
    """

    root: Path
    target_dir: Path
    build_dir: Path
    packages: tuple[Package, ...]
    spills: bool
    hot_call_crates: frozenset[str]

    @property
    def source_dirs(self) -> tuple[Path, ...]:
        """Where the sources are: the workspace, and each package, which may be elsewhere."""
        return (self.root, *(package.manifest_path.parent for package in self.packages))

    @property
    def output_dirs(self) -> tuple[Path, ...]:
        """Where results go; these may be among the sources."""
        return (self.target_dir, self.build_dir)

    @property
    def state_dir(self) -> Path:
        """The daemon's directory."""
        return self.target_dir / "hotpatchd"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltProgram:
    """A program that a fat build made, or a shared library for programs that others build.

    Args:
        executable: the host binary, where cargo puts it for people.
        tip: the capture of the crate that it was linked from; `tip.outputs` has its other name.
        captures: the crates that an edit can make necessary to compile again, dependencies first, `tip` last.
    """

    executable: Path
    tip: Capture
    captures: tuple[Capture, ...]

    @property
    def linked(self) -> Path:
        """The same file by the name that rustc gave it; a plain `cargo build` does not put another in its place."""
        outputs = (Path(output.path) for output in self.tip.outputs)
        return next(
            (path for path in outputs if path.suffix == self.executable.suffix and path.exists()), self.executable
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FatBuild:
    """What a fat build made.

    Args:
        programs: those that were asked for, at least one.
        is_library: whether these are shared libraries.
        captures: of all programs, each after those that it depends on.
        build_time: proc macros and build scripts of these packages, and what those use, as far as the developer
            can edit it; that needs a fat build. A crate can be in both.
        packages: of `captures`.
        inputs: what, besides the code of `captures`, needs a fat build when it is edited.
        workspace: as it was before the build.
        problems: captures that were found unusable, and were left alone or made again.
        recompiled: names of the targets that cargo took as fresh and that had to be compiled for their capture.
        lto: the profile's setting that it was built without, as the manifest has it.
    """

    programs: tuple[BuiltProgram, ...]
    is_library: bool
    captures: tuple[Capture, ...]
    build_time: tuple[Capture, ...]
    packages: tuple[Package, ...]
    inputs: FullBuildInputs
    workspace: Workspace
    problems: tuple[CaptureProblem, ...]
    recompiled: tuple[str, ...]
    lto: str | None

    @property
    def executable(self) -> Path:
        """The first program's host binary."""
        return self.programs[0].executable

    @property
    def tip(self) -> Capture:
        """The capture of the crate that the first program was linked from."""
        return self.programs[0].tip

    @property
    def notes(self) -> Iterator[str]:
        """What the developer should know of it, in sentences."""
        for program in self.inputs.untraced:
            yield f"a build script ran {program}, and what that reads cannot be traced"
        if self.lto:
            yield f"built without `lto = {self.lto}`, which makes the program one piece that cannot be patched"

    @property
    def full_build(self) -> Mapping[str, str]:
        """Absolute path → what it is, of what needs a fat build when it is edited."""
        return self.inputs.files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Artifact:
    """A `compiler-artifact` message of a package that can be edited."""

    package: Package
    target: str
    kinds: frozenset[str]
    files: tuple[str, ...]
    identities: tuple[tuple[int, int], ...]
    executable: Path | None

    @property
    def linked(self) -> Path:
        """What the linker made: the program, or the shared library among the files."""
        libraries = (Path(file) for file in self.files if not file.endswith((".rlib", ".rmeta", ".a")))
        return self.executable or next(libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """What cargo said on its standard output."""

    artifacts: tuple[_Artifact, ...]
    runs: tuple[ScriptRun, ...]


async def load_workspace(selection: CargoSelection, *, cwd: Path, environ: Mapping[str, str]) -> Workspace:
    """Asks cargo for the workspace; cargo downloads what is missing.

    Args:
        selection: what will be built.
        cwd: where cargo runs.
        environ: cargo's environment.

    Raises:
        BuildError: cargo cannot be run, or fails; it has shown why.
    """
    args = ["metadata", "--format-version=1", *selection.metadata_args()]
    record = json.loads(await run_cargo(args, cwd=cwd, environ=environ, foreground=True))
    local = {package["id"] for package in record["packages"] if package["source"] is None}
    members = set(record["workspace_members"])
    spills = any(
        node["id"] not in members and (node["id"] in local or not local.isdisjoint(node["dependencies"]))
        for node in record["resolve"]["nodes"]
    )
    resolved = {node["id"] for node in record["resolve"]["nodes"]}
    target_dir = cwd / selection.target_dir if selection.target_dir else Path(record["target_directory"])
    build_dir = record.get("build_directory", record["target_directory"])
    return Workspace(
        root=Path(record["workspace_root"]),
        target_dir=target_dir,
        build_dir=target_dir if build_dir == record["target_directory"] else Path(build_dir),
        packages=tuple(_package(package) for package in record["packages"] if package["id"] in local),
        spills=spills,
        hot_call_crates=HOT_CALL_CRATES & {p["name"] for p in record["packages"] if p["id"] in resolved},
    )


async def tracer_for(
    workspace: Workspace, *, environ: Mapping[str, str], notice: Callable[[str], None]
) -> Tracer | None:
    """What writes down which files of a workspace builds read; None where nothing can.

    Args:
        workspace: what is built.
        environ: cargo's environment.
        notice: is told why there is none, where there could be one.
    """
    scope = scope_of(workspace.source_dirs, workspace.output_dirs)
    return await find_tracer(Path(rustc_of(environ)), scope, workspace.state_dir / "captures", notice)


async def fat_build(
    selection: CargoSelection,
    workspace: Workspace,
    state_dir: Path,
    *,
    cwd: Path,
    environ: Mapping[str, str],
    tip_args: Sequence[str] = (),
    waiting: Callable[[str], None] | None = None,
    tracer: Tracer | None = None,
) -> FatBuild:
    """Builds, and captures; cargo's own output and progress go to standard error.

    A crate that cargo takes as fresh and that has no capture that can be used is compiled again, once; so is a tip
    that was linked with other `tip_args`, of which cargo knows nothing. The same goes for one whose proc macros read
    something that changed since, and for a build script that did so without telling cargo, or ran without the tracer.

    Link-time optimisation across crates is left out: it makes the program one piece, in which functions have lost
    arguments and names, and std is no longer what a patch could be linked with. Who sets it by cargo's variable has it.

    Args:
        selection: what to build.
        workspace: of `load_workspace`, for the same selection.
        state_dir: where captures and the shim are kept.
        cwd: where cargo runs.
        environ: cargo's environment.
        tip_args: arguments for rustc, besides cargo's, where the program itself is compiled and linked.
        waiting: is told when cargo waits for another cargo, and for which.
        tracer: writes down what build scripts and proc macros read; None where nothing can.

    Raises:
        BuildError: cargo fails (it has shown why), a crate cannot be captured, or not exactly one program results.
    """
    store = CaptureStore(state_dir / "captures")
    args = ["build", "--message-format=json-render-diagnostics", *selection.cargo_args()]
    manifest = workspace.root / "Cargo.toml"
    lto = manifest_lto(selection.cargo_profile, manifest=manifest, cwd=cwd, environ=environ)
    if lto:
        environ = {**environ, profile_variable(selection.cargo_profile, "lto"): "false"}
    # Before the shim's variables: what is the same for all compiles is no part of a capture.
    environ = tracer.build_environ(environ) if tracer else environ
    environ = _shim_environ(workspace, store.directory, install_shim(state_dir), cwd=cwd, environ=environ)
    if tip_args:
        environ["HOTPATCHD_TIP_ARGS"] = json.dumps(tip_args)

    async def build() -> tuple[_Report, CaptureListing]:
        identities: dict[str, tuple[int, int]] = {}

        def take(line: bytes) -> None:
            # Before another cargo puts a file of its own in this place.
            files = json.loads(line).get("filenames", ())
            identities.update({file: identity for file in files for identity in _identities([file])})

        messages = await run_cargo(args, cwd=cwd, environ=environ, on_stdout=take, waiting=waiting)
        return _report(messages, workspace, identities), await asyncio.to_thread(store.load_all)

    report, listing = await build()
    problems, missing = listing.problems, _missing(report, listing, selection, tip_args)
    outdated = outdated_scripts(report.runs, tracer) if tracer else []
    if tracer:
        stale = [artifact for artifact, made in _pair(report, listing) if made and is_outdated(made, tracer)]
        missing = list(dict.fromkeys([*missing, *stale]))
    if missing or outdated:
        if missing:
            await asyncio.to_thread(_make_dirty, missing, workspace)
        for run in outdated:
            make_outdated(run)
        report, listing = await build()
        if tracer:
            accept_untraced(report.runs, tracer)
    if still_missing := _missing(report, listing, selection, tip_args):
        names = ", ".join(artifact.target for artifact in still_missing)
        package = still_missing[0].package.name
        raise BuildError(
            f"no capture of {names} could be made",
            hint=f"run `cargo clean -p {package}` and try again; see above for what the shim said",
        )
    made = {artifact: capture for artifact, capture in _pair(report, listing) if capture is not None}
    local_dirs = {_dir(package) for package in workspace.packages}
    programs = tuple(
        _built_program(artifact, made[artifact], listing, local_dirs)
        for artifact in _choose_tips(report.artifacts, selection)
    )
    captures = tuple({capture.key: capture for program in programs for capture in program.captures}.values())
    dirs = {capture.manifest_dir for capture in captures}
    packages = tuple(package for package in workspace.packages if _dir(package) in dirs)
    build_time = _build_time(captures, list(made.values()), listing, local_dirs)
    all_dirs = dirs | {capture.manifest_dir for capture in build_time}
    involved = [package for package in workspace.packages if _dir(package) in all_dirs]
    return FatBuild(
        programs=programs,
        is_library=selection.lib,
        captures=captures,
        build_time=build_time,
        packages=packages,
        inputs=full_build_inputs(
            root=workspace.root,
            manifests=[package.manifest_path for package in involved],
            scripts=[package.build_script for package in involved if package.build_script],
            runs=[run for run in report.runs if str(run.package_dir) in all_dirs],
            captures=captures,
            build_time=build_time,
            profile=selection.cargo_profile,
            cwd=cwd,
            environ=environ,
            tracer=tracer,
        ),
        workspace=workspace,
        problems=problems,
        recompiled=tuple(artifact.target for artifact in missing),
        lto=lto,
    )


def _built_program(artifact: _Artifact, tip: Capture, listing: CaptureListing, local_dirs: Set[str]) -> BuiltProgram:
    captures = link_order(tip, listing.captures, local_dirs)
    return BuiltProgram(executable=artifact.linked, tip=captures[-1], captures=captures)


def install_shim(state_dir: Path) -> Path:
    """Puts the shim where cargo can run it; the path is stable, since cargo's fingerprints contain it.

    The first line names this interpreter: a `python3` found on PATH can be another one, or a slow launcher. The
    kernel takes neither a long name nor one with spaces there, so those go through `sh`, in a line that is an
    expression to Python.
    """
    bundled = Path(__file__).parents[1] / "_bundled" / "wrapper" / _SHIM
    source = bundled if bundled.exists() else Path(__file__).parents[2] / "wrapper" / _SHIM
    python = os.path.realpath(sys.executable)
    first = f"#!{python} -ISE\n"
    # Source: linux/fs/binfmt_script.c; BINPRM_BUF_SIZE was 128 before Linux 5.1.
    if len(os.fsencode(first)) > 127 or python.split() != [python]:
        first = f"#!/bin/sh\n'''exec' {shlex.quote(python)} -ISE \"$0\" \"$@\"\n' '''\n"
    text = first + source.read_text(encoding="utf-8").partition("\n")[2]
    shim = state_dir / "shim" / "rustc-wrapper"
    if not shim.exists() or shim.read_text(encoding="utf-8") != text:
        shim.parent.mkdir(parents=True, exist_ok=True)
        temporary = shim.with_name(f".{os.getpid()}.{shim.name}")
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(shim)
    return shim


def _shim_environ(
    workspace: Workspace, capture_dir: Path, shim: Path, *, cwd: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """Cargo's environment for a build with the shim.

    `RUSTC_WORKSPACE_WRAPPER` is the better place: cargo runs it for members only, and gives what it built names of
    their own, so that the developer's plain builds and these leave each other alone. It does not see packages outside
    the workspace, and cargo runs a `RUSTC_WRAPPER` around it, which would take the shim for a compiler: in these two
    cases the shim is both.
    """
    capture_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    base_env = capture_dir.parent / "base-env.json"
    with open(os.open(base_env, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        json.dump(dict(environ), file)
    wrapper = user_wrapper("rustc-wrapper", cwd=cwd, environ=environ)
    workspace_wrapper = user_wrapper("rustc-workspace-wrapper", cwd=cwd, environ=environ)
    added = {"HOTPATCHD_CAPTURE_DIR": str(capture_dir), "HOTPATCHD_BASE_ENV": str(base_env)}
    if wrapper or workspace.spills:
        added |= {"RUSTC_WRAPPER": str(shim), "RUSTC_WORKSPACE_WRAPPER": workspace_wrapper or str(shim)}
        chained = wrapper
    else:
        added |= {"RUSTC_WORKSPACE_WRAPPER": str(shim)}
        chained = workspace_wrapper
    return {**environ, **added, "HOTPATCHD_CHAIN_WRAPPER": chained or ""}


def _package(record: Mapping[str, Any]) -> Package:
    scripts = [target["src_path"] for target in record["targets"] if "custom-build" in target["kind"]]
    return Package(
        id=record["id"],
        name=record["name"],
        manifest_path=Path(record["manifest_path"]),
        build_script=Path(scripts[0]) if scripts else None,
        default_run=record.get("default_run"),
    )


def _dir(package: Package) -> str:
    return str(package.manifest_path.parent)


def _report(messages: bytes, workspace: Workspace, identities: Mapping[str, tuple[int, int]]) -> _Report:
    packages = {package.id: package for package in workspace.packages}
    artifacts, runs = [], []
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("package_id") not in packages:
            continue
        if message["reason"] == "build-script-executed":
            package = packages[message["package_id"]]
            runs.append(ScriptRun(package_dir=package.manifest_path.parent, out_dir=Path(message["out_dir"])))
        elif message["reason"] == "compiler-artifact":
            target, executable = message["target"], message["executable"]
            artifacts.append(
                _Artifact(
                    package=packages[message["package_id"]],
                    target=target["name"],
                    kinds=frozenset(target["kind"]),
                    files=tuple(message["filenames"]),
                    identities=tuple(identities[file] for file in message["filenames"] if file in identities),
                    executable=Path(executable) if executable else None,
                )
            )
    return _Report(artifacts=tuple(artifacts), runs=tuple(runs))


def _pair(report: _Report, listing: CaptureListing) -> Iterator[tuple[_Artifact, Capture | None]]:
    """Each artifact with its capture. Cargo reports a binary by its second name, which is a hard link."""
    captured = {
        identity: capture for capture in listing.captures for identity in _identities(o.path for o in capture.outputs)
    }
    for artifact in report.artifacts:
        found = (captured[identity] for identity in artifact.identities if identity in captured)
        yield artifact, next(found, None)


def _missing(
    report: _Report, listing: CaptureListing, selection: CargoSelection, tip_args: Sequence[str]
) -> list[_Artifact]:
    """The artifacts without a capture, and the tip where its capture is of a compile with other `tip_args`."""
    tips = _choose_tips(report.artifacts, selection)
    return [
        artifact
        for artifact, capture in _pair(report, listing)
        if capture is None or (artifact in tips and capture.tip_args != tuple(tip_args))
    ]


def _identities(paths: Iterable[str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            continue
        yield stat.st_dev, stat.st_ino


def _build_time(
    captures: Sequence[Capture], made: Sequence[Capture], listing: CaptureListing, local_dirs: Set[str]
) -> tuple[Capture, ...]:
    """The crates that run while the program is built, as far as they can be edited: those of the tools' tools too."""
    macros = [capture for capture in with_externs(captures, listing.captures) if capture.is_proc_macro]
    dirs = {capture.manifest_dir for capture in captures}
    while True:
        scripts = [capture for capture in made if capture.is_build_script and capture.manifest_dir in dirs]
        found = [c for c in with_externs([*scripts, *macros], listing.captures) if c.manifest_dir in local_dirs]
        if dirs.issuperset(capture.manifest_dir for capture in found):
            return tuple(found)
        dirs.update(capture.manifest_dir for capture in found)


def _make_dirty(artifacts: Iterable[_Artifact], workspace: Workspace) -> None:
    """Removes what cargo built for these artifacts, under all names, so that it compiles them again.

    A missing output makes cargo compile just that unit. `cargo clean -p` would remove all targets of the package, those
    of the developer's plain builds too; the fingerprint directories are cargo's own business and their layout changes.
    """
    doomed = {identity for artifact in artifacts for identity in artifact.identities}
    for directory, subdirectories, names in os.walk(workspace.build_dir):
        # rustc hard-links metadata into its incremental cache, which cargo does not look at.
        subdirectories[:] = [name for name in subdirectories if name != "incremental"]
        for path in (os.path.join(directory, name) for name in names):
            if not doomed.isdisjoint(_identities([path])):
                os.unlink(path)


def _choose_tips(artifacts: Sequence[_Artifact], selection: CargoSelection) -> list[_Artifact]:
    if selection.lib:
        return [_choose_library(artifacts, selection.package)]
    programs = [a for a in artifacts if a.executable and not a.kinds.isdisjoint({"bin", "example"})]
    named = [
        a
        for kind, names in (("bin", selection.bin), ("example", selection.example))
        for name in names
        for a in programs
        if (a.target == name and kind in a.kinds)
    ]
    if named:
        return named
    if len(programs) > 1:
        programs = [a for a in programs if a.target == a.package.default_run] or programs
    if not programs:
        raise BuildError("cargo built no program", hint="name one with --bin, --example or -p; or add src/main.rs")
    if len(programs) > 1:
        names = ", ".join(sorted(artifact.target for artifact in programs))
        raise BuildError(f"cargo built several programs: {names}", hint="name one with --bin, --example or -p")
    return programs


def _choose_library(artifacts: Sequence[_Artifact], package: str | None) -> _Artifact:
    wanted = [a for a in artifacts if package in (None, a.package.name)] or artifacts
    libraries = next(filter(None, ([a for a in wanted if kind in a.kinds] for kind in ("cdylib", "dylib"))), [])
    if len(libraries) > 1:
        names = ", ".join(sorted(artifact.target for artifact in libraries))
        raise BuildError(f"cargo built several shared libraries: {names}", hint="name the package of one with -p")
    if libraries:
        return libraries[0]
    if static := next((a for a in wanted if "staticlib" in a.kinds), None):
        raise BuildError(
            f"the library {static.target} is static: it becomes part of the program that is linked with it",
            hint='add "cdylib" to `crate-type`, and have the program load that while you work on it',
        )
    names = ", ".join(sorted({a.target for a in wanted if not a.kinds.isdisjoint({"lib", "rlib"})}))
    raise BuildError(
        f"cargo built no shared library, but {names or 'none at all'}",
        hint="a Rust library is part of the programs that use it: name one with --bin or --example; "
        'or add `crate-type = ["cdylib"]` to [lib]',
    )
