"""What the error for a refused input must look like."""

from __future__ import annotations


def check_sentence(error: Exception, start: str = "") -> None:
    """Check that the message of an error is one line that begins with `start`."""
    said = str(error)
    assert said and "\n" not in said, said
    assert said.startswith(start), said
