"""Programs that look up what they call, at places of their own choice: what to replace besides the changed functions.

Such a program enters new code only where it asks (`subsecond::call`, say). From there on, calls are ordinary ones. So
whatever leads from such a place to a changed function must be new as well; which places these are cannot be told from
the outside, so all functions that lead to a changed one are.
"""

from collections.abc import Callable, Iterable

from hotpatchd.core.demangle import demangle


def is_hot_call(symbol: str) -> bool:
    """Whether a function is what a hot call enters: of the `subsecond` crate, or of this project's client.

    Source: `subsecond::HotFunction::call_it`, implemented for closures and functions; `client/src/jump.rs`
    """
    name = demangle(symbol)
    is_of_subsecond = "subsecond::HotFunction" in name and name.endswith("::call_it")
    return is_of_subsecond or name.startswith("hotpatch_client::jump::enter")


def find_leading(
    changed: Iterable[str], *, users: Callable[[str], Iterable[str]], is_replaceable: Callable[[str], bool]
) -> tuple[str, ...]:
    """Find the functions that lead to changed ones.

    Args:
        changed: functions that changed, those that the program does not have included.
        users: function → functions whose code refers to it.
        is_replaceable: whether the program has a function and could enter another in its place.

    Returns:
        Sorted names of those that are replaceable, without `changed` itself.
    """
    start = frozenset(changed)
    seen = set(start)
    waiting = list(start)
    while waiting:
        for user in users(waiting.pop()):
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return tuple(sorted(name for name in seen - start if is_replaceable(name)))
