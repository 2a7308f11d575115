"""Optimised programs: which functions contain a copy of a changed function, though their own source did not change.

The program and the thin rebuild are cut into codegen units differently, so the optimiser inlines differently in them.
Where the thin rebuild has a function G call F, the program's G may hold a copy of F's old code instead. That shows: it
then refers to F less often than the thin G does. Such a G has to be replaced together with F, and so on for the
functions that may hold a copy of G.

A copy is not all that G may hold. Where the program's G and F were compiled together, the optimiser may have used what
it found out about F: what F returns, that it never returns or never panics, which arguments it ignores. Where thin
G and F are compiled together as well, G differs when that changes. So those that are not are replaced in any case.
"""

from collections.abc import Callable, Iterable


def find_stale_callers(
    changed: Iterable[str],
    *,
    callers: Callable[[str], Iterable[tuple[str, int]]],
    references_in_program: Callable[[str, str], int | None],
    is_replaced: Callable[[str], bool],
) -> tuple[str, ...]:
    """Find functions of the program that may hold the old code of changed ones.

    Args:
        changed: functions whose code differs from the program's, those that the program has no symbol for included.
        callers: function → (function that refers to it in the thin rebuild, how often).
        references_in_program: (caller, callee) → how often the program's caller refers to the callee; None where
            the program has no such caller, or where the thin rebuild compiles the two apart.
        is_replaced: whether the program runs a function as an earlier patch brought it, with every reference in it,
            and nothing else of it.

    Returns:
        Sorted names, without `changed` itself.
    """
    start = frozenset(changed)
    seen = set(start)
    waiting = list(start)
    while waiting:
        callee = waiting.pop()
        for caller, count in callers(callee):
            if caller in seen or is_replaced(caller):
                continue
            found = references_in_program(caller, callee)
            if found is None or found < count:
                seen.add(caller)
                waiting.append(caller)
    return tuple(sorted(seen - start))
