"""Captures: the `rustc` commands of a fat build, as the shim wrote them down (docs/capture-format.md)."""

import json
import os.path
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from hotpatchd.core.errors import CaptureError

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureKey:
    """What tells one compile from another: a package's lib and bin share a name, build scripts all do."""

    crate_name: str
    metadata: str
    kind: str
    target: str

    @property
    def file_name(self) -> str:
        """The name of the capture's file."""
        text = f"{self.crate_name}-{self.metadata}-{self.kind}-{self.target}"
        return "".join(map(_escape_byte, text.encode(errors="surrogateescape"))) + ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file that a compile left, as it was when the compile ended."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One compiled crate.

    `argv` is rustc's, without rustc itself and with `@file` arguments expanded; `env` is sorted by name;
    `dep_info` and `link_line` are None where rustc wrote none; `tip_args` are the arguments at the end of `argv` that
    the daemon had added.
    """

    rustc: str
    argv: tuple[str, ...]
    cwd: str
    env: tuple[tuple[str, str], ...]
    toolchain: str
    outputs: tuple[Output, ...]
    dep_info: str | None
    link_line: str | None
    tip_args: tuple[str, ...] = ()

    @property
    def key(self) -> CaptureKey:
        """The key, which is also the file's name."""
        target = self.target or "host"
        if target.endswith(".json"):
            target = os.path.basename(target).removesuffix(".json")
        kind = "test" if self.is_test else "+".join(self.crate_types)
        return CaptureKey(crate_name=self.crate_name, metadata=self.metadata, kind=kind, target=target)

    @property
    def crate_name(self) -> str:
        """`--crate-name`: an identifier, so `my_app` for a target called `my-app`."""
        return next(reversed(argv_values(self.argv, "--crate-name")), "")

    @property
    def crate_types(self) -> tuple[str, ...]:
        """`--crate-type`, `bin` where none is given."""
        values = argv_values(self.argv, "--crate-type")
        return tuple(part for value in values for part in value.split(",")) or ("bin",)

    @property
    def metadata(self) -> str:
        """The last `-C metadata=`: cargo's hash of what identifies the compile."""
        return last_codegen_value(self.argv, "metadata") or ""

    @property
    def extra_filename(self) -> str:
        """The last `-C extra-filename=`, with its leading `-`."""
        return last_codegen_value(self.argv, "extra-filename") or ""

    @property
    def target(self) -> str | None:
        """The last `--target`: a triple, or the path of a JSON specification."""
        return next(reversed(argv_values(self.argv, "--target")), None)

    @property
    def triple(self) -> str:
        """What it was compiled for, by name: a specification's stem, the compiler's own host without `--target`."""
        if self.target is not None:
            return os.path.basename(self.target).removesuffix(".json")
        lines = self.toolchain.splitlines()
        return next((line.removeprefix("host: ") for line in lines if line.startswith("host: ")), "")

    @property
    def is_test(self) -> bool:
        """Whether the crate is compiled as its own test harness."""
        return "--test" in self.argv

    @property
    def is_proc_macro(self) -> bool:
        """Whether the compiler itself loads the result."""
        return "proc-macro" in self.crate_types

    @property
    def is_build_script(self) -> bool:
        """Whether cargo itself runs the result.

        Source: cargo's `targets.rs`: `build-script-` and the stem of the script's file, as a crate name.
        """
        return self.crate_types == ("bin",) and self.crate_name.startswith("build_script_")

    @property
    def extern_paths(self) -> tuple[str, ...]:
        """The paths given with `--extern [options:]name=path`."""
        values = argv_values(self.argv, "--extern")
        return tuple(os.path.join(self.cwd, path) for _, has_path, path in map(_partition, values) if has_path)

    @property
    def manifest_dir(self) -> str:
        """The directory of the package's `Cargo.toml`."""
        return dict(self.env).get("CARGO_MANIFEST_DIR", self.cwd)


def link_order(tip: Capture, captures: Iterable[Capture], local_dirs: Set[str]) -> tuple[Capture, ...]:
    """The crates that an edit can make necessary to compile again, dependencies first, `tip` last.

    These are the tip, the crates of local packages that are linked into it, and what lies between them. Crates that
    only a proc macro or a build script uses are not among them.

    Args:
        tip: of the host binary.
        captures: in any order.
        local_dirs: directories of the packages that the developer can edit.
    """
    made_by = {output.path: capture for capture in captures for output in capture.outputs}
    graph = {tip.key: _linked_externs(tip, made_by) | _on_link_line(tip, made_by)}
    crates = {tip.key: tip}
    waiting = [tip]
    while waiting:
        for key, crate in graph[waiting.pop().key].items():
            if key not in crates:
                crates[key] = crate
                graph[key] = _linked_externs(crate, made_by)
                waiting.append(crate)
    kept: dict[CaptureKey, Capture] = {}
    for key in TopologicalSorter(graph).static_order():
        if key == tip.key or crates[key].manifest_dir in local_dirs or not kept.keys().isdisjoint(graph[key]):
            kept[key] = crates[key]
    return tuple(kept.values())


