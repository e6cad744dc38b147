"""Learning rate schedules from conf/scheduler.

All but plateau are pure functions of the step or the epoch, so a run that is resumed for more epochs, or that starts
from another run's checkpoint, follows the rates of its own settings. None of them touches momentum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from alexnet_exp.errors import UserError
from alexnet_exp.training.optim.auto import WARM_UP

_OVER_THE_RUN = ("cosine", "onecycle", "poly", "dexp")


@dataclass
class RunLength:
    """Length of a run in optimizer steps: in total (inf if only max_time ends it), and per epoch."""

    total_steps: float
    steps_per_epoch: int


def build_schedule(
    optimizer: Optimizer, config: Mapping[str, Any], length: RunLength
) -> dict[str, Any] | None:
    """Build Lightning's scheduler dictionary.

    Args:
        optimizer: Its parameter groups keep the ratios of their rates, except under dexp and table.
        config: Keys of conf/scheduler; `name` selects the schedule.
        length: Length of the run, from the trainer.

    Returns:
        The dictionary that `configure_optimizers` returns under 'lr_scheduler'; None for a constant rate.

    Raises:
        UserError: For an unknown name, a schedule over the whole run if its length is unknown, or a change of rates
            that needs a separate parameter group.
    """
    options = dict(config)
    name = options.pop("name", "none")
    if name in _OVER_THE_RUN and math.isinf(length.total_steps):
        raise UserError(
            f"scheduler={name} needs the length of the run: set trainer.max_epochs=N or trainer.max_steps=N."
        )
    if name == "none":
        return None
    if name == "step":
        return _by_epoch(LambdaLR(optimizer, _step(**options)))
    if name == "multistep":
        return _by_epoch(LambdaLR(optimizer, _multistep(**options)))
    if name == "plateau":
        monitor = options.pop("monitor")
        for group in optimizer.param_groups:
            # LambdaLR sets it, ReduceLROnPlateau does not; `Kept` compares it.
            group["initial_lr"] = group["lr"]
        # Lightning would step it after the epoch's checkpoint is written, and a resumed run would miss that step. So
        # the classifier steps it before the checkpoint, and this frequency keeps Lightning from doing so again.
        return {**_by_epoch(ReduceLROnPlateau(optimizer, **options)), "monitor": monitor, "frequency": 2**31}
    if name == "cosine":
        return _by_step(LambdaLR(optimizer, _cosine(length, **options)))
    if name == "onecycle":
        return _by_step(LambdaLR(optimizer, _onecycle(length, **options)))
    if name == "poly":
        return _by_step(LambdaLR(optimizer, _poly(length, **options)))
    if name == "dexp":
        for key in ("bias_factor", "bias_steps"):
            if options[key] is not None:
                _check_biases(optimizer, key)
        # One function per group, since biases may decay on their own.
        return _by_step(LambdaLR(optimizer, [_dexp(g, length, options) for g in optimizer.param_groups]))
    if name == "table":
        _check_changes(optimizer, options["changes"])
        return _by_epoch(LambdaLR(optimizer, [_table(g, options["changes"]) for g in optimizer.param_groups]))
    raise UserError(
        f"invalid scheduler.name={name!r}: "
        "expected none, step, multistep, plateau, cosine, onecycle, poly, dexp or table."
    )


def warm_up_steps(config: Mapping[str, Any], length: RunLength) -> int:
    """Return after how many optimizer steps the rate of a schedule has stopped rising; 0 without warm-up.

    Args:
        config: See `build_schedule`.
        length: See `build_schedule`.
    """
    if config.get("name") == "onecycle":
        return round(config["pct_start"] * length.total_steps)
    epochs = config.get("warmup_epochs")
    return _warm_up(length, epochs) if epochs else 0


def _by_epoch(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "epoch", "name": "lr"}


def _by_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "name": "lr"}


def _step(every_epochs: int, gamma: float) -> Callable[[int], float]:
    return lambda epoch: gamma ** (epoch // every_epochs)


def _multistep(epochs: Sequence[int], gamma: float) -> Callable[[int], float]:
    return lambda epoch: gamma ** sum(start <= epoch for start in epochs)


def _onecycle(
    length: RunLength, pct_start: float, div_factor: float, final_div_factor: float
) -> Callable[[int], float]:
    """Rise from 1 / div_factor to 1, then fall to 1 / (div_factor * final_div_factor), each along half a cosine.

    Source: torch.optim.lr_scheduler.OneCycleLR, same rates, without its momentum cycle.
    """
    last = length.total_steps - 1
    top = min(max(pct_start * length.total_steps - 1, 0.0), last)  # step of the peak, as torch counts
    start, end = 1.0 / div_factor, 1.0 / (div_factor * final_div_factor)

    def factor(step: int) -> float:
        if step < top:
            return _half_cosine(start, 1.0, step / top)
        return _half_cosine(1.0, end, min((step - top) / max(last - top, 1.0), 1.0))  # 1.0: no division by 0

    return factor


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _warm_up(length: RunLength, epochs: float | str) -> int:
    """Return the number of warm-up steps, at most half of the run; 'auto' only outside of a run, which settles it."""
    if isinstance(epochs, str):
        return round(WARM_UP * length.total_steps)
    return min(round(epochs * length.steps_per_epoch), int(length.total_steps) // 2)


def _poly(length: RunLength, power: float, warmup_epochs: float | str = 0.0) -> Callable[[int], float]:
    warmup = _warm_up(length, warmup_epochs)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(1.0 - (step - warmup) / (length.total_steps - warmup), 0.0) ** power

    return factor


def _cosine(length: RunLength, warmup_epochs: float | str = 0.0, final_factor: float = 0.0) -> Any:
    warmup = _warm_up(length, warmup_epochs)
    decay = max(length.total_steps - warmup, 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # above 0 from the first step
        progress = min((step - warmup) / decay, 1.0)
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def _dexp(group: Mapping[str, Any], length: RunLength, options: Mapping[str, Any]) -> Callable[[int], float]:
    """Decay in n equal stages, from 1 to 1 / factor: each divides the rate by factor ** (1 / (n - 1))."""
    count, factor = options["steps"], options["factor"]
    if _is_biases(group):
        count, factor = options["bias_steps"] or count, options["bias_factor"] or factor

    def at(step: int) -> float:
        stage = min(step * count // length.total_steps, count - 1)  # also asked for after the last step
        return factor ** (-stage / (count - 1))

    return at


def _check_changes(optimizer: Optimizer, changes: Sequence[Mapping[str, Any]]) -> None:
    layers = {_layer(group) for group in optimizer.param_groups}
    for change in changes:
        for key in ("layer", "but"):
            if change.get(key, "") not in layers | {""}:
                name = change[key]
                raise UserError(
                    f"scheduler.changes: {key} {name} needs a parameter group of its own: "
                    f"set +optimizer.layers.{name}.lr_factor=1."
                )
        if "bias_lr" in change:
            _check_biases(optimizer, "changes: bias_lr")


def _check_biases(optimizer: Optimizer, what: str) -> None:
    if not any(map(_is_biases, optimizer.param_groups)):
        raise UserError(f"scheduler.{what} needs a separate rate for biases: set optimizer.bias_lr_factor=2.")


def _table(group: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> Callable[[int], float]:
    """Follow the changes that apply to a parameter group; a rate of 0 freezes it."""
    key = "bias_lr" if _is_biases(group) else "lr"
    layer = _layer(group)
    own = [
        (change["epoch"], change[key])
        for change in changes
        if key in change and change.get("layer", layer) == layer and (not layer or change.get("but") != layer)
    ]
    first = group["lr"]

    def at(epoch: int) -> float:
        passed = [rate for start, rate in own if start <= epoch]
        # LambdaLR multiplies: from an initial rate of 0 there is no way up.
        return passed[-1] / first if passed and first else 1.0

    return at


def _is_biases(group: Mapping[str, Any]) -> bool:
    return str(group.get("name", "")).startswith("biases")


def _layer(group: Mapping[str, Any]) -> str:
    """Return 'conv1' for the group 'weights of conv1', '' for a group without a layer of its own."""
    return str(group.get("name", "")).partition(" of ")[2]
