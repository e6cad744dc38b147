"""`alexnet-exp compare`: runs side by side, on the terminal, in a file, on a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp.config.schema import checked, choice, flag, group, list_of, null, setting, text
from alexnet_exp.errors import UserError, nearest, printable
from alexnet_exp.files import write_atomically
from alexnet_exp.runs.compare.groups import Comparison
from alexnet_exp.runs.compare.page import write_page
from alexnet_exp.runs.compare.settings import NAMED_GROUPS, differing, has, lookup
from alexnet_exp.runs.compare.table import print_table, records, to_csv, to_json, to_markdown
from alexnet_exp.runs.compare.where import Where
from alexnet_exp.tracking.metrics import lower_is_better
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_directory import RunDirectory, check_out
from alexnet_exp.tracking.run_reader import Run, find_runs
from alexnet_exp.tracking.terminal import nearby


@group
class Compare:
    """Keys of conf/compare.yaml."""

    runs: str | list[str] = setting(text | list_of(text))
    metric: str = setting(text)
    sort: str | None = setting(text | null)
    where: str | None = setting(text | null)
    format: str | None = setting(choice("table", "csv", "markdown", "json") | null)
    out: str | None = setting(text | null)
    page: bool = setting(flag)


_WRITERS: dict[str, Callable[[Comparison], str]] = {"csv": to_csv, "markdown": to_markdown, "json": to_json}
_ENDINGS = {".csv": "csv", ".md": "markdown", ".json": "json"}
_FACTS = (
    "name",
    "status",
    "epochs",
    "images_per_second",
)  # keys of where= and sort= besides settings and metrics


def compare(config: dict[str, Any], run_dir: Path, command: str) -> Comparison:
    """Read runs and show them side by side.

    Args:
        config: Keys of conf/compare.yaml.
        run_dir: Where compare.html and result.json go.
        command: The command line, for the record.

    Returns:
        The comparison shown.

    Raises:
        UserError: For an invalid setting, a path without runs, or a filter that matches none.
    """
    if not config["runs"]:
        raise UserError("No runs given: try alexnet-exp compare outputs/runs.")
    settings = checked(Compare, config)
    kind = _format(settings)
    folders = [settings.runs] if isinstance(settings.runs, str) else settings.runs
    runs = _filtered(find_runs(folders), settings.where)
    comparison = _comparison(runs, settings.metric, settings.where, settings.sort)
    if kind == "table":
        print_table(comparison)
    elif settings.out is None:
        table = _WRITERS[kind](comparison)
        # Paths may contain bytes that are not valid UTF-8 (surrogates here).
        print(table.encode("utf-8", "backslashreplace").decode("utf-8"), end="")
    else:
        write_atomically(check_out(settings.out), _WRITERS[kind](comparison))
    # A table on stdout may go into a pipe: messages then go to stderr.
    messages = Console(stderr=kind != "table" and settings.out is None, soft_wrap=True, highlight=False)
    if settings.out is not None:
        messages.print(f"table: {printable(settings.out)}", markup=False)
    if settings.page:
        run = RunDirectory(run_dir)
        with run.fresh():
            write_page(comparison, run.path / "compare.html")
            run.write_result({"status": "finished", "command": command, **records(comparison)})
        messages.print(f"page:  {printable(nearby(run_dir / 'compare.html'))}", markup=False)
    return comparison


def summarise(folder: Path, metric: str = "test/top1") -> Comparison:
    """Compare the runs of a sweep; write summary.csv and compare.html to its directory."""
    comparison = _comparison(find_runs([folder]), metric)
    write_atomically(folder / "summary.csv", to_csv(comparison))
    write_page(comparison, folder / "compare.html")
    return comparison


def _format(settings: Compare) -> str:
    """Return the table's format."""
    out, kind = settings.out, settings.format
    kind = kind or (_ENDINGS.get(Path(out).suffix) if out else "table")
    if out and kind in (None, "table"):
        endings = ", ".join(_ENDINGS)
        raise UserError(f"out={out}: set format=csv, markdown or json, or use a name ending in {endings}.")
    if out:
        check_out(out)  # before the runs are read, which may take a while
    return str(kind)


def _filtered(runs: list[Run], where: str | None) -> list[Run]:
    if where is None:
        return runs
    condition = Where(where)
    condition.check(_known(runs))
    found = [run for run in runs if condition.holds(lambda key, run=run: _value(run, key))]  # type: ignore[misc]
    if not found:
        raise UserError(f"where={where!r} matches none of the {len(runs)} runs.")
    return found


def _known(runs: list[Run]) -> set[str]:
    """Return every key that where= and sort= accept."""
    settings = {key for run in runs for key in run.config}
    return settings | _metrics(runs) | {*_FACTS, *NAMED_GROUPS}


def _metrics(runs: list[Run]) -> set[str]:
    """Return the metrics of all runs; those of unfinished runs come from metrics.csv."""
    found: set[str] = set()
    for run in runs:
        found |= set(run.result.get("metrics") or {}) if run.result else {k for row in run.rows for k in row}
    return {name for name in found if "/" in name}


def _value(run: Run, key: str) -> Any:
    if key in _FACTS:
        return getattr(run, key)
    if "/" in key:  # a metric is SPLIT/NAME
        return run.metric(key)
    return lookup(run, key)


def _comparison(
    runs: list[Run], metric: str, where: str | None = None, sort: str | None = None
) -> Comparison:
    keys = differing(runs)
    for run in runs:
        # Tables and pages get shared, so they must not show secrets.
        run.differs = redact({key: lookup(run, key) for key in keys if has(run, key)})
    comparison = Comparison(runs, metric, keys, where)
    # The default is accepted even if no run has been tested yet.
    known = {*_metrics(runs), "test/top1"}
    if comparison.best is None and metric not in known:
        raise UserError(f"metric={metric}: no run has logged it.{nearest(metric, known)}")
    comparison.runs.sort(key=_order(comparison, sort))
    return comparison


def _order(comparison: Comparison, sort: str | None) -> Callable[[Run], tuple[Any, ...]]:
    """Return the sort key: best score first, or by any value; runs without one come last."""
    if sort is None or sort in ("metric", comparison.metric):
        sign = 1 if lower_is_better(comparison.metric) else -1

        def by_score(run: Run) -> tuple[Any, ...]:
            if (score := comparison.scores[run.path]) is None:
                return (True,)
            # A score of another metric, for want of this one, comes later.
            return False, score.metric != comparison.metric, sign * score.value

        return by_score
    key = comparison.metric if sort == "-metric" else sort.removeprefix("-")
    known = _known(comparison.runs)
    if key not in known:
        raise UserError(f"sort={sort}: no run has a setting or metric {key}.{nearest(key, known)}")
    values = {run.path: _value(run, key) for run in comparison.runs}
    order = sorted({_rank(value) for value in values.values() if value is not None}, reverse=sort[0] == "-")
    # Sort by place, not by rank: a descending order must not put runs without a value first.
    places = {rank: place for place, rank in enumerate(order)}
    return lambda run: (places.get(_rank(values[run.path]), len(places)),)


def _rank(value: Any) -> tuple[Any, ...]:
    """Sort numbers by value and before strings."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if is_number else (1, 0, str(value))
