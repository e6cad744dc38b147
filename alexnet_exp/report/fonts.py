"""Fonts for class names in any script: matplotlib draws with one, which lacks most of them."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from alexnet_exp.errors import printable

log = logging.getLogger(__name__)
# Fonts that claim characters without drawing them: placeholders, and colours, which matplotlib does not draw.
_NO_GLYPHS = ("last resort", "lastresort", "adobe blank", "color emoji", "colour emoji")
_said: set[str] = set()


def use_fonts(figure: Figure) -> None:
    """Give every text of a figure fonts that together have its characters; log once what no installed font has."""
    lacking: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().isascii():
            continue
        own = _characters(findfont(text.get_fontproperties()))
        missing = frozenset(c for c in text.get_text() if ord(c) not in own and _is_drawn(c))
        families, without = fallbacks(missing)
        text.set_fontfamily([*text.get_fontfamily(), *families])
        lacking |= without
    if lacking and not _said:
        _said.update(lacking)
        some = ", ".join(f"{printable(c)} (U+{ord(c):04X})" for c in sorted(lacking)[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        log.warning(
            "No installed font has %s%s: figures show boxes in their place. Install one that has, such as Noto Sans "
            "(Debian: apt install fonts-noto-core fonts-noto-cjk).", some, more,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def fallbacks(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    """Choose installed fonts for characters: one that has all of them if there is one.

    Returns:
        Names of font families, and the characters that no font has.
    """
    missing, families = set(characters), []
    while missing:
        found: dict[str, set[str]] = {}
        for entry in _installed():
            has = {c for c in missing if ord(c) in _characters(entry.fname, getattr(entry, "index", 0))}
            found.setdefault(entry.name, has)
            if has == missing:
                break
        best = max(found, key=lambda name: len(found[name]), default="")
        if not found.get(best):
            break
        families.append(best)
        missing -= found[best]
    return families, missing


def _installed() -> Iterator[FontEntry]:
    """Yield the fonts that can draw, plain ones first; those installed since matplotlib listed them come last."""

    def order(entry: FontEntry) -> tuple[bool, int, bool, str]:
        weight = entry.weight if isinstance(entry.weight, int) else 400
        return entry.style != "normal", abs(weight - 400), "sans" not in entry.name.lower(), entry.name

    listed = sorted(fontManager.ttflist, key=order)
    yield from filter(_draws, listed)
    before = {entry.fname for entry in listed}
    for path in sorted(set(findSystemFonts()) - before):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, NotImplementedError, ValueError):  # damaged, or not scalable
            continue
    yield from (entry for entry in fontManager.ttflist if entry.fname not in before and _draws(entry))


def _draws(entry: FontEntry) -> bool:
    return not any(word in entry.name.lower() for word in _NO_GLYPHS)


@lru_cache(maxsize=4096)
def _characters(path: str, index: int = 0) -> frozenset[int]:
    """Return the code points of a font file; none if it cannot be read."""
    try:
        # matplotlib before 3.11 reads only the first font of a file, and has no such argument.
        font = FT2Font(path, face_index=index) if index else FT2Font(path)
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _is_drawn(character: str) -> bool:
    """Return whether a character has a glyph of its own; joiners, variation selectors and spaces need none."""
    is_selector = 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF
    return not is_selector and unicodedata.category(character) not in ("Cc", "Cf", "Zs")
