"""The public symbols of PDB files.

A PDB is a file system of numbered *streams*, cut into blocks. Stream 1 says which build it belongs to; stream 3 (DBI)
says which stream holds the symbol records, and those of kind S_PUB32 are the linker's names of functions and data.
Functions that are not visible outside of their object have no such record, and no mangled name anywhere in the file.

Source: LLVM, "The PDB File Format" (MSF, PDB info stream, DBI stream); Microsoft `cvinfo.h` (PUBSYM32).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hotpatchd.core.errors import ObjectError

_MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_SUPERBLOCK = struct.Struct("<32s6I")
_INFO = struct.Struct("<III16s")
_DBI = struct.Struct("<iIIHHHHH")
_INFO_STREAM, _DBI_STREAM = 1, 3
_NO_STREAM, _NO_SIZE = 0xFFFF, 0xFFFFFFFF

_RECORD = struct.Struct("<HH")
_PUB32 = struct.Struct("<IIH")
_S_PUB32 = 0x110E
_PUB_FLAGS_FUNCTION = 2


class PublicSymbol(NamedTuple):
    """One S_PUB32 record.

    Args:
        name: as the linker knows it.
        section: number, from 1.
        offset: in that section, in bytes.
        is_function: the linker says so.
    """

    name: bytes
    section: int
    offset: int
    is_function: bool


class Pdb:
    """A PDB file.

    Args:
        data: its content.
        origin: what to call it in an error.

    Raises:
        ObjectError: at construction, or at the first access to a part that is damaged.
    """

    def __init__(self, data: bytes, origin: str) -> None:
        self._data = data
        self.origin = origin
        if not data.startswith(_MAGIC):
            raise ObjectError(f"{origin} is not a PDB file", hint="portable PDBs of .NET are another format")
        try:
            _, self._block_size, _, _, directory_size, _, map_block = _SUPERBLOCK.unpack_from(data)
            block_count = -(-directory_size // self._block_size)
            blocks = struct.unpack_from(f"<{block_count}I", data, map_block * self._block_size)
            self._streams = tuple(self._layout(self._join(blocks, directory_size)))
            *_, guid = _INFO.unpack_from(self._stream(_INFO_STREAM))
            self.guid: bytes = guid
        except (struct.error, ZeroDivisionError, MemoryError) as error:
            raise self._damaged() from error

    def _damaged(self) -> ObjectError:
        return ObjectError(f"{self.origin} is damaged or cut short", hint="build again")

    def _join(self, blocks: tuple[int, ...], size: int) -> bytes:
        joined = b"".join(self._data[block * self._block_size : (block + 1) * self._block_size] for block in blocks)
        if len(joined) < size:
            raise self._damaged()
        return joined[:size]

    def _layout(self, directory: bytes) -> Iterator[tuple[tuple[int, ...], int]]:
        (count,) = struct.unpack_from("<I", directory)
        place = 4 + 4 * count
        for stated in struct.unpack_from(f"<{count}I", directory, 4):
            size = 0 if stated == _NO_SIZE else stated
            blocks = struct.unpack_from(f"<{-(-size // self._block_size)}I", directory, place)
            place += 4 * len(blocks)
            yield blocks, size

    def _stream(self, number: int) -> bytes:
        if number >= len(self._streams):
            raise self._damaged()
        return self._join(*self._streams[number])

    def public_symbols(self) -> list[PublicSymbol]:
        """All public symbols, in the file's order.

        Raises:
            ObjectError: the file is damaged, or has none.
        """
        try:
            *_, records_stream = _DBI.unpack_from(self._stream(_DBI_STREAM))
            if records_stream == _NO_STREAM:
                raise ObjectError(f"{self.origin} has no symbols", hint="link with `/DEBUG` (profile `debug`)")
            return list(self._publics(self._stream(records_stream)))
        except (struct.error, ValueError) as error:
            raise self._damaged() from error

    def _publics(self, records: bytes) -> Iterator[PublicSymbol]:
        place = 0
        while place < len(records):
            length, kind = _RECORD.unpack_from(records, place)
            if length < 2:
                raise self._damaged()
            if kind == _S_PUB32:
                flags, offset, section = _PUB32.unpack_from(records, place + _RECORD.size)
                start = place + _RECORD.size + _PUB32.size
                name = records[start : records.index(b"\0", start)]
                yield PublicSymbol(name, section, offset, bool(flags & _PUB_FLAGS_FUNCTION))
            place += 2 + length
