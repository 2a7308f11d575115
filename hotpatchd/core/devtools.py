"""What the devtools dialects ask of a build and of a program's environment."""

from pathlib import PurePath
from typing import Literal
from urllib.parse import urlsplit

from hotpatchd.core.dioxus import DevtoolsNotice
from hotpatchd.core.events import EditSettled, EditVerdict, Event

Protocol = Literal["auto", "native", "dioxus"]
"""How programs are patched: `native` in place, `dioxus` by the jump tables of their own `subsecond` crate; `auto` in
place, and those that use the crate are told of it so that their handlers run."""

CARGO_HOT = "cargo-hot-protocol"
HOT_CALL_CRATES = frozenset({"subsecond", CARGO_HOT})
"""Crates by which programs look up what they call; the second has a dialect of its own."""


def export_main_args(target: str) -> tuple[str, ...]:
    """Arguments for rustc that make a program export `main`, by which its `subsecond` crate finds its load address.

    Args:
        target: target triple.

    Source: `subsecond::aslr_reference`; GNU ld 2.35 and lld, `--export-dynamic-symbol`; ld64, `-exported_symbol`
    """
    if "-apple-" in target:
        return ("-Clink-arg=-Wl,-exported_symbol,_main",)
    if target.endswith("-msvc"):
        return ("-Clink-arg=/EXPORT:main",)
    if "-windows-" in target:
        return ("-Clink-arg=-Wl,--export-all-symbols",)
    return ("-Clink-arg=-Wl,--export-dynamic-symbol=main",)


def devtools_environ(url: str) -> dict[str, str]:
    """The variables by which a program's `dioxus-devtools` crate finds the daemon.

    Args:
        url: where the daemon listens.

    Source: `dioxus_cli_config`; it takes the two together for a socket address, with brackets around IPv6.
    """
    host, _, port = urlsplit(url).netloc.rpartition(":")
    return {"DIOXUS_DEVSERVER_IP": host, "DIOXUS_DEVSERVER_PORT": port, "DIOXUS_CLI_ENABLED": "true"}


def is_asset(path: str) -> bool:
    """Whether a file lies where programs keep what they show and do not compile: in a directory `assets`."""
    return "assets" in PurePath(path).parts[:-1]


def notice_of(event: Event) -> DevtoolsNotice | None:
    """What an event means to programs that show how a build is going; None where it means nothing to them."""
    match event:
        case EditSettled():
            return "HotPatchStart"
        case EditVerdict() if event.verdict.verdict == "failed":
            return "FullReloadFailed"
        case EditVerdict() if event.verdict.verdict == "restart":
            return "FullReloadStart"
        case _:
            return None
