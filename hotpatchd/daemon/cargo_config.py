"""What the developer has configured for cargo: files, and the settings that hotpatchd has to know.

Source: the cargo book, "Configuration": environment variables first, then the files from the directory that cargo
runs in upwards, then the one in cargo's home. A program with a slash is relative to the directory of the
configuration (that of the file's `.cargo`), one without is searched on PATH.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from hotpatchd.core.manifest import profile_chain


def rustc_of(environ: Mapping[str, str]) -> str:
    """The compiler that cargo runs."""
    return environ.get("RUSTC") or "rustc"


def config_files(cwd: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Cargo's configuration files that are there, the strongest first."""
    home = Path(environ.get("CARGO_HOME") or Path(environ.get("HOME", "/")) / ".cargo")
    for directory in [*(parent / ".cargo" for parent in (cwd, *cwd.parents)), home]:
        for name in ("config", "config.toml"):
            if (directory / name).is_file():
                yield directory / name


def user_wrapper(
    kind: Literal["rustc-wrapper", "rustc-workspace-wrapper"], *, cwd: Path, environ: Mapping[str, str]
) -> str | None:
    """The wrapper that the developer's own environment or cargo configuration sets; a path or a bare name.

    An empty value switches it off.
    """
    variable = kind.replace("-", "_").upper()
    for name in (variable, f"CARGO_BUILD_{variable}"):
        if name in environ:
            return _resolve_program(environ[name], cwd)
    for value, base in _settings(("build", kind), cwd, environ):
        if isinstance(value, str):
            return _resolve_program(value, base)
    return None


def user_runner(triple: str, *, cwd: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The command that runs programs of a target, such as an emulator, with its arguments; empty where there is none.

    Those that are set for a `cfg()` expression are not looked for.
    """
    text = environ.get(target_variable(triple, "runner"))
    settings = [(text, cwd)] if text is not None else _settings(("target", triple, "runner"), cwd, environ)
    for value, base in settings:
        words = value.split() if isinstance(value, str) else value
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return (_resolve_program(words[0], base) or "", *words[1:])
    return ()


def user_linker(triple: str, *, cwd: Path, environ: Mapping[str, str]) -> str | None:
    """The linker that is set for a target; None where rustc chooses."""
    if text := environ.get(target_variable(triple, "linker")):
        return _resolve_program(text, cwd)
    for value, base in _settings(("target", triple, "linker"), cwd, environ):
        if isinstance(value, str):
            return _resolve_program(value, base)
    return None


def user_rustflags(triple: str, *, cwd: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What rustc is told for every crate of a target; of several sources the first that says anything.

    Those that are set for a `cfg()` expression are not looked for.
    """
    for variable, separator in (("CARGO_ENCODED_RUSTFLAGS", "\x1f"), ("RUSTFLAGS", None)):
        if variable in environ:
            return tuple(filter(None, environ[variable].split(separator)))
    for variable, path in (
        (target_variable(triple, "rustflags"), ("target", triple, "rustflags")),
        ("CARGO_BUILD_RUSTFLAGS", ("build", "rustflags")),
    ):
        if variable in environ:
            return tuple(environ[variable].split())
        for value, _ in _settings(path, cwd, environ):
            words = value.split() if isinstance(value, str) else value
            if isinstance(words, list) and all(isinstance(word, str) for word in words):
                return tuple(words)
    return ()


def user_jobs(processors: int, *, cwd: Path, environ: Mapping[str, str]) -> int | None:
    """How many jobs the developer lets cargo run; None where nothing is set.

    Source: the cargo book, `build.jobs`: a negative number counts from the number of processors down.
    """
    for value in (environ.get("CARGO_BUILD_JOBS"), *(value for value, _ in _settings(("build", "jobs"), cwd, environ))):
        if value == "default":
            return None
        try:
            jobs = int(value)
        except (TypeError, ValueError):
            continue
        return max(1, jobs if jobs > 0 else processors + jobs)
    return None


def manifest_lto(profile: str, *, manifest: Path, cwd: Path, environ: Mapping[str, str]) -> str | None:
    """The link-time optimisation across crates that files ask for, as written there: `true`, `"fat"` or `"thin"`.

    Args:
        profile: that is built with.
        manifest: of the workspace.
        cwd: where cargo runs.
        environ: cargo's environment.

    Returns:
        None where there is none, and where a variable says what is wanted.
    """
    if profile_variable(profile, "lto") in environ:
        return None
    kept = _load(manifest)
    for name in profile_chain(profile, kept):
        path = ("profile", name, "lto")
        found = [*(value for value, _ in _settings(path, cwd, environ)), _value(kept, path)]
        chosen = next((value for value in found if value is not None), None)
        if chosen is not None:
            return json.dumps(chosen) if chosen in (True, "fat", "thin") else None
    return None


def profile_variable(profile: str, key: str) -> str:
    """The environment variable for a setting of a profile, such as its `lto`."""
    return f"CARGO_PROFILE_{profile.replace('-', '_')}_{key.replace('-', '_')}".upper()


def target_variable(triple: str, key: str) -> str:
    """The environment variable for a setting of a target, such as its `linker`."""
    return f"CARGO_TARGET_{triple.replace('-', '_').replace('.', '_')}_{key}".upper()


def _settings(path: tuple[str, ...], cwd: Path, environ: Mapping[str, str]) -> Iterator[tuple[Any, Path]]:
    """The values of a setting, the strongest first, and what relative paths in them are relative to."""
    for file in config_files(cwd, environ):
        value = _value(_load(file), path)
        if value is not None:
            yield value, file.parents[1]


def _load(file: Path) -> dict[str, Any]:
    """What a file says; nothing where it cannot be read, which cargo reports."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _value(table: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _resolve_program(program: str, base: Path) -> str | None:
    return (str(base / program) if "/" in program else program) or None
