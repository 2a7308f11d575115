"""The command line: what it takes, and how its errors read."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from hotpatchd import __version__
from hotpatchd import cli as command_line
from hotpatchd.cli import cli, main
from hotpatchd.core.errors import BuildError

COMMANDS = sorted(cli.commands)
README = (Path(__file__).parents[1] / "README.md").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a space in its path, which is also the working directory."""
    root = tmp_path / "my app"
    (root / "src").mkdir(parents=True)
    (root / "Cargo.toml").write_text('[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n')
    (root / "src/main.rs").write_text("fn main() {}\n")
    monkeypatch.chdir(root)
    return root


class Runner:
    """Runs commands through `main`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._captured = captured

    def __call__(self, *args: str) -> Ended:
        """What a command printed, and its exit status."""
        self._monkeypatch.setattr(sys, "argv", ["hotpatchd", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._captured.readouterr()
        return Ended(status=int(ended.value.code or 0), stdout=out, stderr=err)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    """Run a command in this process, as the installed program does."""
    return Runner(monkeypatch, capfd)


def program(*args: str) -> Ended:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hotpatchd", *args], capture_output=True, text=True, check=False, timeout=60
    )
    return Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """`--help` shows its usage and says what it does."""
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {command} [OPTIONS]")
    assert cli.commands[command].help


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_a_usage_error_that_names_it(command: str, run: Runner) -> None:
    """The exit status is 2."""
    ended = run(command, "--no-such-flag")
    assert ended.status == 2
    assert "--no-such-flag" in ended.stderr


def test_the_program_tells_its_version() -> None:
    """Run as a module, like the installed command."""
    ended = program("--version")
    assert (ended.status, ended.stdout) == (0, f"hotpatchd, version {__version__}\n")


@pytest.mark.parametrize("command", ["status", "clients", "log", "trigger", "undo", "show 1", "events"])
def test_commands_to_a_daemon_say_how_to_start_one(command: str, package: Path, run: Runner) -> None:
    """Without a daemon the message names `hotpatchd run`, as a usage error without a traceback."""
    ended = run(*command.split())
    assert (ended.status, ended.stdout) == (2, "")
    assert "hotpatchd run" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_captures_of_a_workspace_that_was_never_built_are_none(package: Path, run: Runner) -> None:
    """An empty list is not an error, and as JSON it is a list all the same."""
    ended = run("captures", "--json")
    assert (ended.status, json.loads(ended.stdout)) == (0, [])


def test_a_build_error_prints_what_the_compiler_said_first(
    package: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output stands above the message and the help; the exit status is 1."""

    async def failing(*_: object, **__: object) -> None:
        raise BuildError("the linker failed", output="ld: cannot find -lz", hint="install zlib")

    monkeypatch.setattr(command_line, "load_workspace", failing)
    ended = run("build")
    assert ended.status == 1
    assert ended.stderr == "ld: cannot find -lz\nerror: the linker failed\n  help: install zlib\n"


@pytest.mark.parametrize("address", ["1:2:3", "127.0.0.1:99999", "[::1"])
def test_an_address_that_is_none_is_named(package: Path, address: str) -> None:
    """Before anything is built, with an example of the right form."""
    ended = program("serve", "--listen", address)
    assert ended.status == 2
    assert f"not an address to listen on: {address}" in ended.stderr
    assert "127.0.0.1:0" in ended.stderr
    assert not (package / "target").exists()


def test_executing_a_program_that_is_not_there_names_it(package: Path, run: Runner) -> None:
    """It is looked for before anything else is prepared for it."""
    ended = run("exec", "--", "./no-such-program", "--flag")
    assert ended.status == 2
    assert "cannot find the program ./no-such-program" in ended.stderr


def test_executing_nothing_is_a_usage_error(run: Runner) -> None:
    """A program must be given."""
    ended = run("exec")
    assert ended.status == 2
    assert "PROGRAM" in ended.stderr


@pytest.mark.parametrize("before", [[], ["--"]], ids=["plain", "dashes"])
def test_a_program_is_started_in_place_of_the_command(
    package: Path, before: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the client preloaded, told where the daemon's directory is, and with its own arguments untouched."""
    started: list[tuple[str, list[str], dict[str, str]]] = []

    async def ready(*_: object) -> Path:
        return Path("/client.so")

    monkeypatch.setattr(command_line, "client_for", ready)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    arguments = ["-c", "pass", "--target-dir", "elsewhere", "--help"]
    monkeypatch.setattr(sys, "argv", ["hotpatchd", "exec", *before, sys.executable, *arguments])
    with pytest.raises(SystemExit):
        main()
    ((path, argv, environ),) = started
    assert (path, argv) == (sys.executable, [sys.executable, *arguments])
    assert environ["LD_PRELOAD"].split()[0] == "/client.so"
    assert environ["HOTPATCHD_STATE"] == str(package / "target/hotpatchd")
    assert environ["HOTPATCHD_HOST"] == os.path.realpath(sys.executable)


def test_explaining_an_unknown_crate_is_a_usage_error(package: Path, run: Runner) -> None:
    """The crate is named, and how to get captures."""
    ended = run("explain", "nothing")
    assert ended.status == 2
    assert "`nothing`" in ended.stderr
    assert "hotpatchd build" in ended.stderr


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_undo_takes_a_positive_number(count: str, run: Runner) -> None:
    """Anything else is a usage error."""
    assert run("undo", count).status == 2


def test_options_can_be_given_by_the_environment(package: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is named after the command and the option."""
    monkeypatch.setenv("HOTPATCHD_EXPLAIN_RECIPE", "no-such-recipe")
    ended = run("explain", "app")
    assert ended.status == 2
    assert "no-such-recipe" in ended.stderr


def test_a_directory_without_a_manifest_is_an_error(
    tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cargo's own words are shown, and the message after them."""
    monkeypatch.chdir(tmp_path)
    ended = run("status")
    assert ended.status == 1
    assert "Cargo.toml" in ended.stderr
    assert "error: " in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("run", "--lib"), "a library does not run by itself", "hotpatchd serve --lib"),
        (("serve", "--test", "t"), "--test t: a test harness ends before", "--example"),
        (("build", "--bench", "b"), "--bench b: a test harness ends before", "--example"),
    ],
)
def test_what_cannot_be_patched_is_refused(arguments: tuple[str, ...], message: str, hint: str, run: Runner) -> None:
    """A target that never runs, or ends at once, is a usage error that says what to do instead."""
    ended = run(*arguments)
    assert ended.status == 2
    assert message in ended.stderr
    assert hint in ended.stderr


def test_readme_has_all_commands() -> None:
    """Each is in the table of commands, and nothing else is."""
    table = README.partition("| command |")[2].partition("\n\n")[0]
    first_columns = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for column in first_columns for name in re.findall(r"`([a-z]+)", column)]
    assert sorted(named) == COMMANDS


def test_readme_has_no_options_that_are_not_there() -> None:
    """Each option of the second table is one of the commands that are named beside it."""
    table = README.partition("| option | of |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        _, option, commands, *_ = row.split("|")
        for name in re.findall(r"`([a-z]+)`", commands):
            options = [word for it in cli.commands[name].params for word in (*it.opts, *it.secondary_opts)]
            assert re.findall(r"`(--[a-z-]+)", option)[0] in options
