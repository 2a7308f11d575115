"""What can be done for programs of each target: a table, and the one row that applies to a triple.

Source: the rustc book, "Platform Support", for what the parts of a triple mean.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from hotpatchd.core.dylibplan import LibraryOs, library_os
from hotpatchd.core.errors import ArgvError

PatchKind = Literal["image", "dylib", "none"]
"""What a patch is for these programs, if they can be patched at all."""

ClientStart = Literal["preload", "linked", "dependency", "none"]
"""How the client gets into the program: with its start, by the fat build, or by the developer's own manifest."""

_Arch = Literal["x86_64", "aarch64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSupport:
    """What can be done for programs of a target.

    Args:
        triple: the target.
        os: the system, as far as patches are concerned; empty where it is none of those supported.
        arch: the processor, as the triple says it.
        env: the C library or the compiler's family: the triple's last part, `static` or `dynamic` added for musl.
        patch: what a patch is.
        client: how the client gets into the program.
        reason: why it is so.
        runs: how the project's tests run programs of the target; empty where they do not.
        limits: what does not work.
    """

    triple: str
    os: LibraryOs | Literal[""]
    arch: str
    env: str
    patch: PatchKind
    client: ClientStart
    reason: str
    runs: str
    limits: tuple[str, ...]


class _Row(NamedTuple):
    os: LibraryOs
    env: str
    arches: tuple[_Arch, ...]
    patch: PatchKind
    client: ClientStart
    reason: str
    runs: str
    limits: tuple[str, ...] = ()


_BOTH: tuple[_Arch, ...] = ("x86_64", "aarch64")

_IN_PLACE = "code may be written, and the client is loaded with the program"
_LINKED_IN = "code may be written; a static program loads no libraries, so the client is linked into it"
_SIGNED_PAGES = "code pages are signed and cannot be written: the system's loader has to place a patch"
_LOADER_ONLY = "apps may not write their code: the system's loader has to place a patch"
_WINDOWS = "the system's loader has to place a patch; nothing can be preloaded"

_HOT_CALLS = "patches reach only what is called through `hotpatch_client::call`, or the hot calls of subsecond"
_LOCALS = "an edit of a function that uses a thread-local is refused: a library has no way to the program's"
_NEVER_UNLOADED = "patches stay loaded until the program ends"

_REACH = "patches must be within 128 MiB of the program's code, the reach of a jump"
_OWN_LIBC = "what the program lacks of libc comes from `libc.a`, but for parts whose state would be there twice"
_NOT_COMPARED = "the daemon does not compare Mach-O objects yet, and so refuses edits by name"

_LIBRARIES = (_HOT_CALLS, _NEVER_UNLOADED)

_ROWS = (
    _Row("linux", "gnu", ("x86_64",), "image", "preload", _IN_PLACE, "natively"),
    _Row("linux", "gnu", ("aarch64",), "image", "preload", _IN_PLACE, "under qemu-user", (_REACH,)),
    _Row("linux", "musl dynamic", ("x86_64",), "image", "preload", _IN_PLACE, "with Debian's musl"),
    _Row("linux", "musl static", ("x86_64",), "image", "linked", _LINKED_IN, "with Debian's musl", (_OWN_LIBC,)),
    _Row("linux", "musl dynamic", ("aarch64",), "image", "preload", _IN_PLACE, "", (_REACH,)),
    _Row("linux", "musl static", ("aarch64",), "image", "linked", _LINKED_IN, "", (_REACH, _OWN_LIBC)),
    _Row("windows-gnu", "gnu", ("x86_64",), "dylib", "dependency", _WINDOWS, "under Wine", (_NEVER_UNLOADED,)),
    _Row("windows-msvc", "msvc", ("x86_64",), "dylib", "dependency", _WINDOWS, "", (_LOCALS, _NEVER_UNLOADED)),
    _Row("macos", "", _BOTH, "dylib", "dependency", _SIGNED_PAGES, "", (_NOT_COMPARED, *_LIBRARIES)),
    _Row("ios-simulator", "", _BOTH, "dylib", "dependency", _SIGNED_PAGES, "", (_NOT_COMPARED, *_LIBRARIES)),
    _Row("android", "", _BOTH, "dylib", "dependency", _LOADER_ONLY, "", _LIBRARIES),
)

SUPPORTED = (
    "Linux with glibc or musl, Android, macOS and the iOS simulator on x86-64 and aarch64, and Windows on x86-64"
)
"""What the table has, in words."""


def describe_target(triple: str, *, crt_static: bool = True) -> TargetSupport:
    """Say what can be done for programs of a target.

    Args:
        triple: the target.
        crt_static: for musl, whether libc is linked statically, as rustc does unless it is told otherwise.

    Returns:
        The support; with the patch kind `none` and the reason where there is none.
    """
    parts = triple.split("-")
    arch, last = parts[0], parts[-1]
    try:
        system = library_os(triple)
    except ArgvError as error:
        return _unsupported(triple, arch, error.message)
    env = {"linux": last, "windows-gnu": last, "windows-msvc": last}.get(system, "")
    if env == "musl":
        env = "musl static" if crt_static else "musl dynamic"
    for row in _ROWS:
        if (row.os, row.env) == (system, env) and arch in row.arches:
            return TargetSupport(
                triple=triple,
                os=system,
                arch=arch,
                env=env,
                patch=row.patch,
                client=row.client,
                reason=row.reason,
                runs=row.runs,
                limits=row.limits,
            )
    return _unsupported(triple, arch, f"`{triple}` is none of the supported targets")


def _unsupported(triple: str, arch: str, reason: str) -> TargetSupport:
    return TargetSupport(
        triple=triple, os="", arch=arch, env="", patch="none", client="none", reason=reason, runs="", limits=()
    )
