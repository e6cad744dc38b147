"""What can be reproduced: experiments with a published figure, claims that compare two networks, and their cost."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexnet_exp.config.compose import compose, conf_dir, options, plain
from alexnet_exp.config.groups import Settings
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.settings import assigned

GROUPS = ("cifar10", "mnist", "claims", "all")
RATE = "optimizer.lr"
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

    @cached_property
    def run_settings(self) -> Settings:
        """`config` as an object."""
        return read(Settings, self.config)

    @property
    def published(self) -> list[dict[str, Any]]:
        """Published figures (metric, value, epoch, source); the first is the main one."""
        return self.run_settings.published or []

    @property
    def data(self) -> str:
        """The conf/data file of the experiment."""
        return data_of(self.name)

    @property
    def selection(self) -> tuple[str, ...]:
        """The override that selects its yaml."""
        return (f"experiment={self.name}",)

    def runs(self, seeds: int) -> int:
        """Return how many runs it takes."""
        return seeds

    def jobs(self, seeds: int, best: Mapping[str, str]) -> list[list[str]]:
        """Return the overrides of each run; only claims use `best`."""
        return [[*self.selection, *self.settings, f"seed={seed}"] for seed in range(seeds)]

    @cached_property
    def images(self) -> int | None:
        """Images seen in training, summed over epochs; None if the size of the data set is unknown."""
        data, trainer = self.run_settings.data, self.run_settings.trainer
        count = _IMAGES.get(data._target_.rpartition(".")[2], 0)
        if data.train_subset:
            count = min(count, data.train_subset)
        count -= data.val_size or 0
        batches, epochs = trainer.limit_train_batches, trainer.max_epochs
        count = min(count, batches * data.batch_size) if isinstance(batches, int) else int(batches * count)
        if count <= 0:
            return None
        return epochs * count if epochs and epochs > 0 else trainer.max_steps * data.batch_size

    @cached_property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass, per image."""
        import torch

        from alexnet_exp.models import layer_table
        from alexnet_exp.targets import build

        model = self.run_settings.model
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
    return Row(name, tuple(settings), composed([f"experiment={name}", *settings]))


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a run as plain values; a missing data.root becomes IMAGENET."""
    config = compose("train", list(overrides))
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
def _text(name: str, group: str = "experiment") -> str:
    return (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Statement:
    """What a paper states about two forms of a network.

    Args:
        text: The statement.
        source: Paper, with figure or section.
        here: What we compare.
        metric: Name of the comparison.
        value: The published factor (of epochs) or difference (of accuracies).
        forms: Names of the two forms, in the order of the sweep's values; the second is compared with the first.
        key: The swept setting that distinguishes them.
        threshold: Training accuracy; the epochs until it is reached are compared, as a factor. None: the test
            accuracies are compared, as a difference.
        cause: Why our value differs, once that is known.
    """

    text: str
    source: str
    here: str
    metric: str
    value: float
    forms: tuple[str, str]
    key: str
    threshold: float | None = None
    cause: str | None = None


def _fig1(here: str) -> Statement:
    return Statement(
        text="On CIFAR-10, a four-layer convolutional network with ReLU reaches 25 % training error six times faster "
        "than with tanh; learning rates chosen for each, no regularisation.",
        source="Krizhevsky et al. 2012, Fig. 1",
        here=f"{here} Epochs until the training error of an epoch, measured while it is trained, is 25 %, interpolated "
        "between epochs. Seed 0 tries every rate, the other seeds take the best.",
        metric="epochs, tanh / ReLU",
        value=6.0,
        forms=("ReLU", "tanh"),
        key="model.features.conv1.then",
        threshold=0.75,
    )


def _lrn_alone(key: str, here: str) -> Statement:
    return Statement(
        text="On CIFAR-10, a four-layer network has 13 % test error without response normalisation and 11 % with it.",
        source="Krizhevsky et al. 2012, section 3.3",
        here=here,
        metric="with LRN - without, test/top1",
        value=0.02,
        forms=("without LRN", "with LRN"),
        key=key,
    )


CLAIMS = {  # by the file of conf/sweep
    "fig1": _fig1(
        "Three convolutions (16, 16 and 32 maps) and a fully connected layer, standardised inputs, He initialisation, "
        "10,000 images; the paper names neither its network nor its rates."
    ),
    "fig1_19pct": _fig1(
        "cuda-convnet's 19 % network as it starts there: raw values, small Gaussian weights."
    ),
    "lrn_80sec": _lrn_alone(
        "model.lrn.alpha",
        "cuda-convnet's 80-second network: much smaller than the paper's, 10 epochs, no augmentation.",
    ),
    "lrn_13_11": _lrn_alone("model", "cuda-convnet's 13 % network, 160 epochs, with and without LRN."),
}


@dataclass(frozen=True)
class Claim(Row):
    """A claim about two forms of a network, checked by a sweep.

    If the sweep has several learning rates, seed 0 tries them all, and the other seeds take the best of each form.

    Args:
        name: File in conf/sweep.
        settings: Overrides on top of it.
        config: All settings of its first run.
    """

    @property
    def statement(self) -> Statement:
        return CLAIMS[self.name]

    @property
    def published(self) -> list[dict[str, Any]]:
        known = self.statement
        entry = {"metric": known.metric, "value": known.value, "epoch": "unstated", "source": known.source}
        return [entry | ({"cause": known.cause} if known.cause else {})]

    @property
    def data(self) -> str:
        found = re.search(r"override /data: (\w+)", _text(self.name, "sweep"))
        assert found
        return found[1]

    @property
    def selection(self) -> tuple[str, ...]:
        return (f"sweep={self.name}",)

    @cached_property
    def forms(self) -> dict[str, str]:
        """The value of the swept setting, as typed, by form."""
        return dict(zip(self.statement.forms, swept(self.name)[self.statement.key], strict=True))

    @property
    def rates(self) -> list[str]:
        """The learning rates to choose from; empty if both forms have the same one."""
        return swept(self.name).get(RATE, [])

    def of(self, form: str, rate: str) -> tuple[str, ...]:
        """Return the overrides of a form at a learning rate."""
        return (f"{self.statement.key}={self.forms[form]}", *([f"{RATE}={rate}"] if rate else []))

    def runs(self, seeds: int) -> int:
        return len(self.forms) * (len(self.rates) + seeds - 1 if self.rates else seeds)

    def jobs(self, seeds: int, best: Mapping[str, str]) -> list[list[str]]:
        """Return the overrides of the runs that come next.

        Args:
            seeds: Number of seeds.
            best: The best learning rate of each form; empty until seed 0 has tried them all.
        """
        if best:
            runs = [(form, rate, seed) for form, rate in best.items() for seed in range(1, seeds)]
        elif self.rates:
            runs = [(form, rate, 0) for rate in self.rates for form in self.forms]
        else:
            runs = [(form, "", seed) for form in self.forms for seed in range(seeds)]
        return [
            [*self.selection, *self.of(form, rate), *self.settings, f"seed={seed}"]
            for form, rate, seed in runs
        ]


def claim(name: str, settings: Sequence[str] = ()) -> Claim:
    """Compose the settings of a claim.

    Raises:
        UserError: For a setting that the claim sweeps over.
    """
    if own := next((key for key in assigned(settings) if key in swept(name)), None):
        raise UserError(f"{name} chooses {own} itself: leave it out.")
    bare = Claim(name, tuple(settings), {})
    first = bare.of(bare.statement.forms[0], bare.rates[0] if bare.rates else "")
    return Claim(name, tuple(settings), composed([*bare.selection, *first, *settings]))


@functools.cache
def swept(name: str) -> dict[str, list[str]]:
    """Return the values of each setting that a file of conf/sweep sweeps over, as typed."""
    params = compose("train", [f"sweep={name}"], with_hydra=True).hydra.sweeper.params
    words = [f"{key}={values}" for key, values in params.items()]
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.get_key_element(): list(override.sweep_string_iterator()) for override in parsed}


# ------------------------------------------------------------------------------------------------ choice and cost


def chosen(typed: Iterable[str], settings: Sequence[str] = ()) -> list[Row]:
    """Return the rows for names and groups, in order and without duplicates; claims are no part of `all`.

    Args:
        typed: Names and groups.
        settings: Overrides for each.

    Raises:
        UserError: For an unknown name, or an experiment without a published figure.
    """
    known, found = names(), dict[str, Row]()
    for word in map(str, typed):
        if word in CLAIMS or word == "claims":
            wanted_claims = CLAIMS if word == "claims" else (word,)
            found |= {name: claim(name, settings) for name in wanted_claims if name not in found}
        elif word in GROUPS:
            wanted = GROUPS if word == "all" else (word,)
            of_group = [name for name in known if data_of(name) in wanted and name not in found]
            found |= {name: row(name, settings) for name in of_group}
        elif word in known:
            found.setdefault(word, row(word, settings))
        elif word in options("experiment"):
            raise UserError(f"experiment={word} has no published figure to reproduce: use alexnet-exp train.")
        else:
            near = nearest(word, [*known, *CLAIMS, *GROUPS])
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

    model_config, batch = row.run_settings.model, row.run_settings.data.batch_size
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
