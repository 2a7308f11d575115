"""The cache of files: what comes out is what went in, or nothing, also with others at work and after a sudden end."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotpatchd.daemon.object_cache import Digests, ObjectCache

KIB = 1 << 10


class Store:
    """A cache, and files to put into it."""

    def __init__(self, root: Path, limit: int = 1 << 30) -> None:
        self.root = root
        self.directory = root / "cache"
        self.cache = ObjectCache(self.directory, limit=limit)
        self.again(limit)

    def again(self, limit: int = 1 << 30) -> None:
        """What another process sees: the same directory, and nothing remembered."""
        self.cache = ObjectCache(self.directory, limit=limit)

    def file(self, name: str, content: bytes) -> Path:
        """A file that can be stored."""
        path = self.root / name
        path.write_bytes(content)
        return path

    def put(self, key: str, content: bytes) -> None:
        """Store one file that nobody else has, and that was written some time ago."""
        path = self.file(f"{key}.o", content)
        os.utime(path, (1000, 1000))
        self.cache.store(key, {"object": path})
        path.unlink()

    def get(self, key: str) -> bytes | None:
        """The content of the file stored under a key."""
        entry = self.cache.load(key)
        place = self.root / "taken"
        if entry is None or not self.cache.take_out(entry.files["object"], place):
            return None
        return place.read_bytes()

    def blob(self, key: str) -> Path:
        """The file in the cache itself."""
        entry = self.cache.load(key)
        assert entry is not None
        return self.directory / "blobs" / entry.files["object"]

    def blobs(self) -> set[str]:
        """What the cache has on disk."""
        return set(os.listdir(self.directory / "blobs"))

    def use(self, key: str, at_s: int) -> None:
        """Say when a key was used last."""
        os.utime(self.directory / "entries" / key, (at_s, at_s))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty cache."""
    return Store(tmp_path)


def test_what_is_taken_out_is_the_very_file_that_was_stored(store: Store) -> None:
    """A hard link, so that whoever compares files by inode need not read it."""
    path = store.file("a.o", b"code")
    store.cache.store("aa", {"object": path}, "a note")
    entry = store.cache.load("aa")
    assert entry is not None
    assert entry.note == "a note"
    assert store.cache.take_out(entry.files["object"], store.root / "taken")
    assert (store.root / "taken").samefile(path)


def test_a_file_in_the_way_is_replaced(store: Store) -> None:
    """And not written into: it may be a hard link of something else."""
    store.put("aa", b"new")
    old = store.file("taken", b"old")
    os.link(old, store.root / "other")
    assert store.get("aa") == b"new"
    assert (store.root / "other").read_bytes() == b"old"


def test_a_file_that_others_write_into_is_copied_both_ways(store: Store) -> None:
    """Neither the one that was stored nor the one that was taken out is the blob."""
    path = store.file("a.so", b"linked")
    store.cache.store("aa", {"object": path}, copied=True)
    path.write_bytes(b"signed")
    entry = store.cache.load("aa")
    assert entry is not None
    for _ in range(2):
        assert store.cache.take_out(entry.files["object"], store.root / "taken", copied=True)
        assert (store.root / "taken").read_bytes() == b"linked"
        (store.root / "taken").write_bytes(b"signed")


