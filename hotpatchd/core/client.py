"""What a client and the daemon tell each other, without the form it takes on the wire.

Addresses are run-time addresses and sizes bytes, unless a name says otherwise.
"""

from dataclasses import dataclass
from typing import Literal

PROTOCOL = 1

RejectReason = Literal["protocol", "token", "build_id", "malformed"]
RefuseReason = Literal[
    "hash",
    "build_id",
    "address",
    "import",
    "layout",
    "load",
    "memory",
    "park",
    "too_short",
    "malformed",
    "unknown_patch",
]
PatchKind = Literal["image", "dylib"]
Protection = Literal["r", "rw", "rx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Address space that a client reserved for patches; `next` is the first free address in it."""

    addr: int
    size: int
    slot_size: int
    next: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadLocalReserve:
    """Bytes that a client has in every thread: `size` of them from `offset` on, counted from the thread pointer."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedLibrary:
    """The library that a client patches: its path, and the dynamic loader's number for its thread-locals."""

    path: str
    tls_module: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A client's account of the program it lives in.

    `instance` differs for every process; `slide` is the run-time address minus the link-time address;
    `patches` are the identities of the patches in force, oldest first. `kind` is what the client takes, `Patch` or
    `DylibPatch`; a client for dylibs has an empty region and no thread-local reserve. Where it is not `in_place`, the
    program's code stays as it is, and only calls that the program makes through the client reach new functions. With
    `short_jumps` the client can put a jump into padding, and lead there from a function that has no room for it. With a
    `library`, that is what `build_id` and `slide` are of; else they are of the program.
    """

    instance: str
    build_id: str
    pid: int
    exe: str
    target: str
    slide: int
    region: Region
    thread_locals: ThreadLocalReserve
    page_size: int
    patches: tuple[str, ...]
    kind: PatchKind = "image"
    in_place: bool = True
    short_jumps: bool = False
    library: LoadedLibrary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a client is turned away; with `retry` it may come back."""

    reason: RejectReason
    detail: str
    retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`file_size` of the patch's bytes, from `offset` on, belong at `addr`; zeros follow up to `mem_size`."""

    addr: int
    mem_size: int
    offset: int
    file_size: int
    prot: Protection


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """The 8 bytes at `slot` receive the address of the dynamic symbol `name`, or 0 if it is weak and there is none."""

    name: str
    slot: int
    weak: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EhFrame:
    """Where a patch has its zero-terminated unwind tables."""

    addr: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Bytes between two functions that belong to neither."""

    addr: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """The jump that replaces the function at `from_addr`, of `size` bytes, by the one at `to_addr`.

    `room` are the bytes from there on that no other function has; None where they are enough for every jump. `padding`
    is what a short jump reaches.
    """

    from_addr: int
    to_addr: int
    size: int
    room: int | None = None
    padding: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadLocalImage:
    """Initial content, in hex, of a new thread-local at `offset` from the thread pointer, for all threads."""

    offset: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A function that no thread may be inside when a patch is applied, and what to answer if one is.

    Args:
        from_addr: its run-time address.
        size: in bytes.
        symbol: the type at fault.
        detail: why it must be idle.
    """

    from_addr: int
    size: int
    symbol: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A linked image as one client is to apply it; `patch` is the SHA-256 of its `size` bytes, in hex.

    `libraries` are shared libraries that may have to be loaded for its imports. With `proof` the client is to tell when
    its functions run for the first time.
    """

    patch: str
    edit: int
    build_id: str
    size: int
    segments: tuple[Segment, ...]
    imports: tuple[Import, ...]
    eh_frame: EhFrame | None
    detours: tuple[Detour, ...]
    thread_locals: tuple[ThreadLocalImage, ...]
    elf: str | None
    idle: tuple[Idle, ...] = ()
    libraries: tuple[str, ...] = ()
    proof: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A symbol that a library exports, and its link-time address: they tell where the library was loaded."""

    symbol: str
    addr: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DylibPatch:
    """A linked shared library as one client is to load it; `patch` is the SHA-256 of its `size` bytes, in hex.

    In `jumps`, `from_addr` is a run-time address in the program and `to_addr` a link-time address in the library.
    With `pull` the client fetches the bytes by HTTP; else they follow the message.
    """

    patch: str
    edit: int
    build_id: str
    size: int
    file_name: str
    anchor: Anchor
    jumps: tuple[Detour, ...]
    pull: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OnStack:
    """Threads, by name, that are still inside the old body of the function at `from_addr`."""

    from_addr: int
    threads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A patch or an undo took effect; `timings_us` are stages by name, `next` as in `Region`.

    With `proof`, `Ran` will tell of the patch's functions.
    """

    next: int
    threads: int
    timings_us: dict[str, float]
    on_stack: tuple[OnStack, ...]
    proof: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """New code ran for the first time.

    Args:
        patch: the patch that brought it.
        from_addrs: the functions that it replaces.
        after_us: from the patch's taking effect to when the client found that it had run.
        within_us: how much earlier it may have run at most.
    """

    patch: str
    from_addrs: tuple[int, ...]
    after_us: int
    within_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A patch or an undo was turned down, and nothing changed in the program.

    `from_addr` is the function that it is about, where the client does not know its name.
    """

    reason: RefuseReason
    detail: str
    symbol: str | None
    from_addr: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    """A client proved that it knows the token and was welcomed under the number `client`."""

    client: int
    hello: Hello


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAnswer:
    """A client answered a patch, named by its identity, or an undo, for which `patch` is None."""

    client: int
    patch: str | None
    answer: Applied | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRan:
    """A client found that new code ran; it may tell that more than once."""

    client: int
    ran: Ran


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPanicked:
    """Panics went through patched code in a client's program; the file that it leaves its notes in counts them."""

    client: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLost:
    """The connection of a welcomed client ended; what was sent and not answered stays unanswered."""

    client: int
    reason: str


ClientEvent = ClientHello | ClientAnswer | ClientRan | ClientPanicked | ClientLost
