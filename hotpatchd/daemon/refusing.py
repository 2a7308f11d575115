"""What stands in the way of an edit once it is known what a patch would have to do: refusals, each by name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError

from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Refusal
from hotpatchd.core.inlining import in_order_of_jumps
from hotpatchd.core.select import Selection
from hotpatchd.core.unit import is_rust_name
from hotpatchd.daemon.replacing import Edit
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.padding import SHORT_JUMP_SIZE
from hotpatchd.objfile.rewrite import find_unreachable
from hotpatchd.objfile.stub import ModuleThreadLocals

_NO_ROOM = "it is new, and only the native client has room for it in threads that run already; restart"
_NO_ROOM_LEFT = "it is new, and the room that the client keeps for such in every thread is used up; restart"


def explained(refusal: Refusal, lto: str | None) -> Refusal:
    """A refusal with its cause, where that is how the whole program was optimised.

    Args:
        refusal: one of selecting.
        lto: `fat` or `thin`, where the program's crates were optimised together.
    """
    if refusal.reason != "unresolved" or lto is None:
        return refusal
    detail = (
        f'`lto = "{lto}"` left nothing of it in the program that a patch could use; unset the variable that asks for it'
    )
    return replace(refusal, detail=detail)


def too_short(edit: Edit, names: Iterable[str]) -> Iterator[Refusal]:
    """Functions without room for a jump to new code.

    Args:
        edit: the edit, in one program.
        names: functions that are to get such a jump.
    """
    if edit.session.redirect != "detours":
        return
    host, needed = edit.origin.host, edit.origin.machine.detour_size
    for name in names:
        for addr, size in edit.places(name):
            room = edit.origin.room(addr, size)
            if room >= needed or not host.function_names_at(addr):
                continue
            if not edit.session.hello.short_jumps:
                detail = f"it is {size} bytes long, and a jump to its new code takes {needed}"
            elif room < SHORT_JUMP_SIZE or not edit.origin.padding.near(addr):
                detail = f"it is {size} bytes long, and there is no padding near for a jump to its new code"
            else:
                continue
            yield Refusal(symbol=name, reason="too_short", detail=detail)


def folded(edit: Edit, changed: Iterable[str]) -> Iterator[Refusal]:
    """Functions that share their code with others in the program, and no longer may.

    Stale callers are not asked about: what shares their code holds the same old copies as they do.

    Args:
        edit: the edit, in one program.
        changed: functions with new code.
    """
    objects, symbols = edit.objects, edit.session.symbols
    added: dict[int, list[str]] = {}
    for name, symbol in symbols.items():
        added.setdefault(symbol.addr, []).append(name)
    for name in changed:
        for addr, _ in edit.places(name):
            for other in (*edit.origin.host.function_names_at(addr), *added.get(addr, ())):
                is_gone = objects.get(other) is None and (edit.origin.baseline.get(other) or other in symbols)
                is_label = other.partition(".llvm.")[0] == name
                codes = {objects.fingerprint(_with_code(edit, one)) for one in (name, other)}
                if not is_label and not is_gone and len(codes) > 1:
                    yield Refusal(
                        symbol=name,
                        reason="folded",
                        detail=f"the running program has one copy of it and of {demangle(other)}, which now differ",
                    )


def _with_code(edit: Edit, name: str) -> str:
    """The function that has the code of one, which may be nothing but a jump there."""
    unit = edit.objects.get(name)
    if unit is None or unit.exports[name].size != edit.origin.machine.detour_size:
        return name
    section = unit.exports[name].section
    targets = {reference.name for reference in unit.references(section)}
    is_jump = len(targets) == len(unit.definitions_in(section)) == 1 and edit.objects.kind(min(targets)) == "function"
    return min(targets) if is_jump else name


def other_signatures(edit: Edit, changed: Iterable[str]) -> Iterator[Refusal]:
    """Functions that are called in another way than before, also by code that is not compiled anew.

    Args:
        edit: the edit, in one program.
        changed: functions with new code.
    """
    conventions = {name for name, _ in edit.objects.conventions ^ edit.origin.baseline.conventions}
    for name in changed:
        is_told = name.startswith("_ZN") or not edit.origin.host.functions(name)
        if not is_told and demangle(name).rpartition("::")[2] in conventions:
            detail = "its calling convention changed, and pointers and code from before use the former one; restart"
            yield Refusal(symbol=name, reason="signature", detail=detail)
            continue
        if not is_rust_name(name) and edit.types.has_other_signature(name):
            before, now = (", ".join(filter(None, one.parameters)) for one in edit.types.of(name)[:2])
            detail = f"what it takes and returns changed ({before} → {now}), and code in another language may call it"
            yield Refusal(symbol=name, reason="signature", detail=f"{detail}; restart")


def circular(merged: Mapping[str, frozenset[str]]) -> Iterator[Refusal]:
    """Functions of one place in the program whose new code calls each other.

    Args:
        merged: functions → others of the same place that their new code refers to.
    """
    try:
        in_order_of_jumps(merged)
    except CycleError as error:
        name, other = error.args[1][:2]
        yield Refusal(
            symbol=name,
            reason="folded",
            detail=f"the running program has one copy of it and of {demangle(other)}, which call each other now",
        )


def unreachable(selection: Selection, of_library: ModuleThreadLocals | None) -> Iterator[Refusal]:
    """Thread-locals of a shared library that code of a patch cannot reach from outside of it.

    Args:
        selection: the patch's content.
        of_library: those that are reached through the dynamic loader; None in a program.
    """
    if of_library is None:
        return
    names = frozenset(of_library.offsets)
    for kept in selection.units:
        assert isinstance(kept.unit, CodeUnit)
        for name in find_unreachable(kept.unit, kept.sections, kept.host_sections, of_library=names):
            yield Refusal(
                symbol=name,
                reason="thread_local",
                detail="it is a thread-local of a shared library, and reached here in a way that takes the dynamic"
                " loader; restart",
            )


def no_room_in_threads(edit: Edit, selection: Selection, end: int) -> Iterator[Refusal]:
    """New thread-locals for which the threads that run have no room.

    Args:
        edit: the edit, in one program.
        selection: the patch's content.
        end: bytes of each thread's reserve that would be in use.
    """
    size = edit.session.hello.thread_locals.size
    if end > size:
        detail = _NO_ROOM_LEFT if size else _NO_ROOM
        yield Refusal(symbol=selection.thread_locals[0].name, reason="new_thread_local", detail=detail)
