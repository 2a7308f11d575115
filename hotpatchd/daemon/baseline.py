"""The objects of the source that the program was built from, also where that source is edited meanwhile.

The first thin rebuild takes seconds for a large crate, and the program runs already. If somebody saves a file before it
is done, nobody can tell which text rustc read. So the sources are kept in memory, as they were when the program was
built, and compiled once more, from a copy, if that happens.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from hotpatchd.core.capture import Capture
from hotpatchd.core.thinplan import plan_thin_crates
from hotpatchd.daemon.crate_inputs import inputs_of
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.objfile.objects import BuildObjects


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The text of source files at one moment, by absolute path."""

    texts: Mapping[str, bytes]

    def edited(self) -> set[str]:
        """The files whose text is another now."""
        now = take_snapshot(self.texts)
        return {file for file, text in self.texts.items() if now.texts.get(file) != text}


def take_snapshot(files: Iterable[str]) -> Snapshot:
    """Read files; those that cannot be read are left out."""
    texts = {}
    for file in files:
        try:
            texts[file] = Path(file).read_bytes()
        except OSError:
            continue
    return Snapshot(texts=texts)


async def build_snapshot(
    captures: Sequence[Capture], tips: Collection[Capture], snapshot: Snapshot, edited: Set[str], directory: Path
) -> Mapping[str, BuildObjects] | None:
    """Compile the programs' crates as they were.

    Args:
        captures: as for `plan_thin_crates`.
        tips: as for `plan_thin_crates`.
        snapshot: the sources.
        edited: files whose text is another by now.
        directory: for the copy and what is made from it; emptied first.

    Returns:
        The objects by tip crate. None where they would not be those of the old text: a crate reads an edited file by
        its absolute path, or does not compile away from its place.

    Raises:
        BuildError: rustc cannot be run.
    """
    shutil.rmtree(directory, ignore_errors=True)
    moved = []
    for capture in captures:
        copy = directory / "source" / capture.cwd.lstrip("/")
        copy.mkdir(parents=True, exist_ok=True)
        moved.append(replace(capture, cwd=str(copy)))
    for file, text in snapshot.texts.items():
        # Relative paths, which cargo uses for the workspace's own crates, find the copy.
        place = directory / "source" / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text)
    builder = ThinBuilder(plan_thin_crates(moved, tips=tips, thin_dir=str(directory / "thin")))
    result = await builder.build([crate.name for crate in builder.crates])
    if not edited.isdisjoint(inputs_of(builder.crates, {}).crates_of):
        return None
    return None if result.failed else result.objects
