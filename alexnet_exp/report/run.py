"""Write report.html: a self-contained page about a run, to be opened without network or server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.report import charts, classes, details, summary
from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.html import write_html
from alexnet_exp.report.pictures import MAX_FILTERS, filter_grid, is_picture_of_filters
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_reader import Run, learned_nothing, numeric


def write_report(
    run_dir: Path,
    evaluation: Evaluation | None = None,
    conv1: np.ndarray | None = None,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html into a run directory and return its path.

    Args:
        run_dir: Directory with any of config.yaml, overrides.yaml, result.json and metrics.csv.
        evaluation: Outcome on the test (or validation) split, if any.
        conv1: Weight of the first convolution, (out, in, kH, kW); drawn if `in` is 1 or 3.
        result: Replaces result.json, for a run that writes that file last.
    """
    run = Run(Path(run_dir))
    # Reports are shared: they must not contain passwords or keys.
    settings, overrides = redact(run.settings), redact(run.overrides)
    result = redact(run.result if result is None else dict(result))
    best = result.get("best") or {}
    if sentence := learned_nothing(result):
        run.problems.append(sentence)
    return write_html(
        Path(run_dir) / "report.html",
        "run.html",
        title=summary.title(result, settings) or run.name,
        name=run.name,
        images=summary.images(result),
        accuracy=summary.accuracy(result, settings, evaluation),
        chips=overrides,
        status=str(result.get("status") or "unfinished"),
        error=result.get("error"),
        problems=run.problems,
        numbers=list(details.headline(result)),
        published=list(details.published(result, settings)),
        trained=bool(run.rows) or "split" not in result,  # an evaluation has no curves
        run_charts=charts.run_charts(run.rows, numeric(best.get("step"))),
        not_finite=charts.not_finite(run.rows),
        evaluation=classes.template_context(evaluation) if evaluation else None,
        filters=_filters(conv1),
        origin=details.origin(result),
        config=details.configuration(settings, overrides),
    )


def _filters(conv1: np.ndarray | None) -> dict[str, Any] | None:
    if conv1 is None or not is_picture_of_filters(conv1):
        return None
    count, channels, height, width = conv1.shape
    cut = f" (first {MAX_FILTERS} shown)" if count > MAX_FILTERS else ""
    kind = "colour" if channels == 3 else "grey"
    text = f"{count} {kind} filters of {height} × {width}{cut}, each scaled from its minimum to its maximum."
    return {"grid": filter_grid(conv1), "text": text}
