"""A run in words: what was trained on what, and how good it is; for report.html and the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.html import metric_text, percent
from alexnet_exp.settings import flat
from alexnet_exp.tracking.metrics import wilson
from alexnet_exp.tracking.run_reader import num_images, numeric

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_MAX_NAMED = 4  # classes listed by name
_METRICS = {"val/top1": "validation accuracy", "val/loss": "validation loss"}


def title(result: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Return 'alexnet_cifar trained on digits'; None if the run does not record it.

    Args:
        result: Content of result.json.
        settings: Content of config.yaml.
    """
    if "split" in result:  # an evaluation
        data, split = str(result.get("data", "")).rpartition(" ")[0], str(result["split"])
        return f"Evaluation on the {SPLITS.get(split, split)} images of {data}" if data else None
    chosen = settings.get("choices") or {}
    if not ("model" in chosen and "data" in chosen):
        return None
    data = str(chosen["data"])
    if data == "streaming":
        data = f"the chunks {os.path.basename(str(settings['data'].get('url')).rstrip('/'))}"
    if data == "folder":
        data = f"the folder {os.path.basename(os.path.abspath(str(settings['data'].get('root'))))}"
    trained = "trained" if settings.get("weights") in (None, "none") else "fine-tuned"
    return f"{chosen['model']} {trained} on {data}"


def images(result: Mapping[str, Any]) -> str | None:
    """Return '32 training and 8 validation images of 2 classes: cat, dog'; None for an evaluation or an older run."""
    splits = result.get("splits")
    if not splits:
        return None
    counts = [f"{found['images']:,} {SPLITS.get(split, split)}" for split, found in splits.items()]
    counted = " and ".join(filter(None, [", ".join(counts[:-1]), counts[-1]]))
    classes, num_classes = result.get("classes") or [], next(iter(splits.values()))["classes"]
    # A network may have outputs that no image uses, so `classes` may be longer.
    named = f": {', '.join(map(str, classes))}" if num_classes == len(classes) <= _MAX_NAMED else ""
    return f"{counted} images of {num_classes:,} classes{named}"


@dataclass(frozen=True)
class Accuracy:
    """The accuracy that a run is judged by.

    Args:
        split: Split that it was measured on.
        share: Fraction of correctly classified images.
        total: Number of images; None in older runs, which do not record it.
        weights: 'epoch 23 of 30, the best by validation loss'; empty if unknown.
        caveat: What to keep in mind about these images; may be empty.
    """

    split: str
    share: float
    total: int | None
    weights: str
    caveat: str

    @property
    def interval(self) -> str:
        """Its 95 % interval, as '96.8 to 99.4 %'; empty if the number of images is unknown."""
        if not self.total:
            return ""
        low, high = wilson(self.share, self.total)
        return f"{100 * low:.1f} to {percent(high, 1)}"

    @property
    def counted(self) -> str:
        """What it was measured on, as '355 test images'."""
        count = f"{self.total:,}" if self.total else "the"
        return f"{count} {SPLITS.get(self.split, self.split)} image{'' if self.total == 1 else 's'}"

    @property
    def line(self) -> str:
        """All of it in one line, for the terminal."""
        interval = f" (95 % interval {self.interval})" if self.interval else ""
        weights = f"; weights of {self.weights}" if self.weights else ""
        caveat = f". {self.caveat}" if self.caveat else ""
        text = f"{percent(self.share)} of {self.counted}{interval}{weights}{caveat}"
        return text.replace("\N{NO-BREAK SPACE}", " ")


def accuracy(
    result: Mapping[str, Any], settings: Mapping[str, Any], evaluation: Evaluation | None = None
) -> Accuracy | None:
    """Return the accuracy on the test images, or else on the validation images; None if neither was measured.

    Args:
        result: Content of result.json.
        settings: Content of config.yaml.
        evaluation: Outcome on one split, if it was evaluated after training.
    """
    metrics = result.get("metrics") or {}
    best = dict(result.get("best") or {}) if settings.get("test_weights", "best") == "best" else {}
    share: float | None
    total: int | None
    if evaluation is not None:
        if not evaluation.total:
            return None
        split, total = evaluation.split, evaluation.total
        share = evaluation.correct / evaluation.total
    else:
        split = str(result.get("split") or ("test" if "test/top1" in metrics else "val"))
        share, total = numeric(metrics.get(f"{split}/top1")), num_images(flat(settings), result, split)
        if split == "val" and best.get("metric") == "val/top1":
            share = numeric(best.get("value"))
        elif split == "val":
            best = {}  # the metrics are those of the last epoch
    if share is None:
        return None
    weights = "" if "split" in result else _weights(result, best, settings.get("trainer") or {}, split)
    caveat = ""
    if split == "val" and str(best.get("metric")).startswith("val/"):
        why = "" if "test" in (result.get("images") or {}) else "There are no test images. "
        caveat = f"{why}These images also chose the epoch: expect less on new ones."
    return Accuracy(split, share, total, weights, caveat)


def _weights(
    result: Mapping[str, Any], best: Mapping[str, Any], trainer: Mapping[str, Any], split: str
) -> str:
    """Return which weights were evaluated, in words; empty if unknown."""
    epochs = numeric(result.get("epochs"))
    # Complete epochs do not tell where these stop or validate inside of one.
    ends_inside = trainer.get("max_steps", -1) != -1 or trainer.get("max_time") is not None
    if not best:
        if epochs is None:
            return ""
        inside = not epochs or ends_inside
        return (
            f"step {result['steps']}, the last"
            if inside and "steps" in result
            else f"epoch {epochs}, the last"
        )
    inside = not best.get("epoch") or ends_inside or trainer.get("val_check_interval", 1.0) != 1.0
    of = f" of {epochs}" if epochs else ""
    when = f"step {best['step']}" if inside and "step" in best else f"epoch {best.get('epoch')}{of}"
    metric, value = str(best.get("metric")), numeric(best.get("value"))
    # The accuracy on the validation images would repeat the figure itself.
    figure = "" if value is None or metric == f"{split}/top1" else f" ({metric_text(metric, value)})"
    return f"{when}, the best by {_METRICS.get(metric, metric)}{figure}"
