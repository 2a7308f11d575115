"""What a changed file means: which class of input it is, what follows from that, and for which crates.

- code: rustc lists it (dep-info). Its crates are compiled again.
- macro input: a proc macro opened it, listed it, or looked for it. Its crates are compiled again.
- new source file: a `.rs` file that a broken crate may lack. That crate is compiled again.
- build script, input of a build script, code that runs while building, manifest, lock file, toolchain file, cargo
  configuration, input of the linker: `hotpatchd.daemon.full_build` knows them. A full build and a restart.
- One of these whose change makes no difference (`hotpatchd.core.manifest`): nothing, and that is said.
- Anything else: nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

CODE = "code"
MACRO_INPUT = "macro input"
NEW_SOURCE = "new source file"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """What the program was made from. All paths absolute; one may be of a directory, which stands for the names in it,
    or of a file that is not there, and was looked for.

    Args:
        crates_of: file → names of the crates whose compile reads it (dep-info).
        full_build: path → what it is (`manifest`, `lock file`, `build script`…); an edit of it needs a full build.
        source_dirs: directories of the packages of these crates.
        macro_inputs: path → names of the crates whose proc macros open or list it, or look for it.
        variables: `CARGO_PKG_*` variables that the crates and their macros ask for.
    """

    crates_of: Mapping[str, tuple[str, ...]]
    full_build: Mapping[str, str]
    source_dirs: Mapping[str, str] = field(default_factory=dict)
    macro_inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()

    @property
    def paths(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.crates_of, *self.macro_inputs, *self.full_build))


@dataclass(frozen=True, slots=True, kw_only=True)
class EditClass:
    """What the changed files mean together.

    Args:
        files: those that have consequences, sorted.
        crates: crates to compile again.
        full_build: file → what it is.
        classes: each of `files` → its class.
        harmless: file → what it is, and why its change makes no difference; not among `files`, unless it is also
            something else.
    """

    files: tuple[str, ...]
    crates: frozenset[str]
    full_build: Mapping[str, str]
    classes: Mapping[str, str] = field(default_factory=dict)
    harmless: Mapping[str, str] = field(default_factory=dict)


def classify(
    files: Iterable[str],
    inputs: BuildInputs,
    failed: frozenset[str] = frozenset(),
    harmless: Mapping[str, str] | None = None,
) -> EditClass:
    """Sort changed files.

    Args:
        files: absolute paths.
        inputs: what the program was made from.
        failed: crates that did not compile last time: a new `.rs` file in their package may be what they miss.
        harmless: manifests and the like among `files` whose text changed, but not what it says → why that is so.
    """
    harmless = harmless or {}
    classes: dict[str, str] = {}
    crates: set[str] = set()
    full_build: dict[str, str] = {}
    without_effect: dict[str, str] = {}
    for file in files:
        read_by, opened_by = inputs.crates_of.get(file, ()), inputs.macro_inputs.get(file, ())
        kind = inputs.full_build.get(file)
        if not (read_by or opened_by or kind):
            opened_by = tuple(crate for crate in failed if _may_belong_to(file, inputs.source_dirs.get(crate)))
            if opened_by:
                classes[file] = NEW_SOURCE
        elif read_by or opened_by:
            classes[file] = CODE if read_by else MACRO_INPUT
        if kind and file in harmless:
            without_effect[file] = f"{kind}: {harmless[file]}"
        elif kind:
            full_build[file] = classes[file] = kind
        crates.update(read_by, opened_by)
    return EditClass(
        files=tuple(sorted(classes)),
        crates=frozenset(crates),
        full_build=full_build,
        classes=classes,
        harmless=without_effect,
    )


def _may_belong_to(file: str, source_dir: str | None) -> bool:
    path = PurePath(file)
    return path.suffix == ".rs" and source_dir is not None and path.is_relative_to(source_dir)
