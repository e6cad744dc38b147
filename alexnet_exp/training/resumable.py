"""Whether a checkpoint has all that this run goes on from, in the form in which the run would write it itself.

Lightning restores what it finds. Of a part that is missing, something starts anew without a word (the momentum, the
schedule, the place in the epoch); one of another form fails in the middle of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, __version__
from torch import Tensor
from torch.optim import Optimizer

from alexnet_exp.errors import UserError
from alexnet_exp.training.averaging import MovingAverage
from alexnet_exp.training.classifier import ImageClassifier
from alexnet_exp.training.optimizers import build_optimizer
from alexnet_exp.training.reading import is_weights
from alexnet_exp.training.restart import changes
from alexnet_exp.training.restore import check_same_network, check_same_optimizer, first_mismatch
from alexnet_exp.training.schedules import RunLength, build_schedule

_GONE = object()  # in the place of what is not there
# Of every parameter, what the optimizers of conf/optimizer keep: as large as it, but for `step`.
_MOMENTS = {
    "torch.optim.SGD": ("momentum_buffer",),
    "torch.optim.Adam": ("step", "exp_avg", "exp_avg_sq"),
    "torch.optim.AdamW": ("step", "exp_avg", "exp_avg_sq"),
    "alexnet_exp.training.lars.LARS": ("velocity",),
    "alexnet_exp.training.paper_sgd.PaperSGD": ("velocity",),
}
_STANDS_STILL = "alexnet_exp.training.paper_sgd.PaperSGD"  # gives parameters without a rate no state
_HOW = ("foreach", "fused", "capturable", "differentiable")  # ways to compute the same
# Never negative, as a metric of the user's own may be.
_METRICS = frozenset(f"{split}/{name}" for split in ("train", "val") for name in ("loss", "top1", "top5"))
_FLOAT_MAX = torch.finfo(torch.float32).max
_CALLBACKS = {"BestAndLast": "checkpoint", "EarlyStopping": "early_stopping", "EMAWeightAveraging": "ema"}


def check_resumable(
    trainer: Trainer, classifier: ImageClassifier, checkpoint: Mapping[str, Any], path: Path
) -> None:
    """Refuse a checkpoint that this run cannot go on from.

    Args:
        trainer: Made, and not run yet.
        classifier: What it trains.
        checkpoint: As `read_checkpoint` returns it.
        path: Where it was read.

    Raises:
        UserError: It is of another network or another optimizer; or names the first part that is not as this run
            would write it.
    """
    check_same_network(classifier, checkpoint, path)
    check_same_optimizer(classifier, checkpoint, path, groups_too=not _has_others_callbacks(trainer))
    if (wrong := next(_faults(trainer, classifier, checkpoint), None)) is not None:
        raise UserError(
            f"{path} cannot be gone on from: its {wrong} is not what a run writes there; weights={path} takes its "
            "weights alone."
        )


def _faults(trainer: Trainer, classifier: ImageClassifier, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    yield from _loops(trainer, checkpoint)
    yield from _metrics(checkpoint)
    yield from _rates_and_moments(classifier, checkpoint, _has_others_callbacks(trainer))
    yield from _callbacks(trainer, checkpoint)
    yield from _averages(trainer, classifier, checkpoint)
    plugin = trainer.precision_plugin
    if (own := plugin.state_dict()) and _config(checkpoint, "trainer").get("precision") == trainer.precision:
        name = type(plugin).__qualname__
        yield from unlike(own, checkpoint.get(name, _GONE), name)


def _loops(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    loops, counters = checkpoint["loops"]["fit_loop"], trainer.fit_loop.state_dict()
    if checkpoint["pytorch-lightning_version"] != __version__:
        counters = _of_both(counters, loops)
    yield from unlike(counters, loops, "loops.fit_loop", whole=True)
    if str(_config(checkpoint, "data").get("_target_")).startswith("alexnet_exp."):
        place = loops["state_dict"].get("combined_loader")
        more = place[0] if isinstance(place, list) and place and isinstance(place[0], dict) else {}
        own = [dict.fromkeys(("epoch", "batches", *more), 0)]
        yield from unlike(own, place, "loops.fit_loop.state_dict.combined_loader", whole=True)


def _of_both(own: Any, found: Any) -> Any:
    """Leave out of our values what another version of Lightning has not written; it starts where it starts here."""
    if not isinstance(own, dict) or not isinstance(found, dict):
        return own
    return {key: _of_both(value, found[key]) for key, value in own.items() if key in found}


def _metrics(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    needed = [
        split for split, is_needed in (("train", epochs), ("val", checkpoint["validated"])) if is_needed
    ]
    if any(f"{split}/loss" not in checkpoint["reported"] for split in needed):
        yield "reported"


# ---------------------------------------------------------------------------------------- optimizer and schedule


def _rates_and_moments(
    classifier: ImageClassifier, checkpoint: Mapping[str, Any], may_freeze: bool
) -> Iterator[str]:
    """Find what is wrong with the optimizer's state; layers that a callback has frozen have none, or no group."""
    config = {**classifier.optimizer_config, "lr_scaling": "none"}
    optimizer = build_optimizer(classifier.model, config, fused=False)
    [saved] = checkpoint["optimizer_states"]
    ours, theirs = (
        [len(g["params"]) for g in groups] for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if may_freeze and ours != theirs:
        return
    if not changes(checkpoint, classifier.embed.get("config", {})).schedule:
        schedule = build_schedule(optimizer, classifier.scheduler_config, RunLength(1000, 10))
        yield from unlike(_own_states(schedule, checkpoint), checkpoint["lr_schedulers"], "lr_schedulers")
        is_ours = classifier.scheduler_config.get("monitor") in _METRICS
        if is_ours and any(-math.inf < state["best"] < 0 for state in checkpoint["lr_schedulers"]):
            yield "lr_schedulers.0.best"
    is_known = config["_target_"] in _MOMENTS
    yield from _groups(
        optimizer, {*config, "initial_lr", "name"} if is_known else None, saved["param_groups"]
    )
    is_our_network = str(_config(checkpoint, "model").get("_target_")).startswith("alexnet_exp.")
    # The scaling of gradients skips its first steps.
    skips = str(_config(checkpoint, "trainer").get("precision")).startswith("16") and not saved["state"]
    # A validation between the batches of the first step may be the best so far, and is saved ahead of the step.
    is_needed = is_our_network and not skips and not may_freeze and checkpoint["global_step"] > 0
    yield from _moments(optimizer, saved, config["_target_"], is_needed)


def _own_states(schedule: Mapping[str, Any] | None, checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the state of a schedule of ours, without flags that another version of torch has not written."""
    if schedule is None:
        return []
    there = {key for state in checkpoint["lr_schedulers"] if isinstance(state, dict) for key in state}
    state = schedule["scheduler"].state_dict()
    return [{key: value for key, value in state.items() if key in there or not isinstance(value, bool)}]


def _groups(optimizer: Optimizer, needed: set[str] | None, saved: list[dict[str, Any]]) -> Iterator[str]:
    """Find what is not as it should be in the parameter groups; what may be missing is taken from the settings.

    Args:
        optimizer: As the settings make it.
        needed: Keys that must be there; None: an optimizer of the user's, which alone knows what its groups hold.
        saved: Groups of the checkpoint, as many.
    """
    for number, (own, group) in enumerate(zip(optimizer.state_dict()["param_groups"], saved, strict=True)):
        where = f"optimizer_states.param_groups.{number}"
        for key, value in own.items():
            found = group.get(key, _GONE)
            if key in _HOW:
                if needed is not None and not (found is _GONE or found is None or isinstance(found, bool)):
                    yield f"{where}.{key}"
            elif key == "params":
                if found != value:
                    yield f"{where}.params"
            elif needed is not None and (key in needed or found is not _GONE):
                yield from unlike(value, found, f"{where}.{key}")


def _moments(optimizer: Optimizer, saved: dict[str, Any], target: str, is_needed: bool) -> Iterator[str]:
    """Find what is not as it should be in the state of single parameters."""
    parameters = [(p, group) for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True)
                  for p in own["params"]]  # fmt: skip
    where = "optimizer_states.state"
    if any(key not in range(len(parameters)) for key in saved["state"]):
        yield where
    for number, (parameter, group) in enumerate(parameters):
        state = saved["state"].get(number, {})
        if not isinstance(state, dict):
            yield f"{where}.{number}"
            continue
        still = target == _STANDS_STILL and group["lr"] == 0
        lasts = is_needed and not (still or (target == "torch.optim.SGD" and group.get("momentum") == 0))
        more = ("max_exp_avg_sq",) if group.get("amsgrad") else ()
        for name in (*_MOMENTS.get(target, ()), *more):
            own = torch.zeros(()) if name == "step" else parameter
            found = state.get(name, _GONE)
            if lasts or (found is not _GONE and found is not None):
                yield from unlike(own, found, f"{where}.{number}.{name}")


# ---------------------------------------------------------------------------------------- callbacks


def _has_others_callbacks(trainer: Trainer) -> bool:
    """Return whether the run has callbacks of the user's, which may freeze layers and add groups of parameters."""
    ours = ("alexnet_exp.", "lightning.pytorch.callbacks.timer")  # the latter is trainer.max_time
    return any(not type(callback).__module__.startswith(ours) for callback in trainer.callbacks)


def _callbacks(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Find what is not as it should be in the state of our own callbacks; one of the user's knows its own."""
    for callback in trainer.callbacks:
        kind = callback.state_key.partition("{")[0]
        if kind not in _CALLBACKS:
            continue
        own, found = callback.state_dict(), checkpoint["callbacks"].get(callback.state_key, _GONE)
        if found is _GONE and not _had(checkpoint, _CALLBACKS[kind], callback):
            continue
        if kind == "BestAndLast" and isinstance(found, dict) and found.get("best", _GONE) is not None:
            value = 0.0 if callback.monitor in _METRICS else math.inf
            own = {"best": {"value": value, "epoch": 0, "step": 0}}
        if kind == "EarlyStopping" and isinstance(found, dict) and {"best_epoch", "measured"} & found.keys():
            own |= {"best_epoch": 0, "measured": False}  # not in those of an older version
        own.pop("stopping_reason_message", None)  # nothing, or a text
        yield from unlike(own, found, f"callbacks.{kind}", whole=True)


def _had(checkpoint: Mapping[str, Any], name: str, callback: Any) -> bool:
    """Return whether the run of a checkpoint had one of our callbacks, its state under the same name."""
    settings = _config(checkpoint, "callbacks").get(name)
    if not isinstance(settings, dict) or settings.get("enabled") is not True:
        return False
    keys = ("monitor", "mode") if name == "early_stopping" else ()
    return all(settings.get(key) == getattr(callback, key) for key in keys)


def _averages(trainer: Trainer, classifier: ImageClassifier, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    averages = [callback for callback in trainer.callbacks if isinstance(callback, MovingAverage)]
    if not averages or not _had(checkpoint, "ema", averages[0]):
        return
    weights = checkpoint.get("current_model_state")
    if not is_weights(weights) or first_mismatch(classifier.state_dict(), weights or {}):
        yield "current_model_state"
    yield from unlike({"n_averaged": torch.zeros((), dtype=torch.long)}, checkpoint.get("averaging_state", _GONE),
                      "averaging_state")  # fmt: skip


# ---------------------------------------------------------------------------------------- forms


def _config(checkpoint: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    found = checkpoint["config"].get(group)
    return found if isinstance(found, Mapping) else {}


def unlike(own: Any, found: Any, where: str, whole: bool = False) -> Iterator[str]:
    """Find what differs in form from a value of ours: another type, shape or length, or a number that cannot be.

    Args:
        own: Nested dictionaries and lists of tensors and plain values; an infinite number stands for any.
        found: In its place; its dictionaries may hold more.
        where: Its name.
        whole: Whether numbers that are whole must be so.
    """
    if isinstance(own, dict):
        if not isinstance(found, dict):
            yield where
            return
        for key, value in own.items():
            yield from unlike(value, found.get(key, _GONE), f"{where}.{key}", whole)
    elif isinstance(own, list | tuple):
        if type(found) is not type(own) or len(found) != len(own):
            yield where
            return
        for number, value in enumerate(own):
            yield from unlike(value, found[number], f"{where}.{number}", whole)
    elif not _alike(own, found, whole):
        yield where


def _alike(own: Any, found: Any, whole: bool) -> bool:
    if isinstance(own, Tensor):
        return (
            isinstance(found, Tensor)
            and found.shape == own.shape
            and found.is_floating_point() == own.is_floating_point()
        )
    if own is None or isinstance(own, bool):
        return type(found) is type(own)
    if isinstance(own, int | float):
        if isinstance(found, bool) or not isinstance(
            found, int if whole and isinstance(own, int) else int | float
        ):
            return False
        most = 1 << 48 if isinstance(own, int) else _FLOAT_MAX
        return found == found if math.isinf(own) else 0 <= found <= most  # not NaN
    return bool(own == found)
