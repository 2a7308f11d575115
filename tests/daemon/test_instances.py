"""What is remembered of programs that are gone."""

from pathlib import Path

import pytest

from hotpatchd.daemon import instances
from hotpatchd.daemon.instances import Instances
from tests.core.fakes import session


def test_programs_that_were_here_first_are_forgotten_with_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of programs that are gone only the last ones count; those that are connected are never forgotten."""
    monkeypatch.setattr(instances, "KEPT_INSTANCES", 2)
    connected = session(0)
    known = Instances(tmp_path)
    for number in range(1, 5):
        for place in ("link", "patches"):
            (tmp_path / place / f"instance{number}").mkdir(parents=True)
        known.note([connected, session(number)])
    known.note([connected])
    assert [known.get(f"instance{number}") is not None for number in range(5)] == [True, False, False, True, True]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert left == {f"{place}/instance{number}" for place in ("link", "patches") for number in (3, 4)}
