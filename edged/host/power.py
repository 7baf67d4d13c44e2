"""Is the board badly powered? Reads small files of the kernel.

A supply that gives too little voltage slows a board down at best; at worst it goes off, or writes rubbish to its card.
What computes less draws less.
"""

from __future__ import annotations

from pathlib import Path

from edged.host.kernel_files import number, text

# Flags of the Raspberry Pi's firmware, as hexadecimal text: bit 0 under-voltage, 1 frequency capped, 2 throttled, 3
# soft temperature limit, each now; the same from bit 16 on, since the boot.
FIRMWARE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
HWMON = Path("/sys/class/hwmon")
SUPPLIES = Path("/sys/class/power_supply")
# Of the firmware's flags: the voltage is too low now; it was, since the boot. The second is how a dip between two looks
# is seen: it was not set before.
UNDERVOLTAGE, UNDERVOLTAGE_SEEN = 1 << 0, 1 << 16
# What the kernel calls a supply that something is wrong with (its documentation, sysfs-class-power).
BAD_HEALTH = {"Overheat", "Hot", "Dead", "Over voltage", "Under voltage", "Unspecified failure", "Over current"}


def firmware_flags(path: Path | None = None) -> int | None:
    """What the firmware says; None where it is another board's. path: instead of FIRMWARE."""
    return number(path or FIRMWARE, 16)


class Supply:
    """The supply as the firmware, the sensors and the kernel see it.

    Args:
        firmware: the file of the Raspberry Pi's flags.
        hwmon, supplies: the folders of sensors and of supplies. What does not exist is never bad.
    """

    def __init__(self, firmware: Path = FIRMWARE, hwmon: Path = HWMON, supplies: Path = SUPPLIES) -> None:
        flags = firmware_flags(firmware)
        self._firmware = firmware if flags is not None else None
        self._seen_before = bool(flags and flags & UNDERVOLTAGE_SEEN)
        self._alarms = [s / "in0_lcrit_alarm" for s in sorted(hwmon.glob("hwmon*")) if text(s / "name") == "rpi_volt"]
        # Batteries of mice and the like have the scope Device.
        self._supplies = [s for s in sorted(supplies.glob("*")) if text(s / "scope") != "Device"]

    @property
    def exists(self) -> bool:
        """Is there anything to read?"""
        return bool(self._firmware or self._alarms or self._supplies)

    def trouble(self) -> str | None:
        """What is wrong now, or was since the last look; None: nothing."""
        if self._is_low() or any(number(alarm) for alarm in self._alarms):
            return "the supply's voltage is too low"
        return next((wrong for supply in self._supplies if (wrong := _wrong(supply))), None)

    def _is_low(self) -> bool:
        flags = firmware_flags(self._firmware) if self._firmware else None
        if flags is None:
            return False
        before, self._seen_before = self._seen_before, bool(flags & UNDERVOLTAGE_SEEN)
        return bool(flags & UNDERVOLTAGE) or (self._seen_before and not before)


def _wrong(supply: Path) -> str | None:
    """A battery that is nearly empty is trouble while nothing charges it."""
    health = text(supply / "health")
    if health in BAD_HEALTH:
        return f"the supply {supply.name} reports {health!r}"
    if text(supply / "type") == "Battery" and text(supply / "status") == "Discharging":
        level = text(supply / "capacity_level")
        if level in ("Critical", "Low"):
            return f"the battery {supply.name} is nearly empty ({level})"
    return None
