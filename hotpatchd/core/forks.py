"""Functions that a patch brings beside those that the program has, instead of in their place.

A closure, or the state of an async function, leads to its code by its type, and its type has no name but its number in
the function around it. So one name can mean one thing in the values that a program holds, and another in the code that
an edit brings: something else is captured, more is kept across an `await`, or a closure above it took its number.

Then the functions that handle such values are *forked*. The program's own keep their code, without a jump to the new
one: whoever has an old value has their addresses, from its trait object or from the code that made it. The patch brings
the new ones along, and all who make new values are replaced, so that they use these. docs/guarantees.md has the rule.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial

from hotpatchd.core.closures import closure_of_function, closure_of_state, closures_in, owner_of_closure
from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Note
from hotpatchd.core.layout import FunctionTypes, Uses
from hotpatchd.core.unit import is_rust_name

_TRAIT_OBJECT = "dyn "


@dataclass(frozen=True, slots=True, kw_only=True)
class OldValues:
    """Closures and task states of which the program may hold values that are not those of the new code.

    Args:
        closures: their paths, and those of all that hold one of them.
        types: what else leads to such a value, without its path saying so.
        results: whether what returns such a value leads to it: there may be pointers to functions that do.
        known: types that do not lead to such values, though their paths may say so.
    """

    closures: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    results: bool = False
    known: frozenset[str] = frozenset()

    def are_in(self, type_path: str) -> bool:
        """Whether a type contains such values, or leads to them."""
        if type_path in self.types:
            return True
        mentioned = closures_in(type_path, results=self.results)
        return type_path not in self.known and not mentioned.isdisjoint(self.closures)

    def reach(self, function: FunctionTypes) -> bool:
        """Whether a function is given such values, gives them, or is made for them."""
        return closure_of_function(function.path) in self.closures or any(
            map(self.are_in, function.signature | function.generic)
        )


Bodies = Mapping[str, Mapping[str, bytes]]
"""Closure → the symbols of its code, several for one in a generic function → digest."""


def find_renumbered(old: Bodies, new: Bodies) -> frozenset[str]:
    """Find closures whose number another one may have had.

    Numbers are counted anew in each function. Where the same numbers are there, and one closure has other code, it is
    taken for an edited form of the one that had its number; where several have, they may have changed places.

    Args:
        old: the closures of the code that runs.
        new: those of the code that is to run.

    Returns:
        All closures, old and new, of the functions in which some may have another number, with those inside them.
    """
    changed = {path for path in old.keys() & new.keys() if _differs(old[path], new[path])}
    found: set[str] = set()
    for parent in set(map(_parent, old)) & set(map(_parent, new)):
        were, are = ({path for path in bodies if _parent(path) == parent} for bodies in (old, new))
        is_counted_anew = were != are and any(path.startswith(tuple(were & are)) for path in changed)
        if is_counted_anew or len(changed & were) > 1:
            found |= {path for path in old.keys() | new.keys() if path.startswith(f"{parent}::{{#")}
    return frozenset(found)


def _differs(was: Mapping[str, bytes], is_: Mapping[str, bytes]) -> bool:
    common = was.keys() & is_.keys()
    return not common or any(was[symbol] != is_[symbol] for symbol in common)


def _parent(closure: str) -> str:
    return closure.rpartition("::")[0]


def find_old_values(
    renumbered: Iterable[str],
    changed_states: Iterable[str],
    units: Collection[Uses],
    is_pointed: Callable[[str], bool] = lambda _: False,
) -> OldValues:
    """Find all types with values that new code must not take for its own.

    What is left to its old code goes on as a whole, with the closures inside it.

    Args:
        renumbered: closures whose number another one had.
        changed_states: paths of closures' captures and of task states that are laid out otherwise than before.
        units: what holds which types, in the code that runs and in that which is to run.
        is_pointed: whether there may be pointers to a function, by its symbol.
    """
    given = tuple(renumbered), tuple(changed_states)
    found = _find_old_values(*given, units, results=False)
    # A function's type is that of a pointer to it as well, and who has a pointer goes on with the function's old code.
    returning = (
        name
        for unit in units
        for name, types in unit.functions.items()
        if types.parameters and found.are_in(types.parameters[-1])
    )
    return _find_old_values(*given, units, results=True) if any(map(is_pointed, set(returning))) else found


def _find_old_values(
    renumbered: Collection[str], changed_states: Collection[str], units: Collection[Uses], *, results: bool
) -> OldValues:
    closures = set(renumbered)
    states = {path: closure for path in changed_states if (closure := closure_of_state(path))}
    mentioned = partial(closures_in, results=True)
    # A library's closure that is made for one of the program's is told by that one.
    for path, closure in sorted(states.items(), key=lambda state: len(mentioned(state[0]))):
        if (mentioned(path) - {closure}).isdisjoint(closures):
            closures.add(closure)
    if not closures:
        return OldValues()
    holders: dict[str, set[str]] = {}
    known: set[str] = set()
    bodies: set[str] = set()
    for unit in units:
        for part, holding in (unit.holders if results else unit.holders_by_field).items():
            holders.setdefault(part, set()).update(holding)
        if not results:
            known |= {path for path in unit.parts if "_env#" in path and not path.startswith(_TRAIT_OBJECT)}
        bodies |= {body for types in unit.functions.values() if (body := closure_of_function(types.path))}

    def inside(closure: str) -> set[str]:
        return {body for body in bodies if body.startswith(f"{closure}::{{#")}

    def values_of(some: Set[str]) -> list[str]:
        """The types of the values of closures, and what has them in its path where no more is known of it."""
        own = [path for path in known if closure_of_state(path) in some]
        return own + [
            path for path in holders.keys() - known if not closures_in(path, results=results).isdisjoint(some)
        ]

    closures.update(*map(inside, tuple(closures)))
    types: set[str] = set()
    waiting = [*values_of(closures), *states]
    while waiting:
        part = waiting.pop()
        if part in types:
            continue
        types.add(part)
        waiting += holders.get(part, ())
        state = closure_of_state(part)
        if state is not None and mentioned(part).isdisjoint(closures):
            new = {state} | inside(state)
            closures |= new
            waiting += values_of(new)
    # A variant without content has its part of a value, too.
    types |= {path for unit in units for path in unit.parts if path.rpartition("::")[0] in types}
    return OldValues(
        closures=frozenset(closures), types=frozenset(types), results=results, known=frozenset(known - types)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forks:
    """Which functions a patch replaces, and which it brings beside the program's, so that it does not know these."""

    replaced: tuple[str, ...]
    forked: frozenset[str] = frozenset()


