"""The command line."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console
from rich.table import Table

from hotpatchd import __version__
from hotpatchd.core.client import PatchKind
from hotpatchd.core.devtools import Protocol, devtools_environ
from hotpatchd.core.errors import BuildError, HotpatchdError, UsageError
from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.settle import SettleTimes
from hotpatchd.core.thinplan import Recipe
from hotpatchd.daemon import control, logs
from hotpatchd.daemon.build_lock import build_in_turn
from hotpatchd.daemon.capture_store import CaptureStore
from hotpatchd.daemon.cargo_config import user_jobs
from hotpatchd.daemon.doctor import examine
from hotpatchd.daemon.event_log import EventBus
from hotpatchd.daemon.explain import explain_crate
from hotpatchd.daemon.fatbuild import Workspace, load_workspace, tracer_for
from hotpatchd.daemon.limits import Limits
from hotpatchd.daemon.lock import read_daemon
from hotpatchd.daemon.power import is_on_battery
from hotpatchd.daemon.processes import caring
from hotpatchd.daemon.program import client_environ, client_for
from hotpatchd.daemon.report import Terminal, describe_proof, describe_record
from hotpatchd.daemon.server import parse_address
from hotpatchd.daemon.supervisor import Daemon, Options

_F = TypeVar("_F", bound=Callable[..., Any])
_INTERRUPTED = 130


def _stacked(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def add(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _refuse_harness(_: click.Context, option: click.Parameter, name: str | None) -> None:
    if name is not None:
        raise UsageError(
            f"--{option.name} {name}: a test harness ends before an edit can reach it",
            hint="call the code from an example, which can be patched while it runs: --example NAME",
        )


_selection_options = _stacked(
    click.option("--manifest-path", metavar="PATH", help="Path to Cargo.toml."),
    click.option("-p", "--package", metavar="SPEC", help="Package to build."),
    click.option("--lib", is_flag=True, help="Build the package's shared library, for programs that load it."),
    click.option("--bin", multiple=True, metavar="NAME", help="Build this binary; `serve` takes several."),
    click.option("--example", multiple=True, metavar="NAME", help="Build this example; `serve` takes several."),
    click.option("--test", metavar="NAME", expose_value=False, callback=_refuse_harness, help="Refused: tests end."),
    click.option("--bench", metavar="NAME", expose_value=False, callback=_refuse_harness, help="Refused as well."),
    click.option("-r", "--release", is_flag=True, help="Build optimised artifacts, with the release profile."),
    click.option("--profile", metavar="NAME", help="Build artifacts with this profile."),
    click.option("-F", "--features", multiple=True, metavar="FEATURES", help="Features to activate."),
    click.option("--all-features", is_flag=True, help="Activate all features."),
    click.option("--no-default-features", is_flag=True, help="Do not activate the `default` feature."),
    click.option("--target", metavar="TRIPLE", help="Build for this target triple."),
    click.option("--target-dir", metavar="DIRECTORY", help="Directory for all generated artifacts."),
)

_cpus_option = click.option("--cpus", type=int, metavar="N", help="Let builds use N processors at most.")

_protocol_option = click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="auto",
    help="Patch in place (native), by the jump tables of the program's own subsecond crate (dioxus), or in place with"
    " word to that crate where the program has it (auto).",
)

_daemon_options = _stacked(
    _protocol_option,
    click.option("--events", type=click.Path(dir_okay=False, path_type=Path), help="Append one JSON line an event."),
    _cpus_option,
    click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="Where clients connect."),
    click.option(
        "--settle-ms",
        type=click.FloatRange(min=0),
        default=20.0,
        help="Quiet time that ends an edit; more for many files.",
    ),
    click.option(
        "--settle-ceiling-ms",
        type=click.FloatRange(min=1),
        default=500.0,
        help="Longest time of an edit of one file; several times as much for many.",
    ),
    click.option(
        "--proof/--no-proof",
        default=None,
        help="Tell when new code runs for the first time (default: on a terminal, for the dev profile).",
    ),
    click.option("--poll", is_flag=True, help="Look for changed files, where the file system sends no events."),
    click.option("-v", "--verbose", is_flag=True, help="Log more."),
)

_program_options = _stacked(
    click.option(
        "--auto-restart", is_flag=True, help="Start the program anew where an edit needs it, and once it crashed."
    ),
    click.option(
        "--background-build/--no-background-build",
        "background",
        default=None,
        help="Bring the program's file up to date while nothing happens (default: unless on battery).",
    ),
    click.option(
        "--keys",
        is_flag=True,
        help="The terminal's keys are for hotpatchd (r: restart, u: undo); the program reads nothing.",
    ),
)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "HOTPATCHD",
        "max_content_width": 110,
    }
)
@click.version_option(__version__, prog_name="hotpatchd")
def cli() -> None:
    """Edit a Rust function, save, and the running program executes the new code."""


def _selection(given: dict[str, Any]) -> CargoSelection:
    features = tuple(part for value in given.pop("features") for part in value.replace(",", " ").split())
    fields = ("manifest_path", "package", "lib", "bin", "example", "release", "profile", "all_features")
    more = ("no_default_features", "target", "target_dir")
    return CargoSelection(features=features, **{name: given.pop(name) for name in (*fields, *more)})


def _workspace(selection: CargoSelection) -> Workspace:
    return asyncio.run(load_workspace(selection, cwd=Path.cwd(), environ=os.environ))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


async def _until_signal(work: Coroutine[Any, Any, int], on_interrupt: Callable[[], None]) -> int:
    """Run until the work ends, SIGINT or SIGTERM; a signal cancels it."""
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        on_interrupt()
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0


def _tells_proof(console: Console, selection: CargoSelection) -> bool:
    """Whether somebody looks, and the jump more that each call costs is lost among the program's other instructions."""
    return console.is_terminal and not selection.release and selection.profile in (None, "dev")


