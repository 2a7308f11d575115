"""Whether an edit of a manifest, of the lock file or of cargo's configuration makes a difference to the program.

Two texts are compared as data, so that comments, order and format never count. What differs counts too, unless a row of
a table says that nothing in the build reads it. Where in doubt, it counts: a needless full build costs seconds, a
program that runs without an edit that was made costs trust.

Decisions that are not obvious:

- `[dev-dependencies]` count. Examples are linked with them, and with resolver 1 their features are united with those
  of the program's own dependencies.
- `[lib]`, `[[bin]]` and `[[example]]` count, also of targets that were not selected: they decide which one is built.
- `[features]` counts, also of features that are off: whether one is on depends on other packages.
- `package.rust-version`, `edition`, `version`, `links`, `build`, `default-run` count: cargo or rustc acts on them.
- `[lints]` counts, except for other tools than rustc: a lint can be made an error.
- `[package.metadata]` does not: it is for other tools. A macro or build script that reads it opens the manifest, which
  the tracer sees, and the manifest is then an input of it whatever its class.

Source: the cargo book, "The manifest format", "Profiles", "Configuration", "Environment variables".
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["manifest", "lock file", "cargo configuration"]
_Path = tuple[str, ...]

_FOR_REGISTRY = "only `cargo publish` and registries read it"
_IN_VARIABLE = "only programs that ask for the variable read it, and none here does"
_NOT_LINKED = "it is no part of the program"
_OTHER_TOOLS = "only other tools read it"
_HOW_CARGO_TALKS = "it changes how cargo talks, not what it builds"
_HOW_CARGO_FETCHES = "it changes how cargo reaches the network, not what it builds"

# Keys of `[package]` → the variable in which cargo passes the value to crates and build scripts.
_VARIABLES = {
    "authors": "CARGO_PKG_AUTHORS",
    "description": "CARGO_PKG_DESCRIPTION",
    "homepage": "CARGO_PKG_HOMEPAGE",
    "license": "CARGO_PKG_LICENSE",
    "license-file": "CARGO_PKG_LICENSE_FILE",
    "readme": "CARGO_PKG_README",
    "repository": "CARGO_PKG_REPOSITORY",
}

# Key, with all that is below it → why it makes no difference.
_MANIFEST: Mapping[_Path, str] = {
    **{
        (*table, key): _FOR_REGISTRY
        for table in (("package",), ("workspace", "package"))
        for key in ("categories", "documentation", "keywords", "publish")
    },
    # They also select the files whose change makes cargo run a build script that names none; what it opens is traced.
    **{
        (*table, key): _FOR_REGISTRY
        for table in (("package",), ("workspace", "package"))
        for key in ("exclude", "include")
    },
    ("package", "autobenches"): _NOT_LINKED,
    ("package", "autotests"): _NOT_LINKED,
    ("bench",): _NOT_LINKED,
    ("test",): _NOT_LINKED,
    ("badges",): _FOR_REGISTRY,
    ("package", "metadata"): _OTHER_TOOLS,
    ("workspace", "metadata"): _OTHER_TOOLS,
    **{
        (*table, tool): _OTHER_TOOLS for table in (("lints",), ("workspace", "lints")) for tool in ("clippy", "rustdoc")
    },
}

_CONFIGURATION: Mapping[_Path, str] = {
    ("alias",): _HOW_CARGO_TALKS,
    ("cargo-new",): "it is for new packages",
    ("future-incompat-report",): _HOW_CARGO_TALKS,
    ("http",): _HOW_CARGO_FETCHES,
    ("net",): _HOW_CARGO_FETCHES,
    ("term",): _HOW_CARGO_TALKS,
}

# The profiles that others are made of, besides a custom one's `inherits`.
_PARENTS = {"test": "dev", "bench": "release"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key that has another value.

    Args:
        key: dotted, as in the file.
        harmless: why it makes no difference; empty if it does.
    """

    key: str
    harmless: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What the program makes of manifests.

    Args:
        profile: cargo profile that it is built with.
        variables: `CARGO_PKG_*` variables that anything in the build asks for.
        packages: names of the packages that the developer can edit and that are part of the build.
    """

    profile: str
    variables: frozenset[str]
    packages: frozenset[str]


def differences(kind: Kind, before: str, after: str, use: Use) -> tuple[Difference, ...] | None:
    """Compare two texts of a file; nothing differs where only the writing does.

    Args:
        kind: what the file is.
        before: its text when the program was built.
        after: its text now.
        use: what the program makes of it.

    Returns:
        What differs, in order; None where a text is no TOML.
    """
    try:
        old, new = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return None
    if kind == "lock file":
        keys = _changed_packages(old, new, use.packages)
        return tuple(Difference(key=key, harmless="") for key in keys)
    if kind == "cargo configuration":
        return tuple(_judged(path, _CONFIGURATION) for path in _changed_keys(old, new))
    chain = profile_chain(use.profile, old, new)
    return tuple(_judged_in_manifest(path, use, chain) for path in _changed_keys(old, new))


def why_harmless(kind: Kind, before: str, after: str, use: Use) -> str | None:
    """Why an edit makes no difference, in words; None where it does. Arguments as for `differences`."""
    found = differences(kind, before, after, use)
    if found is None or not all(difference.harmless for difference in found):
        return None
    if not found:
        return "nothing that the program is built from changed in it"
    return "; ".join(f"`{difference.key}`: {difference.harmless}" for difference in found)


def _changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], path: _Path = ()) -> Iterator[_Path]:
    """Where two tables differ, tables within them taken apart."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict | None) and isinstance(after, dict | None) and (before or after):
            yield from _changed_keys(before or {}, after or {}, (*path, key))
        elif before != after or (key in old) != (key in new):
            yield (*path, key)


