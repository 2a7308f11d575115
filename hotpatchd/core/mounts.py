"""File systems that do not tell of every change."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

_ELSEWHERE = "other machines"
_HOST = "the host system"
_BELOW = "what lies below it"

WHO_CHANGES_UNSEEN: dict[str, str] = {
    # Network and cluster file systems: the kernel announces what is done through this machine's mount.
    **dict.fromkeys(
        (
            *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "gfs2", "ocfs2"),
            *("beegfs", "gpfs", "pvfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.s3fs"),
            *("fuse.davfs", "fuse.juicefs"),
        ),
        _ELSEWHERE,
    ),
    # Directories that a virtual machine shares with its host, where the editor usually runs. WSL 2 mounts the
    # drives of Windows as 9p or virtiofs.
    **dict.fromkeys(
        (
            *("9p", "virtiofs", "drvfs", "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs", "prl_fs_freeze"),
            *("fakeowner", "fuse.grpcfuse", "fuse.osxfs"),
        ),
        _HOST,
    ),
    # Views of other directories: writing to these directly is announced there only.
    **dict.fromkeys(("fuse.bindfs", "fuse.mergerfs", "fuse.unionfs", "fuse.gocryptfs", "fuse.encfs"), _BELOW),
}
"""Type of a file system → who changes its files without the kernel telling those who watch them.

Source: inotify(7), "inotify reports only events that a user-space program triggers through the filesystem API. As a
result, it does not catch remote events that occur on network filesystems."
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mounted file system: where, and of which type."""

    point: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unannounced:
    """A directory in which changes by `by` are not announced, because it lies in `mount`."""

    directory: str
    mount: Mount
    by: str


def parse_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """The mounts of a `/proc/<pid>/mountinfo`; lines that are not understood are left out.

    Source: proc_pid_mountinfo(5): the mount point is the fifth field, the type follows the lone hyphen; blanks and
    backslashes are written as octal escapes.
    """
    mounts = []
    for line in mountinfo.splitlines():
        own, separator, rest = line.partition(" - ")
        fields, more = own.split(" "), rest.split(" ")
        if separator and len(fields) > 4:
            mounts.append(Mount(point=_unescaped(fields[4]), type=more[0]))
    return tuple(mounts)


def needs_polling(mounts: Iterable[Mount], directories: Iterable[str]) -> Unannounced | None:
    """The first of these directories that has to be polled.

    Args:
        mounts: in the kernel's order: of two at the same place, the later one hides the earlier one.
        directories: absolute, without symbolic links.
    """
    mounts = tuple(mounts)
    for directory in directories:
        around = [mount for mount in mounts if _contains(mount.point, directory)]
        if around:
            _, mount = max(enumerate(around), key=lambda item: (len(item[1].point), item[0]))
            by = WHO_CHANGES_UNSEEN.get(mount.type)
            if by is not None:
                return Unannounced(directory=directory, mount=mount, by=by)
    return None


def _contains(point: str, directory: str) -> bool:
    return directory == point or directory.startswith(point.rstrip(os.sep) + os.sep)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
