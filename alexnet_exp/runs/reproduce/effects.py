"""Measured claims: the finished runs of two forms of a network, compared seed by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from alexnet_exp.report.charts import Chart, Line, epoch_axis
from alexnet_exp.report.html import duration, percent, points, quantity
from alexnet_exp.runs.compare.groups import Group
from alexnet_exp.runs.reproduce.evidence import Evidence, Figure, differing
from alexnet_exp.runs.reproduce.rows import RATE, Claim
from alexnet_exp.settings import assigned
from alexnet_exp.tracking.run_reader import Point, Run, read_metrics, series


@dataclass(frozen=True)
class Trial:
    """A finished run of a claim.

    Args:
        form: Name of its form.
        rate: Its learning rate as typed; empty if both forms have the same one.
        run: Its result.
        accuracies: Training accuracy of each epoch, measured while it is trained.
    """

    form: str
    rate: str
    run: Evidence
    accuracies: tuple[float, ...]


def of_run(run: Run, claim: Claim) -> Trial | None:
    """Return the trial in a run directory; None if it has not finished, or is not a run of the claim."""
    typed = assigned(run.overrides)
    form = {value: form for form, value in claim.forms.items()}.get(typed.get(claim.statement.key, ""))
    rate = typed.get(RATE, "") if claim.rates else ""
    if run.status != "finished" or form is None or (claim.rates and rate not in claim.rates):
        return None
    differs = differing(run, (*claim.selection, *claim.of(form, rate)))
    return Trial(form, rate, Evidence(run.result, differs), _accuracies(run.rows))


def of_records(folder: Path) -> list[Trial]:
    """Read the records of a claim, FOLDER/*/, as `record` writes them."""
    found = []
    for file in sorted(folder.glob("*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        accuracies = _accuracies(read_metrics(file.with_name("metrics.csv")))
        found.append(Trial(result["form"], result["rate"], Evidence(result), accuracies))
    return found


def _accuracies(rows: list[dict[str, float]]) -> tuple[float, ...]:
    return tuple(point.value for point in series(rows, "train/top1"))


def epochs_until(accuracies: Sequence[float], threshold: float) -> float | None:
    """Return after how many epochs the accuracy is reached, interpolated between epochs; None if it never is."""
    for epoch, (before, after) in enumerate(pairwise((0.0, *accuracies))):
        if after >= threshold:
            # The first value is the mean of an epoch that began at chance: nothing to interpolate from.
            return epoch + (threshold - before) / (after - before) if epoch else 1.0
    return None


class Effect(Figure):
    """A claim and its reproduction. `runs` has all finished runs, those at other learning rates included.

    Args:
        claim: The claim.
        trials: Finished runs; of several with the same form, rate and seed, the last counts.
        problems: Errors of the runs that have failed.
    """

    def __init__(self, claim: Claim, trials: Iterable[Trial], problems: Sequence[str] = ()) -> None:
        self.claim, self.statement = claim, claim.statement
        last = {(trial.form, trial.rate, trial.run.seed): trial for trial in trials}
        order = list(self.statement.forms)
        self.trials = sorted(
            last.values(), key=lambda t: (order.index(t.form), float(t.rate or 0), t.run.seed)
        )
        runs = [trial.run for trial in self.trials]
        differs = next((run.differs for run in runs if run.differs), ())
        super().__init__(claim.name, claim.published[0], runs, differs, list(problems))

    def value(self, trial: Trial) -> float | None:
        """Return the epochs until the threshold (None: not reached), or the test accuracy."""
        if self.statement.threshold is not None:
            return epochs_until(trial.accuracies, self.statement.threshold)
        accuracy: float | None = trial.run.result["metrics"].get("test/top1")
        return accuracy

    def value_text(self, trial: Trial) -> str:
        value = self.value(trial)
        if self.statement.threshold is None:
            return percent(value)
        return f"> {len(trial.accuracies)}" if value is None else f"{value:.2f}"

    @property
    def value_name(self) -> str:
        threshold = self.statement.threshold
        return "test/top1" if threshold is None else f"epochs to {percent(1 - threshold, 0)} training error"

    @cached_property
    def best(self) -> dict[str, str]:
        """The fastest rate of each form, or the most accurate if none reached the threshold, by seed 0."""
        if not self.claim.rates:
            return dict.fromkeys(self.statement.forms, "")

        def order(trial: Trial) -> tuple[float, float]:
            value = self.value(trial)
            return math.inf if value is None else value, -max(trial.accuracies, default=0.0)

        found = {}
        for form in self.statement.forms:
            tried = [t for t in self.trials if t.form == form and t.run.seed == 0]
            if tried:
                found[form] = min(tried, key=order).rate
        return found

    def at_best(self, form: str) -> dict[int, Trial]:
        """Return the trials of a form at its best rate, by seed."""
        return {t.run.seed: t for t in self.trials if t.form == form and t.rate == self.best.get(form)}

    @property
    def by_seed(self) -> dict[int, float]:
        """The second form compared with the first, for each seed that both have."""
        first, second = (
            {seed: value for seed, trial in self.at_best(form).items() if (value := self.value(trial)) is not None}
            for form in self.statement.forms
        )  # fmt: skip
        is_factor = self.statement.threshold is not None
        return {
            seed: second[seed] / first[seed] if is_factor else second[seed] - first[seed]
            for seed in sorted(first.keys() & second.keys())
        }

    @property
    def is_share(self) -> bool:
        return self.statement.threshold is None

    @property
    def ours(self) -> Group:
        # Without a metric: the interval of a difference of accuracies may reach below 0.
        return Group([], None, list(self.by_seed.values()), [])

    def text(self, value: float) -> str:
        """Format an effect: '+1.32' points, or a factor."""
        return points(value) if self.is_share else f"{value:.2f}"

    @property
    def notes(self) -> list[str]:
        return [*super().notes, *self._not_reached(), *self._untried(), *self._at_the_edge()]

    def _not_reached(self) -> Iterator[str]:
        for form in self.statement.forms:
            for seed, trial in self.at_best(form).items():
                if self.value(trial) is None:
                    epochs = len(trial.accuracies)
                    yield f"{form}, seed {seed}: threshold not reached in {epochs} epochs, so the seed does not count"

    def _untried(self) -> Iterator[str]:
        for form in self.best:
            tried = {t.rate for t in self.trials if t.form == form and t.run.seed == 0}
            if left := [rate for rate in self.claim.rates if rate not in tried]:
                yield f"{form}: no finished run at lr={', '.join(left)}"

    def _at_the_edge(self) -> Iterator[str]:
        tried = sorted(self.claim.rates, key=float)
        edges = {tried[0]: "lower", tried[-1]: "higher"} if len(tried) > 1 else {}
        for form, rate in self.best.items():
            if rate in edges:
                yield f"{form}: lr={rate} is the {edges[rate][:-2]}est rate tried; a {edges[rate]} one may be faster"

    @property
    def cost(self) -> str:
        """The cost of all runs together."""
        if not self.runs:
            return ""
        images, seconds = sum(run.images for run in self.runs), sum(run.seconds for run in self.runs)
        return (
            f"{len(self.runs)} runs, {quantity(images)} images, {duration(round(seconds))} on {self.machines}"
        )

    @property
    def chart(self) -> Chart | None:
        """Training error by epoch of each form at its best rate, a mean over the epochs that all seeds have."""
        lines = []
        for place, form in enumerate(self.statement.forms):
            curves = [trial.accuracies for trial in self.at_best(form).values()]
            errors = [1 - statistics.fmean(values) for values in zip(*curves, strict=False)]
            points = [Point(epoch, epoch, error) for epoch, error in enumerate(errors, start=1)]
            if points:
                lines.append(Line(form, f"c{place}", points))
        if not lines:
            return None
        return Chart("Training error", "error/top1", lines, epoch_axis(lines))