def _judged(path: _Path, table: Mapping[_Path, str]) -> Difference:
    reasons = (table[path[:length]] for length in range(1, len(path) + 1) if path[:length] in table)
    return Difference(key=".".join(path), harmless=next(reasons, ""))


def _judged_in_manifest(path: _Path, use: Use, profiles: Collection[str]) -> Difference:
    key = ".".join(path)
    match path:
        case ("package", name, *_) | ("workspace", "package", name, *_) if name in _VARIABLES:
            asked = _VARIABLES[name] in use.variables
            return Difference(key=key, harmless="" if asked else _IN_VARIABLE)
        case ("profile", name, *_):
            return Difference(key=key, harmless="" if name in profiles else f"the profile is {use.profile}")
        case _:
            return _judged(path, _MANIFEST)


def profile_chain(profile: str, *manifests: Mapping[str, Any]) -> tuple[str, ...]:
    """A profile, and those that it takes its settings from, according to any of the manifests, the nearest first."""
    chain, waiting = [], [profile]
    while waiting:
        name = waiting.pop(0)
        if name in chain:
            continue
        chain.append(name)
        waiting += [_PARENTS[name]] if name in _PARENTS else []
        for manifest in manifests:
            settings = manifest.get("profile", {})
            own = settings.get(name, {}) if isinstance(settings, dict) else {}
            parent = own.get("inherits") if isinstance(own, dict) else None
            waiting += [parent] if isinstance(parent, str) else []
    return tuple(chain)


def _changed_packages(old: Mapping[str, Any], new: Mapping[str, Any], roots: frozenset[str]) -> list[str]:
    """The locked packages that some of `roots` need, directly or through others, and that are not locked as before."""
    before, after = _needed(old, roots), _needed(new, roots)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return sorted({f"{name} {version}" for name, version, _ in changed})


_Package = tuple[str, str, str]


def _needed(lock: Mapping[str, Any], roots: frozenset[str]) -> dict[_Package, object]:
    """Package → its checksum and dependencies, of all that `roots` need."""
    packages = {_identity(entry): entry for entry in lock.get("package", ())}
    needed: dict[_Package, object] = {}
    # A root has no source: a package of the same name from a registry is another one.
    waiting = [key for key in packages if key[0] in roots and not key[2]]
    while waiting:
        key = waiting.pop()
        if key in needed:
            continue
        entry = packages[key]
        dependencies = {found for text in entry.get("dependencies", ()) for found in _resolve(text, packages)}
        needed[key] = (entry.get("checksum"), frozenset(dependencies))
        waiting += dependencies
    return needed


def _identity(entry: Mapping[str, Any]) -> _Package:
    return (entry.get("name", ""), entry.get("version", ""), entry.get("source", ""))


def _resolve(text: str, packages: Collection[_Package]) -> Iterator[_Package]:
    """The packages that a dependency can mean: `name`, `name version` or `name version (source)`, as far as needed.

    Source: cargo's `resolver/encode.rs`.
    """
    name, _, rest = text.partition(" ")
    version, _, source = rest.partition(" ")
    for package in packages:
        if (
            package[0] == name
            and version in ("", package[1])
            and (not source or package[2].startswith(source.strip("()")))
        ):
            yield package
