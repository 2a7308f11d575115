"""Compiling one crate of the program again: its captured rustc command, edited, and the objects that come of it."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotpatchd.core.errors import BuildError
from hotpatchd.core.thinplan import ThinCrate
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.objects import ObjectFile, object_file

_OBJECT_SUFFIX = ".rcgu.o"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """How a crate's compile ended.

    Args:
        ok: whether it compiles.
        diagnostics: as rustc renders them, in order.
        objects: unit name (`<crate>/<cgu>`) → object; none where it does not compile.
        metadata: digest of what dependents read; None for a tip, and where it does not compile.
    """

    ok: bool
    diagnostics: tuple[str, ...]
    objects: Mapping[str, ObjectFile]
    metadata: bytes | None


class Compiler:
    """Runs rustc. The objects of each compile stay in a directory of their own, to be compared with later ones."""

    def __init__(self) -> None:
        self._compiles: Counter[str] = Counter()

    async def compile(self, crate: ThinCrate) -> Compiled:
        """Compile a crate.

        Raises:
            BuildError: rustc cannot be run, or was killed.
        """
        out_dir = Path(crate.out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        for left in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            left.unlink()
        finished = await run_process(
            [crate.capture.rustc, *crate.edited.argv], cwd=crate.capture.cwd, env=dict(crate.capture.env)
        )
        said = tuple(_rendered(finished.stderr))
        if finished.status < 0:
            raise BuildError(f"rustc was killed by signal {-finished.status} while it compiled {crate.name}")
        if finished.status:
            return Compiled(ok=False, diagnostics=said, objects={}, metadata=None)
        metadata = hashlib.blake2b(Path(crate.metadata).read_bytes()).digest() if crate.metadata else None
        return Compiled(ok=True, diagnostics=said, objects=self._take_objects(crate, out_dir), metadata=metadata)

    def _take_objects(self, crate: ThinCrate, out_dir: Path) -> dict[str, ObjectFile]:
        """Move the objects out of rustc's way; those of earlier builds stay where they are, being compared with."""
        objects = objects_dir(crate)
        if not self._compiles[crate.name]:  # What is there was left by an earlier daemon.
            shutil.rmtree(objects, ignore_errors=True)
        self._compiles[crate.name] += 1
        place = objects / str(self._compiles[crate.name])
        place.mkdir(parents=True)
        found = {}
        for path in out_dir.glob(f"*{_OBJECT_SUFFIX}"):
            # `<crate>.<cgu>.rcgu.o`; newer compilers put a name of the invocation before the suffix.
            cgu = path.name.split(".")[1]
            kept = place / f"{cgu}.o"
            path.rename(kept)
            found[f"{crate.name}/{cgu}"] = object_file(kept, is_optimised=crate.is_optimised)
        return found


def objects_dir(crate: ThinCrate) -> Path:
    """Where the objects of a crate's compiles are, each compile's in a directory of its own."""
    return Path(crate.out_dir).with_name("objects")


def _rendered(stderr: bytes) -> list[str]:
    """rustc's diagnostics as it renders them; lines that are not JSON as they are."""
    found = []
    for line in stderr.decode("utf-8", "replace").splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            found.append(line)
            continue
        if isinstance(message, dict) and message.get("rendered"):
            found.append(message["rendered"].rstrip("\n"))
    return found
