"""HTML templates: values are escaped, and a missing one is an error."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from alexnet_exp.report.html import TEMPLATES, environment, write_html
from tests.report.test_report import ATTACK, QUOTES, Page

PARTS = environment().get_template("parts.html").module


def test_no_template_lets_text_through_unescaped():
    assert environment().autoescape is True
    templates = sorted(TEMPLATES.iterdir())
    assert len(templates) > 10
    for template in templates:
        assert not re.search(r"\|\s*safe|autoescape|Markup", template.read_text(encoding="utf-8")), (
            template.name
        )


def test_text_and_attributes_are_escaped_once():
    bars = PARTS.bars([("a < b & c", 0.5), (QUOTES, 0.25)])  # type: ignore[attr-defined]
    assert 'title="a &lt; b &amp; c: 50.00' in bars
    assert ">a &lt; b &amp; c" in bars
    assert "&amp;lt;" not in bars
    assert "\"' onmouseover" not in bars


def test_a_missing_value_is_an_error(tmp_path: Path):
    with pytest.raises(jinja2.UndefinedError, match="title"):
        write_html(tmp_path / "page.html", "base.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_needs_only_a_title(tmp_path: Path):
    page = Page(write_html(tmp_path / "page.html", "base.html", title=ATTACK, chips=[ATTACK]))
    assert page.words.count(ATTACK) == 3
    assert len(page.all("script")) == 1
