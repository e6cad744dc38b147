"""sweep.html: best settings, Optuna's plots of history and importance, and all trials."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from alexnet_exp.files import replacing
from alexnet_exp.report.html import write_html
from alexnet_exp.sweeps.optuna.pool import Trials
from alexnet_exp.sweeps.optuna.study import REASON
from alexnet_exp.tracking.redact import redact

_MIN_VALUES = 4  # distinct ones: an importance of fewer means nothing

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def write_sweep_page(trials: Trials, command: str | None) -> Path:
    """Write sweep.html and its figures to the directory of a sweep.

    Args:
        trials: The trials to show.
        command: The command that repeats the best trial, without secrets; None if none has finished.
    """
    figures = trials.directory / "figures"
    states = [trial.state for trial in trials.study.get_trials(deepcopy=False)]
    counts = [f"{states.count(state)} {name}" for state, name in _STATES.items() if state in states]
    return write_html(
        trials.directory / "sweep.html",
        "sweep.html",
        title=f"Search of {trials.metric}",
        chips=[trials.metric, *counts],
        compared=(trials.directory / "compare.html").exists(),
        metric=trials.metric,
        command=command,
        best=trials.study.best_trial if command else None,  # raises if none has finished
        history=_history(trials, figures / "history.png"),
        importance=_importance(trials, figures / "importance.png"),
        keys=list(trials.space.distributions),
        trials=[_row(trials, trial) for trial in sorted(trials.study.trials, key=_order(trials))],
    )


def _history(trials: Trials, path: Path) -> str | None:
    """Plot the value of every finished trial and the best so far; None if none has finished."""
    if not _values(trials):
        return None
    from optuna.visualization.matplotlib import plot_optimization_history

    return _png(lambda: plot_optimization_history(trials.study, target_name=trials.metric), path)


def _importance(trials: Trials, path: Path) -> str | None:
    """Plot the importance of each setting (PED-ANOVA); None with too few trials."""
    if len(_values(trials)) < _MIN_VALUES:
        return None
    from optuna.visualization.matplotlib import plot_param_importances

    # Named, because the default differs between versions of Optuna, and fANOVA, the older one, needs scikit-learn.
    evaluator = PedAnovaImportanceEvaluator()
    return _png(lambda: plot_param_importances(trials.study, evaluator, target_name=trials.metric), path)


def _values(trials: Trials) -> set[float]:
    finished = trials.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return {trial.value for trial in finished if trial.value is not None}


def _png(plot: Callable[[], Axes], path: Path) -> str:
    """Save one of Optuna's plots, and return it as a data URI."""
    matplotlib.use("agg")  # Optuna uses pyplot, which would open a display
    from matplotlib import pyplot

    with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna also changes the global style
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        # matplotlib draws boxes for scripts that its font lacks, and warns.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        plot()
        figure = pyplot.gcf()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
        pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _row(trials: Trials, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "reported": (trials.folder(trial) / "report.html").exists(),
        "value": "" if trial.value is None else f"{trial.value:.4f}",
        "state": _STATES[trial.state],
        "why": redact(trial.user_attrs.get(REASON)),
        "settings": [_format(trial.params.get(key, "")) for key in trials.space.distributions],
    }


def _order(trials: Trials) -> Callable[[FrozenTrial], tuple[int, float, int]]:
    """Sort finished trials first, the best at the top."""
    sign = 1.0 if trials.study.direction == StudyDirection.MINIMIZE else -1.0
    places = list(_STATES)

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        return places.index(trial.state), sign * (trial.value or 0.0), trial.number

    return place


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
