"""Measured results: finished runs of an experiment, pooled over seeds, and the verdict on a published figure."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_exp.config.groups import RETIRED
from alexnet_exp.report.html import duration, points, quantity
from alexnet_exp.runs.compare.groups import SINCE, Group
from alexnet_exp.runs.compare.table import plain as as_typed
from alexnet_exp.runs.reproduce.rows import composed
from alexnet_exp.settings import flat, key_of
from alexnet_exp.tracking.metrics import is_share
from alexnet_exp.tracking.run_reader import Run

POINT = 0.01
# Settings that affect the result, by prefix; _APART lists the exceptions.
_DECIDING = (
    "model.", "data.", "augment.", "optimizer.", "scheduler.", "label_smoothing", "freeze", "weights", "ckpt",
    "test_weights", "trainer.max_", "trainer.limit_", "trainer.overfit_batches", "trainer.fast_dev_run",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip", "callbacks.ema.", "callbacks.early_stopping.",
)  # fmt: skip
_APART = {
    "data.data_dir", "data.root", "data.download", "data.num_workers", "data.cache", "data.cache_dir", "data.resident",
    "data.verify", "data.follow_links", "model.num_classes", "model.in_channels", *RETIRED,
}  # fmt: skip
_OWN_KEYS = ("experiment", "sweep", "seed", "resume", "hydra.run.dir")


@dataclass(frozen=True)
class Evidence:
    """One finished run.

    Args:
        result: Its result.json.
        differs: Settings that differ from the current experiment, as typed.
    """

    result: dict[str, Any]
    differs: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def commit(self) -> str:
        """Short hash, with a plus if files were modified; the release if there was no checkout."""
        git = self.result.get("git") or {}
        if not git.get("commit"):
            return f"release {(self.result.get('versions') or {}).get('alexnet_exp', '?')}"
        return str(git["commit"])[:7] + ("+" if git.get("dirty") else "")

    @property
    def images(self) -> int:
        return int(self.result.get("epochs", 0)) * int((self.result.get("images") or {}).get("train", 0))

    @property
    def seconds(self) -> float:
        """Duration of the whole run. A resumed run only times its last part, so at least what its images took."""
        rate = self.result.get("images_per_second") or 0.0
        return max(float(self.result.get("seconds", 0.0)), self.images / rate if rate else 0.0)

    @property
    def machine(self) -> str:
        found = self.result.get("hardware") or {}
        if found.get("gpus"):
            return f"{self.result.get('devices', 1)} x {found['gpus'][0]}"
        processor = str(found.get("processor", "unknown processor")).replace("(R)", "")
        threads = found.get("threads") or found.get("cores") or 1
        return f"{threads} thread{'s' if threads != 1 else ''} of {processor}"

    @property
    def software(self) -> str:
        return f"torch {(self.result.get('versions') or {}).get('torch', '?')}, {self.result.get('precision', '?')}"


@dataclass
class Figure:
    """A published figure and its reproduction.

    Args:
        name: Name of the experiment.
        entry: The published figure: metric, value, epoch, source.
        runs: Finished runs of one configuration, one per seed.
        differs: Settings that differ from the published ones.
        problems: Errors of the seeds that have failed.
    """

    name: str
    entry: dict[str, Any]
    runs: list[Evidence]
    differs: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def ours(self) -> Group:
        """The measured values, with mean, sd and interval."""
        found = [run.result.get("metrics", {}).get(self.entry["metric"]) for run in self.runs]
        return Group([], self.entry["metric"], [value for value in found if value is not None], [])

    @property
    def is_share(self) -> bool:
        """Whether the figure is a fraction, so that differences are percentage points."""
        return is_share(self.entry["metric"])

    @property
    def difference(self) -> float | None:
        return None if self.ours.mean is None else self.ours.mean - self.entry["value"]

    @property
    def verdict(self) -> str:
        """'within 1 point', 'within interval', 'missed: WHY', or 'not yet measured'."""
        ours, difference = self.ours, self.difference
        if difference is None:
            return "not yet measured"
        if self.differs:
            return f"missed: settings differ from the published ones: {_few(self.differs)}"
        # In floats 0.89 - 0.88 is a little more than a point.
        if self.is_share and abs(difference) <= POINT + 1e-9:
            return "within 1 point"
        if ours.interval is not None and ours.interval[0] <= self.entry["value"] <= ours.interval[1]:
            return "within interval"
        unit = " points" if self.is_share else ""
        return f"missed: {self.difference_text}{unit}; {self.entry.get('cause') or 'cause not known yet'}"

    @property
    def difference_text(self) -> str:
        """The difference in percentage points, or as a number if the figure is not a fraction."""
        difference = self.difference
        if difference is None:
            return "–"
        return points(difference) if self.is_share else f"{difference:+.2f}"

    @property
    def machines(self) -> str:
        return ", ".join(dict.fromkeys(run.machine for run in self.runs))

    @property
    def cost(self) -> str:
        """The mean cost of a run: images, time, hardware."""
        if not self.runs:
            return ""
        seconds = sum(run.seconds for run in self.runs) / len(self.runs)
        return f"{quantity(self.runs[0].images)} images, {duration(seconds)} on {self.machines}"

    @property
    def notes(self) -> list[str]:
        """Caveats on the mean."""
        return [
            *self._mixed("commits", "commit"),
            *self._mixed("software versions or precisions", "software"),
            *self.problems,
        ]

    def _mixed(self, what: str, key: str) -> Iterator[str]:
        seeds: dict[str, list[str]] = {}
        for run in self.runs:
            seeds.setdefault(getattr(run, key), []).append(str(run.seed))
        if len(seeds) > 1:
            yield f"seeds of {len(seeds)} {what}: " + "; ".join(
                f"{k} ({', '.join(dict.fromkeys(v))})" for k, v in seeds.items()
            )


def _few(settings: Sequence[str]) -> str:
    more = len(settings) - 3
    return " ".join(settings[:3]) + (f" and {more} more" if more > 0 else "")


def figures(
    name: str, published: Sequence[dict[str, Any]], found: Iterable[Evidence], problems: Sequence[str] = ()
) -> list[Figure]:
    """Return one figure per published figure and configuration that was run.

    Args:
        name: Name of the experiment.
        published: Its published figures.
        found: Finished runs; of several with the same seed, the last counts.
        problems: Errors of the seeds that have failed.
    """
    by_settings: dict[tuple[str, ...], dict[int, Evidence]] = {}
    for run in found:
        by_settings.setdefault(run.differs, {})[run.seed] = run
    # The published settings, without differences, come first: what has failed is listed with them, once.
    ordered = sorted(by_settings.items(), key=lambda item: len(item[0])) or [((), {})]
    return [
        Figure(name, entry, [runs[seed] for seed in sorted(runs)], differs, list(problems) if not i else [])
        for i, (differs, runs) in enumerate(ordered)
        for entry in published
    ]


def of_run(run: Run, name: str) -> Evidence | None:
    """Return the evidence of a run directory; None if the run has not finished."""
    if run.status != "finished":
        return None
    return Evidence(run.result, differing(run, (f"experiment={name}",)))


def of_records(folder: Path) -> list[Evidence]:
    """Read the records of an experiment: FOLDER/seed-N/result.json, as `record` writes them."""
    files = sorted(folder.glob("seed-*/result.json"))
    return [Evidence(json.loads(file.read_text(encoding="utf-8"))) for file in files]


@functools.lru_cache(maxsize=256)
def _expected(overrides: tuple[str, ...]) -> dict[str, Any]:
    return flat(composed(overrides))


def differing(run: Run, published: tuple[str, ...]) -> tuple[str, ...]:
    """Return the settings in which a run differs from the published ones, in the form they were typed if possible.

    What is published as `auto` differs only if another value was typed: a run records what was chosen for it.

    Args:
        run: A run of any version; settings added since then count as their defaults.
        published: The overrides that give the published settings: experiment=NAME.
    """
    wanted = _expected(published)
    decides = [k for k in {**run.config, **wanted} if k.startswith(_DECIDING) and not _is_apart(k)]
    typed = [o for o in run.overrides if o.partition("=")[0].lstrip("+") not in _OWN_KEYS]
    by_hand = {key_of(o) for o in typed if o.partition("=")[2] != "auto"}
    absent = object()
    changed = [
        key
        for key in decides
        if _same_class(run.config.get(key, SINCE.get(key, absent))) != _same_class(wanted.get(key, absent))
        and (wanted.get(key) != "auto" or key in by_hand)
    ]
    if not changed:
        return ()
    deciding = [o for o in typed if _decides(o) and o not in published]
    return tuple(deciding or (f"{key}={as_typed(run.config.get(key))}" for key in changed))


def _is_apart(key: str) -> bool:
    return key in _APART or key.endswith(".compiled")


def _decides(override: str) -> bool:
    """Return whether an override can affect the result: a setting that does, or a choice of such a group."""
    key = override.partition("=")[0].lstrip("+~")
    return f"{key}.".startswith(_DECIDING) and not _is_apart(key)


def apart(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split overrides into those that affect the result and the others."""
    deciding, others = list[str](), list[str]()
    for override in overrides:
        (deciding if _decides(override) else others).append(override)
    return deciding, others


def _same_class(value: Any) -> Any:
    """Strip the module from a class path, because modules have moved between versions."""
    is_target = isinstance(value, str) and value.startswith("alexnet_exp.")
    return value.rpartition(".")[2] if is_target else value
