"""What the machine says of its batteries."""

from pathlib import Path

import pytest

from hotpatchd.daemon.power import is_on_battery


@pytest.mark.parametrize(
    ("batteries", "expected"),
    [((), False), (("Charging",), False), (("Full", "Not charging"), False), (("Full", "Discharging"), True)],
)
def test_a_battery_that_is_being_emptied_counts(tmp_path: Path, batteries: tuple[str, ...], expected: bool) -> None:
    """Supplies without a status, such as the mains, say nothing."""
    (tmp_path / "AC").mkdir()
    for number, status in enumerate(batteries):
        (tmp_path / f"BAT{number}").mkdir()
        (tmp_path / f"BAT{number}" / "status").write_text(f"{status}\n")
    assert is_on_battery(tmp_path) == expected
