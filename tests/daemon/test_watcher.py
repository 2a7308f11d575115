"""The watcher reports edits, each once, and nothing else."""

import asyncio
import errno
import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers.inotify_c import InotifyFD

from hotpatchd.core.settle import SettleTimes
from hotpatchd.daemon import watcher as watcher_module
from hotpatchd.daemon.watcher import Watcher
from tests.daemon.observed import BOUND_S, Observed, observing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package with a source file, and an excluded target directory."""
    for directory in ("src", "target"):
        (tmp_path / "package" / directory).mkdir(parents=True)
    (tmp_path / "package/src/main.rs").write_text("fn main() {}")
    return tmp_path / "package"


Watching = Callable[..., AbstractAsyncContextManager[Observed]]


@pytest.fixture
def watching(root: Path) -> Watching:
    """Starts a watcher of `root`."""

    return functools.partial(observing, root)


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_edit_is_reported_with_its_time(watching: Watching, root: Path, poll: bool) -> None:
    """A write becomes a batch that names the file and when it was written."""
    async with watching(poll=poll) as observed:
        (root / "src/main.rs").write_text("fn main() { edit() }")
        batch = await observed.batch()
        assert batch.files == (root / "src/main.rs",)
        assert batch.last_write == (root / "src/main.rs").stat().st_ctime
        assert batch.settle_ms >= 15


async def test_touch_and_same_content_are_not_edits(watching: Watching, root: Path) -> None:
    """A file whose content is what it was is not reported."""
    async with watching() as observed:
        os.utime(root / "src/main.rs")
        (root / "src/main.rs").write_text("fn main() {}")
        assert await observed.files_after_marker() == set()


async def test_reading_is_not_an_edit(watching: Watching, root: Path) -> None:
    """Opening and closing a file without writing does not begin a batch."""
    async with watching() as observed:
        (root / "src/main.rs").read_text()
        assert await observed.files_after_marker() == set()


async def test_reverting_is_an_edit(watching: Watching, root: Path) -> None:
    """Going back to the first content is reported like any other change."""
    async with watching() as observed:
        for text in ("fn main() { a() }", "fn main() {}"):
            (root / "src/main.rs").write_text(text)
            assert await observed.files() == {"src/main.rs"}


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_save_by_rename_is_one_edit(watching: Watching, root: Path, poll: bool) -> None:
    """An editor that moves the file to a backup and a new one into place changes one file."""
    async with watching(poll=poll) as observed:
        (root / "src/main.rs").rename(root / "src/main.rs~")
        (root / "src/4913").touch()
        (root / "src/4913").unlink()
        (root / "src/.main.rs.swp").write_text("fn main() { edit() }")
        (root / "src/.main.rs.swp").rename(root / "src/main.rs")
        (root / "src/main.rs~").unlink()
        assert await observed.files() == {"src/main.rs"}


async def test_what_editors_leave_beside_a_file_is_not_an_edit(watching: Watching, root: Path) -> None:
    """Backup and swap files that stay are not reported."""
    async with watching() as observed:
        (root / "src/main.rs~").write_text("x")
        (root / "src/.main.rs.swp").write_text("x")
        assert await observed.files_after_marker() == set()


async def test_old_file_moved_into_place_is_timed_by_the_move(watching: Watching, root: Path) -> None:
    """A file's own old modification time is not when the edit happened."""
    async with watching() as observed:
        replacement = root / "src/.main.rs.swp"
        replacement.write_text("fn main() { edit() }")
        os.utime(replacement, (1, 1))
        replacement.rename(root / "src/main.rs")
        assert (await observed.batch()).last_write == (root / "src/main.rs").stat().st_ctime


async def test_truncated_file_is_not_reported_empty(watching: Watching, root: Path) -> None:
    """A moment of emptiness longer than the quiet time does not become an edit of its own."""
    async with watching(times=SettleTimes(quiet_ms=5, hollow_ms=10_000, ceiling_ms=20_000)) as observed:
        (root / "src/main.rs").write_text("")
        report = asyncio.ensure_future(observed.files())
        assert (await asyncio.wait({report}, timeout=0.05))[0] == set()
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await report == {"src/main.rs"}
        assert await observed.files_after_marker() == set()