def find_forks(
    changed: Iterable[str],
    *,
    is_forked: Callable[[str], bool],
    users: Callable[[str], Iterable[str]],
    is_live: Callable[[str], bool],
    stale: Callable[[frozenset[str]], Iterable[str]],
) -> Forks:
    """Tell the functions to fork from those to replace.

    Whoever refers to a forked function has to be replaced or forked itself, though its own code is what it was.

    Args:
        changed: functions with other code than before.
        is_forked: whether a function must be forked if it is not to stay as it is.
        users: function → functions of the new code that refer to it.
        is_live: whether the program has a function.
        stale: functions → those of the program that may hold a copy of one of these.
    """
    found: set[str] = set()
    forked: set[str] = set()
    waiting = set(changed)
    while waiting:
        found |= waiting
        found |= set(stale(frozenset(found)))
        new = {name for name in found - forked if is_live(name) and is_forked(name)}
        forked |= new
        waiting = {user for name in new for user in users(name)} - found
    return Forks(replaced=tuple(sorted(filter(is_live, found - forked))), forked=frozenset(forked))


def find_kept(old: OldValues, before: Iterable[Uses]) -> dict[str, bool]:
    """Find the functions whose closures or futures, made before, go on with their old code.

    Only those that may outlast the functions that made them are told: behind a trait object, as the state of a task,
    or where their code has become a function pointer.

    Args:
        old: the values.
        before: what the code that runs has to do with which types.

    Returns:
        As messages name them → whether these values stay for as long as the program holds them; a task ends.
    """
    held: set[str] = set()
    waiting: set[str] = set()
    owners: dict[str, set[str]] = {}
    for unit in before:
        kept = [(made.type, made.trait.startswith(_FUTURE)) for made in unit.trait_objects]
        for name, types in unit.functions.items():
            closure = closure_of_function(types.path)
            if closure in old.closures:
                owners.setdefault(_owner(name), set()).add(closure)
                if any(state in given for given in types.signature for state in _FUTURES):
                    waiting.add(closure)
            if types.path.startswith(_POINTER_TO_CLOSURE):
                kept += ((path, False) for path in types.generic)
        for path, is_future in kept:
            if old.are_in(path) and not path.startswith(_CALLED_AT_ONCE):
                (waiting if is_future else held).update(closures_in(path, results=old.results))
    return {
        owner: not held.isdisjoint(closures)
        for owner, closures in sorted(owners.items())
        if not closures.isdisjoint(held | waiting)
    }


def note_old_code(kept: Iterable[str]) -> Iterator[Note]:
    """Notes for functions of `find_kept`."""
    detail = "its closures and futures that were made before keep their old code; new ones have the new"
    for owner in kept:
        yield Note(symbol=owner, note="old_code_kept", detail=detail)


def note_stays(left: Mapping[str, bool], edited: Iterable[str]) -> Iterator[Note]:
    """Notes for edits of closures and tasks that do not reach some which the program holds.

    Args:
        left: functions of which an earlier edit left some with their old code, as `find_kept` has them.
        edited: symbols of what is edited.
    """
    owners = {_owner(symbol) for symbol in edited if owner_of_closure(symbol) is not None}
    for owner in sorted(owners & left.keys()):
        what = "closures that it made, which the program holds," if left[owner] else "futures that have not ended"
        detail = f"{what} keep the code that an earlier edit left them; only others change"
        yield Note(symbol=owner, note="old_code_stays", detail=detail)


_CALLED_AT_ONCE = "std::sync::once::"
"""The library's closures around an initialiser: what makes trait objects of them calls them before it returns."""

_FUTURE = "core::future::future::Future"
_FUTURES = ("{async_", "{gen_", "{coroutine")
_POINTER_TO_CLOSURE = "core::ops::function::FnOnce::call_once<"


def _owner(body: str) -> str:
    """The function that all closures around this one are in."""
    return re.split(r"::\{\{?closure", demangle(body), maxsplit=1)[0]


def is_new_again(symbol: str, types: FunctionTypes, gone: frozenset[str]) -> bool:
    """Whether a function that the program has is none that values of the new code may meet: the code that it ran had it
    no more, and what is of its name now may have other captures or, in v0, another signature.
    """
    if symbol not in gone or not is_rust_name(symbol):
        return False
    handles_closures = any(map(closures_in, types.signature | types.generic))
    return symbol.startswith("_R") or handles_closures or closure_of_function(types.path) is not None
