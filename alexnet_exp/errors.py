"""The one exception a user sees: its message is printed as it stands, without a traceback."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """Say in one sentence what is wrong with the input and how to mend it (exit code 1)."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str, keep: str = "") -> str:
    r"""Return a text that a terminal shows and does not obey: "\x1b" for the character of that number.

    File and class names may hold anything: commands to the terminal, line breaks, marks that turn the order of
    reading round, bytes that are no text.

    Args:
        text: What is to be shown.
        keep: Characters that stay as they are.
    """
    return "".join(
        c if c in keep or _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # no-break space


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b?' for the choices that look like `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(c) for c in choices], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
