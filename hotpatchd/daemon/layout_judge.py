"""Types of the objects of builds, and of the code that each program runs."""

from collections.abc import Iterator, Mapping

from hotpatchd.core.layout import Judgement, judge_layouts
from hotpatchd.core.session import Session
from hotpatchd.core.unit import Host
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.objects import BuildObjects
from hotpatchd.objfile.type_layouts import ObjectTypes

TypesByUnit = Mapping[str, ObjectTypes]
"""Unit name → types, of the objects of a build that the program was not made from."""


class LayoutJudge:
    """Compares the layouts of what clients run with those of the newest objects.

    Args:
        baseline: the objects of the source that the host was built from.
    """

    def __init__(self, baseline: BuildObjects) -> None:
        self._baseline = baseline
        self._of_patches: dict[str, TypesByUnit] = {}

    def types(self, objects: BuildObjects) -> TypesByUnit:
        """The types of a build; nothing is read yet."""
        return {unit.name: unit.types for unit in objects.changed_since(self._baseline) if isinstance(unit, CodeUnit)}

    def remember(self, patch: str, types: TypesByUnit) -> None:
        """Keep the types of a patch, by its identity."""
        self._of_patches[patch] = types

    def judge(self, session: Session, types: TypesByUnit, objects: BuildObjects, live: Host) -> Judgement:
        """What the types of the newest objects mean for the values in one program.

        Args:
            session: the program.
            types: of the newest objects.
            objects: these objects.
            live: the program's symbols.

        Raises:
            ObjectError: an object's debug information cannot be read.
        """
        running = self._of_patches[session.history[-1].patch] if session.history else {}
        before, now = [], []
        different = []
        for name in sorted({*running, *types}):
            old, new = running.get(name) or self._own(name), types.get(name) or self._own(name)
            if old is not new:
                different.append(name)
                before += [old] if old else []
                now += [new] if new else []

        def callers(symbol: str) -> Iterator[str]:
            for name in different:
                for build in (self._baseline, objects):
                    if name in build.files:
                        yield from build.unit(name).calls.get(symbol, ())

        return judge_layouts(before, now, is_live=lambda symbol: live.find(symbol) is not None, callers=callers)

    def _own(self, name: str) -> ObjectTypes | None:
        """The types of one of the host's own units; None where it has no such unit."""
        unit = self._baseline.unit(name) if name in self._baseline.files else None
        return unit.types if isinstance(unit, CodeUnit) else None
