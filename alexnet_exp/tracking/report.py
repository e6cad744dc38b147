"""Write report.html: one self-contained page about a run, for a browser with no network and no server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.tracking import report_charts, report_classes, report_details
from alexnet_exp.tracking.evaluation import Evaluation
from alexnet_exp.tracking.markup import Html, join, tag
from alexnet_exp.tracking.pictures import MAX_FILTERS, data_uri, filter_grid, is_picture_of_filters
from alexnet_exp.tracking.records import Records, read_records, replacing
from alexnet_exp.tracking.redact import redact


def write_report(
    run_dir: Path,
    evaluation: Evaluation | None = None,
    conv1: np.ndarray | None = None,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html into a run directory and return its path.

    Args:
        run_dir: directory with any of config.yaml, overrides.yaml, result.json and metrics.csv.
        evaluation: outcome on the test (or validation) split, if there was one.
        conv1: weight of the first convolution, (out, in, kH, kW); shown where `in` is 1 or 3.
        result: what result.json will hold, for a run that writes that file last.
    """
    records = read_records(Path(run_dir))
    if result is not None:
        records.result = dict(result)
    # A page is made to be handed on.
    records.config = redact(records.config)
    records.overrides = redact(records.overrides)
    records.result = redact(records.result)
    return write_document(Path(run_dir) / "report.html", records.name, _sections(records, evaluation, conv1))


def write_document(
    path: Path, title: str, sections: Iterable[Html | None], stylesheet: str | None = None
) -> Path:
    """Write a page and return its path.

    Args:
        path: The file.
        title: See `document`.
        sections: Likewise.
        stylesheet: A file beside this one, besides that of all pages.
    """
    text = document(title, sections, _asset(stylesheet) if stylesheet else "")
    with replacing(path) as temporary:
        # File names may hold bytes that are no text; they must not cost the page.
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return path


def document(title: str, sections: Iterable[Html | None], style: str = "") -> str:
    """Return a page that needs no other file.

    Args:
        title: As the browser's tab shows it, our name added.
        sections: What stands on it, one below the other.
        style: CSS of the page's own, besides that of all pages.
    """
    script = _asset("report.js")
    # Whatever a name on the page may hold: the browser runs this one script and asks no server for anything.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · alexnet_exp"),
        tag("style", Html(_asset("report.css") + style)),
    )
    body = tag("body", tag("main", *sections), tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> Html:
    return Html(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _sections(records: Records, evaluation: Evaluation | None, conv1: np.ndarray | None) -> list[Html | None]:
    return [
        report_details.header(records),
        report_details.headline(records.result),
        section("Curves", _curves(records)),
        *_evaluation_sections(evaluation),
        section("First-layer filters", _filters(conv1)),
        section("Reproduce", report_details.reproduce(records.result)),
        section("Environment", report_details.environment(records.result)),
        section("Configuration", report_details.configuration(records)),
    ]


def heading(kind: str, title: str, chips: Iterable[str], *below: Html | None) -> Html:
    """Return the top of a page: what kind of page it is, its title, short facts, and what else there is to say."""
    return tag(
        "header",
        tag("p", f"alexnet_exp · {kind}", class_="kicker"),
        tag("h1", title),
        tag("p", *[tag("code", chip) for chip in chips], class_="chips"),
        *below,
    )


def section(title: str, content: Html | None) -> Html | None:
    """Return a part of a page with its heading; None without content."""
    return tag("section", tag("h2", title), content) if content else None


def _curves(records: Records) -> Html | None:
    if not records.rows and "split" in records.result:
        return None  # an evaluation has no course
    best = records.result.get("best") or {}
    drawn = report_charts.curves(records.rows, report_details.numeric(best.get("step")))
    notes = [tag("p", sentence, class_="problem") for sentence in report_charts.not_finite(records.rows)]
    if not drawn and not notes:
        return tag("p", "No metric was logged.")
    return join([drawn, *notes])


def _evaluation_sections(evaluation: Evaluation | None) -> list[Html | None]:
    if evaluation is None:
        return [section("Evaluation", tag("p", "This run was not evaluated on a test or validation set."))]
    sections = [section("Confusion matrix", report_classes.confusion(evaluation))]
    sections.append(section("Classes", report_classes.scores(evaluation)))
    for title, samples in (
        ("Most confident mistakes", evaluation.mistakes),
        ("Sample of predictions", evaluation.samples),
    ):
        if samples:
            sections.append(section(title, report_classes.pictures(samples, evaluation.classes)))
    return sections


def _filters(conv1: np.ndarray | None) -> Html | None:
    if conv1 is None or not is_picture_of_filters(conv1):
        return None
    count, channels, height, width = conv1.shape
    image = tag(
        "img", src=data_uri(filter_grid(conv1)), alt="Filters of the first convolution", class_="filters"
    )
    cut = f", the first {MAX_FILTERS} shown" if count > MAX_FILTERS else ""
    kind = "colour" if channels == 3 else "grey"
    text = (
        f"{count} {kind} filters of {height} × {width}{cut}, each stretched from its minimum to its maximum."
    )
    return tag("figure", image, tag("figcaption", text))
