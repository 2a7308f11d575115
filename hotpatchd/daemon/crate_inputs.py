"""Which files the program's crates are made from, as rustc listed them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.depinfo import parse_dep_info
from hotpatchd.core.errors import CaptureError
from hotpatchd.core.inputs import BuildInputs
from hotpatchd.core.thinplan import ThinCrate


def inputs_of(crates: Iterable[ThinCrate], full_build: Mapping[str, str]) -> BuildInputs:
    """The files that the newest objects were made from.

    Args:
        crates: of the program.
        full_build: files whose edit needs a full build, with what they are.
    """
    crates_of: dict[str, tuple[str, ...]] = {}
    source_dirs = {}
    for crate in crates:
        for file in _files_read(crate):
            crates_of[file] = (*crates_of.get(file, ()), crate.name)
        source_dirs[crate.name] = crate.capture.manifest_dir
    return BuildInputs(crates_of=crates_of, full_build=dict(full_build), source_dirs=source_dirs)


def captured_files(capture: Capture) -> tuple[str, ...]:
    """The files that a captured compile read, absolute; none where rustc's list of them is gone."""
    return _listed_files(capture, capture.dep_info) or ()


def _files_read(crate: ThinCrate) -> tuple[str, ...]:
    """From the newest dep-info; from the captured one where there is none yet. Absolute."""
    newest = os.path.join(crate.out_dir, f"{crate.capture.crate_name}{crate.capture.extra_filename}.d")
    return _listed_files(crate.capture, newest) or captured_files(crate.capture)


def _listed_files(capture: Capture, dep_info: str | None) -> tuple[str, ...] | None:
    """What a dep-info file of a compile in the capture's directory lists; None where it cannot be read."""
    if dep_info is None:
        return None
    try:
        files = parse_dep_info(Path(capture.cwd, dep_info).read_text("utf-8", "surrogateescape")).files
    except (OSError, CaptureError):
        return None
    return tuple(os.path.normpath(os.path.join(capture.cwd, file)) for file in files)
