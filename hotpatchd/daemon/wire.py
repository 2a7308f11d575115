"""The codec of `docs/wire.md`: what the messages of clients and commands look like as JSON.

Nothing else knows these shapes. The rest of the daemon uses the dataclasses of `hotpatchd.core.client`;
`inward`, `patch_message` and `dylib_message` translate.
"""

import hashlib
import hmac
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.json import Decoder

from hotpatchd.core import client as core
from hotpatchd.core.errors import WireError

Address = Annotated[int, Meta(ge=0, lt=2**53)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]


def _tag(name: str) -> str:
    return name.removesuffix("Message").removesuffix("Request").lower()


class Message(Struct, kw_only=True, tag_field="type", tag=_tag):
    """One text frame; `seq` counts the sender's messages on this connection, from 1."""

    seq: Count


class ChallengeMessage(Message):
    """The daemon's first message."""

    nonce: Hex64
    protocol: int = core.PROTOCOL


class WelcomeMessage(Message):
    """The daemon knows the token too, and calls the client by this number."""

    proof: Hex64
    client: int


class RejectMessage(Message):
    """The daemon turns a client away."""

    reason: core.RejectReason
    detail: str
    retry: bool


class GapShape(Struct, kw_only=True):
    """Bytes between two functions."""

    addr: Address
    size: Count


class DetourShape(Struct, kw_only=True, omit_defaults=True):
    """A detour: `from` is a Python keyword."""

    from_addr: Address = field(name="from")
    to_addr: Address = field(name="to")
    size: Count
    room: Count | None = None
    padding: tuple[GapShape, ...] = ()


class IdleShape(Struct, kw_only=True):
    """A function that no thread may be inside: `from` is a Python keyword."""

    from_addr: Address = field(name="from")
    size: Count
    symbol: str
    detail: str


class PatchMessage(Message):
    """A patch, whose bytes are the binary frame after this one."""

    patch: Hex64
    edit: int
    build_id: str
    size: Count
    segments: tuple[core.Segment, ...]
    imports: tuple[core.Import, ...]
    libraries: tuple[str, ...]
    eh_frame: core.EhFrame | None
    detours: tuple[DetourShape, ...]
    thread_locals: tuple[core.ThreadLocalImage, ...]
    idle: tuple[IdleShape, ...]
    proof: bool
    elf: str | None


class DylibMessage(Message):
    """A patch library; its bytes are the binary frame after this one, or those at `url`."""

    patch: Hex64
    edit: int
    build_id: str
    size: Count
    file_name: str
    url: str | None
    anchor: core.Anchor
    jumps: tuple[DetourShape, ...]


class UndoMessage(Message):
    """Take back every patch after `to`, or all."""

    to: Hex64 | None


class RegionShape(Struct, kw_only=True):
    """Address space reserved for patches."""

    addr: Address
    size: Count
    slot_size: Annotated[int, Meta(gt=0, lt=2**53)]
    next: Address


class ThreadLocalReserveShape(Struct, kw_only=True):
    """Bytes that the client keeps in every thread for new thread-locals."""

    offset: Annotated[int, Meta(gt=-(2**53), lt=2**53)]
    size: Count


class LoadedLibraryShape(Struct, kw_only=True):
    """The library that is patched."""

    path: Name
    tls_module: Count


class HelloMessage(Message):
    """A client's first message."""

    protocol: Literal[1]
    proof: Hex64
    nonce: Hex64
    instance: Hex32
    build_id: Name
    pid: Count
    exe: Name
    target: Name
    slide: Address
    region: RegionShape
    thread_locals: ThreadLocalReserveShape
    page_size: Annotated[int, Meta(gt=0, lt=2**53)]
    patches: tuple[Hex64, ...]
    kind: core.PatchKind = "image"
    in_place: bool = True
    short_jumps: bool = False
    library: LoadedLibraryShape | None = None


class OnStackShape(Struct, kw_only=True):
    """Threads inside an old body: `from` is a Python keyword."""

    from_addr: Address = field(name="from")
    threads: tuple[str, ...]


class AppliedMessage(Message):
    """A client did what the daemon's message `answers` asked for."""

    answers: Count
    next: Address
    threads: Count
    timings_us: dict[str, float]
    on_stack: tuple[OnStackShape, ...]
    proof: bool = False


class RanMessage(Message):
    """New code ran for the first time: `from` is a Python keyword."""

    patch: Hex64
    from_addrs: tuple[Address, ...] = field(name="from")
    after_us: Count
    within_us: Count


class PanickedMessage(Message):
    """Panics went through patched code; the client's notes count them."""


