"""Which verdicts an edit may have."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.e2e.harness import Verdict
from tests.generator.interpret import Machine, after_edit, static_identity
from tests.generator.language import (
    CLOSURE_KINDS,
    Call,
    Dyn,
    Function,
    Hook,
    Keep,
    Method,
    Owner,
    Point,
    Program,
    Spawn,
    Static,
    Trait,
    Type,
    Use,
    bodies,
    expressions,
    types_in,
)
from tests.generator.render import sources

THREAD_LOCALS = frozenset({"local", "lazy_local"})
LEADING = CLOSURE_KINDS | {"pointer", "tasks"}
"""Statics that lead to code."""
REFUSALS = frozenset({"layout", "static_changed"})
OF_OPTIMISED = frozenset({"static_lost", "folded", "too_short"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What may become of an edit.

    Args:
        verdicts: the verdicts that it may have, other than `refused`.
        named: what a refusal for a layout must name one of; with nothing, it is wrong.
        is_optimised: whether the optimiser may have left no symbol, or no room for a jump.
    """

    verdicts: frozenset[str]
    named: frozenset[str] = frozenset()
    is_optimised: bool = False

    def allows(self, verdict: Verdict) -> bool:
        """Whether an edit may have the verdict, for these reasons."""
        if verdict.verdict != "refused":
            return verdict.verdict in self.verdicts
        return any(map(self._is_named, verdict.refusals))

    def _is_named(self, refusal: Mapping[str, str]) -> bool:
        text = f"{refusal['symbol']} {refusal['detail']}"
        if refusal["reason"] in OF_OPTIMISED:
            return self.is_optimised
        return refusal["reason"] in REFUSALS and any(name in text for name in self.named)


def allowed(machine: Machine, after: Program) -> Allowed:
    """The verdicts that are right for an edit of the program that the machine runs.

    A static of another type, or of a type that is defined otherwise, must be refused while it holds values. Where such
    values may be, as far as can be told from types alone, it may be refused.
    """
    before = machine.program
    if sources(before) == sources(after):
        # After an undo, what it took back may be replaced, which what the optimiser made of it may have no room for.
        return Allowed(verdicts=frozenset({"unchanged", "applied"}), is_optimised=before.is_optimised)
    changed = {item.name for item in before.all(Type) if _is_changed(before, after, item)}
    for item in sorted(before.all(Type), key=lambda item: item.rank):
        if changed.intersection(types_in(item)):
            changed.add(item.name)
    tables = {
        trait.name: now.methods[0] != trait.methods[0]
        for trait in before.all(Trait)
        if isinstance(now := after.find(trait.name), Trait) and now.methods != trait.methods
    }
    reached = _reached(after)
    lost: set[str] = set()
    doubtful: set[str] = set()
    for static in before.all(Static):
        now = after.find(static.name)
        is_there = isinstance(now, Static) and now.home == static.home
        is_needed = is_there and static.name in reached
        if is_there and isinstance(now, Static) and static_identity(before, static) != static_identity(after, now):
            # What nobody can write to holds nothing that could be lost, and a thread-local is no static's successor.
            kinds = {static.kind, now.kind}
            is_kept = machine.is_used(static) and "plain" not in kinds and len(kinds & THREAD_LOCALS) != 1
            (lost if is_kept and is_needed else doubtful).add(static.name)
        for one in machine.kept(static):
            if one.type in changed:
                is_lost = is_needed and after_edit(before, after, one) is None
                (lost if is_lost else doubtful).update({static.name, one.type})
        if static.holds in changed:
            doubtful |= {static.name, static.holds}
        if static.kind == "objects" and static.holds in tables:
            # What was stored has the table of methods that it was made with.
            is_used = is_needed and machine.kept(static) and tables[static.holds]
            (lost if is_used else doubtful).update({static.name, static.holds})
    doubtful |= {static.name for static in after.all(Static) if machine.has_other(static)}
    # A static that comes back has the values of its time, when what it holds may have been defined otherwise.
    doubtful |= {static.name for static in after.all(Static) if static.holds and machine.is_back(static, after)}
    if any(static.kind in LEADING for static in before.all(Static)):
        # Code that is kept may have a pointer to it, and then would meet the new layout.
        doubtful |= changed
    doubtful |= {item.name for item in before.all(Type) if item.name in changed and item.impls} | set(tables)
    waiting = [item for item in before.all(Function) if item.is_async]
    doubtful |= {kind for item in waiting for _, kind in item.objects if kind in changed}
    return Allowed(
        verdicts=frozenset() if lost else frozenset({"applied", "unchanged"}),
        named=frozenset(lost | doubtful | changed) if lost or doubtful else frozenset(),
        is_optimised=before.is_optimised,
    )


def _is_changed(before: Program, after: Program, item: Type) -> bool:
    now = after.find(item.name)
    return isinstance(now, Type) and now.home == item.home and _definition(now) != _definition(item)


def _reached(program: Program) -> set[str]:
    """The statics that code uses to which the tick leads, other than by a generic function's trait."""
    code = dict(bodies(program))
    owners: set[Owner] = set()
    waiting: list[Owner] = [("tick",)]
    statics = set()
    while waiting:
        owner = waiting.pop()
        if owner in owners:
            continue
        owners.add(owner)
        for expr in expressions(code[owner]):
            match expr:
                case Call(function=function):
                    waiting.append((function,))
                case Method(type=kind, method=method):
                    waiting.append((kind, method))
                case Dyn(trait=trait, method=method, types=types):
                    waiting += [(kind, trait, method) for kind in types]
                case Use(static=static) | Keep(static=static) | Hook(static=static):
                    statics.add(static)
                case Point(static=static, function=function) | Spawn(static=static, function=function):
                    statics.add(static)
                    waiting.append((function,))
    return statics


def _definition(item: Type) -> tuple[object, ...]:
    fields = tuple((field.name, field.kind) for field in item.fields)
    return (fields, tuple((variant.name, variant.kind) for variant in item.variants))
