"""The file in which a client leaves its notes, with panics."""

import struct

from hotpatchd.core.crash import PanicSite


def notes(*sites: PanicSite, pid: int = 7, header: bytes = b"") -> bytes:
    """Sites in the places that their numbers give them; `header` is of a fault, or a panic, that is noted as well."""
    table = bytearray(64 * 176)
    for site in sites:
        tid = pid if site.thread == "main" else pid + 1
        frames = (*site.frames, *[0] * (16 - len(site.frames)))
        content = (site.number, len(site.frames), 1, site.count, tid, site.thread.encode(), *frames)
        struct.pack_into("=IIQQI4x16s16Q", table, (site.number - 1) % 64 * 176, *content)
    header = header or struct.pack("=8sI", b"hpcrash1", pid)
    return header.ljust(64 + 128 * 16 + 16, b"\0") + table
