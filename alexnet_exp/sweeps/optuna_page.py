"""sweep.html: best settings, history, importance and every trial, on one page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from alexnet_exp.sweeps.optuna_plots import draw_history, draw_importance
from alexnet_exp.sweeps.optuna_trials import Trials
from alexnet_exp.tracking.markup import Html, tag
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.report import section, write_document

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
    sections = [
        _header(trials),
        section("Best trial", _best(trials, command) if command else None),
        section("History", _picture(history, "Value of each trial")),
        section("Importance", _picture(importance, "Importance of each setting")),
        section("Trials", _table(trials)),
    ]
    title = f"Search of {trials.metric}"
    return write_document(trials.directory / "sweep.html", title, sections, "sweep_page.css")


def _header(trials: Trials) -> Html:
    study = trials.study
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    counts = [f"{states.count(state)} {name}" for state, name in _STATES.items() if state in states]
    others = trials.directory / "compare.html"
    return tag(
        "header",
        tag("p", "alexnet_exp · search", class_="kicker"),
        tag("h1", f"{len(states)} trials"),
        tag("p", *[tag("code", text) for text in (trials.metric, *counts)], class_="chips"),
        tag("p", tag("a", "All runs side by side", href=others.name)) if others.exists() else None,
    )


def _best(trials: Trials, command: str) -> Html:
    best = trials.study.best_trial
    rows = [tag("div", tag("dt", key), tag("dd", str(value))) for key, value in best.params.items()]
    figure = tag("p", f"Trial {best.number}: {trials.metric} {best.value:.4f}. This repeats it:")
    body = tag("pre", tag("code", command), class_="command")
    return tag("div", tag("dl", *rows, class_="facts"), figure, body)


def _picture(path: Path | None, alt: str) -> Html | None:
    if path is None:
        return None
    source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return tag("img", src=source, alt=alt, class_="sheet")


def _table(trials: Trials) -> Html:
    keys = list(trials.space.distributions)
    head = tag("tr", *[tag("th", name, scope="col") for name in ("trial", trials.metric, "state", *keys)])
    rows = [_row(trials, trial, keys) for trial in sorted(trials.study.trials, key=_order(trials))]
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="numbers trials")
    return tag("div", table, class_="scroll")


def _order(trials: Trials) -> Callable[[FrozenTrial], tuple[int, float, int]]:
    """Sort finished trials first, the best at the top."""
    sign = 1.0 if trials.study.direction == StudyDirection.MINIMIZE else -1.0
    places = list(_STATES)

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        return places.index(trial.state), sign * (trial.value or 0.0), trial.number

    return place


def _row(trials: Trials, trial: FrozenTrial, keys: list[str]) -> Html:
    report = trials.folder(trial) / "report.html"
    number = str(trial.number)
    link = tag("a", number, href=f"{number}/report.html") if report.exists() else number
    state, why = _STATES[trial.state], redact(trial.user_attrs.get("failed"))
    return tag(
        "tr",
        tag("td", link),
        tag("td", "" if trial.value is None else f"{trial.value:.4f}"),
        tag("td", tag("span", state, class_=f"pill {state}", title=why)),
        *[tag("td", _shown(trial.params.get(key, ""))) for key in keys],
    )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
