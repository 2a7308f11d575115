"""What verdicts tell: functions as the source spells them, and notes on what an edit does besides.

The rules are the same for images and for libraries.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from hotpatchd.core.callers import is_hot_call
from hotpatchd.core.compare import find_kept_initialisers, find_new_collected
from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Note, Refusal
from hotpatchd.core.statics import item_name
from hotpatchd.core.unit import Host
from hotpatchd.objfile.objects import BuildObjects


def is_own(symbol: str, crate_names: Container[str]) -> bool:
    """Whether a function belongs to one of the developer's crates, rather than being an instance of a library's."""
    return demangle(symbol).lstrip("<&").partition("::")[0] in crate_names


def display(symbols: Iterable[str], crate_names: Container[str]) -> tuple[str, ...]:
    """Demangled names, those of the developer's crates first."""
    names = {demangle(symbol): not is_own(symbol, crate_names) for symbol in symbols}
    return tuple(sorted(names, key=lambda name: (names[name], name)))


def named(refusal: Refusal) -> Refusal:
    """A refusal with its symbol as the source spells it."""
    return replace(refusal, symbol=item_name(refusal.symbol)) if refusal.symbol else refusal


def hot_call_notes(edited: Sequence[str], roots: Iterable[str]) -> list[Note]:
    """The note for edited functions that no hot call among the roots leads to."""
    if not edited or any(map(is_hot_call, roots)):
        return []
    detail = "no hot call was found that leads to it: direct calls go to its old code as before"
    return [Note(symbol=demangle(edited[0]), note="not_hot", detail=detail)]


def absence_notes(absent: Iterable[str], objects: BuildObjects, before: BuildObjects) -> list[Note]:
    """Notes for functions that an edit changed and that the program does not have.

    Args:
        absent: functions that the program does not have, and that differ from its source, by whichever edit.
        objects: the newest objects.
        before: those of the build before.
    """
    detail = "the running program has no such function: nothing calls it"
    return [
        Note(symbol=demangle(name), note="not_in_host", detail=detail)
        for name in absent
        if objects.fingerprint(name) != before.fingerprint(name)
    ]


def edit_notes(
    objects: BuildObjects,
    before: BuildObjects,
    host: Host,
    renamed: Mapping[str, str] | None = None,
    replaced: Container[str] = (),
) -> list[Note]:
    """Notes for what an edit changed besides functions, and what a running program does not take in.

    Args:
        objects: the newest objects.
        before: those of the build before.
        host: the program's symbols.
        renamed: statics whose symbol changed with the definition of their type → the earlier symbol.
        replaced: statics that nobody can write to and that a patch brings anew.
    """
    earlier, edited = tuple(before.changed_since(objects)), tuple(objects.changed_since(before))
    return [
        *(
            Note(
                symbol=name,
                note="collected",
                detail="what it adds to this section takes part only from the next start of the program on",
            )
            for name in find_new_collected(earlier, edited)
        ),
        *(
            Note(
                symbol=item_name(name),
                note="initialiser_kept",
                detail="its initialiser changed; the running program keeps the value that it has",
            )
            for name in find_kept_initialisers(earlier, edited, host, renamed, replaced)
        ),
    ]
