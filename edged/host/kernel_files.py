"""Small files of the kernel: a number, or a word."""

from __future__ import annotations

from pathlib import Path

# Flags of the Raspberry Pi's firmware, as hexadecimal text: bit 0 under-voltage, 1 frequency capped, 2 throttled, 3
# soft temperature limit, each now; the same from bit 16 on, since the boot.
RASPBERRY = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


def number(path: Path, base: int = 10) -> int | None:
    """None where it cannot be read or is none."""
    try:
        return int(text(path), base)
    except ValueError:
        return None


def text(path: Path) -> str:
    """Empty where it cannot be read: sensors come and go with their drivers, and some have no value when asleep."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
