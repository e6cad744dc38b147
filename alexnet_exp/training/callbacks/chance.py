"""Notice a network that does no better than guessing: its loss stays at that of the best constant prediction.

That loss is the entropy of the labels. It is compared with the plain training loss, which the meter of the epoch
collects anyway: it is read every `trainer.log_every_n_steps` steps and at the end of an epoch. Where the training loss
is not plain (class weights, label smoothing, mixed images), val/loss decides, which always is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from alexnet_exp.tracking.log import log
from alexnet_exp.training.lightning_internals import inside_epoch

_SLACK = 0.01  # a network has left chance where its loss is this much lower than that of guessing
_PATIENCE = 200  # steps at chance before the run says so; half of a run shorter than twice that
_FEWEST = 20  # steps; before that, nothing is said or recorded


def guess(labels: Tensor, num_classes: int, weights: Sequence[float] | None = None, smoothing: float = 0.0,
          balanced: bool = False) -> Tensor:  # fmt: skip
    """Return the constant prediction that training leads to: the share of each class in the training loss.

    Args:
        labels: (N,) of the training images.
        num_classes: K.
        weights: (K,) of the classes in the training loss.
        smoothing: Share of the target spread over all classes.
        balanced: Whether classes are sampled equally often.

    Returns:
        (K,) float64 probabilities.
    """
    shares = torch.bincount(labels, minlength=num_classes).double()
    # Balanced sampling shows every class that has images equally often.
    shares = shares.sign() if balanced else shares
    if weights is not None:
        shares *= torch.tensor(weights, dtype=torch.float64)
    return (1 - smoothing) * shares / shares.sum() + smoothing / num_classes


class ChanceLevel(Callback):
    """Warn once if the network stays at chance, and record in checkpoints whether it is there.

    Rank 0 judges by its own part of each batch, so there is nothing to reduce.

    Args:
        prediction: (K,) probabilities from `guess`; None: nothing is watched.
        plain: Whether the training loss is the unweighted cross-entropy of unmixed images and one-hot labels.
        val_labels: (N,) of the validation images; None without any.
        advice: What helps, for the warning.
    """

    def __init__(
        self,
        prediction: Tensor | None,
        plain: bool = True,
        val_labels: Tensor | None = None,
        advice: str = "",
    ) -> None:
        self.advice, self.plain = advice, plain and prediction is not None
        self.steps = 0  # at chance, up to the latest reading
        self.learned = self.warned = False  # ever, in this run
        self.loss = self.guessing = 0.0  # per image, at the latest reading
        # (K,): what guessing loses on each class
        self._costs = None if prediction is None else -prediction.log()
        self._val_guessing: float | None = None
        if self._costs is not None and val_labels is not None:
            mean = float(self._costs[val_labels].mean())
            self._val_guessing = mean if math.isfinite(mean) else None  # a class that is not in train
        # What guessing loses on the images since the last reading; on the device.
        self._guessed: float | Tensor = 0.0
        # The meter at the latest reading, and when that was.
        self._read = {"loss": 0.0, "images": 0, "step": 0, "val_step": 0, "ranks": 0}
        self._window: dict[str, float] = {}  # summed since the latest judgement
        self._patience = math.inf

    @property
    def at_chance(self) -> dict[str, float] | None:
        """What checkpoints record: loss of the network and of guessing per image, and for how many steps."""
        if self.steps < _FEWEST:
            return None
        return {"loss": self.loss, "guessing": self.guessing, "steps": self.steps}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patience = max(_FEWEST, min(_PATIENCE, trainer.estimated_stepping_batches / 2))
        if self._costs is not None:
            self._costs = self._costs.to(pl_module.device, torch.float32)
        if self._read["ranks"] != trainer.world_size:
            # Resumed on another number of devices: `ClassificationMeter.restore` gives rank 0 all sums.
            self._remember(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.plain or not trainer.is_global_zero:
            return
        assert self._costs is not None
        # Of these images, not of the data set: with rare classes, fifty batches differ from it by several percent.
        self._guessed = self._guessed + self._costs[batch.labels[: batch.size]].sum()
        step = trainer.global_step
        # At these steps StepLog has synchronised already.
        if step > self._read["step"] and step % trainer.log_every_n_steps == 0:
            self._read_train(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.plain and trainer.is_global_zero and not inside_epoch(trainer):
            self._read_train(trainer, pl_module)
            self._read |= {"loss": 0.0, "images": 0}  # the module resets its meter next

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = pl_module.reported.get("val/loss")
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._val_guessing is None or loss is None:
            return
        # Beside a plain training loss, val/loss only counts as a sign of learning: it also rises by overfitting.
        if not self.plain or loss < (1 - _SLACK) * self._val_guessing:
            self._judge(loss, self._val_guessing, trainer.global_step - self._read["val_step"])
        self._read["val_step"] = trainer.global_step

    def _read_train(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, guessed = dict(self._read), float(self._guessed)
        self._remember(trainer, pl_module)
        gained = {name: self._read[name] - before[name] for name in ("loss", "images", "step")}
        if gained["images"] <= 0:  # an epoch that began again
            return
        for name, value in (gained | {"guessed": guessed}).items():
            self._window[name] = self._window.get(name, 0.0) + value
        # Fewer steps are too few images: short epochs are judged together.
        if self._window["step"] >= _FEWEST and (images := self._window["images"]):
            self._judge(
                self._window["loss"] / images, self._window["guessed"] / images, int(self._window["step"])
            )
            self._window = {}

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> None:
        meter = pl_module.train_meter
        self._read |= {"loss": float(meter.loss), "images": int(meter.totals[2])}
        self._read |= {"step": trainer.global_step, "ranks": trainer.world_size}
        self._guessed = 0.0

    def _judge(self, loss: float, guessing: float, steps: int) -> None:
        """Take a reading of `steps` steps into account."""
        low, high = (1 - _SLACK) * guessing, (1 + _SLACK) * guessing
        # Before a network has learned, a loss above that of guessing is no better; after that, it may be overfitting.
        at_chance = low <= loss <= high if self.learned else loss >= low
        self.learned |= not at_chance
        self.steps = self.steps + steps if at_chance else 0
        self.loss, self.guessing = loss, guessing
        if self.steps >= self._patience and not self.warned:
            self.warned = True
            log.warning(
                "For %d steps the loss has been that of guessing (%.4g; guessing gives %.4g): the network is not "
                "learning. What helps: %s.", self.steps, loss, guessing, self.advice,
            )  # fmt: skip

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.at_chance is not None:
            checkpoint["at_chance"] = self.at_chance

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in _KEPT}
        return {
            **kept,
            "guessed": float(self._guessed),
            "read": dict(self._read),
            "window": dict(self._window),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, state_dict[name])
        self._guessed = state_dict["guessed"]
        self._read, self._window = dict(state_dict["read"]), dict(state_dict["window"])


_KEPT = ("steps", "learned", "warned", "loss", "guessing")
