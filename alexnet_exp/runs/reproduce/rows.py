"""Reproducible results: every experiment with a published figure, and the cost of a run."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from alexnet_exp.config.compose import compose, conf_dir, options, plain
from alexnet_exp.errors import UserError, nearest

GROUPS = ("cifar10", "mnist", "all")
_IMAGES = {"CIFAR10": 50_000, "MNIST": 60_000, "ImageNet": 1_281_167}  # training images, by data class
_MEASURED_FLOP = 2e10  # upper limit for a timed step on CPU


@dataclass(frozen=True)
class Row:
    """A published result.

    Args:
        name: Name of the experiment.
        settings: Overrides on top of it; empty as published.
        config: All settings as plain values.
    """

    name: str
    settings: tuple[str, ...]
    config: dict[str, Any]

    @property
    def published(self) -> list[dict[str, Any]]:
        """Published figures (metric, value, epoch, source); the first is the main one."""
        return self.config["published"]

    @property
    def data(self) -> str:
        """The conf/data file of the experiment."""
        return data_of(self.name)

    @cached_property
    def images(self) -> int | None:
        """Images seen in training, summed over epochs; None if the size of the data set is unknown."""
        data, trainer = self.config["data"], self.config["trainer"]
        count = _IMAGES.get(data["_target_"].rpartition(".")[2], 0)
        if data.get("train_subset"):
            count = min(count, data["train_subset"])
        count -= data.get("val_size") or 0
        batches, epochs = trainer["limit_train_batches"], trainer["max_epochs"]
        count = min(count, batches * data["batch_size"]) if isinstance(batches, int) else int(batches * count)
        if count <= 0:
            return None
        return epochs * count if epochs and epochs > 0 else trainer["max_steps"] * data["batch_size"]

    @cached_property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass, per image."""
        import torch

        from alexnet_exp.models import layer_table
        from alexnet_exp.targets import build

        model = self.config["model"]
        with torch.device("meta"):  # shapes only
            network = build(model)
        shape = (model["in_channels"], model["input_size"], model["input_size"])
        return sum(row.multiply_adds for row in layer_table(network, shape))

    @property
    def flop(self) -> float | None:
        """Training FLOP of a run: two per multiply-add; backward counts as two forward passes."""
        return None if self.images is None else 6.0 * self.multiply_adds * self.images


def row(name: str, settings: Sequence[str] = ()) -> Row:
    """Compose the settings of a published result."""
    return Row(name, tuple(settings), composed(name, settings))


def composed(name: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of an experiment as plain values; a missing data.root becomes IMAGENET."""
    config = compose("train", [f"experiment={name}", *settings])
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = "IMAGENET"
    settled: dict[str, Any] = plain(config)
    return settled


def names() -> list[str]:
    """List the experiments with a published figure."""
    return [name for name in options("experiment") if re.search(r"(?m)^published:\s*$", _text(name))]


def data_of(name: str) -> str:
    """Return the conf/data file that an experiment or its parent selects.

    Parsed from the text, because composing all experiments takes seconds.
    """
    if found := re.search(r"override /data: (\w+)", _text(name)):
        return found[1]
    parent = re.search(r"^  - (\w+)$", _text(name), re.MULTILINE)
    return data_of(parent[1]) if parent else "digits"


@functools.cache
def _text(name: str) -> str:
    return (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")


def chosen(typed: Iterable[str], settings: Sequence[str] = ()) -> list[Row]:
    """Return the rows for names and groups, in order and without duplicates.

    Args:
        typed: Names and groups.
        settings: Overrides for each.

    Raises:
        UserError: For an unknown name, or an experiment without a published figure.
    """
    known, found = names(), dict[str, Row]()
    for word in map(str, typed):
        if word in GROUPS:
            wanted = GROUPS if word == "all" else (word,)
            of_group = [name for name in known if data_of(name) in wanted and name not in found]
            found |= {name: row(name, settings) for name in of_group}
        elif word in known:
            found.setdefault(word, row(word, settings))
        elif word in options("experiment"):
            raise UserError(f"experiment={word} has no published figure to reproduce: use alexnet-exp train.")
        else:
            near = nearest(word, [*known, *GROUPS])
            raise UserError(f"Unknown published result {word!r}.{near} alexnet-exp reproduce list shows all.")
    return list(found.values())


def measured_rates(rows: Sequence[Row], seconds: float = 10.0) -> dict[str, float]:
    """Measure training images per second of each network on this machine, without data loading and metrics.

    Args:
        rows: Each is timed on random float32 images.
        seconds: Total time limit; rows beyond it are estimated from the FLOP rate of the others.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates: dict[str, float] = {}
    deadline = time.monotonic() + seconds
    for number, each in enumerate(rows):
        left = deadline - time.monotonic()
        if left > 0:
            rates[each.name] = _rate(each, device, left / (len(rows) - number))
    if rates:
        flops = [6.0 * each.multiply_adds * rates[each.name] for each in rows if each.name in rates]
        mean = sum(flops) / len(flops)
        rates |= {r.name: mean / (6.0 * r.multiply_adds) for r in rows if r.name not in rates}
    return rates


def _rate(row: Row, device: str, seconds: float) -> float:
    """Time training steps for `seconds`; the first one only counts if there is no time for a second."""
    import torch
    from torch.nn import functional

    from alexnet_exp.targets import build

    model_config, batch = row.config["model"], row.config["data"]["batch_size"]
    if device == "cpu":  # one step of a large network would take seconds
        batch = max(1, min(batch, int(_MEASURED_FLOP / (6.0 * row.multiply_adds))))
    end = time.monotonic() + seconds
    with torch.random.fork_rng():
        model = build(model_config).to(device).train()
        size = model_config["input_size"]
        images = torch.rand(batch, model_config["in_channels"], size, size, device=device)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        durations: list[float] = []
        while len(durations) < 2 or time.monotonic() < end:
            start = time.monotonic()
            functional.cross_entropy(model(images), labels).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            durations.append(time.monotonic() - start)
            if len(durations) == 1 and time.monotonic() + durations[0] > end:
                break
    timed = durations[1:] or durations
    return batch * len(timed) / sum(timed)


_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def seconds_of(budget: Any) -> float:
    """Parse a duration such as 90min or 2h.

    Raises:
        UserError: If it is not one.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", str(budget).strip())
    if not found or found[2] not in _UNITS:
        raise UserError(f"invalid budget={budget}: expected a number and a unit, such as 90min or 2h.")
    return float(found[1]) * _UNITS[found[2]]
