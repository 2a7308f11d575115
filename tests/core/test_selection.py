"""Cargo's target selection, in cargo's own words."""

import pytest

from hotpatchd.core.selection import CargoSelection


@pytest.mark.parametrize(
    ("selection", "build", "metadata"),
    [
        (CargoSelection(), (), ()),
        (CargoSelection(lib=True, package="plug"), ("--lib", "--package", "plug"), ()),
        (CargoSelection(bin=("app", "b"), release=True), ("--release", "--bin", "app", "--bin", "b"), ()),
        (CargoSelection(example=("tour",), profile="dev"), ("--example", "tour", "--profile", "dev"), ()),
        (
            CargoSelection(features=("a", "b"), no_default_features=True),
            ("--features", "a,b", "--no-default-features"),
            ("--features", "a,b", "--no-default-features"),
        ),
        (
            CargoSelection(manifest_path="x/Cargo.toml", target="t", target_dir="d", all_features=True),
            ("--manifest-path", "x/Cargo.toml", "--all-features", "--target", "t", "--target-dir", "d"),
            ("--manifest-path", "x/Cargo.toml", "--all-features", "--filter-platform", "t"),
        ),
    ],
)
def test_arguments(selection: CargoSelection, build: tuple[str, ...], metadata: tuple[str, ...]) -> None:
    """Building gets the whole selection; resolving gets what decides which packages and features there are."""
    assert selection.cargo_args() == build
    assert selection.metadata_args() == metadata
