"""What a refusal looks like."""

from __future__ import annotations


def check_sentence(error: Exception, start: str = "") -> None:
    """Check that an error's message is one line that begins so."""
    said = str(error)
    assert said and "\n" not in said, said
    assert said.startswith(start), said
