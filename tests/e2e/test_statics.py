"""Statics, constants and callbacks of a program that is made of two crates and of C, with symbols in v0 mangling."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session, Verdict
from tests.e2e.program import PROGRAM_WITHIN_S, Project, wait_for

FILES = {
    "Cargo.toml": """\
[package]
name = "statics"
version = "0.1.0"
edition = "2021"
publish = false

[dependencies]
parts = { path = "parts" }

[workspace]
members = ["parts"]
""",
    ".cargo/config.toml": """\
[build]
rustflags = ["-Csymbol-mangling-version=v0", "-Clink-args=-rdynamic"]
""",
    "build.rs": """\
use std::process::Command;

fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let run = |program: &str, args: &[&str]| assert!(Command::new(program).args(args).status().unwrap().success());
    let object = format!("{out}/each.o");
    run("cc", &["-c", "-fPIC", "c/each.c", "-o", &object]);
    run("ar", &["rcs", &format!("{out}/libeach.a"), &object]);
    println!("cargo:rustc-link-search=native={out}");
    println!("cargo:rustc-link-lib=static=each");
    println!("cargo:rerun-if-changed=c/each.c");
}
""",
    "c/each.c": """\
static int (*kept)(int);
void keep(int (*call)(int)) { kept = call; }
int each(int (*call)(int), int n) { return n ? call(n) + each(call, n - 1) : 0; }
int call_kept(int n) { return kept(n); }
""",
    "parts/Cargo.toml": """\
[package]
name = "parts"
version = "0.1.0"
edition = "2021"
publish = false
""",
    "parts/src/lib.rs": """\
use std::sync::Mutex;

pub const LENGTH: usize = 2;
pub static NAMES: [&str; 2] = ["one", "two"];
pub struct Held {
    pub count: u64,
}
static HELD: Mutex<Held> = Mutex::new(Held { count: 0 });
static LIMIT: Mutex<u64> = Mutex::new(7);
static PLAIN: Mutex<u64> = Mutex::new(40);

pub fn next() -> u64 {
    let mut held = HELD.lock().unwrap();
    held.count += 1;
    held.count
}

pub fn limit() -> String {
    LIMIT.lock().unwrap().to_string()
}

pub fn plain() -> String {
    PLAIN.lock().unwrap().to_string()
}

#[inline]
pub fn sum() -> u64 {
    std::hint::black_box([1; LENGTH]).iter().sum()
}
""",
    "src/main.rs": """\
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

extern "C" {
    fn each(call: extern "C" fn(i32) -> i32, n: i32) -> i32;
    fn keep(call: extern "C" fn(i32) -> i32);
    fn call_kept(n: i32) -> i32;
    fn dlsym(handle: *mut u8, name: *const u8) -> *mut u8;
}

extern "C" fn called(n: i32) -> i32 {
    n
}

extern "C" fn called_later(n: i32) -> i32 {
    n + 1
}

#[no_mangle]
pub extern "C" fn statics_exported() -> i32 {
    5
}

fn exported() -> String {
    let found = unsafe { dlsym(std::ptr::null_mut(), c"statics_exported".as_ptr().cast()) };
    let call: extern "C" fn() -> i32 = unsafe { std::mem::transmute(found) };
    call().to_string()
}

fn show(what: &str) -> String {
    match what {
        "length" => format!("{} {}", parts::LENGTH, parts::sum()),
        "names" => std::hint::black_box(&parts::NAMES).join(" "),
        "next" => parts::next().to_string(),
        "limit" => parts::limit(),
        "plain" => parts::plain(),
        "each" => unsafe { each(called, 3) }.to_string(),
        "kept" => unsafe { call_kept(1) }.to_string(),
        _ => exported(),
    }
}

fn main() {
    unsafe { keep(called_later) };
    let listener = UnixListener::bind(std::env::var("STATICS_SOCKET").unwrap()).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut what = String::new();
        BufReader::new(&stream).read_line(&mut what).unwrap();
        let text = show(what.trim());
        stream.write_all(text.as_bytes()).unwrap();
    }
}
""",
}
PARTS, MAIN = "parts/src/lib.rs", "src/main.rs"


class Statics:
    """The program under `hotpatchd run`."""

    def __init__(self, root: Path) -> None:
        for path, text in FILES.items():
            file = root / "sources" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.socket = root / "socket"
        self.project = Project(root / "sources", root / "program")
        self.session = Session(self.project, env={"STATICS_SOCKET": str(self.socket)})

    def wait_started(self) -> None:
        """Waits until it answers, and takes edits."""
        self.session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        wait_for("the socket", self.socket.exists, within_s=PROGRAM_WITHIN_S, diagnose=self.session.diagnosis)

    def show(self, what: str) -> str:
        """What the program answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PROGRAM_WITHIN_S)
            connection.connect(str(self.socket))
            connection.sendall(f"{what}\n".encode())
            return b"".join(iter(lambda: connection.recv(4096), b"")).decode()

    def edit(self, file: str, *replacements: tuple[str, str]) -> Verdict:
        """Replaces texts that are there exactly once in a file as it was at the start."""
        text = FILES[file]
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return self.session.wait_verdict(self.session.save_together({file: text})[0])


