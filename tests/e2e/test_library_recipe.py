"""The recipe `single-object`: an app in a shared library is patched while a launcher that knows nothing of it runs."""

import asyncio
from asyncio.subprocess import PIPE, Process
from dataclasses import replace
from pathlib import Path

from hotpatchd.core.client import DylibPatch
from hotpatchd.core.library import ProgramSymbols
from hotpatchd.core.linkline import archives, parse_link_line
from hotpatchd.core.recipe import edit_single_object
from hotpatchd.core.session import Session, after_applied
from hotpatchd.daemon.library_patcher import LibraryPatcher, choose_linker
from hotpatchd.daemon.linking import LinkCache
from hotpatchd.daemon.object_cache import ObjectCache
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.objects import BuildObjects, object_file
from hotpatchd.objfile.symbols import read_symbols
from tests.core.fakes import session
from tests.objfile.build import run

TARGET = "x86_64-unknown-linux-gnu"
APP = """
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

static CALLS: AtomicU64 = AtomicU64::new(0);
static HISTORY: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn factor() -> u64 {
    100
}

fn remember(call: u64) -> u64 {
    let mut history = HISTORY.lock().unwrap();
    history.push(call);
    history.len() as u64
}

#[no_mangle]
pub extern "C" fn app_main() -> u64 {
    factor() * (CALLS.fetch_add(1, Ordering::Relaxed) + 1) + remember(7)
}
"""
EDITS = (("    100", "    1000"), ("len() as u64", "iter().sum::<u64>()"), ("    1000", "    10_000"))


class App:
    """The app's source, as it is edited and compiled.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.source = place / "app.rs"
        self.library = place / "libapp.so"
        self.builds = 0
        self._argv = ("--crate-name", "app", "--edition=2021", str(self.source), "--crate-type", "cdylib", "-g")
        self.source.write_text(APP)
        run("rustc", *self._argv, "-o", self.library, f"--print=link-args={place / 'link-args'}")

    def compile(self) -> BuildObjects:
        """The crate's one object."""
        self.builds += 1
        out_dir = self.place / str(self.builds)
        out_dir.mkdir()
        edited = edit_single_object(self._argv, out_dir=str(out_dir), incremental_dir=str(self.place / "incremental"))
        run("rustc", *edited.argv)
        return BuildObjects({"app/one": object_file(out_dir / "app.o", is_optimised=False)})

    async def patcher(self, baseline: BuildObjects) -> LibraryPatcher:
        """What makes libraries for it."""
        line = parse_link_line((self.place / "link-args").read_text())
        return LibraryPatcher(
            program=ProgramSymbols(read_symbols(self.library)),
            archives=ArchiveSet(tuple(Path(path) for path in archives(line))),
            link_line=line,
            target=TARGET,
            linker=await choose_linker(line, TARGET, "rustc"),
            crate_names=frozenset({"app"}),
            baseline=baseline,
            links=LinkCache(ObjectCache(self.place / "state" / "cache"), host="host", linker="linker"),
            state_dir=self.place / "state",
        )


async def ask(launcher: Process, line: str = "") -> int:
    """What the app returns next."""
    assert launcher.stdin
    assert launcher.stdout
    launcher.stdin.write(f"{line}\n".encode())
    answer = (await launcher.stdout.readline()).decode()
    assert answer.strip().isdigit(), answer
    return int(answer)


async def test_loaded_library_is_patched_three_times(tmp_path: Path) -> None:
    """Each library has one object's functions and reaches the state of the app, which goes on through all edits."""
    app = App(tmp_path)
    run("cc", "-o", tmp_path / "launcher", Path(__file__).with_name("launcher.c"), "-ldl")
    baseline = app.compile()
    patcher = await app.patcher(baseline)
    entry = patcher.program.find("app_main")
    assert entry is not None
    launcher = await asyncio.create_subprocess_exec(tmp_path / "launcher", app.library, stdin=PIPE, stdout=PIPE)
    try:
        assert launcher.stdout
        slide = int(await launcher.stdout.readline()) - entry.addr
        client: Session = session(1)
        client = replace(client, hello=replace(client.hello, slide=slide, kind="dylib"))
        assert [await ask(launcher) for _ in range(2)] == [101, 202]
        before = baseline
        answers = []
        for old, new in EDITS:
            app.source.write_text(app.source.read_text().replace(old, new))
            objects = app.compile()
            ready = await patcher.prepare(client, 1, objects, before)
            patch, before = ready.patch, objects
            assert isinstance(patch, DylibPatch), ready.prepared
            assert ready.prepared.content is not None
            client = after_applied(client, ready.prepared.content, 0)
            path = tmp_path / f"{patch.patch}.so"
            path.write_bytes(ready.payload)
            jumps = " ".join(f"{jump.from_addr} {jump.to_addr}" for jump in patch.jumps)
            answers.append(await ask(launcher, f"{path} {patch.anchor.addr} {len(patch.jumps)} {jumps}"))
        assert answers == [3003, 4028, 50035]
    finally:
        launcher.kill()
        await launcher.wait()
