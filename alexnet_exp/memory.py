"""Free main memory. Linux grants more than it has and kills processes later, so large arrays are checked first."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int:
    """Return the available main memory in bytes; 2**62 if the system does not report it (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2**62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 2**62)
