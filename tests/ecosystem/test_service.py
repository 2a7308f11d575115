"""A service with 200 packages in its lock file and five crates of its own, edited fifty times while it works."""

from pathlib import Path

from tests.e2e.harness import START_WITHIN_S, Saved, Session
from tests.e2e.program import PROGRAM_WITHIN_S, wait_for
from tests.ecosystem.conftest import Start
from tests.ecosystem.load import Load, Probe
from tests.ecosystem.service_edits import EDITS, Edit, probes, streams

LEAKED_AT_MOST_KIB = 64 << 10


def save(session: Session, edit: Edit) -> Saved:
    """Saves all of an edit's files, one right after the other."""
    texts: dict[str, str] = {}
    for file, old, new in edit.changes:
        text = texts.get(file) or (session.project.read(file) if old else "")
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
        texts[file] = text.replace(old, new)
    return [session.save(file, text) for file, text in texts.items()][-1]


def resident_kib(pid: int) -> int:
    """What a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def test_no_request_fails_while_fifty_patches_are_applied(start: Start) -> None:
    """Every answer is the old or the new code's, and the new one's once it was applied; state and connections last."""
    with start("service", "run") as session:
        pid = session.wait_event("client.connected", within_s=START_WITHIN_S)["pid"]
        session.wait_event("daemon.ready", within_s=START_WITHIN_S)
        address = session.daemon.wait_text("listening on").split()[-1]
        asked, endless = probes(), streams()
        everything: dict[str, Probe] = asked | endless
        with Load(address, asked, **endless) as load:

            def wait_seen(edit: Edit) -> None:
                def all_seen() -> bool:
                    load.check()
                    return all(everything[name].seen == len(everything[name].versions) - 1 for name in edit.shows)

                wait_for(f"answers of {edit}", all_seen, within_s=PROGRAM_WITHIN_S, diagnose=session.diagnosis)

            wait_for("answers", lambda: load.answers > 100, within_s=PROGRAM_WITHIN_S, diagnose=session.diagnosis)
            before_kib = resident_kib(pid)
            for edit in EDITS:
                for name, pattern in edit.shows.items():
                    everything[name].versions.append(pattern)
                verdict = session.wait_verdict(save(session, edit))
                assert verdict.verdict == "applied", f"{edit}\n{verdict}\n{session.diagnosis()}"
                for name in edit.shows:
                    everything[name].settled = len(everything[name].versions) - 1
                wait_seen(edit)
            assert resident_kib(pid) < before_kib + LEAKED_AT_MOST_KIB
        load.check()
