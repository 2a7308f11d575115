"""The names of closures and of the bodies of async functions: in symbols, and in paths of debug information.

Such a closure has no name but a number in the function around it. Here it is told by its path with that, whatever kind
it is of, since rustc counts all kinds together: `app::f::{#0}`.
"""

import re
from functools import lru_cache

from hotpatchd.core.demangle import demangle

_KINDS = r"(?:closure|coroutine|async_fn|async_block|async_closure|(?:async_)?gen_(?:fn|block|closure))"
_STATE = re.compile(rf"(?:[^\s<>,;:=&*()\[\]]+::)*\{{{_KINDS}_env#\d+\}}")
"""The path of a closure's captures, or of a task's state, anywhere in the path of a type.

Source: `rustc_codegen_ssa::debuginfo::type_names`, `push_closure_or_coroutine_name`.
"""

_FUNCTION = re.compile(r"\bfn\(")
_ARROW = " -> "

_BODY = re.compile(rf"(?P<path>(?:[^\s<>,;:=&*()\[\]]+::)*\{{{_KINDS}#\d+\}})(?:<.*)?", re.DOTALL)
_KIND = re.compile(rf"\{{{_KINDS}(?:_env)?#")

_IN_MANGLED = ("$u7b$$u7b$closure$u7d$$u7d$", "NC")
"""What the symbols of closures and of whatever is made for them contain, in the legacy mangling and in v0."""

_CLOSURE = re.compile(r"(?P<owner>.*)::\{(?:\{closure\}|closure#\d+)\}(?:::<.*>)?", re.DOTALL)


@lru_cache(maxsize=1 << 16)
def owner_of_closure(symbol: str) -> str | None:
    """The path of the function around a closure, by the symbol of the closure's code; None for other symbols.

    It is that of all the function's instances, and closures inside others have paths that begin with those.
    """
    if not any(part in symbol for part in _IN_MANGLED):
        return None
    found = _CLOSURE.fullmatch(demangle(symbol))
    return found["owner"] if found else None


@lru_cache(maxsize=1 << 16)
def closures_in(type_path: str, *, results: bool = False) -> frozenset[str]:
    """The closures, and bodies of async functions, that a type's path mentions: paths such as `app::f::{#0}`.

    Args:
        type_path: of the type.
        results: whether what a function returns counts. Debug information describes the type of a function itself,
            which has no values, and that of a pointer to one by the same path, `fn(u8) -> app::f::{async_fn_env#0}`.
    """
    if "_env#" not in type_path:
        return frozenset()
    return frozenset(map(_canonical, _STATE.findall(type_path if results else without_results(type_path))))


def without_results(type_path: str) -> str:
    """The path of a type without what the functions in it return: `Handler<fn(u8) -> String>` → `Handler<fn(u8)>`."""
    kept, at = [], 0
    while (found := _FUNCTION.search(type_path, at)) is not None:
        after = _skip(type_path, found.end(), ")") + 1
        kept += [type_path[at : found.end()], without_results(type_path[found.end() : after])]
        is_told = type_path.startswith(_ARROW, after)
        at = _skip(type_path, after + len(_ARROW), ",;)]>") if is_told else after
    return "".join([*kept, type_path[at:]])


def _skip(text: str, at: int, ends: str) -> int:
    """Where the first of some characters is that is in no brackets; the end of the text without one."""
    depth = 0
    while at < len(text) and (depth or text[at] not in ends):
        if text.startswith(_ARROW, at):
            at += len(_ARROW)
            continue
        depth += (text[at] in "(<[{") - (text[at] in ")>]}")
        at += 1
    return at


@lru_cache(maxsize=1 << 16)
def closure_of_state(type_path: str) -> str | None:
    """The closure whose captures a type is, or a part of them; None for other types."""
    found = _STATE.match(type_path) if "_env#" in type_path else None
    return _canonical(found[0]) if found else None


def closure_of_function(path: str) -> str | None:
    """The closure whose code a function is, by its path in debug information; None for other functions."""
    found = _BODY.fullmatch(path)
    return _canonical(found["path"]) if found else None


def _canonical(path: str) -> str:
    return _KIND.sub("{#", path)
