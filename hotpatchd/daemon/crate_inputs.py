"""Which files the program's crates are made from, as rustc listed them and as they were opened."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.conventions import find_conventions
from hotpatchd.core.depinfo import DepInfo, parse_dep_info
from hotpatchd.core.errors import CaptureError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.tracing import Tracer

_PACKAGE_VARIABLES = "CARGO_PKG_"


def inputs_of(
    crates: Iterable[ThinCrate], full_build: Mapping[str, str], *, tracer: Tracer | None = None
) -> BuildInputs:
    """The files that the newest objects were made from.

    Args:
        crates: of the program.
        full_build: files whose edit needs a full build, with what they are.
        tracer: that traced the compiles; None if nothing did.
    """
    crates_of: dict[str, tuple[str, ...]] = {}
    macro_inputs: dict[str, tuple[str, ...]] = {}
    source_dirs = {}
    variables: set[str] = set()
    for crate in crates:
        dep_info = _newest_dep_info(crate)
        listed = _files(crate.capture, dep_info)
        for file in listed:
            crates_of[file] = (*crates_of.get(file, ()), crate.name)
        variables.update(_variables(dep_info))
        source_dirs[crate.name] = crate.capture.manifest_dir
        if tracer is not None:
            trace = tracer.trace_of(crate)
            variables |= trace.variables
            for path in trace.paths.difference(listed):
                # A module that rustc itself looked for in vain, or in the other one of two places.
                is_source = path in trace.missing and path.endswith(".rs")
                found = crates_of if is_source else macro_inputs
                found[path] = (*found.get(path, ()), crate.name)
    return BuildInputs(
        crates_of=crates_of,
        full_build=dict(full_build),
        source_dirs=source_dirs,
        macro_inputs=macro_inputs,
        variables=frozenset(variables),
    )


def conventions_of(crate: ThinCrate) -> frozenset[tuple[str, str]]:
    """The functions of a crate with a calling convention of their own, as its newest objects were made from them."""
    found: set[tuple[str, str]] = set()
    for file in _files(crate.capture, _newest_dep_info(crate)):
        if file.endswith(".rs"):
            with suppress(OSError):
                found |= find_conventions(Path(file).read_bytes())
    return frozenset(found)


def captured_files(capture: Capture) -> tuple[str, ...]:
    """The files that a captured compile read, absolute; none where rustc's list of them is gone."""
    return _files(capture, _read_dep_info(capture, capture.dep_info))


def captured_variables(capture: Capture) -> frozenset[str]:
    """The `CARGO_PKG_*` variables that the source of a captured compile asks for."""
    return _variables(_read_dep_info(capture, capture.dep_info))


def _newest_dep_info(crate: ThinCrate) -> DepInfo | None:
    newest = os.path.join(crate.out_dir, f"{crate.capture.crate_name}{crate.capture.extra_filename}.d")
    return _read_dep_info(crate.capture, newest) or _read_dep_info(crate.capture, crate.capture.dep_info)


def _read_dep_info(capture: Capture, path: str | None) -> DepInfo | None:
    """A dep-info file of a compile in the capture's directory; None where it cannot be read."""
    if path is None:
        return None
    try:
        return parse_dep_info(Path(capture.cwd, path).read_text("utf-8", "surrogateescape"))
    except (OSError, CaptureError):
        return None


def _files(capture: Capture, dep_info: DepInfo | None) -> tuple[str, ...]:
    files = dep_info.files if dep_info else ()
    return tuple(os.path.normpath(os.path.join(capture.cwd, file)) for file in files)


def _variables(dep_info: DepInfo | None) -> frozenset[str]:
    names = (name for name, _ in dep_info.env) if dep_info else ()
    return frozenset(name for name in names if name.startswith(_PACKAGE_VARIABLES))
