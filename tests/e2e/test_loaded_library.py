"""Libraries that are patched in programs of others: linked, opened, or called from Python."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import START_WITHIN_S, Session
from tests.e2e.program import PROGRAMS, Program, Project, assert_continuous, wait_for

MAIN = "src/lib.rs"
GAUGE = "gauge/src/lib.rs"
LAUNCHERS = PROGRAMS / "plugin" / "launchers"


class Plugin(Session):
    """`hotpatchd serve --lib` on the plugin."""

    @property
    def library(self) -> Path:
        """Where cargo puts it."""
        (library,) = self.project.target.glob("*/libplugin.so")
        return library

    def linked(self) -> Program:
        """A C program that was linked with the library."""
        program = self.project.root / "linked"
        there = str(self.library.parent)
        flags = ("-pthread", f"-L{there}", f"-Wl,-rpath,{there}", "-lplugin")
        subprocess.run(["gcc", LAUNCHERS / "linked.c", "-o", program, *flags], check=True)
        return self.launch(str(program))

    def launch(self, *command: str) -> Program:
        """Starts a program with `hotpatchd exec`, without waiting for anything."""
        return self.start("exec", "--", *command)

    def wait_connected(self, after: int = 0) -> None:
        """Waits until a client is there that was not when there were `after` events."""
        self.wait_event("client.connected", after=after, within_s=START_WITHIN_S)


class Opener:
    """A C program that loads and unloads a library when it is told to."""

    def __init__(self, plugin: Plugin, library: Path) -> None:
        program = plugin.project.root / "opener"
        subprocess.run(["gcc", LAUNCHERS / "opener.c", "-o", program, "-pthread"], check=True)
        self._flag = plugin.project.root / "opened"
        self.program = plugin.launch(str(program), str(library), str(self._flag))

    def open(self) -> None:
        """Has the library loaded and called."""
        self._flag.touch()

    def close(self) -> None:
        """Has it unloaded, and waits until it is."""
        seen = self.program.stdout.lines().count("unloaded")
        self._flag.unlink()
        wait_for(
            "the library to be unloaded",
            lambda: self.program.stdout.lines().count("unloaded") > seen,
            within_s=20,
            diagnose=self.program.diagnosis,
        )


def serve(root: Path, *selection: str, crate_types: str = '"cdylib", "rlib"') -> Plugin:
    """The daemon on a fresh copy of the plugin."""
    project = Project("plugin", root / "plugin")
    manifest = project.read("Cargo.toml")
    (project.root / "Cargo.toml").write_text(manifest.replace('"cdylib", "rlib"', crate_types))
    return Plugin(project, "serve", selection=("--lib", *selection))


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    """The daemon, ready."""
    with serve(tmp_path) as plugin:
        plugin.wait_event("daemon.ready", within_s=START_WITHIN_S)
        yield plugin


def edit_and_check(plugin: Plugin, program: Program) -> None:
    """One edit arrives, and the state goes on."""
    assert "plugin::sum" in plugin.apply(MAIN, "    left + right", "    left * right").patched
    program.wait_value("sum", "60")
    program.wait_next_lines(3)
    assert_continuous(program.app_lines())


def test_program_that_was_linked_with_it(plugin: Plugin) -> None:
    """The library is there when the program starts."""
    program = plugin.linked()
    plugin.wait_connected()
    edit_and_check(plugin, program)


def test_program_that_opens_a_copy_later(plugin: Plugin) -> None:
    """The library is found when it is loaded, by its build id, whatever its name."""
    copy = Path(shutil.copy(plugin.library, plugin.project.root / "renamed.so"))
    opener = Opener(plugin, copy)
    opener.open()
    plugin.wait_connected()
    edit_and_check(plugin, opener.program)


def test_python_that_loads_a_link_to_it(plugin: Plugin) -> None:
    """An interpreter is a program like any other."""
    link = plugin.project.root / "link.so"
    link.symlink_to(plugin.library)
    program = plugin.launch(sys.executable, str(LAUNCHERS / "caller.py"), str(link))
    plugin.wait_connected()
    edit_and_check(plugin, program)


def test_program_that_runs_before_the_daemon(tmp_path: Path) -> None:
    """`exec` first, `serve` afterwards: the client learns then that it is the library that counts."""
    with serve(tmp_path) as plugin:
        plugin.wait_event("daemon.ready", within_s=START_WITHIN_S)
        plugin.daemon.process.send_signal(signal.SIGTERM)
        assert plugin.daemon.wait_exit() == 0
        program = plugin.linked()
        program.wait_next_lines(3)
        mark = len(plugin.events())
        plugin.start_daemon("serve", "--lib")
        plugin.wait_event("daemon.ready", after=mark, within_s=START_WITHIN_S)
        plugin.wait_connected(after=mark)
        edit_and_check(plugin, program)


def test_edits_of_what_a_library_has(plugin: Plugin) -> None:
    """Thread-locals of two crates, generics, exported functions, panics and new code work as in programs."""
    program = plugin.linked()
    plugin.wait_connected()
    plugin.apply(MAIN, "    SEEN.set(SEEN.get() + 1);", "    let next = SEEN.get() + 1;\n    SEEN.set(next);")
    plugin.apply(MAIN, "        lines.push(tick);\n", "        lines.push(tick * 2);\n")
    plugin.apply(GAUGE, "DEPTH.set(DEPTH.get() + 1);", "DEPTH.set(DEPTH.get() + 1000);")
    line = program.wait_line("with the edit of the dependency", lambda line: int(line["depth"]) > 1000)
    later = program.wait_next_lines(1)
    assert int(later["depth"]) == int(line["depth"]) + 1000 * (int(later["tick"]) - int(line["tick"]))
    plugin.apply(GAUGE, '"{value}+{value}"', '"{value}*{value}"')
    program.wait_line("with the generic", lambda line: "*" in line["twice"])
    plugin.apply(MAIN, "    42\n", "    43\n")
    program.wait_value("answer", "43")
    plugin.apply(
        MAIN,
        '    String::from("plain")',
        "    let caught = std::panic::catch_unwind(|| sum(u64::MAX, 1));\n"
        "    let mut words = std::collections::HashMap::new();\n"
        '    words.insert("a", caught.is_err());\n'
        '    format!("caught:{}", words["a"])',
    )
    program.wait_value("extra", "caught:true")
    assert_continuous(program.app_lines())


def test_undo_takes_the_edit_back(plugin: Plugin) -> None:
    """The library runs its own code again."""
    program = plugin.linked()
    plugin.wait_connected()
    plugin.apply(MAIN, "    left + right", "    left * right")
    program.wait_value("sum", "60")
    assert plugin.cli("undo").returncode == 0
    program.wait_value("sum", "23")


def test_library_that_is_unloaded_and_loaded_again(plugin: Plugin) -> None:
    """The client leaves with the library, and comes back with it: what was edited meanwhile is applied."""
    opener = Opener(plugin, plugin.library)
    opener.open()
    plugin.wait_connected()
    plugin.apply(MAIN, "    left + right", "    left * right")
    opener.program.wait_value("sum", "60")
    for before, after in (("plain", "first"), ("first", "second")):
        mark = len(plugin.events())
        opener.close()
        plugin.wait_event("client.lost", after=mark)
        plugin.edit(MAIN, f'String::from("{before}")', f'String::from("{after}")')
        opener.open()
        plugin.wait_connected(after=mark)
        assert opener.program.wait_value("extra", after)["sum"] == "60"


def test_restart_is_a_new_library(plugin: Plugin) -> None:
    """After a full build, a program that still has the old library is turned away; it goes on with the new one."""
    opener = Opener(plugin, plugin.library)
    opener.open()
    plugin.wait_connected()
    plugin.apply(MAIN, "    left + right", "    left * right")
    opener.program.wait_value("sum", "60")
    mark = len(plugin.events())
    assert plugin.cli("restart", within_s=START_WITHIN_S).stdout.startswith("built; ")
    plugin.wait_event("daemon.ready", after=mark, within_s=START_WITHIN_S)
    plugin.daemon.wait_text("is not the build that is watched")
    assert not [event for event in plugin.events()[mark:] if event["event"] == "client.connected"]
    opener.close()
    opener.open()
    plugin.wait_connected(after=mark)
    plugin.apply(MAIN, 'String::from("plain")', 'String::from("other")')
    assert opener.program.wait_value("extra", "other")["sum"] == "60"


def test_optimised_library(tmp_path: Path) -> None:
    """What holds an inlined copy of the edited function is replaced with it, thread-locals included."""
    with serve(tmp_path, "--release") as plugin:
        plugin.wait_event("daemon.ready", within_s=START_WITHIN_S)
        program = plugin.linked()
        plugin.wait_connected()
        plugin.apply(MAIN, "    SEEN.set(SEEN.get() + 1);", "    SEEN.set(SEEN.get() + 1000);")
        line = program.wait_line("with the edit", lambda line: int(line["tls_const"]) > 1000)
        later = program.wait_next_lines(1)
        assert int(later["tls_const"]) == int(line["tls_const"]) + 1000 * (int(later["tick"]) - int(line["tick"]))
        assert later["instance"] == program.app_lines()[0]["instance"]


def test_rust_dynamic_library(tmp_path: Path) -> None:
    """A `dylib` is linked by other means, and patched by the same."""
    with serve(tmp_path, crate_types='"dylib"') as plugin:
        plugin.wait_event("daemon.ready", within_s=START_WITHIN_S)
        program = plugin.linked()
        plugin.wait_connected()
        edit_and_check(plugin, program)
