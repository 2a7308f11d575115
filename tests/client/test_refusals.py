"""What cannot be applied is refused by name, and leaves the program as it was."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import Stage
from tests.client.images import Image

SOURCE = """
    long (*import_labs)(long);
    int replaced(int n) { return n + (int)import_labs(-1001); }
"""
FAR = 1 << 40


def _segment(image: Image, **changes: Any) -> Image:
    first, *others = image.message["segments"]
    return image.with_changes(segments=[{**first, **changes}, *others])


def _detour(image: Image, **changes: Any) -> Image:
    return image.with_changes(detours=[{**image.message["detours"][0], **changes}])


def _import(image: Image, **changes: Any) -> Image:
    return image.with_changes(imports=[{**image.message["imports"][0], **changes}])


def _code(image: Image) -> dict[str, int]:
    code: dict[str, int] = next(segment for segment in image.message["segments"] if segment["prot"] == "rx")
    return code


def _eh_frame_content(image: Image) -> bytes:
    frames = image.message["eh_frame"]
    segment = next(s for s in image.message["segments"] if 0 <= frames["addr"] - s["addr"] < s["file_size"])
    start = segment["offset"] + frames["addr"] - segment["addr"]
    return image.content[start : start + frames["size"]]


def _eh_frame(image: Image, edit: Callable[[bytes], bytes]) -> Image:
    content = _eh_frame_content(image)
    return image.with_content(content, edit(content))


CASES: dict[str, tuple[str, Callable[[Image], Image]]] = {
    "other bytes": ("hash", lambda i: Image(i.message, i.content[:-1] + bytes([i.content[-1] ^ 1]))),
    "bytes missing": ("hash", lambda i: Image(i.message, i.content[:-1])),
    "no bytes": ("hash", lambda i: Image(i.message, b"")),
    "other build": ("build_id", lambda i: i.with_changes(build_id="00" * 20)),
    "segment far away": ("address", lambda i: _segment(i, addr=FAR)),
    "segment over the program": ("address", lambda i: _segment(i, addr=i.message["detours"][0]["from"] & ~0xFFF)),
    "segment at an odd address": ("address", lambda i: _segment(i, addr=_code(i)["addr"] + 65536 + 8)),
    "segment over another": ("address", lambda i: _segment(i, addr=_code(i)["addr"])),
    "empty segment": ("address", lambda i: _segment(i, mem_size=0, file_size=0)),
    "segment that wraps": ("address", lambda i: _segment(i, mem_size=2**64 - 1)),
    "content outside the bytes": ("malformed", lambda i: _segment(i, offset=2**64 - 1)),
    "content larger than the segment": ("malformed", lambda i: _segment(i, file_size=2**63)),
    "unknown import": ("import", lambda i: _import(i, name="no_such_function")),
    "import with a zero in its name": ("import", lambda i: _import(i, name="la\0bs")),
    "slot in code": ("address", lambda i: _import(i, slot=_code(i)["addr"])),
    "slot outside": ("address", lambda i: _import(i, slot=2**64 - 1)),
    "detour of data": ("address", lambda i: _detour(i, **{"from": i.message["segments"][0]["addr"]})),
    "detour of nothing": ("address", lambda i: _detour(i, **{"from": 2**64 - 1})),
    "detour to the program": ("address", lambda i: _detour(i, to=i.message["detours"][0]["from"])),
    "padding elsewhere": (
        "address",
        lambda i: _detour(i, padding=[{"addr": i.message["segments"][0]["addr"], "size": 8}]),
    ),
    "padding that wraps": (
        "address",
        lambda i: _detour(i, padding=[{"addr": i.message["detours"][0]["from"], "size": 2**64 - 1}]),
    ),
    "overlapping detours": (
        "malformed",
        lambda i: i.with_changes(
            detours=[i.message["detours"][0], {**i.message["detours"][0], "from": i.message["detours"][0]["from"] + 4}]
        ),
    ),
    "frames outside": ("address", lambda i: i.with_changes(eh_frame={"addr": FAR, "size": 16})),
    "frames that wrap": ("address", lambda i: i.with_changes(eh_frame={"addr": _code(i)["addr"], "size": 2**64 - 1})),
    "frames without an end": (
        "malformed",
        lambda i: i.with_changes(eh_frame={**i.message["eh_frame"], "size": i.message["eh_frame"]["size"] - 4}),
    ),
    "frames of garbage": ("malformed", lambda i: _eh_frame(i, lambda content: b"\x11" * len(content))),
    "frames of other code": ("malformed", lambda i: _eh_frame(i, lambda c: c[:32] + b"\x7f" * 4 + c[36:])),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_patch_is_refused(stage: Stage, case: str) -> None:
    """A patch with one thing wrong is refused for it, changes nothing, and does not stand in the way of a right one."""
    reason, spoil = CASES[case]
    async with stage.patching("host") as (program, peer):
        image = stage.image(SOURCE, peer.hello, program, answer="replaced")
        bytes_before = await program.ask("bytes")
        spoilt = spoil(image)
        refused = await peer.apply(spoilt.message, spoilt.content)
        assert (refused["type"], refused["reason"]) == ("refused", reason), refused
        assert refused["detail"]
        assert refused["symbol"] == (spoilt.message["imports"][0]["name"] if reason == "import" else None)
        assert await program.ask("bytes") == bytes_before
        assert await program.ask("answer") == "2"
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "1002"


async def test_patch_below_the_next_address_is_refused(stage: Stage) -> None:
    """Where a patch is, no other can go, also after it has been taken back."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        await peer.undo(None)
        assert (await peer.apply(image.message, image.content))["reason"] == "address"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("not json", 1002),
        ("[]", 1002),
        ('{"type": "patch", "seq": 3}', 1002),
        ('{"type": "dance", "seq": 3}', 1002),
        ('{"type": "undo", "seq": 17, "to": null}', 1002),
        ('{"type": "undo", "to": null}', 1002),
        ('{"type": "undo", "seq": -1, "to": null}', 1002),
        ('{"type": "welcome", "seq": 3, "proof": "", "client": 1}', 1002),
        ("[" * 100_000, 1002),
        (b"bytes that nothing announced", 1003),
    ],
)
async def test_broken_message_ends_the_connection_only(stage: Stage, frame: str | bytes, code: int) -> None:
    """A message that breaks the rules closes the connection with the code for it; the client comes back."""
    async with stage.patching("host") as (program, peer):
        await peer.socket.send(frame)
        assert await peer.close_code() == code
        assert await program.ask("answer") == "2"


async def test_text_in_place_of_the_bytes_ends_the_connection_only(stage: Stage) -> None:
    """A patch whose bytes do not come is not applied."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return 9; }", peer.hello, program, answer="replaced")
        await peer.send(**image.message)
        await peer.socket.send(json.dumps({"type": "undo", "seq": 4, "to": None}))
        assert await peer.close_code() == 1002
        assert await program.ask("answer") == "2"
