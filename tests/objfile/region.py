"""Memory in this very process in which a linked image can run."""

import ctypes
import mmap
from collections.abc import Callable

from hotpatchd.objfile.image import Image

SIZE = 1 << 22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.__errno_location.restype = ctypes.c_void_p
_libc.pthread_self.restype = ctypes.c_void_p

_PROTECTION = {"r": mmap.PROT_READ, "rw": mmap.PROT_READ | mmap.PROT_WRITE, "rx": mmap.PROT_READ | mmap.PROT_EXEC}


class Region:
    """Four MiB of this process: images from `addr` on, and things of the host in the last page."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.addr: int = _libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        self.host_addr = self.addr + SIZE - 2 * mmap.PAGESIZE

    def close(self) -> None:
        """Give the memory back."""
        _libc.munmap(self.addr, SIZE)

    def place_host(self, code: bytes, data: bytes) -> tuple[int, int]:
        """Put a function and some data where the host has them; returns their addresses."""
        ctypes.memmove(self.host_addr, code, len(code))
        ctypes.memmove(self.host_addr + mmap.PAGESIZE, data, len(data))
        _libc.mprotect(self.host_addr, mmap.PAGESIZE, _PROTECTION["rx"])
        return self.host_addr, self.host_addr + mmap.PAGESIZE

    def load(self, image: Image) -> None:
        """Put the image where it was linked, with its imports resolved, as a client does."""
        for segment in image.segments:
            contents = image.payload[segment.offset : segment.offset + segment.file_size]
            ctypes.memmove(segment.addr, contents, len(contents))
        for wanted in image.imports:
            is_missing = wanted.weak and not hasattr(_libc, wanted.name)
            ctypes.c_uint64.from_address(wanted.slot).value = 0 if is_missing else address_of(wanted.name)
        for segment in image.segments:
            size = segment.mem_size + -segment.mem_size % mmap.PAGESIZE
            assert _libc.mprotect(segment.addr, size, _PROTECTION[segment.prot]) == 0


def address_of(symbol: str) -> int:
    """Where the C library has a function."""
    return ctypes.cast(getattr(_libc, symbol), ctypes.c_void_p).value or 0


def callable_at(addr: int, *argument_types: type) -> Callable[..., int]:
    """The function at an address, which returns a 64-bit number."""
    return ctypes.CFUNCTYPE(ctypes.c_uint64, *argument_types)(addr)


def errno_offset() -> int:
    """Offset from the thread pointer of a thread-local that this process has."""
    return int(_libc.__errno_location()) - int(_libc.pthread_self())
