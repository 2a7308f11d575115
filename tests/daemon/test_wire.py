"""The codec reads and writes exactly what docs/wire.md shows."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core import client as core
from hotpatchd.core.errors import WireError
from hotpatchd.daemon import wire

HELLO: dict[str, Any] = {
    "type": "hello",
    "seq": 1,
    "protocol": 1,
    "proof": "a" * 64,
    "nonce": "b" * 64,
    "instance": "c" * 32,
    "build_id": "d" * 40,
    "pid": 4712,
    "exe": "/path/of/the/program",
    "target": "x86_64-unknown-linux-gnu",
    "slide": 93824990846976,
    "region": {"addr": 65536, "size": 134217728, "slot_size": 65536, "next": 131072},
    "thread_locals": {"offset": -4096, "size": 4096},
    "page_size": 4096,
    "patches": ["e" * 64],
}
APPLIED: dict[str, Any] = {
    "type": "applied",
    "seq": 2,
    "answers": 3,
    "next": 6,
    "threads": 9,
    "timings_us": {"verify": 80, "copy": 40, "park": 120, "total": 400},
    "on_stack": [{"from": 4, "threads": ["main", "worker-1"]}],
}
REFUSED: dict[str, Any] = {
    "type": "refused",
    "seq": 2,
    "answers": 3,
    "reason": "import",
    "detail": "no such symbol",
    "symbol": "memcpy",
}


def test_hello_becomes_the_core_hello() -> None:
    """Every field of a hello arrives; fields that are not known are ignored."""
    message = wire.decode_from_client(json.dumps(HELLO | {"unknown": [1]}))
    assert wire.inward(message, core.Hello) == core.Hello(
        instance="c" * 32,
        build_id="d" * 40,
        pid=4712,
        exe="/path/of/the/program",
        target="x86_64-unknown-linux-gnu",
        slide=93824990846976,
        region=core.Region(addr=65536, size=134217728, slot_size=65536, next=131072),
        thread_locals=core.ThreadLocalReserve(offset=-4096, size=4096),
        page_size=4096,
        patches=("e" * 64,),
    )


def test_hello_of_a_dylib_client_says_so() -> None:
    """A client that takes libraries names the kind, and whether it writes into the program's code."""
    region = {"addr": 0, "size": 0, "slot_size": 65536, "next": 0}
    dylib = {"kind": "dylib", "in_place": False, "region": region, "thread_locals": {"offset": 0, "size": 0}}
    hello = wire.inward(wire.decode_from_client(json.dumps(HELLO | dylib)), core.Hello)
    assert (hello.kind, hello.in_place, hello.region.size) == ("dylib", False, 0)


def test_applied_becomes_the_core_applied() -> None:
    """The functions still on a stack come with their threads."""
    message = wire.decode_from_client(json.dumps(APPLIED))
    assert wire.inward(message, core.Applied) == core.Applied(
        next=6,
        threads=9,
        timings_us={"verify": 80, "copy": 40, "park": 120, "total": 400},
        on_stack=(core.OnStack(from_addr=4, threads=("main", "worker-1")),),
    )


def test_ran_becomes_the_core_ran() -> None:
    """What ran, and when, arrives."""
    text = '{"type": "ran", "seq": 3, "patch": "' + "f" * 64 + '", "from": [4], "after_us": 1830, "within_us": 1060}'
    assert wire.inward(wire.decode_from_client(text), core.Ran) == core.Ran(
        patch="f" * 64, from_addrs=(4,), after_us=1830, within_us=1060
    )


def test_refused_becomes_the_core_refused() -> None:
    """The reason and the symbol arrive."""
    message = wire.decode_from_client(json.dumps(REFUSED))
    assert wire.inward(message, core.Refused) == core.Refused(reason="import", detail="no such symbol", symbol="memcpy")


@pytest.mark.parametrize(
    "wrong",
    [
        HELLO | {"proof": "A" * 64},
        HELLO | {"proof": "a" * 64 + "\n"},
        HELLO | {"nonce": "b"},
        HELLO | {"pid": -1},
        HELLO | {"slide": 2**53},
        HELLO | {"slide": 1.5},
        HELLO | {"page_size": 0},
        HELLO | {"region": None},
        HELLO | {"region": HELLO["region"] | {"addr": -4096}},
        HELLO | {"patches": ["../daemon"]},
        HELLO | {"protocol": 2},
        HELLO | {"type": "patch"},
        HELLO | {"kind": "bundle"},
        APPLIED | {"on_stack": [{"from": "4", "threads": []}]},
        REFUSED | {"reason": "mood"},
        {"type": "hello", "seq": 1},
        [],
        None,
    ],
    ids=str,
)
def test_wrong_message_is_refused(wrong: object) -> None:
    """A message that breaks the specification is a WireError, nothing else."""
    with pytest.raises(WireError):
        wire.decode_from_client(json.dumps(wrong))


def test_deep_nesting_is_refused() -> None:
    """Brackets without end do not exhaust the stack."""
    with pytest.raises(WireError):
        wire.decode_from_client('{"type": "refused", "seq": 1, "x": ' + "[" * 300_000)


@given(st.text())
def test_garbage_is_refused(text: str) -> None:
    """No text at all makes the decoder fail in another way."""
    for decode in (
        wire.decode_from_client,
        wire.decode_protocol,
        wire.decode_control,
        wire.decode_control_id,
    ):
        with pytest.raises(WireError):
            decode(text)


