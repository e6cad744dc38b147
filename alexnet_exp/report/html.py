"""Render the templates to self-contained, escaped HTML pages; and the number formats that pages share."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_exp.files import replacing
from alexnet_exp.tracking.metrics import is_share

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def write_html(path: Path, template: str, **context: Any) -> Path:
    """Render a template into a file and return its path.

    Args:
        path: File to write.
        template: Name of a file in templates/.
        context: Variables of the template; base.html takes `title` and `chips`, a list of short facts.
    """
    text = environment().get_template(template).render(context)
    with replacing(path) as temporary:
        # File names need not be valid UTF-8.
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return path


@cache
def environment() -> Environment:
    """Return the Jinja environment; undefined variables are errors."""
    # Imported late: tables in the terminal use the number formats below, without templates or images.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from alexnet_exp.report.pictures import data_uri

    loader = FileSystemLoader(TEMPLATES)
    env = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"percent": percent, "number": number, "quantity": quantity, "data_uri": data_uri}
    # The content security policy allows only this script, whatever a class or file name contains.
    script = env.get_template("base.js").render().encode("utf-8")
    env.globals["script_sha256"] = base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")
    return env


def metric_text(metric: str | None, value: float) -> str:
    """Format the value of a metric, as a percentage if it is a fraction."""
    return percent(value) if is_share(metric) else number(value)


def points(difference: float) -> str:
    """Format the difference of two fractions in percentage points: '+0.60'."""
    return f"{100 * difference:+.2f}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format 0.9722 as '97.22 %' (no-break space), undefined values as a dash."""
    if fraction is None or not math.isfinite(fraction):
        return "–"
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def quantity(value: float) -> str:
    """Format 2472266 as '2.47 M'."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e5, "k")):  # below 100,000: all digits
        if abs(value) >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):.3g}\N{NO-BREAK SPACE}{unit}"
    return number(value)


def number(value: float) -> str:
    """Format a number with few digits and thousands separators."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1e9:
        return f"{value:.4g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Format 83.2 as '1 min 23 s'."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)  # rounded first: 119.6 is not "1 min 60 s"
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{value}\N{NO-BREAK SPACE}{unit}" for value, unit in parts if value)
