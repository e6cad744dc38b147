"""Groups of runs that differ only in seed or fold, with mean, sd and 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from alexnet_exp.config.groups import ADDED
from alexnet_exp.runs.compare.folds import OutOfFold, out_of_fold
from alexnet_exp.tracking.metrics import is_share, lower_is_better
from alexnet_exp.tracking.run_reader import Run, Score

# Runs that differ only in these repeat one configuration.
REPEATS = ("seed", "data.fold")
# What runs did before these settings existed: a run without the key is the same as one with this value.
SINCE = {
    **ADDED, "data.balanced": False, "data.folds": None, "data.fold": 0, "data.groups": None, "data.fit": "crop",
    "optimizer.layer_decay": None, "optimizer.norm_weight_decay": None,
}  # fmt: skip
_GONE = object()
# Settings that do not define a configuration: these, file locations, and everything that only observes a run.
_IGNORED = (
    *REPEATS, "resume", "trust", "published", "choices.", "paths.", "logger", "logger.", "callbacks.progress_bar.",
    "callbacks.model_summary.", "data.data_dir", "data.download", "data.cache", "data.cache_dir", "data.resident",
)  # fmt: skip


MAX_SETTINGS = 6  # per row; with more, values that most runs share are listed once below the table


@dataclass
class Group:
    """Runs of one configuration.

    Args:
        runs: All of them, finished or not.
        metric: Metric of the values; None if no run has one.
        values: One per finished seed and fold.
        counted: The runs that the values come from.
    """

    runs: list[Run]
    metric: str | None
    values: list[float]
    counted: list[Run]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def seeds(self) -> int:
        """Number of seeds and folds, finished or not."""
        return len({_repeat(run) for run in self.runs})

    @cached_property
    def out_of_fold(self) -> list[OutOfFold]:
        """Pooled predictions of the folds, per seed."""
        return out_of_fold(self.runs)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1); None for one value."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean (t distribution), within [0, 1] for a fraction; None for one value."""
        if self.mean is None or self.sd is None:
            return None
        half = t_quantile(self.n - 1) * self.sd / math.sqrt(self.n)
        low, high = self.mean - half, self.mean + half
        return (max(0.0, low), min(1.0, high)) if is_share(self.metric) else (low, high)

    @property
    def published(self) -> list[dict[str, Any]]:
        """Published values of its metric, from conf/experiment; empty without a mean to compare with."""
        entries = self.runs[0].published if self.mean is not None else []
        return [entry for entry in entries if entry.get("metric") == self.metric]