def test_protocol_is_read_from_a_hello_of_another_version() -> None:
    """The version can be told although nothing else is understood."""
    assert wire.decode_protocol('{"type": "hello", "seq": 1, "protocol": 9}') == 9


def test_patch_has_its_documented_form() -> None:
    """A patch is announced field for field as specified."""
    patch = core.Patch(
        patch="f" * 64,
        edit=7,
        build_id="d" * 40,
        size=9216,
        segments=(core.Segment(addr=1, mem_size=4096, offset=0, file_size=4000, prot="rx"),),
        imports=(core.Import(name="memcpy", slot=2), core.Import(name="gettid", slot=10, weak=True)),
        libraries=("/lib/libm.so.6",),
        eh_frame=core.EhFrame(addr=3, size=400),
        detours=(
            core.Detour(from_addr=4, to_addr=5, size=80, room=3, padding=(core.Gap(addr=6, size=11),)),
            core.Detour(from_addr=7, to_addr=8, size=90),
        ),
        thread_locals=(core.ThreadLocalImage(offset=-8, data="00ff"),),
        elf="/path/of/the/linked/patch",
        idle=(core.Idle(from_addr=4, size=80, symbol="app::State", detail="…"),),
        proof=True,
    )
    assert json.loads(wire.encode(wire.patch_message(3, patch))) == {
        "type": "patch",
        "seq": 3,
        "patch": "f" * 64,
        "edit": 7,
        "build_id": "d" * 40,
        "size": 9216,
        "segments": [{"addr": 1, "mem_size": 4096, "offset": 0, "file_size": 4000, "prot": "rx"}],
        "imports": [{"name": "memcpy", "slot": 2, "weak": False}, {"name": "gettid", "slot": 10, "weak": True}],
        "libraries": ["/lib/libm.so.6"],
        "eh_frame": {"addr": 3, "size": 400},
        "detours": [
            {"from": 4, "to": 5, "size": 80, "room": 3, "padding": [{"addr": 6, "size": 11}]},
            {"from": 7, "to": 8, "size": 90},
        ],
        "thread_locals": [{"offset": -8, "data": "00ff"}],
        "proof": True,
        "idle": [{"from": 4, "size": 80, "symbol": "app::State", "detail": "…"}],
        "elf": "/path/of/the/linked/patch",
    }


@pytest.mark.parametrize(("pull", "url"), [(False, None), (True, "/patches/" + "f" * 64)])
def test_dylib_has_its_documented_form(pull: bool, url: str | None) -> None:
    """A patch library is announced field for field as specified, with or without a place to fetch it from."""
    patch = core.DylibPatch(
        patch="f" * 64,
        edit=7,
        build_id="d" * 40,
        size=9216,
        file_name="libpatch-7.so",
        anchor=core.Anchor(symbol="hotpatchd_anchor", addr=4096),
        jumps=(core.Detour(from_addr=4, to_addr=5, size=80),),
        pull=pull,
    )
    assert json.loads(wire.encode(wire.dylib_message(3, patch))) == {
        "type": "dylib",
        "seq": 3,
        "patch": "f" * 64,
        "edit": 7,
        "build_id": "d" * 40,
        "size": 9216,
        "file_name": "libpatch-7.so",
        "url": url,
        "anchor": {"symbol": "hotpatchd_anchor", "addr": 4096},
        "jumps": [{"from": 4, "to": 5, "size": 80}],
    }


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        (
            wire.ChallengeMessage(seq=1, nonce="a" * 64),
            {"type": "challenge", "seq": 1, "protocol": 1, "nonce": "a" * 64},
        ),
        (
            wire.WelcomeMessage(seq=2, proof="a" * 64, client=1),
            {"type": "welcome", "seq": 2, "proof": "a" * 64, "client": 1},
        ),
        (
            wire.RejectMessage(seq=2, reason="token", detail="d", retry=False),
            {"type": "reject", "seq": 2, "reason": "token", "detail": "d", "retry": False},
        ),
        (wire.UndoMessage(seq=4, to=None), {"type": "undo", "seq": 4, "to": None}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_daemon_message_has_its_documented_form(message: wire.Message, shape: object) -> None:
    """What the daemon says is spelled as specified."""
    assert json.loads(wire.encode(message)) == shape


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"id": 1, "command": "status"}', wire.StatusRequest(id=1)),
        ('{"id": 1, "command": "clients"}', wire.ClientsRequest(id=1)),
        ('{"id": 1, "command": "trigger", "files": ["/a"]}', wire.TriggerRequest(id=1, files=("/a",))),
        ('{"id": 1, "command": "undo", "count": 2}', wire.UndoRequest(id=1, count=2)),
        ('{"id": 1, "command": "events"}', wire.EventsRequest(id=1)),
    ],
)
def test_command_is_read(text: str, command: wire.ControlCommand) -> None:
    """Each command of the table is understood with its arguments."""
    assert wire.decode_control(text) == command


def test_proof_is_the_specified_hmac() -> None:
    """The proof is HMAC-SHA256, keyed with the token's text, of the side and the nonce."""
    expected = hmac.new(b"token", b"client:nonce", hashlib.sha256).hexdigest()
    assert wire.proof("token", "client", "nonce") == expected
    assert wire.proof("token", "daemon", "nonce") != expected
