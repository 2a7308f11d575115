"""Whatever writes many files, or one file in many steps, makes one batch."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hotpatchd.core.settle import SettleTimes
from tests.daemon.observed import BOUND_S, Observed, observing

FILES = 500
OLD = "fn main() {}"
NEW = "fn main() { edit() }"
QUICK = SettleTimes(ceiling_ms=50)


def is_rust(path: str) -> bool:
    """What a daemon looks at."""
    return path.endswith((".rs", "marker"))


async def run(*command: str | Path, cwd: Path) -> None:
    """Runs a tool to its end while the watcher goes on."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdout=subprocess.DEVNULL)
    assert await asyncio.wait_for(process.wait(), BOUND_S) == 0, command


def git(repository: Path, *arguments: str) -> None:
    """Runs git, unseen."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)


async def assert_one_batch(observed: Observed, work: Awaitable[None], expected: set[str]) -> None:
    """What is reported of this work, also while it goes on, is one batch of these files."""
    report = asyncio.ensure_future(observed.files())
    await work
    assert await report == expected
    assert await observed.files_after_marker() == set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package with one source file."""
    (tmp_path / "package/src").mkdir(parents=True)
    (tmp_path / "package/src/main.rs").write_text(OLD)
    return tmp_path / "package"


@pytest.fixture
def repository(root: Path) -> Path:
    """A repository whose branch `other` has other content in every one of its files."""
    git(root, "init", "--quiet", "--initial-branch=main")
    (root / ".git/info/exclude").write_text("marker\n")
    for branch, text in (("main", "fn here() {}\n"), ("other", "fn there() {}\n")):
        if branch == "other":
            git(root, "checkout", "--quiet", "-b", branch)
        for number in range(FILES):
            (root / f"src/f{number}.rs").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "--quiet", "--message", branch)
    git(root, "checkout", "--quiet", "main")
    return root


ALL = {f"src/f{number}.rs" for number in range(FILES)}


@pytest.mark.parametrize("poll", [False, True], ids=["inotify", "poll"])
async def test_branch_switch_is_one_batch(repository: Path, poll: bool) -> None:
    """Five hundred files that a checkout changes settle together, there and back."""
    async with observing(repository, relevant=is_rust, poll=poll) as observed:
        for branch in ("other", "main"):
            await assert_one_batch(observed, run("git", "checkout", "--quiet", branch, cwd=repository), ALL)


@pytest.mark.parametrize("place", ["repository", "linked worktree"])
async def test_slow_checkout_is_one_batch(repository: Path, tmp_path: Path, place: str) -> None:
    """While Git holds the index's lock, pauses between files do not end the burst."""
    tree = repository
    if place == "linked worktree":
        tree = tmp_path / "linked"
        git(repository, "worktree", "add", "--quiet", "--detach", str(tree), "main")
    git(repository, "config", "filter.slow.smudge", "sleep 0.3; cat")
    (repository / ".git/info/attributes").write_text("src/f[0-6].rs filter=slow\n")
    async with observing(tree, relevant=is_rust) as observed:
        await assert_one_batch(observed, run("git", "checkout", "--quiet", "--detach", "other", cwd=tree), ALL)


async def test_stash_and_pop_are_one_batch_each(repository: Path) -> None:
    """Stashing writes the files in several steps."""
    for file in ALL:
        (repository / file).write_text("fn stashed() {}\n")
    async with observing(repository, relevant=is_rust) as observed:
        await assert_one_batch(
            observed,
            run("git", "-c", "user.name=T", "-c", "user.email=t@example.invalid", "stash", "--quiet", cwd=repository),
            ALL,
        )
        await assert_one_batch(observed, run("git", "stash", "pop", "--quiet", cwd=repository), ALL)


async def test_rebase_of_twenty_commits_is_one_batch(repository: Path) -> None:
    """The steps of a rebase leave the lock between each other."""
    git(repository, "checkout", "--quiet", "-b", "steps")
    for number in range(20):
        (repository / "src/main.rs").write_text(f"{OLD}\nfn step{number}() {{}}\n")
        git(repository, "commit", "--quiet", "--all", "--message", f"step {number}")
    async with observing(repository, relevant=is_rust) as observed:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
        await assert_one_batch(observed, run("git", *identity, "rebase", "--quiet", "other", cwd=repository), ALL)


