"""Write compare.html: runs side by side on one self-contained page, with overlaid curves."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from alexnet_exp.tracking.compare_curves import overlaid
from alexnet_exp.tracking.compare_groups import Comparison, Group
from alexnet_exp.tracking.compare_runs import Run, Score
from alexnet_exp.tracking.compare_text import (
    configuration_text,
    interval_text,
    plain,
    score_text,
    settings_text,
    spread_text,
)
from alexnet_exp.tracking.markup import Html, join, quantity, tag
from alexnet_exp.tracking.report import heading, section, write_document
from alexnet_exp.tracking.report_details import STATUSES


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page.

    Args:
        comparison: What to show.
        path: The file; links to the runs' own reports are relative to it.
    """
    count = len(comparison.runs)
    title = f"{count} run{'s' if count > 1 else ''}"
    sections = [
        _header(comparison, title),
        section("Configurations", _groups(comparison)),
        section("Curves", overlaid(comparison)),
        section("Runs", _runs(comparison, path.parent)),
    ]
    write_document(path, title, sections, "compare.css")


def _header(comparison: Comparison, title: str) -> Html:
    chips = [f"metric={comparison.metric}", *([f"where={comparison.where}"] if comparison.where else [])]
    usual = settings_text(comparison.usual)
    ended = [run.status for run in comparison.runs]
    others = [f"{ended.count(s)} {s}" for s in dict.fromkeys(ended) if s != "finished"]
    return heading(
        "comparison",
        title,
        chips,
        tag("p", f"Not finished: {', '.join(others)}.", class_="problem") if others else None,
        tag("p", f"Unless a row says otherwise: {usual}") if usual else None,
    )


def _groups(comparison: Comparison) -> Html | None:
    if not comparison.with_seeds:
        return None
    names = ("configuration", f"mean {comparison.metric}", "sd", "95 % interval", "seeds")
    head = tag("tr", *[tag("th", name, scope="col") for name in names])
    note = (
        "Runs that differ in the seed alone. Mean over the finished ones; the interval is that of the mean "
        "(t distribution), and needs two seeds."
    )
    table = _table(head, [_group_row(comparison, group) for group in comparison.groups])
    return join([tag("p", note), table])


def _group_row(comparison: Comparison, group: Group) -> Html:
    mean = None if group.mean is None else Score(group.mean, str(group.metric))
    missing = group.seeds - group.n
    return tag(
        "tr",
        tag("td", configuration_text(comparison, group), class_="name"),
        _value(score_text(mean, comparison.metric), comparison.is_best(group)),
        tag("td", spread_text(group.sd, group.metric)),
        tag("td", interval_text(group.interval, group.metric)),
        tag("td", f"{group.n}" + (f" of {group.seeds}" if missing else "")),
    )


def _value(text: str, is_best: bool) -> Html:
    return tag("td", tag("b", text, " ", tag("mark", "best")) if is_best else text)


def _table(head: Html, rows: list[Html]) -> Html:
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="numbers runs")
    return tag("div", table, class_="scroll")


def _runs(comparison: Comparison, folder: Path) -> Html:
    settings = ["differs in"] if comparison.usual else comparison.keys
    names = ("run", comparison.metric, "epochs", "images/s", "status", *settings)
    head = tag("tr", *[tag("th", name, scope="col") for name in names])
    table = _table(head, [_run_row(comparison, run, folder) for run in comparison.runs])
    note = None
    if comparison.stand_ins:
        note = f"Values with a name beside them are not {comparison.metric}: their runs have none."
    return join([tag("p", note) if note else None, table])


def _run_row(comparison: Comparison, run: Run, folder: Path) -> Html:
    score, speed = comparison.scores[run.path], run.images_per_second
    report = run.path / "report.html"
    link = Path(os.path.relpath(report, folder)).as_posix() if report.exists() else None
    status = run.status
    return tag(
        "tr",
        tag("td", tag("a", run.name, href=quote(os.fsencode(link))) if link else run.name, class_="name"),
        _value(score_text(score, comparison.metric), score is not None and score == comparison.best),
        tag("td", "" if run.epochs is None else str(run.epochs)),
        tag("td", "" if speed is None else quantity(speed)),
        tag("td", tag("span", status, class_=f"pill {status}" if status in STATUSES else "pill")),
        *[tag("td", text, class_="setting") for text in _settings(comparison, run)],
    )


def _settings(comparison: Comparison, run: Run) -> list[str]:
    """Return a cell for each setting that differs; one for all where there are many."""
    if comparison.usual:
        return [settings_text(comparison.told(run))]
    return [plain(run.differs.get(key, "")) for key in comparison.keys]
