"""Log lines are JSON where no person reads along."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from hotpatchd.daemon import logs


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_elsewhere_each_line_is_json() -> None:
    """Name, level, time and keys are one object; an exception is in it too."""
    stream = io.StringIO()
    logs.configure(stream)
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger().exception(logs.CONTROL_FAILED, client=1)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["client"]) == ("control.failed", "error", 1)
    assert "ValueError: why" in record["exception"]


def test_on_a_terminal_lines_are_for_people() -> None:
    """The name and the keys can be read."""
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().warning(logs.CLIENT_LOST, client=1)
    assert "client.lost" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_on_a_terminal_what_went_well_is_not_logged() -> None:
    """Edits have lines of their own there."""
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().info(logs.CLIENT_CONNECTED, client=1)
    assert stream.getvalue() == ""


def test_debug_lines_are_shown_only_when_asked_for() -> None:
    """The default is quiet."""
    for verbose, lines in ((False, 0), (True, 1)):
        stream = io.StringIO()
        logs.configure(stream, verbose=verbose)
        structlog.get_logger().debug("detail.seen")
        assert len(stream.getvalue().splitlines()) == lines
