"""Padding between the functions of a host binary: room for the jumps to new code of functions too short for one."""

import re
from collections.abc import Iterator

from hotpatchd.core.client import Gap
from hotpatchd.core.unit import is_rust_name
from hotpatchd.objfile.host_index import HostCode, HostIndex
from hotpatchd.objfile.machines import MACHINES

SHORT_JUMP_SIZE = 2
"""Bytes of a jump with an 8-bit displacement."""

_REACH = range(SHORT_JUMP_SIZE - 128, SHORT_JUMP_SIZE + 128)
"""Where it leads, counted from its first byte. Source: Intel SDM, volume 2, `JMP`."""

_FILLER = re.compile(
    rb"""
    \xcc+                                     # lld: breakpoints
    | \x00+                                   # mold, gold
    | (?: \x66* \x90                          # GNU ld and assemblers: nop
        | \x66* \x2e? \x0f\x1f (?: \x00 | \x40. | \x44.. | \x80.... | \x84..... )
      )+
    """,
    re.VERBOSE | re.DOTALL,
)
"""What is put between functions. Source: Intel SDM, volume 2, `NOP`, "Recommended Multi-Byte Sequence"."""


class Padding:
    """What lies between the functions of a host binary for x86-64, and belongs to none.

    rustc gives each function a section of its own, which begins and ends with it. So what is between two functions of
    Rust is there for the alignment of the second, if all of it is what linkers fill with, and is neither run nor read.

    Args:
        index: the symbols of the binary.
        code: its machine code.
    """

    def __init__(self, index: HostIndex, code: HostCode) -> None:
        self._index = index
        self._code = code
        self._detour_size = MACHINES[index.header.machine].detour_size

    def near(self, addr: int) -> tuple[Gap, ...]:
        """Gaps with room for a jump, in reach of a short jump.

        What the jump of the function before a gap would overwrite is left out.

        Args:
            addr: link-time address of the short jump.

        Returns:
            gaps at link-time addresses, ascending.
        """
        first, last = addr + _REACH.start, addr + _REACH.stop - 1
        found = []
        for gap in self._gaps(first, last):
            start, end = max(gap.start, first), min(gap.stop, last + self._detour_size)
            if end - start >= self._detour_size:
                found.append(Gap(addr=start, size=end - start))
        return tuple(found)

    def _gaps(self, first: int, last: int) -> Iterator[range]:
        before: tuple[int, int] | None = None
        for addr, size, names in self._index.functions_around(first, last):
            is_rust = any(map(is_rust_name, names))
            if before and is_rust:
                end = sum(before)
                if end < addr and _FILLER.fullmatch(self._code.read(end, addr - end)):
                    yield range(max(end, before[0] + self._detour_size), addr)
            before = (addr, size) if is_rust and size else None
