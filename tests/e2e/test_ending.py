"""How a session ends: everything that it started ends with it."""

from __future__ import annotations

import signal

from tests.e2e.harness import Session
from tests.e2e.program import Project


def test_ctrl_c_ends_program_and_daemon(single: Project) -> None:
    """An interrupt of the foreground group ends all, without a traceback."""
    with Session(single) as session:
        session.wait_started()
        session.daemon.signal_group(signal.SIGINT)
        session.daemon.wait_exit()
        session.wait_no_process()
        assert "Traceback" not in session.daemon.output


def test_ctrl_c_during_the_fat_build(single: Project) -> None:
    """An interrupt while cargo runs ends cargo and its compilers too."""
    with Session(single) as session:
        session.daemon.wait_text("Compiling", within_s=60)
        session.daemon.signal_group(signal.SIGINT)
        session.daemon.wait_exit()
        session.wait_no_process()
        assert "Traceback" not in session.daemon.output


def test_term_ends_program_and_daemon(single: Project) -> None:
    """SIGTERM to the daemon alone ends the program that it started."""
    with Session(single) as session:
        session.wait_started()
        session.daemon.process.send_signal(signal.SIGTERM)
        session.daemon.wait_exit()
        session.wait_no_process()


def test_address_file_is_the_owners_alone(single: Project) -> None:
    """The file with the token can be read by its owner only, and is gone when the daemon is."""
    with Session(single) as session:
        session.wait_started()
        path = single.state / "daemon.json"
        assert path.stat().st_mode & 0o077 == 0
        session.end()
        assert not path.exists()
