"""What programs that use the `subsecond` crate and the daemon tell each other, without the form it takes on the wire.

All numbers are unsigned and have 64 bits, unless a name says otherwise.

Source: crates `subsecond-types`, `dioxus-devtools` and `dioxus-devtools-types` 0.7.10, `cargo-hot-protocol` 0.1.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DevtoolsDialect = Literal["dioxus", "cargo-hot"]
DevtoolsNotice = Literal["HotPatchStart", "FullReloadStart", "FullReloadFailed", "FullReloadCommand", "Shutdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevtoolsHello:
    """What a program says of itself when it connects.

    `aslr_reference` is the run-time address of `main`, 0 where the program does not export it; `build_id` is the
    number that its environment gave it, 0 where it gave none; `pid` is what the program takes for its process id, or
    None where its version of the crate does not say.
    """

    aslr_reference: int
    build_id: int
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DevtoolsTable:
    """A patch library, and which functions of the program it replaces.

    `lib` is a path on the program's file system; `map` leads from link-time addresses in the program to link-time
    addresses in the library; `aslr_reference` and `new_base_address` are the link-time addresses of `main` in the
    program and in the library. A table replaces the one before it. `ifunc_count` matters for WebAssembly only.
    """

    lib: str
    map: Mapping[int, int]
    aslr_reference: int
    new_base_address: int
    ifunc_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DevtoolsConnected:
    """A program connected, and is called by the number `client` from here on.

    `pid` is the process that holds the other end of the connection, as this machine's daemon sees it; None where the
    system does not tell, and the program did not either.
    """

    client: int
    hello: DevtoolsHello
    pid: int | None
    dialect: DevtoolsDialect


@dataclass(frozen=True, slots=True, kw_only=True)
class DevtoolsLost:
    """The connection of such a program ended; whether it took the last table, it did not say."""

    client: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DevtoolsUnavailable:
    """Programs of a dialect cannot connect; the daemon goes on without them."""

    dialect: DevtoolsDialect
    reason: str


DevtoolsEvent = DevtoolsConnected | DevtoolsLost | DevtoolsUnavailable
