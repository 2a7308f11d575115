"""Logging: structlog, for people on a terminal and as JSON lines elsewhere.

An event's name is a constant of this module, `noun.verb_past`; everything else is a key. Tokens and
environment values are never logged.
"""

import logging
from typing import TextIO

import structlog

BUILD_ABANDONED = "build.abandoned"
BUILD_NOTED = "build.noted"
BUILD_WAITED = "build.waited"
CACHE_RESTORE_FAILED = "cache.restore_failed"
CACHE_STORE_FAILED = "cache.store_failed"
CACHE_UNUSABLE = "cache.unusable"
CLIENT_CONNECTED = "client.connected"
CLIENT_LOST = "client.lost"
CLIENT_REJECTED = "client.rejected"
CONNECTION_FAILED = "connection.failed"
CONTROL_FAILED = "control.failed"
CAPTURE_IGNORED = "capture.ignored"
EDIT_JUDGED = "edit.judged"
EVENTS_DROPPED = "events.dropped"
PATCH_FAILED = "patch.failed"
REBUILD_FAILED = "rebuild.failed"
SIDE_TASK_FAILED = "side_task.failed"


def configure(stream: TextIO, *, verbose: bool = False) -> None:
    """Send log lines to `stream`: readable ones if it is a terminal, JSON otherwise.

    Args:
        stream: where to.
        verbose: show debug lines too.
    """
    terminal = stream.isatty()
    # On a terminal every edit has a line of its own (`hotpatchd.daemon.report`).
    level = logging.WARNING if terminal else logging.INFO
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            *(
                [structlog.dev.ConsoleRenderer()]
                if terminal
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
