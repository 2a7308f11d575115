"""Which process is at the other end of a connection on this machine."""

import ipaddress
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hotpatchd.core.errors import WireError

SocketAddress = tuple[str, int]

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
# A table is read in pieces, and a row that moves meanwhile may be missed.
_LOOKS = 3


def process_of(peer: SocketAddress, here: SocketAddress, claimed: int | None = None) -> int | None:
    """The process that holds the other end of a TCP connection over a loopback address.

    A process in a PID namespace of its own may have claimed the number that it has there. Of several that hold the
    socket, which happens after a fork, the one that has run longest is meant.

    Args:
        peer: IP address and port of the other end.
        here: those of this end.
        claimed: the process id that the other end says it has; None where it said nothing.

    Returns:
        the process id as this process sees it. Where the system does not tell, that is `claimed`.

    Raises:
        WireError: the socket belongs to another user, to no process that can be seen, or not to `claimed`.

    Source: Linux, Documentation/networking/proc_net_tcp.rst; proc_pid_fd(5), proc_pid_status(5).
    """
    if sys.platform != "linux":
        return claimed
    owner, inode = _socket(peer, here)
    if owner != os.getuid():
        raise WireError(f"the connection from port {peer[1]} belongs to user {owner}, not to the one of this daemon")
    holders = list(_holders(inode))
    if not holders:
        raise WireError(f"no process of this user holds the connection from port {peer[1]}")
    if claimed is not None:
        holders = [pid for pid in holders if claimed in _numbers(pid)]
        if not holders:
            raise WireError(f"the connection from port {peer[1]} is not one of process {claimed}, as it claims")
    return min(holders, key=_started)


def _socket(peer: SocketAddress, here: SocketAddress) -> tuple[int, int]:
    """User and inode of the socket at `peer` that is connected to `here`."""
    local, remote = _in_tables(peer), _in_tables(here)
    for _ in range(_LOOKS):
        for table in _TABLES:
            # The tables for IPv6 are not there on a machine that has it switched off.
            with suppress(FileNotFoundError), open(table, encoding="ascii") as rows:
                for row in rows:
                    fields = row.split()
                    if fields[1] in local and fields[2] in remote:
                        return int(fields[7]), int(fields[9])
    raise WireError(f"the connection from port {peer[1]} is gone")


def _in_tables(address: SocketAddress) -> frozenset[str]:
    """An address as the tables write it: 32-bit words in this machine's byte order.

    A program may use an IPv6 socket to connect to an IPv4 address.
    """
    ip = ipaddress.ip_address(address[0])
    forms = [ip.packed] if ip.version == 6 else [ip.packed, ipaddress.IPv6Address(f"::ffff:{ip}").packed]
    return frozenset(
        "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", form)) + f":{address[1]:04X}" for form in forms
    )


def _holders(inode: int) -> Iterator[int]:
    target = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            # It may end meanwhile, or belong to somebody else.
            with suppress(OSError):
                if any(_link(fd) == target for fd in process.joinpath("fd").iterdir()):
                    yield int(process.name)


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _numbers(pid: int) -> list[int]:
    """The ids of a process in the PID namespaces that it is in, this one first."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return [pid]


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since the machine was."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return sys.maxsize
    # The second field, the name in parentheses, may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[19])
