"""The one exception a user sees: its message is printed as it stands, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Say in one sentence what is wrong with the input and how to mend it (exit code 1)."""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b?' for the choices that look like `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(c) for c in choices], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