def test_a_cache_on_another_file_system_copies(tmp_path: Path) -> None:
    """There are no hard links between file systems."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != tmp_path.stat().st_dev
        store = Store(tmp_path)
        store.directory = Path(elsewhere)
        store.again()
        store.put("aa", b"code")
        assert store.get("aa") == b"code"


def test_an_unknown_key_has_nothing(store: Store) -> None:
    """Also before anything was stored."""
    assert store.cache.load("aa") is None
    assert list(store.cache.recall("aa")) == []


def flip_a_byte(path: Path) -> None:
    """Change the content and nothing else that is easily seen."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut the file short."""
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = [flip_a_byte, truncate, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_another_process", [False, True])
def test_a_damaged_blob_is_not_taken_out(
    store: Store, damage: Callable[[Path], None], is_another_process: bool
) -> None:
    """Nothing is left where it was to go, it is deleted, and can be stored again."""
    store.put("aa", b"machine code")
    blob = store.blob("aa")
    damage(blob)
    if is_another_process:
        store.again()
    assert store.get("aa") is None
    assert not blob.exists()
    assert not (store.root / "taken").exists()
    store.put("aa", b"machine code")
    assert store.get("aa") == b"machine code"


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_a_damaged_entry_is_dropped(store: Store, damage: Callable[[Path], None]) -> None:
    """It begins with its own digest."""
    store.put("aa", b"code")
    entry = store.directory / "entries" / "aa"
    damage(entry)
    assert store.cache.load("aa") is None
    assert not entry.exists()


def test_a_damaged_text_is_not_recalled(store: Store) -> None:
    """Its name is its digest."""
    store.cache.remember("aa", "some text")
    store.cache.remember("aa", "other text")
    for path in (store.directory / "remembered" / "aa").iterdir():
        if path.read_text() == "some text":
            flip_a_byte(path)
    assert list(store.cache.recall("aa")) == ["other text"]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """Loading counts as using."""
    store = Store(tmp_path, limit=45 * KIB)
    for number in range(4):
        store.put(f"a{number}", bytes([number]) * 10 * KIB)
        store.use(f"a{number}", 1000 + number)
    assert store.get("a0") is not None
    store.put("a4", b"4" * 10 * KIB)
    kept = {key for key in ("a0", "a1", "a2", "a3", "a4") if store.get(key) is not None}
    assert kept == {"a0", "a2", "a3", "a4"}


def test_the_limit_is_kept_without_being_asked(tmp_path: Path) -> None:
    """Storing looks at it now and then."""
    store = Store(tmp_path, limit=64 * KIB)
    for number in range(40):
        store.put(f"{number:02}", os.urandom(8 * KIB))
    size = sum(path.stat().st_size for path in store.directory.rglob("*") if path.is_file())
    assert 32 * KIB < size < 64 * KIB + 8 * KIB
    assert store.get("39") is not None


def test_a_blob_of_two_entries_stays_as_long_as_one_of_them(tmp_path: Path) -> None:
    """It counts once, too."""
    store = Store(tmp_path, limit=30 * KIB)
    for key in ("aa", "bb", "cc"):
        store.put(key, b"s" * 20 * KIB)
    assert len(store.blobs()) == 1
    store.cache.drop("aa")
    store.cache.trim()
    assert store.get("bb") is not None
    store.cache.drop("bb")
    store.cache.drop("cc")
    store.cache.trim()
    assert store.blobs() == set()


def test_texts_go_with_the_entries_that_they_lead_to(tmp_path: Path) -> None:
    """One that was used since the oldest entry was is kept."""
    store = Store(tmp_path)
    for number, key in enumerate(("aa", "bb")):
        store.put(key, key.encode())
        store.use(key, 2000 + number)
        store.cache.remember(key, "text")
        for path in (store.directory / "remembered" / key).iterdir():
            os.utime(path, (2000 + number, 2000 + number))
    store.cache.drop("aa")
    store.cache.trim()
    assert list(store.cache.recall("aa")) == []
    assert list(store.cache.recall("bb")) == ["text"]


def test_leftovers_of_a_process_that_died_are_swept(store: Store) -> None:
    """By the first who stores something."""
    store.put("aa", b"code")
    (store.directory / "blobs" / "0badc0de").write_bytes(b"no entry names it")
    (store.directory / "partial" / "tmp").write_bytes(b"half")
    store.again()
    store.put("bb", b"other code")
    assert "0badc0de" not in store.blobs()
    assert list((store.directory / "partial").iterdir()) == []
    assert store.get("aa") == b"code"


def test_nothing_is_deleted_while_somebody_stores(store: Store) -> None:
    """Blobs that are there already have no entry yet."""
    store.put("aa", b"code")
    other = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", other, store.directory / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        (store.directory / "blobs" / "0badc0de").write_bytes(b"")
        store.cache.trim()
        assert "0badc0de" in store.blobs()
        process.communicate(b"\n")
    store.cache.trim()
    assert "0badc0de" not in store.blobs()


WORKER = """
import hashlib, os, random, sys
from pathlib import Path
from hotpatchd.daemon.object_cache import ObjectCache

directory, scratch, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rounds = int(sys.argv[4])
chosen = random.Random(seed)
scratch.mkdir()
hits = 0
cache = ObjectCache(directory, limit=200_000)

def contents(key):
    return {f"f{n}": hashlib.sha256(f"{key} {n % 3}".encode()).digest() * 200 for n in range(5)}

for turn in range(rounds):
    if turn % 50 == 0:
        cache = ObjectCache(directory, limit=200_000)
    key = f"{chosen.randrange(40):02x}"
    entry = cache.load(key)
    if entry is None:
        paths = {}
        for name, content in contents(key).items():
            paths[name] = scratch / f"{turn}-{name}"
            paths[name].write_bytes(content)
        cache.store(key, paths, key)
        for path in paths.values():
            path.unlink()
    else:
        assert entry.note == key
        taken = scratch / "taken"
        for name, content in contents(key).items():
            if cache.take_out(entry.files[name], taken):
                assert taken.read_bytes() == content, (key, name)
                hits += 1
    print(hits, flush=True)
"""


def worker(store: Store, number: int, rounds: int) -> "subprocess.Popen[bytes]":
    """A process that stores, evicts and checks what it takes out."""
    places = (str(store.directory), str(store.root / f"w{number}"))
    argv = [sys.executable, "-c", WORKER, *places, str(number), str(rounds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_store_and_evict_at_once(store: Store) -> None:
    """Each finds what it or the other stored, complete, or nothing; and the limit is kept."""
    processes = [worker(store, number, 600) for number in range(2)]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, error) == (0, b"")
        assert int(out.split()[-1]) > 100
    store.again(limit=200_000)
    store.cache.trim()
    assert 0 < sum(path.stat().st_size for path in store.directory.rglob("*") if path.is_file()) <= 200_000


def test_a_process_that_is_killed_leaves_nothing_incomplete(store: Store) -> None:
    """Wherever it was: each entry that is there has all its files."""
    for number in range(8):
        process = worker(store, number, 1_000_000)
        assert process.stdout
        for _ in range(5 + 7 * number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        store.again()
        for key in os.listdir(store.directory / "entries"):
            entry = store.cache.load(key)
            assert entry is not None
            assert all(store.cache.take_out(digest, store.root / "taken") for digest in entry.files.values())


def texts_of_one_length() -> Iterator[str]:
    """Texts that differ, but not in length."""
    for number in range(200):
        yield f"{number:04}"


def test_a_source_that_is_written_twice_within_a_tick_of_the_clock_is_read_again(store: Store) -> None:
    """Time stamps do not tell the second writing from the first."""
    path = store.root / "main.rs"
    digests = set()
    for text in texts_of_one_length():
        path.write_text(text)
        digests.add(store.cache.digests.of_source(str(path), store.cache.clock_ns()))
    assert len(digests) == 200


def test_an_object_is_read_once(store: Store) -> None:
    """A further hard link makes no difference, nor does a change that only its time of last change would tell."""
    path, other = store.file("a.o", b"code"), store.root / "b.o"
    os.utime(path, (1000, 1000))
    digests = Digests()
    first = digests.of_immutable(path)
    path.write_bytes(b"edoc")
    os.utime(path, (1000, 1000))
    os.link(path, other)
    assert digests.of_immutable(other) == first
    assert Digests().of_immutable(other) != first


def test_a_source_that_is_not_there_has_a_digest(store: Store) -> None:
    """It is one that no file has, also where a file is in place of its directory."""
    now_ns = store.cache.clock_ns()
    (store.root / "src").write_text("absent")
    found = {store.cache.digests.of_source(str(store.root / name), now_ns) for name in ("src", "a.rs", "src/a.rs")}
    assert len(found) == 2


def test_a_directory_is_known_by_the_names_in_it(store: Store) -> None:
    """A new file makes a difference, a changed one does not."""
    digests, now_ns = Digests(), store.cache.clock_ns()
    directory = store.root / "assets"
    directory.mkdir()
    (directory / "a.txt").write_text("a")
    before = digests.of_source(str(directory), now_ns)
    (directory / "a.txt").write_text("b")
    assert digests.of_source(str(directory), now_ns) == before
    (directory / "b.txt").write_text("b")
    assert digests.of_source(str(directory), now_ns) != before
