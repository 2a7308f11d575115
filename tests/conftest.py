"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C mean what it means on a terminal, for the processes that tests start, too.

    A shell starts background jobs with SIGINT ignored, and programs hand that on to those that they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
