"""The board: its clock, its processor, its temperature, its power supply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import edged
from edged.cli.common import when
from edged.daemon.checks.finding import Finding, ok, warn
from edged.host import clock as clocks
from edged.host import cpus, thermal
from edged.host.power import firmware_flags

BITS = {  # of a Raspberry Pi's firmware, as `vcgencmd get_throttled` has them
    0x1: "the voltage is too low",
    0x2: "the clock is held down",
    0x4: "it is throttled",
    0x8: "it is near its temperature limit",
}
SINCE_BOOT = 16  # the same bits, shifted: it happened since the boot
HOT_C = 80.0  # boards of this class throttle from 80 to 85 degrees on
OWN_GOVERNOR = {"intel_pstate", "amd-pstate-epp", "amd_pstate_epp"}  # their "powersave" does follow the load
FARTHEST_S = 20 * 365 * 86400.0  # a clock so far beyond our own files is wrong, and certificates fail with it


def look() -> Iterator[Finding]:
    """All the board tells."""
    yield clock(time.time(), Path(edged.__file__).stat().st_mtime, clocks.synchronised())
    yield processor()
    yield from temperature()
    yield from power()


def clock(now: float, installed: float, synchronised: bool | None) -> Finding:
    """Whether the clock can be right. installed: when our own files were written, which was before now."""
    do = "set it: sudo timedatectl set-ntp true, or a real-time clock; certificates and daily budgets go by it"
    if not installed - 86400 <= now <= installed + FARTHEST_S:
        return warn("clock", f"it says {when(now)}, and edged was installed at {when(installed)}", do)
    if synchronised is False:
        return warn("clock", f"it says {when(now)}, but nothing keeps it right", do)
    return ok("clock", f"it says {when(now)}{' and is synchronised' if synchronised else ''}")


def processor() -> Finding:
    """Whether the processor may run as fast as it can."""
    governor, driver = cpus.governor()
    if not governor:
        return ok("processor", "the kernel does not change its clock")
    if governor == "powersave" and driver not in OWN_GOVERNOR:
        do = "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        return warn("processor", f"its clock is held at the lowest (governor {governor}): answers take longer", do)
    return ok("processor", f"governor {governor}{f', driver {driver}' if driver else ''}")


def temperature() -> Iterator[Finding]:
    """The hottest sensor, where there is one."""
    degrees = thermal.temperatures()
    if not degrees:
        return
    if (hottest := max(degrees)) >= HOT_C:
        yield warn("temperature", f"{hottest:.0f} degrees: the board slows down", "give it a heat sink or a fan")
    else:
        yield ok("temperature", f"{hottest:.0f} degrees")


def power() -> Iterator[Finding]:
    """What a Raspberry Pi's firmware says of voltage and throttling."""
    bits = firmware_flags()
    if bits is None:  # another board, or firmware that says something else
        return
    now = [word for bit, word in BITS.items() if bits & bit]
    before = [word for bit, word in BITS.items() if bits >> SINCE_BOOT & bit]
    do = "use the board's own power supply and a short cable; cool it"
    if now:
        yield warn("power", f"now: {', '.join(now)}", do)
    elif before:
        yield warn("power", f"since the boot, but not now: {', '.join(before)}", do)
    else:
        yield ok("power", "the firmware has held nothing down since the boot")
