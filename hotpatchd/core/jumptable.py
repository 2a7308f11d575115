"""Jump tables: which functions of a program a patch library replaces.

A function of the library takes the place of the program's functions of the same name. Three things stand in the way:

- *Folded* functions: linkers and LLVM merge functions with the same code, so that one address has several names.
  Redirecting it redirects all of them, which is wrong unless they all lead to the same new code.
- *Ambiguous* names: a local name may occur several times. rustc's names tell every item of every crate apart, so its
  functions of one name are copies of one another and any stands for all; C's `static` functions of one name are not.
- *Stubs* that linkers make are not the functions whose names they have.

Names are compared without what formats and compilers add to them; reading a file takes that off.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hotpatchd.core.demangle import demangle
from hotpatchd.core.dioxus import DevtoolsTable
from hotpatchd.core.errors import ObjectError
from hotpatchd.core.events import Refusal
from hotpatchd.core.symbols import SymbolTable
from hotpatchd.core.unit import is_rust_name

_MAIN = "main"
_MIN_PAGE_SIZE = 4096
_EXPORT_MAIN = "link it with `-Wl,--export-dynamic-symbol=main` (Mach-O `-exported_symbol,_main`, MSVC `/EXPORT:main`)"


class HostFunctions(Protocol):
    """The functions of a program; stubs and absolute symbols are none."""

    def functions(self, name: str) -> tuple[tuple[int, int], ...]:
        """All functions of that name: (link-time address, size)."""

    def function_names_at(self, addr: int) -> tuple[str, ...]:
        """All names of the function at a link-time address."""


class Jump(NamedTuple):
    """One function of the program that is replaced.

    Args:
        from_addr: its link-time address.
        to_addr: link-time address of its new code, in the patch library.
        size: of the old code, in bytes, as the program's symbol table tells.
        name: its symbol; one of several where functions are folded.
    """

    from_addr: int
    to_addr: int
    size: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JumpTablePlan:
    """Which functions a patch library replaces.

    Args:
        jumps: by `from_addr`, each once.
        refusals: functions that had to stay as they are, by name; `reason` is `folded`, `ambiguous`, `not_in_patch`
            or `not_in_program`.
    """

    jumps: tuple[Jump, ...]
    refusals: tuple[Refusal, ...]


def _never(_one: str, _other: str) -> bool:
    return False


def plan_jump_table(
    host: HostFunctions,
    patch: SymbolTable,
    *,
    replaced: Collection[str] | None = None,
    agree: Callable[[str, str], bool] = _never,
) -> JumpTablePlan:
    """Find what leads where.

    Args:
        host: the program's functions.
        patch: the library's symbols.
        replaced: symbols to redirect, of C functions too; None for all functions with a name of rustc's that both have.
        agree: whether two functions have the same code in the patched program, wherever it lies; asked of functions
            that the program has folded. Without it, only those that are folded in the library too are known to agree.
    """
    jumps: dict[int, Jump] = {}
    refusals: list[Refusal] = []

    def refuse(name: str, reason: str, detail: str) -> None:
        refusals.append(Refusal(symbol=name, reason=reason, detail=detail))

    wanted = frozenset(filter(is_rust_name, patch.function_names()) if replaced is None else replaced)
    for name in sorted(wanted):
        old, new = host.functions(name), patch.functions(name)
        if replaced is None and not old:
            continue
        if not new:
            refuse(name, "not_in_patch", f"{patch.origin} has no code for it")
        elif not old:
            refuse(name, "not_in_program", "the program has no function of that name: nothing calls it")
        elif len(new) > 1:
            refuse(name, "ambiguous", f"{patch.origin} has {len(new)} functions of that name")
        elif len(old) > 1 and not is_rust_name(name):
            refuse(name, "ambiguous", f"the program has {len(old)} functions of that name, which may differ")
        elif other := _diverging(host, patch, name, agree):
            refuse(name, "folded", f"the running program has one copy of it and of {demangle(other)}, which may differ")
        else:
            for from_addr, size in old:
                jumps.setdefault(from_addr, Jump(from_addr, new[0][0], size, name))
    return JumpTablePlan(jumps=tuple(sorted(jumps.values())), refusals=tuple(refusals))


def _diverging(host: HostFunctions, patch: SymbolTable, name: str, agree: Callable[[str, str], bool]) -> str | None:
    """A function that shares its old code with `name` and would get the wrong new code with it."""
    new = patch.functions(name)
    for addr, _ in host.functions(name):
        for other in host.function_names_at(addr):
            if other != name and patch.functions(other) != new and not agree(name, other):
                return other
    return None


def find_main(functions: HostFunctions, origin: str) -> int:
    """Link-time address of `main`, by which a program and its patch libraries are located.

    Args:
        functions: of a program or a library.
        origin: what to call it in an error.

    Raises:
        ObjectError: it has none.
    """
    places = functions.functions(_MAIN)
    if len(places) != 1:
        raise ObjectError(
            f"{origin} has {len(places)} functions `main`, and it takes one to tell where it is loaded",
            hint="link the object with the program's `main` into every patch library, and export the symbol",
        )
    return places[0][0]


def slide_of(host: HostFunctions, loaded_main_addr: int, *, origin: str, page_size: int = _MIN_PAGE_SIZE) -> int:
    """How far from its link-time addresses a program runs; negative where it was loaded below them.

    Args:
        host: its functions.
        loaded_main_addr: run-time address of what the program takes for its `main`.
        origin: what to call the program in an error.
        page_size: of the machine, in bytes.

    Raises:
        ObjectError: that is another program's `main`, or the program has none.
    """
    main_addr = find_main(host, origin)
    slide = loaded_main_addr - main_addr
    if slide % page_size:
        raise ObjectError(
            f"the `main` at {loaded_main_addr:#x} is not that of {origin}, which lies {main_addr % page_size:#x} bytes"
            " into a page",
            hint="does a launcher or a library of the process export a `main` of its own?",
        )
    return slide


def devtools_table(
    plan: JumpTablePlan,
    *,
    lib: str,
    host: HostFunctions,
    host_origin: str,
    host_image_base: int,
    patch: SymbolTable,
    loaded_main_addr: int,
    slide: int | None = None,
    page_size: int = _MIN_PAGE_SIZE,
) -> DevtoolsTable:
    """Write a plan the way the `subsecond` crate computes with it.

    The crate subtracts `aslr_reference` from the run-time address of `main` and adds the difference to each key, and
    likewise `new_base_address` and the values. It does so with unsigned numbers, and with overflow checks. So all four
    count from the image bases: then the differences are load addresses, which are positive wherever the system puts
    the files. In ELF files and Mach-O libraries such addresses are the link-time addresses.

    A program that does not export `main` has no address to tell, and computes with 0. Its keys are run-time addresses.

    Args:
        plan: what leads where.
        lib: the library's path on the program's file system.
        host: the program's functions.
        host_origin: what to call the program in an error.
        host_image_base: link-time address of the program's beginning; 0 for an ELF file.
        patch: the library's symbols.
        loaded_main_addr: what the program told: run-time address of `main`, or 0.
        slide: the program's, where it is known from elsewhere.
        page_size: of the machine, in bytes.

    Raises:
        ObjectError: the library has no `main`; the program told another program's; or it told none, and the slide is
            not known.

    Source: subsecond 0.7.10, `apply_patch` and `aslr_reference`.
    """
    new_main_addr = find_main(patch, patch.origin)
    if all(symbol.is_local for symbol in patch.symbols if symbol.name == _MAIN):
        raise ObjectError(f"{patch.origin} has a function `main`, but does not export it", hint=_EXPORT_MAIN)
    if loaded_main_addr:
        told = slide_of(host, loaded_main_addr, origin=host_origin, page_size=page_size)
        if slide not in (None, told):
            raise ObjectError(
                f"the `main` at {loaded_main_addr:#x} is not that of {host_origin}, which is loaded {slide:#x} bytes"
                f" from its link-time addresses, and not {told:#x}",
                hint="does a launcher or a library of the process export a `main` of its own?",
            )
        aslr_reference, offset = find_main(host, host_origin) - host_image_base, -host_image_base
    elif slide is not None:
        aslr_reference, offset = 0, slide
    else:
        raise ObjectError(
            f"the program does not export `main`, so nobody knows where {host_origin} is loaded",
            hint=_EXPORT_MAIN,
        )
    return DevtoolsTable(
        lib=lib,
        map={jump.from_addr + offset: jump.to_addr - patch.image_base for jump in plan.jumps},
        aslr_reference=aslr_reference,
        new_base_address=new_main_addr - patch.image_base,
    )
