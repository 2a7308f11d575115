"""What the machine runs on."""

from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


def is_on_battery(supplies: Path = _SUPPLIES) -> bool:
    """Whether a battery is being emptied.

    Source: the kernel's `Documentation/ABI/testing/sysfs-class-power`.
    """
    for status in supplies.glob("*/status"):
        try:
            if status.read_text().strip() == "Discharging":
                return True
        except OSError:
            continue
    return False
