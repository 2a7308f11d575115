"""What holds for all tests."""

import signal
from pathlib import Path

import pytest

TARGETS = Path(__file__).parent / "targets"


def pytest_configure() -> None:
    """Let Ctrl-C mean what it means on a terminal, for the processes that tests start, too.

    A shell starts background jobs with SIGINT ignored, and programs hand that on to those that they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of foreign targets unless they are asked for: their toolchains are not on every machine."""
    asked_for = any(Path(argument).absolute().is_relative_to(TARGETS) for argument in config.args)
    return True if collection_path == TARGETS and not asked_for else None
