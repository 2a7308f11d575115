"""The corpus's programs: every case of a build is a module of one program, which answers with what the module shows."""

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from tests.corpus.cases import Case
from tests.e2e.harness import START_WITHIN_S, Session, Verdict
from tests.e2e.program import PROGRAM_WITHIN_S, Project, wait_for

MANIFEST = """\
[package]
name = "corpus"
version = "0.1.0"
edition = "2021"
publish = false

[features]
extra = []

[profile.dev]
opt-level = {level}

[workspace]

[dependencies]
"""

MAIN = """\
#![allow(warnings)]

use std::io::{{BufRead, BufReader, Write}};
use std::os::unix::net::UnixListener;
use std::panic::catch_unwind;

{modules}

static CASES: &[(&str, fn() -> String)] = &[
{table}
];

#[inline(never)]
fn answer(name: &str) -> String {{
    let show = CASES.iter().find(|case| case.0 == name).expect("a case").1;
    catch_unwind(show).unwrap_or_else(|_| "panicked".to_string())
}}

fn main() {{
    let listener = UnixListener::bind(std::env::var("CORPUS_SOCKET").unwrap()).unwrap();
    for stream in listener.incoming() {{
        let mut stream = stream.unwrap();
        let mut name = String::new();
        BufReader::new(&stream).read_line(&mut name).unwrap();
        let text = answer(name.trim());
        write!(stream, "{{}} {{text}}", std::process::id()).unwrap();
    }}
}}
"""


def write_program(cases: Iterable[Case], build: str, root: Path, dependencies: Mapping[str, str]) -> None:
    """Write the sources of a program with these cases.

    Args:
        cases: its modules.
        build: one of `BUILDS`.
        root: where the package goes.
        dependencies: crate → version.
    """
    cases = tuple(cases)
    lines = "".join(f'{name} = "{version}"\n' for name, version in dependencies.items())
    files = {
        "Cargo.toml": MANIFEST.format(level=build if build.isdigit() else "0") + lines,
        "src/main.rs": MAIN.format(
            modules="\n".join(f"mod {case.name};" for case in cases),
            table="\n".join(map(_entry, cases)),
        ),
    }
    if build == "v0":
        files[".cargo/config.toml"] = '[build]\nrustflags = ["-Csymbol-mangling-version=v0"]\n'
    files |= {f"src/{source.path}": source.before for case in cases for source in case.sources}
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _entry(case: Case) -> str:
    """The case's line in the program's table; its name keeps the optimiser from making one function out of two."""
    return f'    ("{case.name}", || format!("{case.name} {{}}", {case.name}::show())),'


class CorpusSession(Session):
    """A program of the corpus under `hotpatchd run`."""

    def __init__(self, project: Project, build: str) -> None:
        self._socket = project.root.with_suffix(".sock")
        self._socket.unlink(missing_ok=True)
        selection = ("--release",) if build == "release" else ()
        super().__init__(project, selection=selection, env={"CORPUS_SOCKET": str(self._socket)})
        self.pid = 0

    def wait_started(self) -> Self:
        """Waits until the daemon is ready for edits, and the program for questions."""
        self.pid = self.wait_event("client.connected", within_s=START_WITHIN_S)["pid"]
        self.wait_event("daemon.ready", within_s=START_WITHIN_S)
        wait_for("the program's socket", self._socket.exists, within_s=PROGRAM_WITHIN_S, diagnose=self.diagnosis)
        return self

    def show(self, case: Case) -> str:
        """What the case's module shows now; the process must be the first one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PROGRAM_WITHIN_S)
            connection.connect(os.fspath(self._socket))
            connection.sendall(f"{case.name}\n".encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        pid, _, text = answer.partition(" ")
        assert pid == str(self.pid), f"{case.name}: another process answered {answer!r}\n{self.diagnosis()}"
        return text.removeprefix(f"{case.name} ")

    def make(self, case: Case, *, reverse: bool = False) -> Verdict:
        """Saves the case's edit, or its reverse, and waits for the verdict."""
        contents = {
            f"src/{source.path}": source.before if reverse else source.after
            for source in case.sources
            if source.after is not None
        }
        return self.wait_verdict(self.save_together(contents)[0])
