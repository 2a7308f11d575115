"""Which functions of a build differ from what a program runs."""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from hotpatchd.core.unit import Fingerprint, Host, Unit, is_rust_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Sorted symbol names.

    Args:
        changed: functions that the program has with other code.
        moved: functions that differ in the line numbers of panic locations only.
        absent: functions that changed and that the program does not have, since nothing in it calls them.
    """

    changed: tuple[str, ...]
    moved: tuple[str, ...]
    absent: tuple[str, ...]


def find_differences(units: Iterable[Unit], running: Callable[[str], Fingerprint | None], host: Host) -> Differences:
    """Compare the functions of some objects with what a program runs.

    Args:
        units: objects of the current build; those whose content may differ from the program's.
        running: the fingerprint of a function as the program runs it; None for one that its source did not have.
        host: the program's symbols.
    """
    changed, moved, absent = set(), set(), set()
    for unit in units:
        for name, definition in unit.exports.items():
            before = running(name) if definition.kind == "function" else None
            if before is None:
                continue
            now = unit.fingerprint(definition.section)
            if now.strict == before.strict:
                continue
            if now.blind == before.blind:
                moved.add(name)
            elif host.find(name):
                changed.add(name)
            else:
                absent.add(name)
    return Differences(changed=tuple(sorted(changed)), moved=tuple(sorted(moved)), absent=tuple(sorted(absent)))


def find_changed_constants(units: Iterable[Unit], running: Callable[[str], Fingerprint | None]) -> tuple[str, ...]:
    """Statics that nobody can write to and that have other content than in the program, sorted.

    What linkers gather into tables is not among them: it is reached by its place there.

    Args:
        units: objects of the current build.
        running: the fingerprint of a static as the program has it; None for one that its source did not have.
    """
    found = set()
    for unit in units:
        for name, definition in unit.exports.items():
            before = running(name) if definition.kind == "constant" and is_rust_name(name) else None
            if before is None:
                continue
            now = unit.fingerprint(definition.section)
            if now.blind != before.blind and now.strict not in unit.collected:
                found.add(name)
    return tuple(sorted(found))


def find_new_collected(before: Iterable[Unit], now: Iterable[Unit]) -> tuple[str, ...]:
    """Names of the linker-collected sections that an edit added or changed, sorted.

    Args:
        before: the objects of the build before that the newest build has others of.
        now: these others.
    """
    known = {digest for unit in before for digest in unit.collected}
    return tuple(sorted(name for unit in now for digest, name in unit.collected.items() if digest not in known))


def find_kept_initialisers(
    before: Iterable[Unit],
    now: Iterable[Unit],
    host: Host,
    renamed: Mapping[str, str] | None = None,
    replaced: Container[str] = (),
) -> tuple[str, ...]:
    """Statics whose initialiser an edit changed and that keep their value in the program, sorted.

    Line numbers in it do not count.

    Args:
        before: the objects of the build before that the newest build has others of.
        now: these others.
        host: the program's symbols.
        renamed: statics whose symbol changed with the definition of their type → the earlier symbol.
        replaced: statics that nobody can write to and that a patch brings anew.
    """
    known = {name: unit for unit in before for name in unit.statics}
    found = set()
    for unit in now:
        for name, definition in unit.statics.items():
            earlier_name = (renamed or {}).get(name, name)
            earlier = known.get(earlier_name)
            if earlier is None or name in replaced or (definition.kind == "constant" and definition.local):
                continue
            old = earlier.fingerprint(earlier.statics[earlier_name].section)
            different = unit.fingerprint(definition.section).blind != old.blind
            holds_old = any(reference.name in replaced for reference in unit.references(definition.section))
            if (different or holds_old) and host.find(name):
                found.add(name)
    return tuple(sorted(found))
