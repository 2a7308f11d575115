"""Toolchains of foreign targets for the tests beside this file; `make test-targets` installs them."""

from collections.abc import Callable

import pytest

from tests.targets.toolchains import Name, Toolchain, toolchains


@pytest.fixture(scope="session")
def toolchain() -> Callable[[Name], Toolchain]:
    """A toolchain by its name: the target's triple, or `x86_64-unknown-linux-musl dynamic`."""
    return toolchains().__getitem__