def _run_daemon(given: dict[str, Any], program: Sequence[str] | None) -> None:
    console = Console(stderr=True, highlight=False)
    logs.configure(sys.stderr, verbose=given.pop("verbose"))
    times = SettleTimes(quiet_ms=given.pop("settle_ms"), ceiling_ms=given.pop("settle_ceiling_ms"))
    listen, poll = parse_address(given.pop("listen")), given.pop("poll")
    events = EventBus(given.pop("events"))
    protocol, proof = given.pop("protocol"), given.pop("proof")
    auto_restart, keys = given.pop("auto_restart", False), given.pop("keys", False)
    background = given.pop("background", False)
    selection = _selection(given)
    options = Options(
        cpus=given.pop("cpus"),
        selection=selection,
        cwd=Path.cwd(),
        listen=listen,
        times=times,
        poll=poll,
        protocol=protocol,
        auto_restart=auto_restart,
        background=not is_on_battery() if background is None else background,
        keys=keys,
        proof=_tells_proof(console, selection) if proof is None else proof,
    )
    is_ours_alone = console.is_terminal and (program is None or not sys.stdout.isatty())
    daemon = Daemon(options, _workspace(selection), events, Terminal(console, live=is_ours_alone))

    def interrupted() -> None:
        daemon.interrupted = True

    try:
        sys.exit(asyncio.run(_until_signal(daemon.serve(program), interrupted)))
    finally:
        events.close()


@cli.command()
@_selection_options
@_daemon_options
@_program_options
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(args: tuple[str, ...], **given: Any) -> None:
    """Build the program, start it, and patch it whenever its source changes. ARGS go to the program."""
    if given["lib"]:
        raise UsageError(
            "a library does not run by itself",
            hint="`hotpatchd serve --lib`, and in another terminal `hotpatchd exec -- PROGRAM` for what loads it",
        )
    if len(given["bin"]) + len(given["example"]) > 1:
        raise UsageError(
            "one program is run at a time",
            hint="`hotpatchd serve` with all of them, and `hotpatchd exec -- PROGRAM` for each",
        )
    _run_daemon(given, args)


