"""Build HTML from Python: every text is escaped unless it is markup already."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

VOID = {"br", "img", "meta"}


class Html(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """Return one element; children are escaped unless Html.

    Args:
        name: element name, such as "td".
        children: text or markup; None is left out.
        attributes: `class_` becomes class, `data_x` data-x; None and False are left out, True is bare.
    """
    head = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{head}>")
    return Html(f"<{head}>{join(children)}</{name}>")


def join(parts: Iterable[str | None], separator: str = "") -> Html:
    """Return the parts one after the other, each escaped unless Html."""
    return Html(separator.join(_escape(part) for part in parts if part is not None))


def _escape(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return 0.9722 as '97.22 %' (no-break space) and what is undefined as a dash."""
    if fraction is None or not math.isfinite(fraction):
        return "–"
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def quantity(value: float) -> str:
    """Return 2472266 as '2.47 M'."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):.3g}\N{NO-BREAK SPACE}{unit}"
    return number(value)


def number(value: float) -> str:
    """Return a number in few digits, thousands set apart."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1e9:
        return f"{value:.4g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return 83.2 as '1 min 23 s'."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{value}\N{NO-BREAK SPACE}{unit}" for value, unit in parts if value)