def with_externs(roots: Iterable[Capture], captures: Iterable[Capture]) -> tuple[Capture, ...]:
    """`roots` and all captured crates that they use, directly or through others."""
    made_by = {output.path: capture for capture in captures for output in capture.outputs}
    found: dict[CaptureKey, Capture] = {}
    waiting = list(roots)
    while waiting:
        crate = waiting.pop()
        if crate.key not in found:
            found[crate.key] = crate
            waiting += [made_by[path] for path in crate.extern_paths if path in made_by]
    return tuple(found.values())


def _linked_externs(crate: Capture, made_by: Mapping[str, Capture]) -> dict[CaptureKey, Capture]:
    used = (made_by[path] for path in crate.extern_paths if path in made_by)
    return {dependency.key: dependency for dependency in used if not dependency.is_proc_macro}


def _on_link_line(tip: Capture, made_by: Mapping[str, Capture]) -> dict[CaptureKey, Capture]:
    """Captured archives on the tip's link line: some are used by crates alone that were not captured."""
    line = tip.link_line or ""
    return {
        crate.key: crate
        for path, crate in made_by.items()
        if path.endswith(".rlib") and f'/{os.path.basename(path)}"' in line
    }


def argv_values(argv: tuple[str, ...], *spellings: str) -> tuple[str, ...]:
    """The values of a flag, in order: `--flag V`, `--flag=V`, and `-FV` for a short one.

    Args:
        argv: rustc's arguments.
        spellings: of one flag.
    """
    return tuple(_argv_values(argv, spellings))


def last_codegen_value(argv: tuple[str, ...], key: str) -> str | None:
    """The value of the last `-C key=value`, in any of its spellings; None where there is none."""
    pairs = map(_partition, argv_values(argv, "-C", "--codegen"))
    return {name: value for name, _, value in pairs}.get(key)


def decode_capture(text: str, name: str) -> Capture:
    """Reads the text of a capture.

    Args:
        text: of the whole file.
        name: of the file, for errors.

    Raises:
        CaptureError: naming the file and what is wrong with it.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"capture {name} is cut short or no JSON: {error}") from error
    if not isinstance(record, dict):
        raise CaptureError(f"capture {name} is not a JSON object")
    if record.get("schema") != SCHEMA:
        raise CaptureError(f"capture {name} has schema {record.get('schema')!r}, and this is schema {SCHEMA}")
    try:
        return Capture(
            rustc=_checked(record, "rustc", str),
            argv=tuple(_strings(_checked(record, "argv", list))),
            cwd=_checked(record, "cwd", str),
            env=_pairs(_checked(record, "env", dict)),
            toolchain=_checked(record, "toolchain", str),
            outputs=tuple(_output(output) for output in _checked(record, "outputs", list)),
            dep_info=_checked(record, "dep_info", str | None),
            link_line=_checked(record, "link_line", str | None),
            tip_args=tuple(_strings(_checked(record, "tip_args", list))),
        )
    except _ShapeError as error:
        raise CaptureError(f"capture {name}: {error}") from error


class _ShapeError(Exception):
    pass


def _checked(record: dict[str, Any], field: str, shape: Any) -> Any:
    if field not in record:
        raise _ShapeError(f"field `{field}` is missing")
    value = record[field]
    if not isinstance(value, shape) or isinstance(value, bool):
        raise _ShapeError(f"field `{field}` has the wrong type ({type(value).__name__})")
    return value


def _strings(values: list[Any]) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise _ShapeError("a string was expected in a list")
    return values


def _pairs(env: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    _strings(list(env.values()))
    return tuple(sorted(env.items()))


def _output(record: Any) -> Output:
    if not isinstance(record, dict):
        raise _ShapeError("an output is not an object")
    return Output(
        path=_checked(record, "path", str),
        size=_checked(record, "size", int),
        mtime_ns=_checked(record, "mtime_ns", int),
    )


def _argv_values(argv: tuple[str, ...], spellings: tuple[str, ...]) -> Iterator[str]:
    rest = iter(argv)
    for arg in rest:
        for flag in spellings:
            attached = flag + "=" if flag.startswith("--") else flag
            if arg == flag:
                yield next(rest, "")
                break
            if arg.startswith(attached):
                yield arg.removeprefix(attached)
                break


def _partition(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def _escape_byte(byte: int) -> str:
    char = chr(byte)
    return char if char.isascii() and (char.isalnum() or char in "_.+-") else f"%{byte:02X}"
