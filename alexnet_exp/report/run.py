"""Write report.html: one self-contained page about a run, for a browser with no network and no server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.report import charts as report_charts
from alexnet_exp.report import classes as report_classes
from alexnet_exp.report import details as report_details
from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.html import write_html
from alexnet_exp.report.pictures import MAX_FILTERS, filter_grid, is_picture_of_filters
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_reader import read_records


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
    best = records.result.get("best") or {}
    return write_html(
        Path(run_dir) / "report.html",
        "run.html",
        title=records.name,
        chips=records.overrides,
        status=str(records.result.get("status") or "unfinished"),
        error=records.result.get("error"),
        problems=records.problems,
        numbers=list(report_details.headline(records.result)),
        published=list(report_details.published(records)),
        trained=bool(records.rows) or "split" not in records.result,  # an evaluation has no curves
        run_charts=report_charts.run_charts(records.rows, report_details.numeric(best.get("step"))),
        not_finite=report_charts.not_finite(records.rows),
        evaluation=report_classes.shown(evaluation) if evaluation else None,
        filters=_filters(conv1),
        origin=report_details.origin(records.result),
        config=report_details.configuration(records),
    )


def _filters(conv1: np.ndarray | None) -> dict[str, Any] | None:
    if conv1 is None or not is_picture_of_filters(conv1):
        return None
    count, channels, height, width = conv1.shape
    cut = f", the first {MAX_FILTERS} shown" if count > MAX_FILTERS else ""
    kind = "colour" if channels == 3 else "grey"
    text = (
        f"{count} {kind} filters of {height} × {width}{cut}, each stretched from its minimum to its maximum."
    )
    return {"grid": filter_grid(conv1), "text": text}