async def test_deleted_file_is_an_edit(watching: Watching, root: Path) -> None:
    """A file that stays away is reported, with a time although it has none any more."""
    async with watching() as observed:
        (root / "src/main.rs").unlink()
        batch = await observed.batch()
        assert batch.files == (root / "src/main.rs",)
        assert 0 < batch.settle_ms < 10_000


async def test_new_directories_are_watched(watching: Watching, root: Path) -> None:
    """Files in directories made later are seen, at once and afterwards."""
    async with watching() as observed:
        (root / "src/a/b").mkdir(parents=True)
        (root / "src/a/b/mod.rs").write_text("1")
        assert await observed.files() == {"src/a/b/mod.rs"}
        (root / "src/a/b/mod.rs").write_text("2")
        assert await observed.files() == {"src/a/b/mod.rs"}


async def test_renamed_directory_moves_its_files(watching: Watching, root: Path) -> None:
    """Both the old and the new paths are reported, and edits under the new name are seen."""
    (root / "src/old").mkdir()
    (root / "src/old/mod.rs").write_text("1")
    async with watching() as observed:
        (root / "src/old").rename(root / "src/new")
        batch = await observed.batch()
        assert batch.files == (root / "src/new/mod.rs", root / "src/old/mod.rs")
        (root / "src/new/mod.rs").write_text("2")
        assert await observed.files() == {"src/new/mod.rs"}


async def test_file_moved_out_of_the_tree_delays_nothing(watching: Watching, root: Path, tmp_path: Path) -> None:
    """An edit right after a file left for an unwatched place is in time."""
    (root / "src/gone.rs").write_text("1")
    async with watching(times=SettleTimes(hollow_ms=0)) as observed:
        (root / "src/gone.rs").rename(tmp_path / "gone.rs")
        (root / "src/main.rs").write_text("fn main() { edit() }")
        batch = await observed.batch()
        assert batch.files == (root / "src/gone.rs", root / "src/main.rs")
        assert batch.settle_ms < 400


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_build_output_and_version_control_are_not_watched(watching: Watching, root: Path, poll: bool) -> None:
    """Neither the target directory nor any tagged cache or VCS directory is looked at."""
    for directory in (".git", "other-target"):
        (root / directory).mkdir()
    (root / "other-target/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55")
    async with watching(poll=poll) as observed:
        for directory in ("target", ".git", "other-target"):
            (root / directory / "file").write_text("x")
        assert await observed.files_after_marker() == set()


def test_only_what_matters_costs_watches(root: Path) -> None:
    """No inotify watch is spent below a target directory, and one only on a directory of two nested roots."""
    (root / "target/debug/deps").mkdir(parents=True)
    (root / "target/vendored").mkdir()
    script = (
        "import asyncio, pathlib, sys, glob\n"
        "from hotpatchd.daemon.watcher import Watcher\n"
        "async def main(root):\n"
        "    roots = [root / 'src', root, root / 'target/vendored']\n"
        "    async with Watcher(roots, excluded=[root / 'target'], notice=print):\n"
        "        print(sum(p.read_text(errors='replace').count('inotify wd')\n"
        "                  for p in map(pathlib.Path, glob.glob('/proc/self/fdinfo/*')) if p.exists()))\n"
        "asyncio.run(main(pathlib.Path(sys.argv[1])))\n"
    )
    shown = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True).stdout
    assert int(shown) == len(["package", "package/src", "package/target/vendored"])


