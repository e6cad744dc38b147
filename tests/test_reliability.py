"""The page of bad inputs says what the tests hold, and nothing else."""

from __future__ import annotations

from tests.reliability.page import PAGE, page


def test_the_page_of_bad_inputs_is_made_from_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.reliability writes it again"
