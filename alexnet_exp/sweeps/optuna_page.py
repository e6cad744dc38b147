"""sweep.html: best settings, history, importance and every trial, on one page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from alexnet_exp.report.html import write_html
from alexnet_exp.sweeps.optuna_plots import draw_history, draw_importance
from alexnet_exp.sweeps.optuna_trials import Trials
from alexnet_exp.tracking.redact import redact

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def write_sweep_page(trials: Trials, command: str | None) -> Path:
    """Write sweep.html and its pictures into the directory of a sweep.

    Args:
        trials: With the study that is shown.
        command: Repeats the best trial, without secrets; None if none has finished.
    """
    history = draw_history(trials.study, trials.metric, trials.directory / "figures" / "history.png")
    importance = draw_importance(trials.study, trials.directory / "figures" / "importance.png")
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
        best=trials.study.best_trial if command else None,
        history=_png(history),
        importance=_png(importance),
        keys=list(trials.space.distributions),
        trials=[_row(trials, trial) for trial in sorted(trials.study.trials, key=_order(trials))],
    )


def _png(path: Path | None) -> str | None:
    """Return a picture as a data URI."""
    if path is None:
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _row(trials: Trials, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "reported": (trials.folder(trial) / "report.html").exists(),
        "value": "" if trial.value is None else f"{trial.value:.4f}",
        "state": _STATES[trial.state],
        "why": redact(trial.user_attrs.get("failed")),
        "settings": [_shown(trial.params.get(key, "")) for key in trials.space.distributions],
    }


def _order(trials: Trials) -> Callable[[FrozenTrial], tuple[int, float, int]]:
    """Sort finished trials first, the best at the top."""
    sign = 1.0 if trials.study.direction == StudyDirection.MINIMIZE else -1.0
    places = list(_STATES)

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        return places.index(trial.state), sign * (trial.value or 0.0), trial.number

    return place


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
