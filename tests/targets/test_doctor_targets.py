"""The doctor looks at toolchains with which programs of foreign targets are built and run."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from hotpatchd.core.selection import CargoSelection
from hotpatchd.daemon.doctor import examine
from tests.targets.toolchains import Name, Toolchain

ToolchainOf = Callable[[Name], Toolchain]


def rows_of(chain: Toolchain, directory: Path) -> dict[str, dict[str, Any]]:
    """What the doctor says of the target in a package, by row."""
    (directory / "src").mkdir()
    (directory / "src/main.rs").write_text("fn main() {}\n")
    (directory / "Cargo.toml").write_text('[package]\nname = "app"\n[workspace]\n')
    rows = asyncio.run(examine(CargoSelection(target=chain.target), directory, chain.environ))
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("name", get_args(Name))
def test_nothing_is_missing_for_a_target(name: Name, toolchain: ToolchainOf, tmp_path: Path) -> None:
    """What builds here is said to build, what runs here is said to run, and no other."""
    chain = toolchain(name)
    rows = rows_of(chain, tmp_path)
    assert not [row for row in rows.values() if row["state"] == "error"]
    assert rows["std"]["detail"] == str(chain.std)
    assert rows["linker"]["detail"] == chain.linker
    assert (rows["runner"]["state"], rows["tested"]["state"]) == (
        ("ok", "ok") if chain.runs else ("warning", "warning")
    )


def test_static_and_dynamic_musl_differ_in_the_client(toolchain: ToolchainOf, tmp_path: Path) -> None:
    """The same triple, told apart by what rustc says of its flags."""
    for name in ("static", "dynamic"):
        (tmp_path / name).mkdir()
    static = rows_of(toolchain("x86_64-unknown-linux-musl"), tmp_path / "static")
    dynamic = rows_of(toolchain("x86_64-unknown-linux-musl dynamic"), tmp_path / "dynamic")
    assert static["client"]["detail"].startswith("linked into")
    assert dynamic["client"]["detail"].startswith("preloaded")