async def test_removed_and_restored_tree_is_edited_where_it_differs(repository: Path) -> None:
    """After `rm -rf src && git checkout src` what had been edited is reported, once, and later edits are seen."""
    (repository / "src/main.rs").write_text(NEW)
    async with observing(repository, relevant=is_rust) as observed:
        await assert_one_batch(
            observed, run("sh", "-c", "rm -rf src && git checkout --quiet src", cwd=repository), {"src/main.rs"}
        )
        (repository / "src/f7.rs").write_text("fn edited() {}")
        assert await observed.files() == {"src/f7.rs"}


async def test_git_that_does_not_go_on_delays_only_once(repository: Path) -> None:
    """A lock that is held for long does not hold later edits back."""
    async with observing(repository, relevant=is_rust, times=QUICK) as observed:
        with (repository / ".git/index.lock").open("x"):
            (repository / "src/main.rs").write_text(NEW)
            assert (await observed.batch()).settle_ms >= 20 * QUICK.ceiling_ms - 20
            (repository / "src/main.rs").write_text(OLD)
            assert (await observed.batch()).settle_ms < 10 * QUICK.ceiling_ms


async def test_lock_of_a_killed_git_delays_nothing(repository: Path) -> None:
    """A lock file that nobody has open is no sign of work."""
    async with observing(repository, relevant=is_rust) as observed:
        (repository / ".git/index.lock").touch()
        (repository / "src/main.rs").write_text(NEW)
        assert (await observed.batch()).settle_ms < 5000


async def test_lock_taken_after_a_save_delays_nothing(repository: Path) -> None:
    """An editor that asks for `git status` after it saved does not hold its save back."""
    async with observing(repository, relevant=is_rust) as observed:
        (repository / "src/main.rs").write_text(NEW)
        with (repository / ".git/index.lock").open("x"):
            assert (await observed.batch()).settle_ms < 5000


async def test_commit_message_being_written_delays_nothing(repository: Path) -> None:
    """`git commit --all` keeps its lock while its editor is open; edits of that time are reported."""
    (repository / "src/main.rs").write_text(NEW)
    async with observing(repository, relevant=is_rust) as observed:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
        commit = await asyncio.create_subprocess_exec(
            *("git", *identity, "-c", "core.editor=echo opened; read answer; true", "commit", "--quiet", "--all"),
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert commit.stdout is not None
        assert await asyncio.wait_for(commit.stdout.readline(), BOUND_S) == b"opened\n"
        assert (repository / ".git/index.lock").exists()
        (repository / "src/main.rs").write_text(OLD)
        assert (await observed.batch()).settle_ms < 5000
        await commit.communicate(b"\n")


async def test_formatting_a_workspace_is_one_batch(tmp_path: Path) -> None:
    """`cargo fmt` over thirty files of three crates is one edit."""
    members = ("alpha", "beta", "gamma")
    (tmp_path / "Cargo.toml").write_text(f'[workspace]\nresolver = "2"\nmembers = {list(members)}\n'.replace("'", '"'))
    body = "".join(f"pub fn f{number} ( x : u32 )->u32 {{ x+{number} }}\n" for number in range(200))
    expected = set()
    for member in members:
        source = tmp_path / member / "src"
        source.mkdir(parents=True)
        (tmp_path / member / "Cargo.toml").write_text(f'[package]\nname = "{member}"\nedition = "2021"\n')
        for number in range(9):
            (source / f"m{number}.rs").write_text(body)
        (source / "lib.rs").write_text("".join(f"pub mod m{number} ;\n" for number in range(9)))
        expected |= {f"{member}/src/{name}.rs" for name in ("lib", *(f"m{number}" for number in range(9)))}
    (tmp_path / "src").mkdir()
    async with observing(tmp_path, relevant=is_rust) as observed:
        await assert_one_batch(observed, run("cargo", "fmt", "--all", cwd=tmp_path), expected)


async def test_replacing_in_many_files_is_one_batch(root: Path) -> None:
    """`sed -i` renames a copy over each file."""
    for number in range(100):
        (root / f"src/f{number}.rs").write_text("fn old() {}\n")
    async with observing(root) as observed:
        await assert_one_batch(
            observed,
            run("sh", "-c", "sed -i s/old/new/ src/f*.rs", cwd=root),
            {f"src/f{number}.rs" for number in range(100)},
        )


@pytest.mark.parametrize(("before", "together", "pause_s"), [(False, 1, 0.015), (True, 5, 0.06)])
async def test_generator_is_one_batch(root: Path, before: bool, together: int, pause_s: float) -> None:
    """A program that takes a second and a half for a hundred files, new or not, is waited for."""
    script = (
        "import pathlib, time\n"
        "for number in range(100):\n"
        "    pathlib.Path(f'src/f{number}.rs').write_text('fn generated() {}')\n"
        f"    time.sleep({pause_s} if number % {together} == 0 and number else 0)\n"
    )
    if before:
        for number in range(100):
            (root / f"src/f{number}.rs").write_text("fn before() {}")
    async with observing(root) as observed:
        await assert_one_batch(
            observed, run(sys.executable, "-c", script, cwd=root), {f"src/f{number}.rs" for number in range(100)}
        )


async def test_copied_tree_is_one_batch_and_watched(root: Path, tmp_path: Path) -> None:
    """Files of directories that are copied in are found, and later edits of them."""
    expected = set()
    for number in range(100):
        directory = tmp_path / f"from/d{number % 10}/e{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}.rs").write_text("fn copied() {}")
        expected.add(f"src/new/d{number % 10}/e{number % 7}/f{number}.rs")
    async with observing(root) as observed:
        await assert_one_batch(observed, run("cp", "-r", tmp_path / "from", "src/new", cwd=root), expected)
        (root / "src/new/d3/e3/f3.rs").write_text("fn edited() {}")
        assert await observed.files() == {"src/new/d3/e3/f3.rs"}


