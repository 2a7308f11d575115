"""What a changed file means: code of some crates, something that needs a full build, or nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """The files that the program was made from. All paths absolute.

    Args:
        crates_of: file → names of the crates whose compile reads it (dep-info).
        full_build: file → what it is (`manifest`, `lock file`, `build script`…); an edit of it needs a full build.
        source_dirs: directories of the packages of these crates.
    """

    crates_of: Mapping[str, tuple[str, ...]]
    full_build: Mapping[str, str]
    source_dirs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditClass:
    """What the changed files mean together.

    Args:
        files: those that matter, sorted.
        crates: crates to compile again.
        full_build: file → what it is.
    """

    files: tuple[str, ...]
    crates: frozenset[str]
    full_build: Mapping[str, str]


def classify(files: Iterable[str], inputs: BuildInputs, failed: frozenset[str] = frozenset()) -> EditClass:
    """Sort changed files.

    Args:
        files: absolute paths.
        inputs: what the program was made from.
        failed: crates that did not compile last time: a new `.rs` file in their package may be what they miss.
    """
    relevant: set[str] = set()
    crates: set[str] = set()
    full_build: dict[str, str] = {}
    for file in files:
        readers = inputs.crates_of.get(file, ())
        if not readers and file not in inputs.full_build:
            readers = tuple(crate for crate in failed if _may_belong_to(file, inputs.source_dirs.get(crate)))
        if file in inputs.full_build:
            full_build[file] = inputs.full_build[file]
        if readers or file in full_build:
            relevant.add(file)
        crates.update(readers)
    return EditClass(files=tuple(sorted(relevant)), crates=frozenset(crates), full_build=full_build)


def _may_belong_to(file: str, source_dir: str | None) -> bool:
    path = PurePath(file)
    return path.suffix == ".rs" and source_dir is not None and path.is_relative_to(source_dir)
