"""Which functions of a build differ from what a program runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hotpatchd.core.demangle import demangle
from hotpatchd.core.unit import Fingerprint, Host, Unit


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


def find_new_collected(before: Unit | None, now: Unit) -> tuple[str, ...]:
    """Names of the linker-collected sections that an edit of one object added or changed, sorted."""
    known = before.collected if before else {}
    return tuple(sorted(name for digest, name in now.collected.items() if digest not in known))


def find_kept_initialisers(before: Unit | None, now: Unit, host: Host) -> tuple[str, ...]:
    """Statics of one object whose initialiser an edit changed and that keep their value in the program, sorted.

    Line numbers in it do not count.
    """
    if before is None:
        return ()
    found = []
    for name, definition in now.exports.items():
        earlier = before.exports.get(name)
        if definition.kind == "function" or earlier is None or earlier.kind == "function":
            continue
        different = now.fingerprint(definition.section).blind != before.fingerprint(earlier.section).blind
        if different and host.find(name):
            found.append(name)
    return tuple(sorted(found))


def find_retyped(new: Iterable[str], gone: Iterable[str]) -> tuple[str, ...]:
    """Statics and thread-locals that are new and have the path of one that is gone, sorted.

    What changed is their type: the hash in a legacy name covers it.

    Args:
        new: symbols of state that a patch would bring.
        gone: symbols of state that the program has, and the newest objects have not.

    Source: rustc_symbol_mangling, `legacy::get_symbol_hash`, which hashes the item's type.
    """
    paths = {demangle(name) for name in gone}
    return tuple(sorted(name for name in new if demangle(name) in paths))
