"""What a patch library brings: every function that ever differed from the program's own, and what these need.

Nobody knows before a library is loaded where it will lie, so no library can refer to another. Each one has everything
that is in force: the functions that the sources have with other code than the program file, those that an earlier
library replaced, and what is new to the program and reached from them.

The program's functions and its state stay where they are, as with images: a library takes them by their addresses. Two
things are different. Constants come along, since code reaches them relative to the instruction, and they are the same
everywhere. State that an earlier library brought is not within reach; each library has an instance of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from hotpatchd.core.demangle import demangle
from hotpatchd.core.events import Note, Refusal
from hotpatchd.core.select import Selection
from hotpatchd.core.symbols import Symbol, SymbolTable
from hotpatchd.core.unit import Definers, Fingerprint, Host, HostSymbol


class ProgramSymbols:
    """The symbols of a program's file, as selection looks them up.

    Args:
        table: all of them.
    """

    def __init__(self, table: SymbolTable) -> None:
        self.table = table
        self._by_name: dict[str, list[Symbol]] = {}
        # A thunk is as good as what it jumps to, and nothing else may lead there in PE. Elsewhere the loader finds it.
        has_thunks = table.format == "pe"
        for symbol in table.symbols:
            if symbol.is_defined and not symbol.is_absolute and (has_thunks or not symbol.is_stub):
                self._by_name.setdefault(symbol.name, []).append(symbol)

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name. A size that the file does not state is 0: padding counts in it."""
        places = self._by_name.get(name)
        if not places:
            return None
        size = places[0].size if self.table.sizes == "stated" else 0
        return HostSymbol(places[0].addr, size, places[0].kind, len({symbol.addr for symbol in places}))

    def room(self, name: str) -> int:
        """Bytes that a symbol has, padding included where the file does not state sizes; 0 for an unknown one."""
        return max((symbol.size for symbol in self._by_name.get(name, ())), default=0)

    def functions(self, name: str) -> tuple[tuple[int, int], ...]:
        """All functions of that name whose code the file has: (link-time address, size)."""
        return self.table.functions(name)

    def function_names_at(self, addr: int) -> tuple[str, ...]:
        """All names of the function at a link-time address."""
        return self.table.function_names_at(addr)


class LibraryHost:
    """The symbols of a program that a library takes from there.

    Args:
        program: all its symbols.
        build: the newest objects.
    """

    def __init__(self, program: Host, build: Definers) -> None:
        self._program = program
        self._build = build

    def find(self, name: str) -> HostSymbol | None:
        """The first symbol of that name; None for constants that the build has itself."""
        unit = self._build.get(name)
        if unit is not None and unit.exports[name].kind == "constant":
            return None
        return self._program.find(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """How a library differs from what runs; sorted symbols.

    Args:
        patched: functions that run with other code.
        added: functions that are new to the program.
    """

    patched: tuple[str, ...]
    added: tuple[str, ...]


def choose_roots(changed: Iterable[str], replaced: Iterable[str], host: Host, build: Definers) -> tuple[str, ...]:
    """The functions of the program that a library replaces, sorted.

    Args:
        changed: those that the newest source has with other code than the program's own source.
        replaced: functions that earlier patches defined; those that are the program's own again count, too.
        host: the program's symbols.
        build: the newest objects.
    """
    return tuple(sorted({*changed, *(name for name in replaced if host.find(name) and build.get(name))}))


def find_news(functions: Mapping[str, Fingerprint], running: Callable[[str], Fingerprint | None]) -> News:
    """Compare the functions that a library defines with what runs.

    Args:
        functions: symbol → fingerprint.
        running: the fingerprint of a function as the program runs it; None for one that it does not have.
    """
    patched, added = [], []
    for name, now in sorted(functions.items()):
        before = running(name)
        if before is None:
            added.append(name)
        elif before.blind != now.blind:
            patched.append(name)
    return News(patched=tuple(patched), added=tuple(added))


def refuse_thread_locals(selection: Selection, host: Host, *, can_share: bool) -> Iterator[Refusal]:
    """Refuse the thread-locals that a library would need.

    Args:
        selection: what it is to bring.
        host: the program's symbols.
        can_share: whether the format lets a library reach the program's.
    """
    for new in selection.thread_locals:
        yield Refusal(
            symbol=new.name,
            reason="new_thread_local",
            detail="a patch library cannot bring one to threads that run already: restart",
        )
    for name in sorted(selection.host_names):
        found = host.find(name)
        if found and found.kind == "tls" and not can_share:
            yield Refusal(
                symbol=name,
                reason="thread_local",
                detail="a patch library reaches it by functions of the program only, and the edited code does not",
            )


def refuse_grown(extents: Mapping[str, tuple[int, int]], program: ProgramSymbols) -> Iterator[Refusal]:
    """Refuse statics that may not fit any more where the program has them, in formats that state no sizes.

    Args:
        extents: static of the program → bytes to the next thing behind it, in the objects of the program's own source
            and in the newest ones. Where these agree, more than the program has is padding.
        program: its symbols.
    """
    for name, (before, now) in sorted(extents.items()):
        room = program.room(name)
        if now > room and now != before:
            yield Refusal(
                symbol=name,
                reason="static_changed",
                detail=f"the running program has room for {room} bytes, and it may take {now} bytes now",
            )


def note_stale_copies(patched: Iterable[str]) -> tuple[Note, ...]:
    """Notes for edited functions of an optimised program."""
    return tuple(
        Note(
            symbol=demangle(name),
            note="inlined_into",
            detail="the program is optimised: wherever this function was inlined, its old code stays",
        )
        for name in patched
    )


def note_own_state(selection: Selection) -> tuple[Note, ...]:
    """Notes for the statics that each library brings anew."""
    return tuple(
        Note(
            symbol=demangle(name),
            note="own_instance",
            detail="it is new to the program, and begins anew with every patch until the program is started again",
        )
        for name in selection.new_state
    )


def note_unjudged(target: str) -> tuple[Note, ...]:
    """The note for a target whose objects do not tell the layouts of types in a way that is read.

    Source: `rustc_target::spec` (`is_like_msvc`: debug information in CodeView).
    """
    if not target.endswith("-msvc"):
        return ()
    detail = (
        "layouts of types are not compared for this target, whose objects describe them in CodeView: restart after an"
        " edit that changes one"
    )
    return (Note(symbol=target, note="not_judged", detail=detail),)


def renamed(table: SymbolTable, suffix: str) -> SymbolTable:
    """Only those symbols of a file that have a suffix, without it."""
    symbols = (
        symbol._replace(name=symbol.name.removesuffix(suffix))
        for symbol in table.symbols
        if symbol.name.endswith(suffix)
    )
    return replace(table, symbols=tuple(symbols))
