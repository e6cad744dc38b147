"""Names as they can be shown, and text files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from alexnet_exp.tracking.records import replacing


def printable(text: object) -> str:
    """Return a text without what would move the cursor or break a line: file names may hold anything."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file that takes its place when all is written; bytes of a name that are no text are escaped."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
