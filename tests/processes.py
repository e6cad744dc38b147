"""Information about other processes from /proc."""

from __future__ import annotations

import re
from pathlib import Path


def catches(pid: int, number: int) -> bool:
    """Return whether a process has set a handler for a signal; False if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)