@cli.command()
@_selection_options
@_daemon_options
def serve(**given: Any) -> None:
    """Build the program and patch it, but let others start it (see `hotpatchd exec`)."""
    _run_daemon(given, None)


@cli.command()
@_selection_options
@_cpus_option
def build(cpus: int | None, **given: Any) -> None:
    """Build the program, capturing how its crates are compiled."""
    selection = _selection(given)

    async def work() -> int:
        where: dict[str, Any] = {"cwd": Path.cwd(), "environ": os.environ}
        workspace = await load_workspace(selection, **where)

        def tell(text: str) -> None:
            click.echo(f"note: {text}", err=True)

        most_jobs = user_jobs(os.cpu_count() or 1, **where)
        with caring(Limits(cpus, most_jobs=most_jobs)):
            tracer = await tracer_for(workspace, environ=os.environ, notice=tell)
            fat = await build_in_turn(selection, workspace, workspace.state_dir, tracer=tracer, tell=tell, **where)
        for problem in fat.problems:
            click.echo(f"warning: {problem.reason}; it was ignored", err=True)
        return 0

    sys.exit(asyncio.run(_until_signal(work(), lambda: None)))


@cli.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--manifest-path", metavar="PATH", help="Path to the Cargo.toml of the program.")
@click.option("--target-dir", metavar="DIRECTORY", help="The target directory of the daemon.")
@_protocol_option
@click.argument("program", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_(program: tuple[str, ...], manifest_path: str | None, target_dir: str | None, protocol: Protocol) -> None:
    """Start PROGRAM with the client in it, attached to the daemon that runs or will run."""
    workspace = _workspace(CargoSelection(manifest_path=manifest_path, target_dir=target_dir))
    path = shutil.which(program[0])
    if path is None:
        raise UsageError(f"cannot find the program {program[0]}", hint="give its path, or build it first")
    terminal = Terminal(Console(stderr=True, highlight=False))
    client = asyncio.run(client_for(None, os.environ, terminal)) if protocol != "dioxus" else None
    with open(path, "rb") as file:
        is_elf = file.read(4) == b"\x7fELF"
    state_dir = workspace.state_dir
    environ = client_environ(os.environ, client, state_dir, Path(path) if is_elf else None)
    daemon = read_daemon(state_dir)
    if daemon and protocol != "native" and workspace.hot_call_crates:
        environ |= devtools_environ(daemon.url)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(path, list(program), environ)


def _daemon_command(function: _F) -> _F:
    return _stacked(
        click.option("--manifest-path", metavar="PATH", help="Path to the Cargo.toml of the program."),
        click.option("--target-dir", metavar="DIRECTORY", help="The target directory of the daemon."),
        _json_option,
    )(function)


def _state_dir(manifest_path: str | None, target_dir: str | None) -> Path:
    return _workspace(CargoSelection(manifest_path=manifest_path, target_dir=target_dir)).state_dir


def _call(manifest_path: str | None, target_dir: str | None, command: str, **arguments: object) -> Any:
    return asyncio.run(control.call(_state_dir(manifest_path, target_dir), command, **arguments))


@cli.command()
@_daemon_command
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def trigger(files: tuple[Path, ...], manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Look now whether FILES (or any source file) changed, without waiting for quiet."""
    absolute = [os.path.abspath(file) for file in files]
    result = _call(manifest_path, target_dir, "trigger", files=absolute)
    if as_json:
        _print_json(result)
    else:
        click.echo(f"edit {result['edit']}" if result["edit"] else "nothing changed")


@cli.command()
@_daemon_command
def status(manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Show what the daemon is doing."""
    result = _call(manifest_path, target_dir, "status")
    if as_json:
        _print_json(result)
        return
    for key in ("pid", "workspace", "program", "build_id", "phase", "clients", "edit"):
        click.echo(f"{key:>10}  {result[key]}")
    click.echo(f"{'crates':>10}  {', '.join(result['crates'])}")
    for file, kind in result["restart_needed_for"].items():
        click.echo(f"{'restart':>10}  needed for {file} ({kind})")
    if result["edits"]:
        last = result["edits"][-1]
        click.echo(f"{'last edit':>10}  {describe_record(last)}{describe_proof(last)}")


@cli.command()
@_daemon_command
def log(manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """List the last edits, and what became of them."""
    edits = _call(manifest_path, target_dir, "log")
    if as_json:
        _print_json(edits)
        return
    for edit in edits:
        click.echo(_edit_line(edit))


def _edit_line(edit: dict[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(edit["ts"]))
    files = ", ".join(os.path.relpath(file) for file in edit["files"])
    size = f", patch of {edit['bytes']} bytes" if edit["bytes"] else ""
    undone = ", undone" if edit["undone"] else ""
    times = "once" if edit["panics"] == 1 else f"{edit['panics'] or 0:,} times"
    panics = f", panicked {times}" if edit["panics"] else ""
    what = describe_record(edit) if edit["verdict"] else "in hand"
    return f"{edit['edit']:>4}  {when}  {files}  {what}{describe_proof(edit)}{size}{panics}{undone}"


@cli.command()
@_daemon_command
@click.argument("edit", type=click.IntRange(min=1))
def show(edit: int, manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Show EDIT: its diff, its patch's symbols, and the machine code of its functions before and after."""
    result = _call(manifest_path, target_dir, "show", edit=edit)
    if as_json:
        _print_json(result)
        return
    click.echo(_edit_line(result))
    for refusal in result["refusals"] or ():
        click.echo(f"      {refusal['symbol'] or 'refused'}: {refusal['detail']} [{refusal['reason']}]")
    for note in result["notes"] or ():
        click.echo(f"      {note['symbol']}: {note['detail']} [{note['note']}]")
    if result["diff"]:
        click.echo(f"\n{result['diff']}", nl=False)
    for diagnostic in result["diagnostics"]:
        click.echo(f"\n{click.unstyle(diagnostic)}".rstrip())
    for patch in result["patches"]:
        click.echo(f"\n{patch['file']}")
        for symbol in patch["symbols"]:
            role = "  replaces the program's" if symbol["replaces"] else ""
            click.echo(f"  {symbol['addr']:#x} {symbol['size']:>6} {symbol['kind']:<8} {symbol['name']}{role}")
    for code in result["code"]:
        for title in ("before", "after"):
            click.echo(f"\n{code['name']}, {title}:")
            click.echo("\n".join(f"  {line}" for line in code[title]))
    for what in result["missing"]:
        click.echo(f"\nnot shown: {what}")


@cli.command()
@_daemon_command
def clients(manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """List the connected programs."""
    rows = _call(manifest_path, target_dir, "clients")
    if as_json:
        _print_json(rows)
        return
    _print_table(("client", "pid", "target", "patches", "exe"), rows)


@cli.command()
@_daemon_command
def captures(manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """List the captured compiler invocations, and those that cannot be used."""
    listing = CaptureStore(_state_dir(manifest_path, target_dir) / "captures").load_all()
    rows: list[dict[str, object]] = [
        {
            "crate": capture.crate_name,
            "kind": capture.key.kind,
            "target": capture.key.target,
            "metadata": capture.key.metadata,
            "usable": True,
            "reason": None,
            "file": capture.key.file_name,
        }
        for capture in listing.captures
    ]
    rows += [
        {
            **dict.fromkeys(("crate", "kind", "target", "metadata")),
            "usable": False,
            "reason": problem.reason,
            "file": problem.path.name,
        }
        for problem in listing.problems
    ]
    if as_json:
        _print_json(rows)
        return
    _print_table(("crate", "kind", "target", "metadata", "reason"), rows)


@cli.command()
@_daemon_command
def events(manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Follow the daemon's events, one JSON object a line, with or without --json."""
    state_dir = _state_dir(manifest_path, target_dir)

    async def follow() -> int:
        async for event in control.subscribe(state_dir):
            _print_json(event)
        return 0

    sys.exit(asyncio.run(_until_signal(follow(), lambda: None)))


@cli.command()
@_daemon_command
@click.argument("count", type=click.IntRange(min=1), default=1)
def undo(count: int, manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Take back the last COUNT edits: the code before them runs again, until the next edit."""
    result = _call(manifest_path, target_dir, "undo", count=count)
    if as_json:
        _print_json(result)
    else:
        numbers = ", ".join(map(str, sorted(result["edits"])))
        click.echo(f"took back edit {numbers} in {len(result['clients'])} program(s)")
        click.echo("the source still has it: unless that is changed, the next edit brings it again")


@cli.command()
@_daemon_command
@click.option("--without-last-edit", is_flag=True, help="Start it as it was before the last edit, without a build.")
def restart(without_last_edit: bool, manifest_path: str | None, target_dir: str | None, as_json: bool) -> None:
    """Build the program while it goes on, and then start it anew: same arguments, terminal and environment."""
    result = _call(manifest_path, target_dir, "restart", without_last=without_last_edit)
    if as_json:
        _print_json(result)
    elif not result["started"]:
        click.echo("built; its edits are told from now on to programs that are started from now on")
    elif not without_last_edit:
        click.echo("restarted")
    else:
        click.echo(f"started again without the edits after edit {result['edit']}")


@cli.command()
@_selection_options
@_json_option
@click.option("--recipe", type=click.Choice(["cgu", "single-object"]), default="cgu", help="How objects are made.")
@click.option("--kind", type=click.Choice(get_args(PatchKind)), default="image", help="What is linked of them.")
@click.argument("crate")
def explain(crate: str, recipe: Recipe, kind: PatchKind, as_json: bool, **given: Any) -> None:
    """Show how CRATE was compiled, how it is compiled again, and how a patch is linked."""
    workspace = _workspace(_selection(given))
    result = explain_crate(workspace, workspace.state_dir, crate, recipe, kind)
    if as_json:
        _print_json(result)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{result['crate']}[/] in {result['cwd']}")
    for title, key in (
        ("captured", "argv"),
        ("edited", "edited_argv"),
        ("linked by", "link_argv"),
        ("plan", "link_plan"),
    ):
        if result[key]:
            console.print(f"\n[bold cyan]{title}[/]")
            console.print(" ".join(result[key]), markup=False)
    for title, key in (
        ("edits of the command", "edits"),
        ("dropped from the link", "link_dropped"),
        ("added to the link", "link_added"),
    ):
        if result[key]:
            console.print(f"\n[bold cyan]{title}[/]")
            for row in result[key]:
                console.print("  " + "  ".join(str(value) for value in row.values()), markup=False)


@cli.command()
@_selection_options
@_json_option
def doctor(as_json: bool, **given: Any) -> None:
    """Tell what on this machine and in this workspace will or will not work, and how to fix it.

    With --target, tell it for programs of that target.
    """
    checks = asyncio.run(examine(_selection(given), Path.cwd(), os.environ))
    if as_json:
        _print_json(checks)
    else:
        console = Console(highlight=False, soft_wrap=True)
        marks = {"ok": "[green]✔[/]", "warning": "[yellow]![/]", "error": "[red]✘[/]"}
        for check in checks:
            console.print(f"{marks[check['state']]} {check['name']}: ", end="")
            console.print(check["detail"], markup=False)
            if check["fix"]:
                console.print(f"    help: {check['fix']}", markup=False)
    sys.exit(any(check["state"] == "error" for check in checks))


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    Console(highlight=False, soft_wrap=True).print(table)


def main() -> None:
    """Entry point: errors end as one message on standard error, exit status 1 (2 for a wrong command line)."""
    try:
        cli()
    except HotpatchdError as error:
        if isinstance(error, BuildError) and error.output:
            click.echo(error.output, err=True)
        click.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