@dataclass
class Comparison:
    """Everything that is shown: runs in table order, groups with the best mean first.

    Args:
        runs: With `differs` filled in.
        metric: The requested metric; runs without it are scored by its validation counterpart.
        keys: Settings that differ.
        where: The filter, for the record.
    """

    runs: list[Run]
    metric: str
    keys: list[str]
    where: str | None = None

    def __post_init__(self) -> None:
        self.scores = {run.path: run.score(self.metric) for run in self.runs}
        self.groups = group_runs(self.runs, self.metric)
        self.best = self._best(list(self.scores.values()))
        means = [Score(g.mean, str(g.metric)) for g in self.groups if g.mean is not None]
        self.best_mean = self._best(means)
        self.usual = self._usual_settings()

    @property
    def with_seeds(self) -> bool:
        """Whether some configuration was run more than once."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def repeats(self) -> str:
        """What varies within a configuration: seeds, folds, or both."""
        many = {
            k for g in self.groups for i, k in enumerate(REPEATS) if len({_repeat(r)[i] for r in g.runs}) > 1
        }
        return {("data.fold",): "folds", REPEATS: "seeds and folds"}.get(
            tuple(k for k in REPEATS if k in many), "seeds"
        )

    @cached_property
    def shown(self) -> str:
        """The metric that heads the tables: that of all values if they share one, else the requested one."""
        metrics = {score.metric for score in self.scores.values() if score is not None}
        return metrics.pop() if len(metrics) == 1 else self.metric

    @property
    def stand_ins(self) -> int:
        """Number of values of another metric than the one that heads the tables."""
        return sum(score is not None and score.metric != self.shown for score in self.scores.values())

    @cached_property
    def images(self) -> dict[Path, int | None]:
        """The number of images that each run's value is measured on; None where it is unknown."""
        return {
            run.path: None if (score := self.scores[run.path]) is None else run.num_images(score.metric)
            for run in self.runs
        }

    @property
    def images_of_all(self) -> int | None:
        """The number of images that every value is measured on; None if they differ, or one is unknown."""
        counts = {self.images[path] for path, score in self.scores.items() if score is not None}
        return counts.pop() if len(counts) == 1 and not self.stand_ins else None

    @property
    def with_images(self) -> bool:
        """Whether the table has a column of the numbers of images: some are known, and not one for all."""
        return self.images_of_all is None and any(count is not None for count in self.images.values())

    def _best(self, scores: Sequence[Score | None]) -> Score | None:
        """Return the best score of the requested metric; of any other only if no run has it."""
        found = [score for score in scores if score is not None]
        same = [score for score in found if score.metric == self.metric] or found
        choose = min if lower_is_better(self.metric) else max
        return choose(same, key=lambda score: score.value, default=None)

    def is_best(self, group: Group) -> bool:
        return group.mean is not None and Score(group.mean, str(group.metric)) == self.best_mean

    def _usual_settings(self) -> dict[str, Any]:
        """Return the most frequent value of each key, if there are too many keys to repeat in every row."""
        found = {}
        for key in self.keys if len(self.keys) > MAX_SETTINGS else []:
            values = [repr(run.differs[key]) if key in run.differs else None for run in self.runs]
            mode = Counter(values).most_common(1)[0][0]
            if mode is not None:
                found[key] = self.runs[values.index(mode)].differs[key]
        return found

    def row_settings(self, run: Run) -> dict[str, Any]:
        """Return the settings to show in a run's row: those that differ, except usual values."""
        return {
            key: value
            for key, value in run.differs.items()
            if not (key in self.usual and repr(self.usual[key]) == repr(value))
        }

    def group_settings(self, group: Group) -> dict[str, Any]:
        """Return the settings that distinguish a group from the others."""
        return {key: value for key, value in self.row_settings(group.runs[0]).items() if key not in REPEATS}


def group_runs(runs: Sequence[Run], metric: str) -> list[Group]:
    """Group runs whose settings differ only in seed and fold; best mean first.

    All values of a group are of one metric: the requested one if any of its finished runs has it. Several finished
    runs of one seed and fold are repetitions, not samples: only the last counts.
    """
    by_settings: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        by_settings.setdefault(_signature(run), []).append(run)
    groups = [_group(members, metric) for members in by_settings.values()]
    sign = 1 if lower_is_better(metric) else -1
    return sorted(groups, key=lambda g: (g.metric != metric, g.mean is None, sign * (g.mean or 0.0)))


def _signature(run: Run) -> tuple[tuple[str, str], ...]:
    own = {key: value for key, value in run.config.items() if SINCE.get(key, _GONE) != value}
    return tuple(sorted((key, repr(value)) for key, value in own.items() if not is_ignored(key)))


def is_ignored(key: str) -> bool:
    """Return whether a setting may differ between runs of one configuration."""
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in _IGNORED)


def _group(runs: list[Run], metric: str) -> Group:
    last = {_repeat(run): run for run in runs if run.status == "finished"}
    found = [(run, score) for run in last.values() if (score := run.score(metric)) is not None]
    metrics = [score.metric for _, score in found]
    used = metric if metric in metrics else next(iter(metrics), None)
    counted = [(run, score.value) for run, score in found if score.metric == used]
    return Group(runs, used, [value for _, value in counted], [run for run, _ in counted])


def _repeat(run: Run) -> tuple[str, ...]:
    return tuple(str(run.config.get(key, SINCE.get(key))) for key in REPEATS)


@lru_cache
def t_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Return t such that a t-distributed variable lies in [-t, t] with this probability.

    Args:
        freedom: Degrees of freedom, 1 or more.
        confidence: In (0, 1).
    """
    low, high = 0.0, math.pi / 2  # bisect the angle atan(t / sqrt(freedom)): t itself is unbounded
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _share_within(middle, freedom) > confidence else (middle, high)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """Return P(|T| <= t) for t = sqrt(freedom) tan(angle).

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
