"""Crates and programs that are compiled once for all tests."""

from pathlib import Path

import pytest

from hotpatchd.objfile.objects import BuildObjects
from tests.objfile.build import thin_build
from tests.objfile.sources import PROGRAM


@pytest.fixture(scope="session")
def small_build(tmp_path_factory: pytest.TempPathFactory) -> BuildObjects:
    """A small program without optimisation."""
    return thin_build(tmp_path_factory.mktemp("small"), PROGRAM)


@pytest.fixture(scope="session")
def small_object(small_build: BuildObjects) -> Path:
    """The largest of the small program's objects."""
    return max((file.path for file in small_build.files.values()), key=lambda path: path.stat().st_size)
