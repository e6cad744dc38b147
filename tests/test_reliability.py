"""docs/reliability.md counts exactly the inputs that the tests try."""

from __future__ import annotations

import re

from tests.reliability.page import PAGE, page, sections, table
from tests.reliability.test_bad_inputs import ROWS


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.reliability rewrites it"


def test_the_total_of_the_page_is_the_number_of_inputs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    counts = [int(count) for count in re.findall(r"^\| .+? \| (\d+) \|", text, re.MULTILINE)]
    (total,) = re.findall(r"^\| \*\*all\*\* \| \*\*(\d+)\*\* \|", text, re.MULTILINE)
    assert sum(counts) == int(total)
    assert int(total) > len(ROWS) > 250  # the rows of test_bad_inputs, and the lists of other tests


def test_the_table_has_a_row_for_every_input() -> None:
    kinds, text = list(sections()), table()
    assert re.findall("^## (.+)", text, re.MULTILINE) == [kind.title for kind in kinds]
    assert text.count("| … ") == sum(len(kind.rows) for kind in kinds)


def test_no_kind_is_empty_and_no_input_is_counted_twice() -> None:
    for kind in sections():
        assert kind.rows, kind.title
        assert len(dict.fromkeys(kind.rows)) == len(kind.rows), kind.title
