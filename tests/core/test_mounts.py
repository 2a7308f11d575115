"""Where the kernel does not tell of changes."""

import pytest

from hotpatchd.core.mounts import Mount, needs_polling, parse_mounts

ROOT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
GOLDEN = {
    "/home/me/nfs": "71 27 0:50 / /home/me/nfs rw,relatime shared:33 - nfs4 server:/export rw,vers=4.2,addr=10.0.0.2\n",
    "/mnt/share": "72 27 0:51 / /mnt/share rw,relatime shared:34 - cifs //server/share rw,vers=3.1.1,cache=strict\n",
    "/mnt/c": "80 27 0:60 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\;uid=1000,trans=fd\n",
    "/mnt/d": "81 27 0:61 / /mnt/d rw,noatime - drvfs D: rw,uid=1000,gid=1000,case=off\n",
    "/vagrant": "90 27 0:70 / /vagrant rw,nodev,relatime shared:40 - vboxsf vagrant rw,iocharset=utf8,uid=1000\n",
    "/home/me/ssh": "91 27 0:71 / /home/me/ssh rw,nosuid,nodev - fuse.sshfs me@host:/src rw,user_id=1000\n",
    "/workspaces": "92 27 0:72 / /workspaces rw,relatime - virtiofs mount0 rw\n",
}


@pytest.mark.parametrize("point", GOLDEN)
def test_foreign_file_systems_need_polling(point: str) -> None:
    """Network file systems and directories shared with a host are recognised, and named."""
    found = needs_polling(parse_mounts(ROOT + GOLDEN[point]), [f"{point}/project"])
    assert found is not None
    assert found.mount.point == point
    assert f" - {found.mount.type} " in GOLDEN[point]
    assert found.directory == f"{point}/project"


@pytest.mark.parametrize(
    "line",
    [
        "30 27 0:27 / /work rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w\n",
        "30 27 0:27 / /work rw - tmpfs tmpfs rw\n",
        "30 27 259:5 / /work rw,relatime shared:30 - btrfs /dev/nvme0n1p5 rw,ssd,subvol=/@work\n",
        "30 27 8:1 / /work rw - fuseblk /dev/sda1 rw,user_id=0\n",
    ],
)
def test_local_file_systems_do_not(line: str) -> None:
    """Local disks and overlays of containers tell of every change."""
    assert needs_polling(parse_mounts(ROOT + line), ["/work/project"]) is None


def test_innermost_mount_counts() -> None:
    """A local disk mounted inside a network directory is local, and a directory beside a mount is not in it."""
    nested = "99 71 8:1 / /home/me/nfs/local rw - ext4 /dev/sdb1 rw\n"
    mounts = parse_mounts(GOLDEN["/home/me/nfs"] + nested + ROOT)
    assert needs_polling(mounts, ["/home/me/nfs/local/project", "/home/me/nfs-copy"]) is None


def test_later_mount_hides_an_earlier_one_at_the_same_place() -> None:
    """Of two mounts at one point the kernel lists the visible one last."""
    mounts = (Mount(point="/work", type="nfs"), Mount(point="/work", type="ext4"))
    assert needs_polling(mounts, ["/work"]) is None
    assert needs_polling(reversed(mounts), ["/work"]) is not None


def test_first_of_many_roots_is_named() -> None:
    """One root elsewhere is enough."""
    found = needs_polling(parse_mounts(ROOT + GOLDEN["/vagrant"]), ["/home/me/app", "/vagrant/shared"])
    assert found is not None
    assert found.directory == "/vagrant/shared"


def test_escaped_mount_points_are_understood() -> None:
    """Blanks and backslashes come as octal numbers."""
    line = "72 27 0:51 / /mnt/my\\040share\\134x rw - cifs //s/x rw\n"
    assert parse_mounts(line) == (Mount(point="/mnt/my share\\x", type="cifs"),)


def test_lines_that_are_not_understood_are_left_out() -> None:
    """An unknown format is no reason to fail."""
    assert parse_mounts("\nnonsense\n1 2 - \n" + ROOT) == (Mount(point="/", type="ext4"),)