@pytest.fixture(scope="module")
def statics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Statics]:
    """The program, whose sources a test may leave changed."""
    started = Statics(tmp_path_factory.mktemp("statics"))
    with started.session:
        started.wait_started()
        yield started


def test_a_constant_of_a_library_changes_all_that_is_made_of_it(statics: Statics) -> None:
    """In the other crate, in its own inlined functions, and as the length of an array."""
    assert statics.show("length") == "2 2"
    assert statics.edit(PARTS, ("LENGTH: usize = 2", "LENGTH: usize = 5")).verdict == "applied"
    assert statics.show("length") == "5 5"


def test_a_table_of_a_library_can_be_edited_again_and_again(statics: Statics) -> None:
    """Whoever uses it gets the newest, and undoing goes back by one."""
    assert statics.show("names") == "one two"
    assert statics.edit(PARTS, ('"one", "two"', '"one", "second"')).verdict == "applied"
    assert statics.show("names") == "one second"
    assert statics.edit(PARTS, ('"one", "two"', '"first", "second"')).verdict == "applied"
    assert statics.show("names") == "first second"
    assert statics.session.cli("undo").returncode == 0
    assert statics.show("names") == "one second"
    assert statics.edit(PARTS, ('"one", "two"', '"1", "2"')).verdict == "applied"
    assert statics.show("names") == "1 2"
    assert statics.edit(PARTS).verdict == "applied"
    assert statics.show("names") == "one two"


def test_a_static_keeps_its_value_when_a_field_gets_another_name(statics: Statics) -> None:
    """Its symbol is what it was, in this mangling."""
    assert [statics.show("next") for _ in range(2)] == ["1", "2"]
    renamed = [("pub count", "pub total"), ("count: 0", "total: 0"), ("count += 1", "total += 1")]
    verdict = statics.edit(PARTS, *renamed, ("    held.count\n", "    held.total * 10\n"))
    assert verdict.verdict == "applied"
    assert statics.show("next") == "30"


def test_a_static_of_another_type_is_refused_though_its_symbol_is_the_same(statics: Statics) -> None:
    """Its value would be read as something else."""
    verdict = statics.edit(PARTS, ("LIMIT: Mutex<u64> = Mutex::new(7)", "LIMIT: Mutex<f64> = Mutex::new(7.5)"))
    assert verdict.verdict == "refused"
    (refusal,) = verdict.refusals
    assert (refusal["symbol"], refusal["reason"]) == ("parts::LIMIT", "static_changed")
    assert "Mutex<u64>" in refusal["detail"]
    assert "Mutex<f64>" in refusal["detail"]
    assert statics.edit(PARTS).verdict in ("applied", "unchanged")
    assert statics.show("limit") == "7"


def test_a_static_that_comes_back_with_another_type_is_refused(statics: Statics) -> None:
    """Its value is still there, and would be read as something else."""
    gone = [("static LIMIT: Mutex<u64> = Mutex::new(7);\n", ""), ("LIMIT.lock().unwrap().to_string()", '"none".into()')]
    assert statics.edit(PARTS, *gone).verdict == "applied"
    assert statics.show("limit") == "none"
    verdict = statics.edit(PARTS, ("LIMIT: Mutex<u64> = Mutex::new(7)", "LIMIT: Mutex<f64> = Mutex::new(7.5)"))
    assert verdict.verdict == "refused"
    assert [(refusal["symbol"], refusal["reason"]) for refusal in verdict.refusals] == [
        ("parts::LIMIT", "static_changed")
    ]
    assert statics.edit(PARTS).verdict == "applied"
    assert statics.show("limit") == "7"


def test_the_initialiser_of_a_static_of_a_library_is_noted(statics: Statics) -> None:
    """The program keeps its value."""
    verdict = statics.edit(PARTS, ("Mutex::new(40)", "Mutex::new(50)"))
    assert verdict.noted("initialiser_kept") == ["parts::PLAIN"]
    assert statics.show("plain") == "40"


def test_c_calls_the_new_code_of_a_callback(statics: Statics) -> None:
    """Of one that it is given for the call, and of one that it keeps."""
    assert (statics.show("each"), statics.show("kept")) == ("6", "2")
    verdict = statics.edit(MAIN, ("    n\n", "    n * 10\n"), ("    n + 1\n", "    n + 100\n"))
    assert verdict.verdict == "applied"
    assert (statics.show("each"), statics.show("kept")) == ("60", "101")


def test_what_the_loader_finds_by_name_leads_to_the_new_code(statics: Statics) -> None:
    """The address that the dynamic loader gives is the program's, where the jump is."""
    assert statics.show("exported") == "5"
    assert statics.edit(MAIN, ("    5\n", "    6\n")).verdict == "applied"
    assert statics.show("exported") == "6"


def test_an_edit_of_the_c_code_needs_a_full_build(statics: Statics) -> None:
    """It is made by the build script."""
    saved = statics.session.save_together({"c/each.c": FILES["c/each.c"] + "int unused;\n"})
    assert statics.session.wait_verdict(saved[0]).verdict == "restart"