async def test_root_below_another_root_is_watched_once(root: Path) -> None:
    """Nested roots do not make the watcher look twice, and a root in an excluded directory is still one."""
    (root / "target/vendored").mkdir()
    (root / "target/vendored/lib.rs").write_text("1")
    roots = [root / "src", root, root / "target/vendored"]
    async with Watcher(roots, excluded=[root / "target"], notice=print) as watcher:
        assert watcher._scope.tops() == [str(root), str(root / "target/vendored")]
        assert sorted(watcher._scope.everything()) == [
            str(root / "src/main.rs"),
            str(root / "target/vendored/lib.rs"),
        ]


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_single_file_elsewhere_is_watched(watching: Watching, tmp_path: Path, root: Path, poll: bool) -> None:
    """A file outside the roots is reported, its neighbours are not."""
    shared = tmp_path / "shared.txt"
    shared.write_text("1")
    async with watching(files=[shared], poll=poll) as observed:
        (tmp_path / "neighbour.txt").write_text("1")
        shared.write_text("2")
        assert (await observed.batch()).files == (shared,)


async def test_link_to_a_file_elsewhere_is_reported_under_its_own_name(
    watching: Watching, tmp_path: Path, root: Path
) -> None:
    """An edit of what a symbolic link leads to is an edit of the link's name, which the compiler knows."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/shared.rs").write_text("1")
    (root / "src/shared.rs").symlink_to(tmp_path / "elsewhere/shared.rs")
    async with watching(files=[root / "src/shared.rs"]) as observed:
        (tmp_path / "elsewhere/shared.rs").write_text("2")
        assert await observed.files() == {"src/shared.rs"}


async def test_file_included_later_is_watched(watching: Watching, tmp_path: Path) -> None:
    """A new input is watched from when it is named, and is not an edit by itself."""
    shared = tmp_path / "shared.txt"
    shared.write_text("1")
    async with watching() as observed:
        await observed.watcher.include([shared])
        assert await observed.files_after_marker() == set()
        shared.write_text("2")
        assert (await observed.batch()).files == (shared,)


async def test_irrelevant_files_do_not_hold_an_edit_back(watching: Watching, root: Path) -> None:
    """A log that is written without pause does not delay the batch until the ceiling."""
    async with watching(
        relevant=lambda path: path.endswith((".rs", "marker")), times=SettleTimes(ceiling_ms=60_000)
    ) as observed:
        (root / "src/main.rs").write_text("fn main() { edit() }")
        report = asyncio.ensure_future(observed.files())
        with (root / "app.log").open("w", buffering=1) as log:
            while not report.done():
                log.write("line\n")
                await asyncio.sleep(0.001)
        assert await report == {"src/main.rs"}


async def test_rescan_reports_at_once_and_only_once(watching: Watching, root: Path) -> None:
    """What a rescan returned is not in a later batch; a rescan without changes returns nothing."""
    async with watching(times=SettleTimes(quiet_ms=100)) as observed:
        (root / "src/main.rs").write_text("fn main() { edit() }")
        batch = await observed.watcher.rescan([root / "src/main.rs"])
        assert batch is not None
        assert batch.files == (root / "src/main.rs",)
        assert await observed.watcher.rescan() is None
        assert await observed.files_after_marker() == set()


async def test_rescan_of_everything_finds_new_and_deleted_files(watching: Watching, root: Path) -> None:
    """Files that no event told of are found."""
    async with watching() as observed:
        (root / "src/main.rs").unlink()
        (root / "src/new.rs").write_text("1")
        batch = await observed.watcher.rescan()
        assert batch is not None
        assert batch.files == (root / "src/main.rs", root / "src/new.rs")


async def test_overflow_of_the_event_queue_loses_no_edit(
    watching: Watching, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel drops events, everything is looked at again."""
    held = asyncio.Event()
    flooded: set[bool] = set()
    loop = asyncio.get_running_loop()
    original = InotifyFD.read_events
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    def flood_first(self: InotifyFD, **options: Any) -> Any:
        if not flooded:
            flooded.add(True)
            names = [os.fspath(root / f"src/.{number}.swp") for number in (0, 1)]
            open(names[0], "w").close()
            for _ in range(limit // 4 + 1):
                os.rename(*names)
                os.rename(*reversed(names))
            (root / "src/late").mkdir()
            (root / "src/late/mod.rs").write_text("1")
            loop.call_soon_threadsafe(held.set)
        return original(self, **options)

    async with watching() as observed:
        monkeypatch.setattr(InotifyFD, "read_events", flood_first)
        # The thread is inside the original function: one event makes it come round.
        (root / "src/marker").write_text("x")
        await asyncio.wait_for(held.wait(), BOUND_S)
        files: set[str] = set()
        while "src/late/mod.rs" not in files:
            files |= await observed.files()
        (root / "src/late/mod.rs").write_text("2")
        assert await observed.files() == {"src/late/mod.rs"}


@pytest.mark.parametrize("later", [False, True], ids=["at start", "later"])
async def test_watch_limit_is_named_and_polling_takes_over(
    watching: Watching, root: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """Without watches left, the setting is named once and edits are still seen."""
    refusals = threading.Semaphore(0)

    def refuse(*_: object) -> None:
        refusals.release()
        raise OSError(errno.ENOSPC, "No space left on device")

    if not later:
        monkeypatch.setattr(InotifyFD, "add_callback", refuse)
    async with watching() as observed:
        if later:
            monkeypatch.setattr(InotifyFD, "add_callback", refuse)
        for name in ("new", "newer"):
            (root / "src" / name).mkdir()
            # The watcher's thread meets the limit again before its loop can react.
            assert not later or refusals.acquire(timeout=BOUND_S)
        (root / "src/new/mod.rs").write_text("1")
        assert await observed.files() == {"src/new/mod.rs"}
        (root / "src/new/mod.rs").write_text("2")
        assert await observed.files() == {"src/new/mod.rs"}
        assert len(observed.notices) == 1
        assert "fs.inotify.max_user_watches" in observed.notices[0]


async def test_large_file_is_told_by_its_time(watching: Watching, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the bound is not read: another modification time counts as another content."""
    monkeypatch.setattr(watcher_module, "MAX_HASHED_BYTES", 4)
    async with watching() as observed:
        (root / "src/main.rs").write_text("fn main() {}")
        assert await observed.files() == {"src/main.rs"}


async def test_root_that_is_removed_and_made_again_is_watched(watching: Watching, root: Path) -> None:
    """After the whole tree was replaced, its files are compared, and edits of them seen."""
    (root / "src/gone.rs").write_text("1")
    async with watching(times=SettleTimes(quiet_ms=200)) as observed:
        shutil.rmtree(root)
        (root / "src").mkdir(parents=True)
        (root / "src/main.rs").write_text("fn main() {}")
        assert await observed.files() == {"src/gone.rs"}
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await observed.files() == {"src/main.rs"}


async def test_root_that_is_renamed_away_and_replaced_is_watched(watching: Watching, root: Path) -> None:
    """Another tree in the root's place is watched, and the old one is not any more."""
    other = root.with_name("other")
    shutil.copytree(root, other)
    async with watching(times=SettleTimes(quiet_ms=200)) as observed:
        root.rename(root.with_name("before"))
        other.rename(root)
        (root / "src/new.rs").write_text("1")
        assert await observed.files() == {"src/new.rs"}
        (root.with_name("before") / "src/main.rs").write_text("1")
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await observed.files() == {"src/main.rs"}


async def test_directory_of_a_single_file_may_come_and_go(watching: Watching, tmp_path: Path) -> None:
    """A file elsewhere is watched again when its directory, and the one above, are made anew."""
    shared = tmp_path / "a/b/shared.txt"
    shared.parent.mkdir(parents=True)
    shared.write_text("1")
    async with watching(files=[shared]) as observed:
        shutil.rmtree(tmp_path / "a")
        assert (await observed.batch()).files == (shared,)
        shared.parent.mkdir(parents=True)
        shared.write_text("2")
        assert (await observed.batch()).files == (shared,)
        shared.write_text("3")
        assert (await observed.batch()).files == (shared,)


async def test_linked_source_directory_is_reported_under_both_names(
    watching: Watching, tmp_path: Path, root: Path
) -> None:
    """A file that is an input by its own name and by that of a linked directory is an edit of both."""
    (root / "linked").symlink_to(root / "src")
    async with watching(files=[root / "linked/main.rs"]) as observed:
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await observed.files() == {"src/main.rs", "linked/main.rs"}


async def test_link_that_leads_elsewhere_afterwards_is_followed(watching: Watching, tmp_path: Path, root: Path) -> None:
    """When a linked source directory is exchanged its files are compared, and edits seen at the new place."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "same.rs").write_text("same")
        (tmp_path / version / "lib.rs").write_text(version)
    link = root / "linked"
    link.symlink_to(tmp_path / "v1")
    async with watching(files=[link / "lib.rs", link / "same.rs"]) as observed:
        (root / "new").symlink_to(tmp_path / "v2")
        (root / "new").rename(link)
        assert await observed.files() == {"linked/lib.rs"}
        (tmp_path / "v2/same.rs").write_text("edited")
        assert await observed.files() == {"linked/same.rs"}


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_names_in_an_included_directory_are_an_input(watching: Watching, tmp_path: Path, poll: bool) -> None:
    """A file that comes or goes directly in it is reported with the directory; what is written into others is not."""
    queries = tmp_path / "queries"
    (queries / "deeper").mkdir(parents=True)
    (queries / "old.sql").write_text("1")
    async with watching(poll=poll, relevant=lambda path: path.endswith("marker")) as observed:
        await observed.watcher.include([queries])
        (queries / "old.sql").write_text("2")
        (queries / "deeper/new.sql").write_text("1")
        assert await observed.files_after_marker() == set()
        (queries / "new.sql").write_text("1")
        assert (await observed.batch()).files == (queries, queries / "new.sql")
        (queries / "old.sql").unlink()
        assert (await observed.batch()).files == (queries, queries / "old.sql")


@pytest.mark.parametrize(
    ("limit", "setting"),
    [
        ("max_inotify_instances", "fs.inotify.max_user_instances"),
        ("max_inotify_watches", "fs.inotify.max_user_watches"),
    ],
)
def test_limit_of_the_kernel_is_named_and_edits_are_seen(root: Path, limit: str, setting: str) -> None:
    """In a user namespace that grants no more of them, the watcher says so and polls."""
    # Source: namespaces(7), "/proc/sys/user": limits of a user namespace.
    for number in range(3):
        (root / f"src/d{number}").mkdir()
    script = (
        "import asyncio, pathlib, sys\n"
        "from hotpatchd.daemon.watcher import Watcher\n"
        "async def main(root):\n"
        "    async with Watcher([root], notice=print) as watcher:\n"
        "        (root / 'src/main.rs').write_text('fn main() { edit() }')\n"
        "        print(*(await anext(watcher.batches())).files)\n"
        "asyncio.run(main(pathlib.Path(sys.argv[1])))\n"
    )
    shell = f'echo {0 if "instances" in limit else 2} > /proc/sys/user/{limit} && exec "$@"'
    shown = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", shell, "sh", sys.executable, "-c", script, str(root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=BOUND_S,
    ).stdout.splitlines()
    assert setting in shown[0]
    assert shown[1:] == [str(root / "src/main.rs")]


async def test_foreign_file_system_is_named_and_polled(
    watching: Watching, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other machines may write, the watcher names the mount and its type, and looks by itself."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n71 1 0:50 / {root} rw shared:33 - nfs4 server:/x rw\n")
    monkeypatch.setattr(watcher_module, "_MOUNTINFO", mountinfo)
    monkeypatch.setattr(watcher_module, "InotifySource", None)
    async with watching() as observed:
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await observed.files() == {"src/main.rs"}
        assert f"{root}, a file system of type nfs4" in observed.notices[0]


async def test_polling_a_large_tree_leaves_the_processor_alone(root: Path, watching: Watching) -> None:
    """The pause between two looks grows with what a look costs."""
    for number in range(5000):
        (root / f"src/f{number}.rs").touch()
    async with watching(poll=True) as observed:
        before_s, started = time.process_time(), time.monotonic()
        (root / "src/main.rs").write_text("fn main() { edit() }")
        assert await observed.files() == {"src/main.rs"}
        await asyncio.sleep(1)
        assert time.process_time() - before_s < 0.5 * (time.monotonic() - started)
