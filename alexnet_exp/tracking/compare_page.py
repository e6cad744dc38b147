"""Write compare.html: runs side by side on one self-contained page, with overlaid curves."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from alexnet_exp.report.html import write_html
from alexnet_exp.tracking import compare_text
from alexnet_exp.tracking.compare_curves import overlaid
from alexnet_exp.tracking.compare_groups import Comparison
from alexnet_exp.tracking.compare_runs import Run
from alexnet_exp.tracking.compare_text import plain, settings_text


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page.

    Args:
        comparison: What to show.
        path: The file; links to the runs' own reports are relative to it.
    """
    count = len(comparison.runs)
    ended = [run.status for run in comparison.runs]
    others = [f"{ended.count(s)} {s}" for s in dict.fromkeys(ended) if s != "finished"]
    write_html(
        path,
        "compare.html",
        title=f"{count} run{'s' if count > 1 else ''}",
        chips=[
            f"metric={comparison.metric}",
            *([f"where={comparison.where}"] if comparison.where else []),
        ],
        not_finished=", ".join(others),
        comparison=comparison,
        curves=overlaid(comparison),
        settings=["differs in"] if comparison.usual else comparison.keys,
        runs=[
            (run, _link(run, path.parent), comparison.scores[run.path], _settings(comparison, run))
            for run in comparison.runs
        ],
        text=compare_text,
    )


def _link(run: Run, folder: Path) -> str | None:
    """Return the address of a run's own report, if it has one."""
    report = run.path / "report.html"
    return quote(os.fsencode(Path(os.path.relpath(report, folder)).as_posix())) if report.exists() else None


def _settings(comparison: Comparison, run: Run) -> list[str]:
    """Return a cell for each setting that differs; one for all where there are many."""
    if comparison.usual:
        return [settings_text(comparison.told(run))]
    return [plain(run.differs.get(key, "")) for key in comparison.keys]
