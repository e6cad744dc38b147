"""A W&B workspace and a report about the runs of this package, as code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from alexnet_exp.runs.evaluate.command import SPLITS, VIEWS
from alexnet_exp.tracking.wandb.media import wandb_place

# What tracking records with each run: the file of conf/model and conf/data.
GROUPS = {"model": "names.model", "data set": "names.data"}
Panels: TypeAlias = list[Any]  # wandb-workspaces exports no name for what may stand there
WIDTH, HEIGHT = 12, 8  # of a panel; a row has 24


@dataclass(frozen=True)
class Part:
    """Panels that belong together, with a sentence about them."""

    title: str
    text: str
    panels: Panels


def parts(columns: Sequence[str]) -> list[Part]:
    """Return everything that workspace and report show.

    Args:
        columns: Settings that the parallel coordinates have an axis for.
    """
    return [
        Part("Accuracy", "Mean over the runs of a group; the band is their spread.", _accuracy()),
        Part("Loss", "Over finished epochs; each point of the training loss is one logged step.", _loss()),
        Part("Sweep", "One line per run, from its settings to its accuracy.", _sweep(columns)),
        Part(
            "Confusion matrix",
            "Of the test images, or validation where there is no test split.",
            _confusion(),
        ),
        Part(
            "Predictions", "The same images for every run, and the filters of the first layer.", _pictures()
        ),
        Part("Throughput", "Images a second in training, data loading included.", _throughput()),
    ]


def _curve(what: str, metric: str, group: str = "model", x: str = "epoch") -> reports.LinePlot:
    return reports.LinePlot(x=x, y=[metric], groupby_rangefunc="minmax", **_grouped(what, group))


def _bars(what: str, metric: str, group: str = "model") -> reports.BarPlot:
    shared = _grouped(what, group)
    return reports.BarPlot(metrics=[metric], groupby_rangefunc="stddev", max_bars_to_show=40, **shared)


def _grouped(what: str, group: str) -> dict[str, Any]:
    """Return what curves and bars of groups of runs have in common."""
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
    many = [  # what confusion_panels logs where a chart would have too many cells
        _media("Of more than 100 classes", ["confusion_matrix"], 2),
        reports.WeavePanelSummaryTable(table_name="confusion_mistakes"),
    ]
    # Whatever views and split an evaluation of the run's own data had; a run shows those that it logged.
    evaluated = [f"{wandb_place(split, views)}/confusion_matrix" for split in SPLITS for views in VIEWS]
    return [chart, _media("Of alexnet-exp evaluate", evaluated, 2), *many]


def _media(title: str, keys: list[str], columns: int) -> reports.MediaBrowser:
    return reports.MediaBrowser(title=title, media_keys=keys, num_columns=columns)


def _pictures() -> Panels:
    return [
        _media("Sample of predictions", ["predictions"], 4),
        _media("First-layer filters", ["conv1_filters"], 1),
    ]


def _throughput() -> Panels:
    what, metric = "Images a second", "images_per_second"
    return [_curve(what, metric, x="step"), _bars(what, metric)]


def _placed(panels: Panels) -> Panels:
    """Put panels into rows of two."""
    for i, panel in enumerate(panels):
        panel.layout = reports.Layout(x=WIDTH * (i % 2), y=HEIGHT * (i // 2), w=WIDTH, h=HEIGHT)
    return panels


def workspace(entity: str, project: str, name: str, columns: Sequence[str]) -> workspaces.Workspace:
    """Return a workspace, not saved yet."""
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
    """Return a report, not saved yet."""
    blocks: list[Any] = [reports.TableOfContents()]
    for part in parts(columns):
        # Without a project of its own a set of runs is the report's; with one, writing it down would ask the server.
        runs = reports.Runset(name="Runs")
        grid = reports.PanelGrid(runsets=[runs], panels=_placed(part.panels))
        blocks += [reports.H1(text=part.title), reports.P(text=part.text), grid]
    about = "Runs of alexnet_exp: accuracy, loss, settings, confusion matrix, predictions, throughput."
    return reports.Report(
        entity=entity, project=project, title=name, description=about, blocks=blocks, width="fluid"
    )
