"""Pictures of a search: how it went, and which settings matter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import optuna
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from alexnet_exp.tracking.figure_canvas import page
from alexnet_exp.tracking.figures import MUTED, TRAIN, VAL

_LEAST = 4  # trials: with fewer, an importance says nothing


def draw_history(study: optuna.Study, metric: str, path: Path) -> Path | None:
    """Draw the value of every trial and the best so far; None without a value.

    Args:
        study: What to draw.
        metric: Name of the objective.
        path: Of the PNG file.
    """
    done, pruned = (
        [t for t in study.get_trials(deepcopy=False, states=[state]) if t.value is not None]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    failed = study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    if not done:
        return None
    with page(path, 8.0, 3.6) as figure:
        axes = figure.add_subplot()
        numbers, best = [t.number for t in done], best_so_far(study, done)
        axes.plot(numbers, best, color=TRAIN, drawstyle="steps-post", label="best so far")
        _dots(axes, done, "o", TRAIN, "finished")
        _dots(axes, pruned, "v", VAL, "pruned (its last value)")
        if failed:
            low = axes.get_ylim()[0]
            axes.plot([t.number for t in failed], [low] * len(failed), "x", color=MUTED, label="failed")
        axes.set_xlabel("trial")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return path


def best_so_far(study: optuna.Study, done: list[FrozenTrial]) -> list[float]:
    """Return, for each finished trial, the best value up to it."""
    better: Callable[[float, float], float] = min if study.direction == StudyDirection.MINIMIZE else max
    return list(itertools.accumulate((float(t.value) for t in done if t.value is not None), better))


def draw_importance(study: optuna.Study, path: Path) -> Path | None:
    """Draw how much of the difference between good and bad trials each setting tells; None with too few trials.

    Args:
        study: What to draw.
        path: Of the PNG file.
    """
    found = importances(study)
    if not found:
        return None
    with page(path, 8.0, 0.8 + 0.35 * len(found)) as figure:
        axes = figure.add_subplot()
        names, shares = list(found)[::-1], list(found.values())[::-1]
        bars = axes.barh(names, shares, color=TRAIN, height=0.6)
        axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=4, color=MUTED)
        axes.set_xlim(0.0, 1.12 * max(*shares, 0.01))
        axes.xaxis.set_visible(False)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return path


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of each setting, the greatest first (PED-ANOVA); empty with too few different trials."""
    values = {t.value for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])}
    if len(values) < _LEAST:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _dots(axes: Axes, trials: list[FrozenTrial], marker: str, colour: str, label: str) -> None:
    if trials:
        values = [t.value for t in trials]
        axes.plot([t.number for t in trials], values, marker, color=colour, markersize=5, label=label)
