"""The panels of the W&B workspace and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from alexnet_exp.config.schema import VIEWS
from alexnet_exp.runs.evaluate.settings import SPLITS
from alexnet_exp.tracking.wandb.media import wandb_place

# Config keys in W&B with the names of the conf/model and conf/data files of a run.
GROUPS = {"model": "names.model", "data set": "names.data"}
Panels: TypeAlias = list[Any]  # wandb-workspaces exports no common type of panels
WIDTH, HEIGHT = 12, 8  # of a panel, in grid units; a row has 24


@dataclass(frozen=True)
class Part:
    """A group of panels with a title and a sentence about it."""

    title: str
    text: str
    panels: Panels


def parts(columns: Sequence[str]) -> list[Part]:
    """Return the parts of both workspace and report.

    Args:
        columns: Settings to show as axes of the parallel coordinates plot.
    """
    return [
        Part("Accuracy", "Mean over the runs of a group; the band is min to max.", _accuracy()),
        Part("Loss", "By epoch; the training loss by logged step.", _loss()),
        Part("Sweep", "One line per run, from its settings to its accuracy.", _sweep(columns)),
        Part("Confusion matrix", "Of the test split, or of validation without one.", _confusion()),
        Part("Predictions", "The same images for every run, and the first-layer filters.", _pictures()),
        Part("Throughput", "Training images per second, including data loading.", _throughput()),
    ]


def _curve(what: str, metric: str, group: str = "model", x: str = "epoch") -> reports.LinePlot:
    return reports.LinePlot(x=x, y=[metric], groupby_rangefunc="minmax", **_grouped(what, group))


def _bars(what: str, metric: str, group: str = "model") -> reports.BarPlot:
    shared = _grouped(what, group)
    return reports.BarPlot(metrics=[metric], groupby_rangefunc="stddev", max_bars_to_show=40, **shared)


def _grouped(what: str, group: str) -> dict[str, Any]:
    """Return the settings shared by curves and bars of grouped runs."""
    return {
        "title": f"{what} by {group}",
        "groupby": reports.Config(GROUPS[group]),
        "groupby_aggfunc": "mean",
        "max_runs_to_show": 100,
    }


def _accuracy() -> Panels:
    curves = [_curve("Validation top-1", "val/top1", group) for group in GROUPS]
    return [*curves, *[_bars("Test top-1", "test/top1", group) for group in GROUPS]]


def _loss() -> Panels:
    return [
        _curve("Training loss", "train/loss_step", x="step"),
        _curve("Validation loss", "val/loss"),
    ]


def _sweep(columns: Sequence[str]) -> Panels:
    axes = [
        reports.ParallelCoordinatesPlotColumn(
            metric=reports.Config(key),
            display_name=key.removeprefix("names."),
            log=key.endswith(".lr") or None,
        )
        for key in columns
    ]
    accuracy = reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric("val/top1"))
    return [
        reports.ParallelCoordinatesPlot(title="Settings and validation top-1", columns=[*axes, accuracy]),
        reports.ParameterImportancePlot(with_respect_to="val/top1"),
    ]


def _confusion() -> Panels:
    fields = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    chart = reports.CustomChart(
        query={"summaryTable": {"tableKey": "confusion_matrix_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields=fields,
        chart_strings={"title": "Confusion matrix"},
    )
    many = [  # what confusion_panels logs for matrices that are too large for a chart
        _media("More than 100 classes", ["confusion_matrix"], 2),
        reports.WeavePanelSummaryTable(table_name="confusion_mistakes"),
    ]
    # All splits and views that `evaluate` may have logged; W&B hides keys that a run does not have.
    evaluated = [f"{wandb_place(split, views)}/confusion_matrix" for split in SPLITS for views in VIEWS]
    return [chart, _media("From alexnet-exp evaluate", evaluated, 2), *many]


def _media(title: str, keys: list[str], columns: int) -> reports.MediaBrowser:
    return reports.MediaBrowser(title=title, media_keys=keys, num_columns=columns)


def _pictures() -> Panels:
    return [
        _media("Sample of predictions", ["predictions"], 4),
        _media("First-layer filters", ["conv1_filters"], 1),
    ]


def _throughput() -> Panels:
    what, metric = "Images per second", "images_per_second"
    return [_curve(what, metric, x="step"), _bars(what, metric)]


def _placed(panels: Panels) -> Panels:
    """Arrange panels in rows of two."""
    for i, panel in enumerate(panels):
        panel.layout = reports.Layout(x=WIDTH * (i % 2), y=HEIGHT * (i // 2), w=WIDTH, h=HEIGHT)
    return panels


def workspace(entity: str, project: str, name: str, columns: Sequence[str]) -> workspaces.Workspace:
    """Return an unsaved workspace."""
    sections = [
        workspaces.Section(name=part.title, panels=_placed(part.panels), is_open=i < 3)
        for i, part in enumerate(parts(columns))
    ]
    pinned = ["summary:test/top1", "summary:val/top1", "summary:images_per_second"]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(pinned_columns=pinned),
    )


def report(entity: str, project: str, name: str, columns: Sequence[str]) -> reports.Report:
    """Return an unsaved report."""
    blocks: list[Any] = [reports.TableOfContents()]
    for part in parts(columns):
        # Without a project a run set belongs to the report's; with one, serialising it would query the server.
        runs = reports.Runset(name="Runs")
        grid = reports.PanelGrid(runsets=[runs], panels=_placed(part.panels))
        blocks += [reports.H1(text=part.title), reports.P(text=part.text), grid]
    about = "Runs of alexnet_exp: accuracy, loss, settings, confusion matrix, predictions, throughput."
    return reports.Report(
        entity=entity, project=project, title=name, description=about, blocks=blocks, width="fluid"
    )
