"""Is the board too hot, or too badly powered, to compute with everything? Reads small files of the kernel.

A board that is throttled runs all its cores slower, or one after the other for moments at a time, for which all threads
wait; one core fewer keeps the clock of the others up.
"""

from __future__ import annotations

from pathlib import Path

from edged.host.kernel_files import number, text
from edged.host.power import FIRMWARE, Supply, firmware_flags

THERMAL = Path("/sys/class/thermal")
# Of the flags of the Raspberry Pi's firmware: frequency capped, throttled, soft temperature limit. It throttles below
# the kernel, whose trip points it does not know. Under-voltage is `power`'s.
SLOWED_DOWN = 0b1110
# Degrees below the trip point at which the board counts as hot, and from which on it is cool again.
NEAR, COOL = 3.0, 8.0
# Trip points that are not set read 0 or absolute zero, in thousandths of a degree.
LEAST_TRIP = 30_000


class Thermometer:
    """The board's temperature zones, and what the firmware says.

    Args:
        thermal: the folder of the zones.
        firmware: the file of the Raspberry Pi's flags. What does not exist is never hot.
    """

    def __init__(self, thermal: Path = THERMAL, firmware: Path = FIRMWARE) -> None:
        trips = {zone / "temp": _trip(zone) for zone in sorted(thermal.glob("thermal_zone*"))}
        self._zones = {path: trip for path, trip in trips.items() if trip is not None}
        self._firmware = firmware if firmware_flags(firmware) is not None else None
        self._hot = False

    @property
    def exists(self) -> bool:
        """Is there anything to read?"""
        return bool(self._zones) or self._firmware is not None

    def is_hot(self) -> bool:
        """Throttled, or about to be; until it has become clearly cooler."""
        below = COOL if self._hot else NEAR
        self._hot = self._is_slowed_down() or any(
            temperature > trip - 1000 * below
            for path, trip in self._zones.items()
            if (temperature := number(path)) is not None
        )
        return self._hot

    def _is_slowed_down(self) -> bool:
        flags = firmware_flags(self._firmware) if self._firmware else None
        return bool(flags and flags & SLOWED_DOWN)


class Strain:
    """Heat and power together: what makes it wise to compute with less."""

    def __init__(self, thermometer: Thermometer | None = None, supply: Supply | None = None) -> None:
        self._thermometer = thermometer or Thermometer()
        self._supply = supply or Supply()

    @property
    def exists(self) -> bool:
        """Is there anything to read?"""
        return self._thermometer.exists or self._supply.exists

    def look(self) -> str | None:
        """What is wrong, for people; None: nothing."""
        if self._thermometer.is_hot():
            return "the board is throttled by its temperature, or about to be"
        return self._supply.trouble()


def temperatures(thermal: Path | None = None) -> list[float]:
    """Degrees of all zones that have a sensor. thermal: instead of THERMAL."""
    zones = sorted((thermal or THERMAL).glob("thermal_zone*/temp"))
    return [degrees / 1000 for zone in zones if (degrees := number(zone)) is not None]


def _trip(zone: Path) -> int | None:
    """At what temperature the kernel slows the board down, in thousandths of a degree.

    Of several passive trip points the last is meant: those below only say from when on it is watched. `hot` counts
    where there is no passive one.
    """
    passive, hot = [], []
    for kind in zone.glob("trip_point_*_type"):
        temperature = number(zone / kind.name.replace("_type", "_temp"))
        if temperature is None or temperature < LEAST_TRIP:
            continue
        match text(kind):
            case "passive":
                passive.append(temperature)
            case "hot":
                hot.append(temperature)
    return max(passive) if passive else min(hot, default=None)
