"""Optimised programs: which functions contain a copy of a changed function, though their own source did not change.

The program and the thin rebuild are cut into codegen units differently, so the optimiser inlines differently in them.
Where the thin rebuild has a function G call F, the program's G may hold a copy of F's old code instead. That shows: it
then refers to F less often than the thin G does. Such a G has to be replaced together with F, and so on for the
functions that may hold a copy of G.

A copy is not all that G may hold. Where the program's G and F were compiled together, the optimiser may have used what
it found out about F: what F returns, that it never returns or never panics, which arguments it ignores. Where thin
G and F are compiled together as well, G differs when that changes. So those that are not are replaced in any case.
"""

from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter


def find_stale_callers(
    changed: Iterable[str],
    *,
    callers: Callable[[str], Iterable[tuple[str, int]]],
    references_in_program: Callable[[str, str], int | None],
    is_replaced: Callable[[str], bool],
    may_be_copied: Callable[[str], bool],
) -> tuple[str, ...]:
    """Find functions of the program that may hold the old code of changed ones.

    Args:
        changed: functions whose code differs from the program's, those that the program has no symbol for included.
        callers: function → (function that refers to it in the thin rebuild, how often).
        references_in_program: (caller, callee) → how often the program's caller refers to the callee; None where
            the program has no such caller, or where the thin rebuild compiles the two apart.
        is_replaced: whether the program runs a function as an earlier patch brought it, with every reference in it,
            and nothing else of it.
        may_be_copied: whether the program's own code may hold a replaced function all the same: where it had no place
            of its own for a jump, the patch that brought it replaced only some of those that hold it.

    Returns:
        Sorted names, without `changed` itself.
    """
    start = frozenset(changed)
    seen = set(start)
    stale: set[str] = set()
    waiting = list(start)
    while waiting:
        callee = waiting.pop()
        for caller, count in callers(callee):
            if caller in seen:
                continue
            if is_replaced(caller):
                if not may_be_copied(caller):
                    continue
            else:
                found = references_in_program(caller, callee)
                if found is not None and found >= count:
                    continue
                stale.add(caller)
            seen.add(caller)
            waiting.append(caller)
    return tuple(sorted(stale))


def find_merged(roots: Iterable[str], led_to: Callable[[str], Iterable[str]]) -> Mapping[str, frozenset[str]]:
    """Find what must be replaced so that no jump leads to code that goes back to the jump.

    LLVM makes one function of equal ones. In the program they may be names of one place, where in the thin rebuild one
    of them has the code and the others jump to it. A jump from that place to one of the others would lead to itself.

    Args:
        roots: functions to be replaced.
        led_to: function → others of the same place in the program that its new code refers to.

    Returns:
        All functions to be replaced → those of their place that they lead to.
    """
    found: dict[str, frozenset[str]] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = frozenset(led_to(name))
            waiting += found[name]
    return dict(sorted(found.items()))


def in_order_of_jumps(merged: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """The functions to be replaced, each after those that it leads to: the first of a place is to have the jump.

    Raises:
        graphlib.CycleError: some lead to each other.
    """
    return tuple(TopologicalSorter(merged).static_order())
