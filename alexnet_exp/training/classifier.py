"""The LightningModule: cross-entropy on logits, metrics on the device, read once an epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.data import ImageData
from alexnet_exp.data.augment.mixing import Mixing
from alexnet_exp.data.loaders import Batch
from alexnet_exp.data.randomness import constant, mix
from alexnet_exp.errors import UserError
from alexnet_exp.training.accumulation import Window
from alexnet_exp.training.batch_norm import check_batch_norm
from alexnet_exp.training.callbacks.bad_step import not_finite
from alexnet_exp.training.checkpoint.identity import Splits, check_ranks, own_classes
from alexnet_exp.training.checkpoint.resume import Changes, Kept, begin_epoch_again, changes, complete_restart
from alexnet_exp.training.ending import epochs_done
from alexnet_exp.training.lightning_internals import (
    HOOK_NAME,
    accumulates,
    batch_of_run,
    inside_epoch,
    validates_by_schedule,
)
from alexnet_exp.training.metrics import NUM_SAMPLES, ClassificationMeter, Outcomes, image_losses
from alexnet_exp.training.optim.build import build_optimizer, images_of_a_step
from alexnet_exp.training.optim.schedules import RunLength, build_schedule

_PLAIN = frozenset((HOOK_NAME, "step_loss", "_first_bad_step", "_taken"))  # neither parameters nor modules
_NO_GRADIENT = re.compile(r"Function '(\w+)' returned nan values")  # how torch.autograd says so


class ImageClassifier(lightning.LightningModule):
    """Trains any network that maps images to logits.

    Metrics: `train/loss`, `train/top1`, `val/...`, `test/...` (and top5 for more than five classes) once an epoch, of
    val and test balanced_accuracy and macro_f1, too; `train/loss_step` every `log_every_n_steps`.

    Args:
        model: Maps (N, C, H, W) float to logits (N, K).
        classes: K names.
        optimizer: Keys of conf/optimizer.
        scheduler: Keys of conf/scheduler.
        label_smoothing: Share of the target spread over all classes, in training only.
        seed: Of dropout; the random state of a step depends on (seed, step, rank) alone.
        embed: Plain values that every checkpoint carries (config, preprocessing).
        channels_last: Whether weights and images lie in memory as NHWC.
        splits: Returns count, digest and origin of every split, for the same; empty where the data does not know. A
            function, since it takes time (data/identity.py).
        class_weights: Of each class in the training loss; None: all alike. A loss is a sum over images divided by
            their number, whatever they weigh: the gradient of a step keeps its meaning with accumulated and partial
            batches and several ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        seed: int = 0,
        embed: Mapping[str, Any] | None = None,
        channels_last: bool = False,
        splits: Callable[[], Splits] = dict,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.layout)
        self.classes = tuple(classes)
        self.optimizer_config, self.scheduler_config = dict(optimizer), dict(scheduler or {"name": "none"})
        self.label_smoothing, self.seed = label_smoothing, seed
        self.embed, self.splits = dict(embed or {}), splits
        # No buffer: DDP would send it round at every step.
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.train_meter = ClassificationMeter(len(classes))
        self.val_meter = ClassificationMeter(len(classes), confusion=True)
        self.test_meter = ClassificationMeter(len(classes), confusion=True)
        self.outcomes = Outcomes()
        self.test_split = "test"  # another split is looked at without being reported as a test
        self.reported: dict[str, float] = {}  # the latest value of every metric
        self._validated = False  # in this epoch
        self._gradients: dict[str, Tensor] = {}  # of the batches of a step that a resumed run has begun
        self.begin_epoch_again = False  # going on from a checkpoint, where its images were others
        self.num_epochs_begun = 0  # by this process
        self.whole_slice: int | None = None  # of a compiled network: images of a batch that is not cut short
        self._changes = Changes()  # against the checkpoint that training goes on from
        self._window = Window()
        self.step_loss: Tensor | None = None  # of this rank's last batch; reading it syncs the device
        self._first_bad_step: Tensor | None = None
        self._unread: list[
            tuple[int, Tensor]
        ] = []  # steps since the loss was last looked at, and their images
        self._taken: Tensor | None = None  # positions of this step's images, for detect_anomaly

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of every hook here, dozens of times a step, and a module's way is slow.
        if name in _PLAIN:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters(), images)
        # trainer.precision=64-true and the like: Lightning converts a batch before it is augmented.
        x = images.to(weight.dtype).contiguous(memory_format=self.layout)
        if self.whole_slice and len(x) % self.whole_slice:
            # A batch cut short: kernels of its size would take longer to make than they save. What a batch is computed
            # with depends on its size alone, so that a resumed run computes the same.
            with torch.compiler.set_stance("force_eager"):
                return self.model(x)
        return self.model(x)

    # ---------------------------------------------------------------------------------------- steps

    def on_train_start(self) -> None:
        self._window.begin(with_gradients=bool(self._gradients))
        complete_restart(self.trainer, self._kept, self._changes)
        for name, gradient in self._gradients.items():
            parameter = self.model.get_parameter(name)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self._gradients = {}

    def on_train_epoch_start(self) -> None:
        self.num_epochs_begun += 1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of the step, so that a resumed run draws what the first would have drawn.
        seed = self.random_seed()
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    def random_seed(self) -> int:
        """Return the seed of this step's dropout."""
        return mix("step", self.seed, batch_of_run(self.trainer), self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        losses, labels = self._losses(logits, batch)
        # DDP averages gradients over ranks; this makes that average the gradient of the global batch's mean.
        loss = losses.sum() * (self.trainer.world_size / batch.global_size)
        self.train_meter.update(losses, logits[: batch.size], labels)
        self._watch(loss.detach(), batch, losses.detach())
        weight = self._window.weight(self.trainer, batch, batch_idx)
        return loss if weight == 1.0 else loss * weight

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            loss.backward(*args, **kwargs)
        except RuntimeError as error:  # of trainer.detect_anomaly
            found = _NO_GRADIENT.search(str(error))
            if found is None or self._taken is None:
                raise
            raise self._not_finite(
                f"The gradient of {found[1]}", self.global_step + 1, self._taken
            ) from error

    def _losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each image's loss and the label it is counted by: of a mixed one, the label with the larger share."""
        mixing = self.mixing(batch)
        partners, shares = (None, None) if mixing is None else (mixing.partners, mixing.shares)
        weights = None if self.class_weights is None else constant(self.class_weights, logits.device)
        losses, labels = image_losses(logits, batch.labels, self.label_smoothing, partners, shares, weights)
        return losses[: batch.size], labels[: batch.size]

    def mixing(self, batch: Batch) -> Mixing | None:
        """Draw again what the data module has drawn for these images: it hangs on them, seed and epoch alone."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            return None
        return data.pipeline.mixing(batch.indices, data.seed, self.trainer.current_epoch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def on_test_start(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData) and self.test_split in data.sources:
            self.outcomes.wanted = data.spread(self.test_split)[:NUM_SAMPLES].to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.outcomes.add(batch, self._evaluate("test", batch))

    def _evaluate(self, split: str, batch: Batch) -> Tensor:
        logits = self._logits(batch.images)[: batch.size].float()
        labels = batch.labels[: batch.size]
        self._meter(split).update(functional.cross_entropy(logits, labels, reduction="none"), logits, labels)
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        """Return logits; for several views (N, V, C, H, W), logarithms of the averaged softmax."""
        if images.dim() == 4:
            return self(images)
        views = self(images.flatten(0, 1)).float().log_softmax(1).unflatten(0, images.shape[:2])
        return views.logsumexp(1) - math.log(images.shape[1])

    def _meter(self, split: str) -> ClassificationMeter:
        return {"train": self.train_meter, "val": self.val_meter, "test": self.test_meter}[split]

    # ---------------------------------------------------------------------------------------- non-finite loss

    def _watch(self, loss: Tensor, batch: Batch, losses: Tensor) -> None:
        """Stop at a loss that is not finite; on an accelerator remember the first, without waiting for the device."""
        self.step_loss = loss
        careful = torch.is_anomaly_enabled()
        if careful or _waits_for_nothing(loss):
            indices = batch.indices[: batch.size]
            self._taken = indices if careful else None
            if not math.isfinite(loss.item()):
                bad = indices[~losses.isfinite()]
                raise self._not_finite("The loss", self.global_step + 1, bad)
            return
        step = self.global_step + 1
        self._unread.append((step, batch.indices[: batch.size]))
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.long, device=loss.device)
        here = torch.isfinite(loss) | (self._first_bad_step >= 0)
        self._first_bad_step = torch.where(here, self._first_bad_step, step)

    def check_finite(self) -> None:
        """Stop the run if a loss was NaN or infinite; waits for the device.

        Raises:
            UserError: Names the step.
        """
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) >= 0:
            bad = torch.cat([part for taken, part in self._unread if taken == step])
            raise self._not_finite("The loss", step, bad)
        self._unread.clear()

    def _not_finite(self, what: str, step: int, indices: Tensor) -> UserError:
        data = getattr(self.trainer, "datamodule", None)
        name, count = "image {}".format, 0
        if data is not None:
            name, count = data.sources["train"].image_name, len(data.sources["train"])
        numbers = [index % count if count else index for index in indices.tolist()]  # see Batch
        return not_finite(what, step, self.current_epoch, [name(number) for number in numbers])

    # ---------------------------------------------------------------------------------------- once an epoch

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        if inside_epoch(self.trainer):  # the run ends here, and a resumed one finishes the epoch
            return self._report("train", reset=False)
        self._report("train")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._step_plateau(scheduler, self.scheduler_config["monitor"])
        self._validated = False

    def _step_plateau(self, scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau, monitor: str) -> None:
        if monitor.startswith("val/") and self.trainer.enable_validation and not self._validated:
            return  # trainer.check_val_every_n_epoch: nothing new to judge by
        value = self.measured(monitor)
        if value is None:
            known = ", ".join(sorted(self.reported))
            raise UserError(f"scheduler.monitor={monitor} is not measured in this run; it has {known}.")
        scheduler.step(value)

    def measured(self, name: str) -> float | None:
        """Return the latest value of a metric, of this module or of a callback of the user's; None if there is none."""
        if name in self.reported:
            return self.reported[name]
        value = self.trainer.callback_metrics.get(name)
        return None if value is None else float(value)

    def on_validation_epoch_end(self) -> None:
        self._report("val")
        self._validated |= self.trainer.sanity_checking or validates_by_schedule(self.trainer)

    def on_test_epoch_end(self) -> None:
        meter = self.test_meter
        if self.test_split == "test":
            self._report("test")
        else:
            meter.compute()
            meter.reset()
        self.outcomes.confusion = meter.confusion_counts.cpu()

    def _report(self, split: str, reset: bool = True) -> None:
        """Read a meter, give its values to callbacks and loggers, and reset it."""
        meter = self._meter(split)
        values = {f"{split}/{name}": value for name, value in meter.compute().items()}
        if reset:
            meter.reset()
        # Lightning keeps these for callbacks; the loggers get them here, in one row with our own epoch count.
        # The ranks agree already: nothing is left to synchronise, and NCCL would take no CPU tensor.
        self.log_dict({k: torch.tensor(v) for k, v in values.items()}, logger=False)
        self.reported |= values
        self.log_row(values)
        if not math.isfinite(values.get(f"{split}/loss", 0.0)):
            # Weights can go bad in the last step of an epoch: this comes ahead of its checkpoint.
            raise UserError(
                f"{split}/loss is not finite after epoch {self.epochs_done}; training stopped and the last checkpoint "
                "is from before. Try a lower optimizer.lr or trainer.gradient_clip_val=1."
            )

    def log_row(self, values: Mapping[str, float]) -> None:
        """Write one row to every logger; `epoch` counts the finished epochs."""
        if values and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics({"epoch": self.epochs_done, **values}, step=self.global_step)

    @property
    def epochs_done(self) -> int:
        """Return how many epochs have been trained, the one that ends just now included."""
        return epochs_done(self.trainer)

    # ---------------------------------------------------------------------------------------- set-up

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        is_compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        self.whole_slice = data.whole_slice() if is_compiled and isinstance(data, ImageData) else None
        if stage == "fit" and self.trainer.world_size > 1:
            check_ranks(self.trainer, own_classes(self.classes), self.splits())

    def configure_optimizers(self) -> Any:
        # Lightning clips no gradients of a fused optimizer in mixed precision, with or without a scaler.
        clipped_mixed = self.trainer.precision.endswith("-mixed") and bool(self.trainer.gradient_clip_val)
        batch = images_of_a_step(self.trainer)
        optimizer = build_optimizer(self.model, self.optimizer_config, not clipped_mixed, batch)
        self.trainer.fit_loop.setup_data()  # tells the length of an epoch
        check_batch_norm(self.trainer, self.model)
        steps = self.trainer.estimated_stepping_batches
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        length = RunLength(steps, max(1, math.ceil(batches)))
        schedule = build_schedule(optimizer, self.scheduler_config, length)
        self._kept = Kept(optimizer, schedule and schedule["scheduler"], length)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.embed, classes=list(self.classes), train_sums=self.train_meter.state())
        checkpoint.update(splits=self.splits())
        checkpoint.update(reported=dict(self.reported), validated=self._validated)
        checkpoint.update(run_length=self._kept.run_length)
        if accumulates(self.trainer):  # between the batches of one step
            reduce = self.trainer.strategy.reduce  # each rank has a part of them
            gradients = ((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)
            checkpoint["gradients"] = {
                name: reduce(grad.clone(), reduce_op="mean") for name, grad in gradients
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.begin_epoch_again:
            begin_epoch_again(checkpoint)
        self.train_meter.restore(checkpoint["train_sums"], self.trainer.world_size, self.global_rank)
        kept = ("train/", "val/") if self.trainer.limit_val_batches else ("train/",)
        self.reported = {k: v for k, v in checkpoint["reported"].items() if k.startswith(kept)}
        self._validated = checkpoint["validated"] and bool(self.trainer.limit_val_batches)
        self._gradients = checkpoint.get("gradients", {})
        for name, gradient in self._gradients.items():
            if gradient.shape != self.model.get_parameter(name).shape:
                raise ValueError(f"the gradient of {name} is {tuple(gradient.shape)}")
        self._changes = changes(checkpoint, self.embed.get("config", {}))
        if self._changes.schedule:
            checkpoint["lr_schedulers"] = []  # nothing of it fits


def _waits_for_nothing(loss: Tensor) -> bool:
    return loss.device.type == "cpu"
