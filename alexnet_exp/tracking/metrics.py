"""The metrics of a run: their names, what reports call them, and which way is better.

`training/metrics.py` computes them, `report/charts.py` says which are drawn together; everything else asks this table.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Metric(NamedTuple):
    """One metric, logged as `SPLIT/NAME`.

    Args:
        name: Without the split.
        label: What reports call it.
        splits: Splits it is computed for while a run trains; none: only `evaluate` does.
        share: Whether it is a fraction, to be shown as a percentage.
    """

    name: str
    label: str
    splits: tuple[str, ...] = ("val", "train", "test")
    share: bool = True


# In the order in which reports list them.
METRICS = (
    Metric("top1", "top-1"),
    Metric("top5", "top-5"),
    Metric("balanced_accuracy", "balanced accuracy", ("val", "test")),
    Metric("macro_f1", "macro F1", ("val", "test")),
    Metric("loss", "loss", share=False),
    Metric("ece", "calibration error", (), share=False),
)
_QUANTILE = 1.959964  # 97.5 % of the normal distribution lie below
# Also of anything else that runs can be ranked by: an experiment's own metric, or the time that they took.
_LOWER_IS_BETTER = ("loss", "error", "seconds")


def monitored() -> list[str]:
    """Return the metrics that a run can monitor, 'val/top1' first."""
    return [f"{split}/{each.name}" for split in ("val", "train") for each in METRICS if split in each.splits]


def name_of(metric: str) -> str:
    """Return 'top1' for 'val/top1'."""
    return metric.rpartition("/")[2]


def is_share(metric: str | None) -> bool:
    """Return whether a metric is a fraction, to be shown as a percentage."""
    return any(each.share for each in METRICS if each.name == name_of(str(metric)))


def lower_is_better(metric: str) -> bool:
    return name_of(metric).endswith(_LOWER_IS_BETTER)


def wilson(share: float, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a fraction.

    It only covers the choice of images, not that of the seed.

    Args:
        share: Fraction in [0, 1].
        total: Number of images, 1 or more.

    Source: Wilson 1927; recommended for small samples by Brown, Cai and DasGupta 2001, Statistical Science 16(2)
    """
    spread = _QUANTILE**2 / total
    centre, half = share + spread / 2, math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
