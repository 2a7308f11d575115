"""The process at the other end of a connection is found, and only if it is this user's."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotpatchd.core.errors import WireError
from hotpatchd.daemon.peers import SocketAddress, process_of

Ends = tuple[socket.socket, socket.socket]


def connected(listening: str, connecting: str) -> Iterator[Ends]:
    """Both ends of a connection to an address, which may be written in another family's form."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}
    with socket.create_server((listening, 0), family=family[6 if ":" in listening else 4]) as listener:
        there = socket.socket(family[6 if ":" in connecting else 4])
        there.connect((connecting, listener.getsockname()[1]))
        here, _ = listener.accept()
        with there, here:
            yield there, here


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a connection within this process."""
    yield from connected("127.0.0.1", "127.0.0.1")


@pytest.fixture
def heir(ends: Ends) -> Iterator[int]:
    """A younger process that has the far end too."""
    argv = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, pass_fds=[ends[0].fileno()], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def addresses(here: socket.socket) -> tuple[SocketAddress, SocketAddress]:
    """The far and the near address of a connection, as asyncio has them."""
    return here.getpeername(), here.getsockname()


@pytest.mark.parametrize(
    ("listening", "connecting"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")],
)
def test_process_is_found(listening: str, connecting: str) -> None:
    """Whatever address family each end uses."""
    for _, here in connected(listening, connecting):
        assert process_of(*addresses(here)) == os.getpid()


def test_claim_that_is_true_is_confirmed(ends: Ends) -> None:
    """A process may say who it is."""
    assert process_of(*addresses(ends[1]), os.getpid()) == os.getpid()


def test_claim_that_is_false_is_refused(ends: Ends) -> None:
    """Another process, though of the same user, is named in vain."""
    with pytest.raises(WireError, match=f"not one of process {os.getppid()}"):
        process_of(*addresses(ends[1]), os.getppid())


def test_oldest_of_several_holders_is_meant(ends: Ends, heir: int) -> None:
    """A socket that a child inherited is its parent's, unless the child says otherwise."""
    assert process_of(*addresses(ends[1])) == os.getpid()
    assert process_of(*addresses(ends[1]), heir) == heir


def test_connection_that_ended_belongs_to_nobody(ends: Ends) -> None:
    """A client that left before it was looked for is not mixed up with another."""
    far, near = addresses(ends[1])
    ends[0].close()
    with pytest.raises(WireError):
        process_of(far, near)


def test_connection_of_another_user_is_refused(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may open a port on this machine may not therefore take part."""
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(WireError, match="belongs to user"):
        process_of(*addresses(ends[1]))