class RefusedMessage(Message):
    """A client did not do what the daemon's message `answers` asked for."""

    answers: Count
    reason: core.RefuseReason
    detail: str
    symbol: str | None = None
    from_addr: Address | None = field(name="from", default=None)


ClientMessage = HelloMessage | AppliedMessage | RefusedMessage | RanMessage | PanickedMessage


class ControlRequest(Struct, kw_only=True, tag_field="command", tag=_tag):
    """A command for the running daemon; its answer carries the same `id`."""

    id: int


class StatusRequest(ControlRequest):
    """What the daemon is doing."""


class ClientsRequest(ControlRequest):
    """Who is connected."""


class TriggerRequest(ControlRequest):
    """Look at these files now, or at everything."""

    files: tuple[str, ...] = ()


class UndoRequest(ControlRequest):
    """Take back the last `count` edits."""

    count: Annotated[int, Meta(ge=1)] = 1


class LogRequest(ControlRequest):
    """The last edits."""


class ShowRequest(ControlRequest):
    """Everything about one edit."""

    edit: int


class RestartRequest(ControlRequest):
    """Build fully and start the program anew; or start it as it was before the last edit, without a build."""

    without_last: bool = False


class EventsRequest(ControlRequest):
    """Send every event from now on."""


ControlCommand = (
    StatusRequest
    | ClientsRequest
    | TriggerRequest
    | UndoRequest
    | LogRequest
    | ShowRequest
    | RestartRequest
    | EventsRequest
)


class _HelloVersion(Struct, tag_field="type", tag="hello"):
    protocol: int


class _ControlId(Struct):
    id: int


_T = TypeVar("_T")

_FROM_CLIENT: Decoder[ClientMessage] = Decoder(ClientMessage)
_HELLO_VERSION = Decoder(_HelloVersion)
_CONTROL: Decoder[ControlCommand] = Decoder(ControlCommand)
_CONTROL_ID = Decoder(_ControlId)


def encode(message: object) -> str:
    """The text frame of a message of this module, or of an answer of plain JSON values."""
    return msgspec.json.encode(message).decode()


def decode_from_client(text: str) -> ClientMessage:
    """Read a client's text frame.

    Raises:
        WireError: it is not a message of this protocol; says which field is wrong.
    """
    return _decode(text, _FROM_CLIENT)


def decode_protocol(text: str) -> int:
    """The protocol version of a hello, which may be one whose other fields mean nothing here.

    Raises:
        WireError: it is not a hello.
    """
    return _decode(text, _HELLO_VERSION).protocol


def decode_control(text: str) -> ControlCommand:
    """Read a command.

    Raises:
        WireError: unknown command, or wrong arguments.
    """
    return _decode(text, _CONTROL)


def decode_control_id(text: str) -> int:
    """The `id` of a command that may be wrong otherwise.

    Raises:
        WireError: it has none.
    """
    return _decode(text, _CONTROL_ID).id


def inward(message: Struct, into: type[_T]) -> _T:
    """The dataclass of `hotpatchd.core.client` with the content of a decoded message."""
    return _convert(message, into)


def patch_message(seq: int, patch: core.Patch) -> PatchMessage:
    """The message that announces a patch and its bytes."""
    return PatchMessage(
        seq=seq,
        patch=patch.patch,
        edit=patch.edit,
        build_id=patch.build_id,
        size=patch.size,
        segments=patch.segments,
        imports=patch.imports,
        libraries=patch.libraries,
        eh_frame=patch.eh_frame,
        detours=tuple(_convert(detour, DetourShape) for detour in patch.detours),
        thread_locals=patch.thread_locals,
        idle=tuple(_convert(one, IdleShape) for one in patch.idle),
        proof=patch.proof,
        elf=patch.elf,
    )


def dylib_message(seq: int, patch: core.DylibPatch) -> DylibMessage:
    """The message that announces a patch library."""
    return DylibMessage(
        seq=seq,
        patch=patch.patch,
        edit=patch.edit,
        build_id=patch.build_id,
        size=patch.size,
        file_name=patch.file_name,
        url=f"/patches/{patch.patch}" if patch.pull else None,
        anchor=patch.anchor,
        jumps=tuple(_convert(jump, DetourShape) for jump in patch.jumps),
    )


def proof(token: str, side: Literal["client", "daemon"], nonce: str) -> str:
    """What shows that `side` knows the token, to whoever drew `nonce`."""
    return hmac.new(token.encode(), f"{side}:{nonce}".encode(), hashlib.sha256).hexdigest()


def _convert(source: object, into: type[_T]) -> _T:
    return msgspec.convert(source, into, from_attributes=True)


def _decode(text: str, decoder: Decoder[_T]) -> _T:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(f"not a message of this protocol: {error}") from error
