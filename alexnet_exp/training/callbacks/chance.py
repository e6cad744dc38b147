"""Notice a network that does no better than guessing: its loss stays at that of the best constant prediction.

That loss is the entropy of the labels. It is compared with the plain training loss, which the meter of the epoch
collects anyway: it is read every `trainer.log_every_n_steps` steps and at the end of an epoch. Where the training loss
is not plain (class weights, label smoothing, mixed images), val/loss, which is always plain, decides. A validation
accuracy above chance overrules both. docs/learning.md has the rule in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from alexnet_exp.tracking.log import log
from alexnet_exp.tracking.metrics import wilson
from alexnet_exp.training.lightning_internals import inside_epoch

_SLACK = 0.01  # a network has left chance where its loss is this much lower than that of guessing
# Steps at chance after the warm-up before the run says so; a shorter run says it when it ends.
_PATIENCE = 200
_SHARE = 0.01  # of the steps of the run: the patience of a long one
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

    It is at chance while the loss is that of guessing *and* the latest validation accuracy could be the share of one
    class: a network with batch norm can predict well before its loss shows it. Steps count from the end of the warm-up.

    Rank 0 judges by its own part of each batch, and the validation metrics are reduced anyway, so there is nothing to
    reduce here.

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
        self.val_beats_guessing = False  # the latest validation accuracy
        self.loss = self.guessing = 0.0  # per image, at the latest reading
        # (K,): what guessing loses on each class
        self._costs = None if prediction is None else -prediction.log()
        self._val_guessing: float | None = None
        self._num_val, self._largest_share = 0, 1.0  # of one class in val
        if self._costs is not None and val_labels is not None:
            mean = float(self._costs[val_labels].mean())
            self._val_guessing = mean if math.isfinite(mean) else None  # a class that is not in train
            self._num_val = len(val_labels)
            self._largest_share = int(torch.bincount(val_labels).max()) / len(val_labels)
        # What guessing loses on the images since the last reading; on the device.
        self._guessed: float | Tensor = 0.0
        # The meter at the latest reading, and when that was.
        self._read = {"loss": 0.0, "images": 0, "step": 0, "val_step": 0, "ranks": 0}
        self._window: dict[str, float] = {}  # summed since the latest judgement
        self._patience, self._warm_up = math.inf, 0

    @property
    def at_chance(self) -> dict[str, float] | None:
        """What checkpoints record: loss of the network and of guessing per image, and for how many steps."""
        if self.steps < _FEWEST:
            return None
        return {"loss": self.loss, "guessing": self.guessing, "steps": self.steps}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total, self._warm_up = trainer.estimated_stepping_batches, pl_module.warm_up_steps
        # Without a known length there is no share of it.
        self._patience = max(_PATIENCE, _SHARE * total) if math.isfinite(total) else _PATIENCE
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
        loss, top1 = (pl_module.reported.get(f"val/{name}") for name in ("loss", "top1"))
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._num_val or loss is None:
            return
        # trainer.limit_val_batches may leave images out.
        batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", math.inf)
        count = min(self._num_val, sum(trainer.num_val_batches) * batch_size)
        self.val_beats_guessing = top1 is not None and wilson(top1, count)[0] > self._largest_share
        step, guessing = trainer.global_step, self._val_guessing
        if self.val_beats_guessing:
            self._leave(step, loss)
        # Beside a plain training loss, val/loss only counts as a sign of learning: it also rises by overfitting.
        if guessing is not None and (not self.plain or loss < (1 - _SLACK) * guessing):
            self._judge(loss, guessing, step - self._read["val_step"], step)
        self._read["val_step"] = step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn at the end of a run that is shorter than the patience."""
        if self.plain and trainer.is_global_zero:
            self._read_train(trainer, pl_module)  # steps of an epoch that did not end
        if self._window.get("images"):
            self._judge_window()
        if self.at_chance is not None and not self.learned:
            more = "more epochs (trainer.max_epochs), "
            self._warn(f"The run has ended, and for its last {self.steps} steps", more + self.advice)

    def _read_train(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, guessed = dict(self._read), float(self._guessed)
        self._remember(trainer, pl_module)
        gained = {name: self._read[name] - before[name] for name in ("loss", "images", "step")}
        if gained["images"] <= 0:  # an epoch that began again
            return
        for name, value in (gained | {"guessed": guessed}).items():
            self._window[name] = self._window.get(name, 0.0) + value
        # Fewer steps are too few images: short epochs are judged together.
        if self._window["step"] >= _FEWEST and self._window["images"]:
            self._judge_window()

    def _judge_window(self) -> None:
        images, steps, now = self._window["images"], int(self._window["step"]), int(self._read["step"])
        self._judge(self._window["loss"] / images, self._window["guessed"] / images, steps, now)
        self._window = {}

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> None:
        meter = pl_module.train_meter
        self._read |= {"loss": float(meter.loss), "images": int(meter.totals[2])}
        self._read |= {"step": trainer.global_step, "ranks": trainer.world_size}
        self._guessed = 0.0

    def _judge(self, loss: float, guessing: float, steps: int, step: int) -> None:
        """Take a reading into account: `steps` steps of the run, up to `step`."""
        low, high = (1 - _SLACK) * guessing, (1 + _SLACK) * guessing
        # Before a network has learned, a loss above that of guessing is no better; after that, it may be overfitting.
        is_guessing = low <= loss <= high if self.learned else loss >= low
        self.learned |= not is_guessing
        if is_guessing and not self.val_beats_guessing:
            self.steps += max(0, min(steps, step - self._warm_up))
        else:
            self._leave(step, loss)
        self.loss, self.guessing = loss, guessing
        if self.steps >= self._patience:
            self._warn(f"For {self.steps} steps", self.advice)

    def _leave(self, step: int, loss: float) -> None:
        if self.warned and self.steps:
            log.info("The network has left chance at step %d (loss %.4g).", step, loss)
        self.steps = 0

    def _warn(self, when: str, advice: str) -> None:
        if not self.warned:
            self.warned = True
            log.warning(
                "%s the loss has been no lower than that of guessing (%.4g; guessing gives %.4g): the network is not "
                "learning. What helps: %s.", when, self.loss, self.guessing, advice,
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
        for name in _KEPT:  # older checkpoints lack the last
            setattr(self, name, state_dict.get(name, False))
        self._guessed = state_dict["guessed"]
        self._read, self._window = dict(state_dict["read"]), dict(state_dict["window"])


_KEPT = ("steps", "learned", "warned", "loss", "guessing", "val_beats_guessing")