def truncate(file: Path) -> None:
    """Nano, VS Code, gedit and many more."""
    with file.open("w") as stream:
        stream.flush()
        os.fsync(stream.fileno())
        stream.write(NEW)


def rename(file: Path) -> None:
    """Helix, Kakoune, Zed: a temporary file over the old one."""
    temporary = file.with_name(".main.rs.XyZ12")
    temporary.write_text(NEW)
    temporary.rename(file)


def vim_backup_by_rename(file: Path) -> None:
    """Vim with `backupcopy=no`."""
    probe, backup = file.with_name("4913"), file.with_name("main.rs~")
    probe.touch()
    probe.unlink()
    file.rename(backup)
    file.write_text(NEW)
    backup.unlink()


def vim_backup_by_copy(file: Path) -> None:
    """Vim with `backupcopy=yes`."""
    backup = file.with_name("main.rs~")
    backup.write_text(file.read_text())
    truncate(file)
    backup.unlink()


def jetbrains(file: Path) -> None:
    """The "safe write" of RustRover and IntelliJ."""
    new, old = file.with_name("main.rs___jb_tmp___"), file.with_name("main.rs___jb_old___")
    new.write_text(NEW)
    file.rename(old)
    new.rename(file)
    old.unlink()


def emacs(file: Path) -> None:
    """A lock, an auto-save file and a backup beside the file."""
    lock, auto = file.with_name(".#main.rs"), file.with_name("#main.rs#")
    lock.symlink_to("me@host.1234:1600000000")
    auto.write_text(NEW)
    file.rename(file.with_name("main.rs~"))
    file.write_text(NEW)
    auto.unlink()
    lock.unlink()


def twice(file: Path) -> None:
    """A formatter that writes after the editor did."""
    file.write_text("fn main(){edit()}")
    file.write_text(NEW)


@pytest.mark.parametrize("save", [truncate, rename, vim_backup_by_rename, vim_backup_by_copy, jetbrains, emacs, twice])
async def test_save_is_one_batch(root: Path, save: Callable[[Path], None]) -> None:
    """However an editor saves, one file changed, once, and it has its new content."""
    async with observing(root, relevant=is_rust) as observed:
        await assert_one_batch(observed, asyncio.to_thread(save, root / "src/main.rs"), {"src/main.rs"})
        assert (root / "src/main.rs").read_text() == NEW


async def test_rescan_gives_an_empty_file_time_to_be_written(root: Path) -> None:
    """Whoever looks in the moment between truncation and write does not see an empty file."""
    async with observing(root, times=SettleTimes(hollow_ms=10_000)) as observed:
        with (root / "src/main.rs").open("w") as stream:
            looking = asyncio.ensure_future(observed.watcher.rescan([root / "src/main.rs"]))
            assert (await asyncio.wait({looking}, timeout=0.05))[0] == set()
            stream.write(NEW)
        batch = await asyncio.wait_for(looking, BOUND_S)
        assert batch is not None
        assert await observed.watcher.rescan() is None
