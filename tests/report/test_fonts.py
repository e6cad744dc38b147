"""Class names in any script are drawn with fonts that have them; without such a font one line says so."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from alexnet_exp.report import fonts
from alexnet_exp.report.evaluation import Sample
from alexnet_exp.report.figures import mistakes, page

NAMES = {
    "chinese": "猫犬",
    "arabic": "قطة",
    "devanagari": "बिल्ली",
    "emoji": "🦊🐕",
    "mixed": "cat 猫 ❤️",
    "gothic": "𐌰𐌱",
}


def write_font(path: Path, family: str, characters: str) -> Path:
    """Write a font whose glyph for every character is a triangle."""
    pen = TTGlyphPen(None)
    for point in ((100, 0), (500, 800), (900, 0)):
        (pen.lineTo if point[0] > 100 else pen.moveTo)(point)
    pen.closePath()
    triangle = pen.glyph()
    names = [".notdef", *(f"u{ord(c):04X}" for c in sorted(set(characters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in characters})
    font.setupGlyf(dict.fromkeys(names, triangle))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Font files that are installed beside matplotlib's own, after it has listed its fonts."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    files: list[str] = []
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: files)
    fonts._said.clear()
    for cache in (fonts.fallbacks, fontManager._findfont_cached):
        cache.cache_clear()
    yield files
    for cache in (fonts.fallbacks, fontManager._findfont_cached):
        cache.cache_clear()
    fonts._said.clear()


def drawn(text: str) -> np.ndarray:
    """Draw a text as a page does, but with matplotlib's warnings as errors: (H, W, 4) uint8."""
    figure = Figure(figsize=(3, 1))
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1, 0.4, text, fontsize=20)
    fonts.use_fonts(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_drawn_with_the_font_that_has_it(
    name: str, installed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    installed.append(str(write_font(tmp_path / "a.ttf", "Every Script", "".join(NAMES.values()))))
    picture = drawn(name)
    assert (picture[..., 0] < 128).sum() > 50
    assert not caplog.records


def test_one_font_is_preferred_to_several_and_several_to_none(installed: list[str], tmp_path: Path):
    for family, characters in (("One", "猫"), ("Two", "犬𐌰"), ("Both", "猫犬")):
        installed.append(str(write_font(tmp_path / f"{family}.ttf", family, characters)))
    assert fonts.fallbacks(frozenset("猫犬")) == (["Both"], set())
    families, lacking = fonts.fallbacks(frozenset("猫犬𐌰𐌱"))
    assert (families[0] in ("Both", "Two"), lacking) == (True, {"𐌱"})


def test_a_font_without_glyphs_of_its_own_is_not_taken(installed: list[str], tmp_path: Path):
    for family in ("Noto Color Emoji", "Last Resort High-Efficiency"):
        installed.append(str(write_font(tmp_path / f"{family}.ttf", family, "猫犬")))
    assert fonts.fallbacks(frozenset("猫犬")) == ([], {"猫", "犬"})


def test_a_file_that_is_no_font_is_passed_over(installed: list[str], tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed += [str(tmp_path / "broken.ttf"), str(write_font(tmp_path / "good.ttf", "Good", "猫"))]
    assert fonts.fallbacks(frozenset("猫")) == (["Good"], set())


def test_without_a_font_there_are_boxes_and_one_line(
    installed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    samples = [Sample(image, label, 1 - label, 0.9, label, "a.png") for label in (0, 1)]
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            mistakes(samples, ["猫", "🦊犬"], tmp_path / f"{number}.png")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "No installed font has 犬 (U+72AC), 猫 (U+732B), 🦊 (U+1F98A): figures show boxes"
    )
    assert (tmp_path / "1.png").stat().st_size > 1000


def test_names_in_latin_letters_look_for_no_font(
    installed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: pytest.fail("looked for fonts"))
    with page(tmp_path / "a.png", 2, 2) as figure:
        figure.text(0.1, 0.5, "café, Straße, кот, γάτα")
