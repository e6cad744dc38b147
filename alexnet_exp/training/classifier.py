"""The LightningModule: cross-entropy on logits; metrics accumulate on the device and are read once per epoch."""

from __future__ import annotations

import logging
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
from alexnet_exp.training.optim.build import build_optimizer, describe_rates, images_of_a_step
from alexnet_exp.training.optim.schedules import RunLength, build_schedule, warm_up_steps

log = logging.getLogger(__name__)
_PLAIN = frozenset((HOOK_NAME, "step_loss", "_first_bad_step", "_taken"))  # neither parameters nor modules
_NAN_GRADIENT = re.compile(r"Function '(\w+)' returned nan values")  # torch.autograd's wording


class ImageClassifier(lightning.LightningModule):
    """Trains any network that maps images to logits.

    Logs loss and top1 (top5 with more than five classes) of train, val and test once per epoch, plus
    balanced_accuracy and macro_f1 for val and test; `train/loss_step` every `log_every_n_steps`.

    Args:
        model: Maps (N, C, H, W) float to logits (N, K).
        classes: The K class names.
        optimizer: Keys of conf/optimizer.
        scheduler: Keys of conf/scheduler.
        label_smoothing: Share of the target spread over all classes, in training only.
        seed: Dropout seed; a step's random state depends only on (seed, step, rank).
        embed: Plain values stored in every checkpoint (config, preprocessing).
        channels_last: Keep weights and images in NHWC memory format.
        splits: Returns count, digest and origin of every split, also stored in checkpoints; empty if the data module
            does not provide them. A function, because computing them takes time (data/identity.py).
        class_weights: Weight of each class in the training loss; None weighs all equally. The sum over images is
            divided by their number, not by their weights, so a step's gradient does not depend on how its images are
            split into accumulated batches, partial batches and ranks.
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
        # Not a buffer: DDP would broadcast it at every step.
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.train_meter = ClassificationMeter(len(classes))
        self.val_meter = ClassificationMeter(len(classes), confusion=True)
        self.test_meter = ClassificationMeter(len(classes), confusion=True)
        self.outcomes = Outcomes()
        self.test_split = "test"  # any other split is evaluated without reporting test/ metrics
        self.reported: dict[str, float] = {}  # latest value of every metric
        self._validated = False  # in this epoch
        self.warm_up_steps = 0  # optimizer steps during which the rate rises
        # Accumulated before a run was stopped in the middle of a step.
        self._gradients: dict[str, Tensor] = {}
        self.begin_epoch_again = False  # the checkpoint was trained on other images: restart its epoch
        self.num_epochs_begun = 0  # by this process
        self.whole_slice: int | None = None  # compiled networks only: images in a full batch of this rank
        self._changes = Changes()  # relative to the checkpoint that training resumes from
        self._window = Window()
        self.step_loss: Tensor | None = None  # this rank's last batch; reading it syncs the device
        self._first_bad_step: Tensor | None = None  # on the device; -1 while every loss was finite
        # Steps (and their images) since the loss was last checked.
        self._unread: list[tuple[int, Tensor]] = []
        self._taken: Tensor | None = None  # positions of this step's images, for detect_anomaly

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets the name of the current hook dozens of times a step, and nn.Module.__setattr__ is slow.
        if name in _PLAIN:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters(), images)
        # Lightning casts a batch before augmentation, which returns float32: trainer.precision=64-true needs this.
        x = images.to(weight.dtype).contiguous(memory_format=self.layout)
        if self.whole_slice and len(x) % self.whole_slice:
            # Compiling kernels for the partial last batch costs more than it saves. The choice depends on the batch
            # size alone, so a resumed run runs the same kernels.
            with torch.compiler.set_stance("force_eager"):
                return self.model(x)
        return self.model(x)

    # ---------------------------------------------------------------------------------------- steps

    def on_train_start(self) -> None:
        self._window.begin(with_gradients=bool(self._gradients))
        complete_restart(self.trainer, self._kept, self._changes)
        for name, gradient in self._gradients.items():
            parameter = self.model.get_parameter(name)
            if not parameter.requires_grad:  # frozen since (ckpt=): a gradient would move it
                continue
            # On the device and in the memory format of the parameter; the checkpoint was read to CPU.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self._gradients = {}

    def on_train_epoch_start(self) -> None:
        self.num_epochs_begun += 1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout masks are a function of the step, so a resumed run draws what the uninterrupted one would have.
        seed = self.random_seed()
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    def random_seed(self) -> int:
        """Return the dropout seed of the current step."""
        return mix("step", self.seed, batch_of_run(self.trainer), self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        losses, labels = self._losses(logits, batch)
        # DDP averages gradients over ranks. Ranks may hold different numbers of images, so scale each rank's sum such
        # that the average is the gradient of the global batch's mean loss.
        loss = losses.sum() * (self.trainer.world_size / batch.global_size)
        self.train_meter.update(losses, logits[: batch.size], labels)
        self._check_loss(loss.detach(), batch, losses.detach())
        weight = self._window.weight(self.trainer, batch, batch_idx)
        return loss if weight == 1.0 else loss * weight

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            loss.backward(*args, **kwargs)
        except RuntimeError as error:  # raised by trainer.detect_anomaly
            found = _NAN_GRADIENT.search(str(error))
            if found is None or self._taken is None:
                raise
            raise self._not_finite(
                f"The gradient of {found[1]}", self.global_step + 1, self._taken
            ) from error

    def _losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each image's loss and the label it is scored by: for mixed images, the one with the larger share."""
        mixing = self.mixing(batch)
        partners, shares = (None, None) if mixing is None else (mixing.partners, mixing.shares)
        weights = None if self.class_weights is None else constant(self.class_weights, logits.device)
        losses, labels = image_losses(logits, batch.labels, self.label_smoothing, partners, shares, weights)
        return losses[: batch.size], labels[: batch.size]

    def mixing(self, batch: Batch) -> Mixing | None:
        """Redraw the mixing that the data module applied: it depends only on the images, the seed and the epoch."""
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
        logits = logits_of_views(self, batch.images)[: batch.size].float()
        labels = batch.labels[: batch.size]
        self._meter(split).update(functional.cross_entropy(logits, labels, reduction="none"), logits, labels)
        return logits

    def _meter(self, split: str) -> ClassificationMeter:
        return {"train": self.train_meter, "val": self.val_meter, "test": self.test_meter}[split]

    # ---------------------------------------------------------------------------------------- non-finite loss

    def _check_loss(self, loss: Tensor, batch: Batch, losses: Tensor) -> None:
        """Stop at a non-finite loss; on an accelerator, record the first one without a device sync."""
        self.step_loss = loss
        detect_anomaly = torch.is_anomaly_enabled()
        if detect_anomaly or _reads_without_sync(loss):
            indices = batch.indices[: batch.size]
            self._taken = indices if detect_anomaly else None
            if not math.isfinite(loss.item()):
                bad = indices[~losses.isfinite()]
                raise self._not_finite("The loss", self.global_step + 1, bad)
            return
        step = self.global_step + 1
        self._unread.append((step, batch.indices[: batch.size]))
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.long, device=loss.device)
        keep = torch.isfinite(loss) | (self._first_bad_step >= 0)
        self._first_bad_step = torch.where(keep, self._first_bad_step, step)

    def check_finite(self) -> None:
        """Stop the run if any loss since the last call was NaN or infinite; syncs the device.

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
        if inside_epoch(self.trainer):  # the run stops mid-epoch: a resumed run finishes this epoch
            return self._report("train", reset=False)
        self._report("train")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._step_plateau(scheduler, self.scheduler_config["monitor"])
        self._validated = False

    def _step_plateau(self, scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau, monitor: str) -> None:
        if monitor.startswith("val/") and self.trainer.enable_validation and not self._validated:
            return  # trainer.check_val_every_n_epoch: no new value this epoch
        value = self.measured(monitor)
        if value is None:
            known = ", ".join(sorted(self.reported))
            raise UserError(f"scheduler.monitor={monitor} is not measured in this run: use one of {known}.")
        scheduler.step(value)

    def measured(self, name: str) -> float | None:
        """Return the latest value of a metric logged by this module or by any callback; None if there is none."""
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
        """Read a meter, pass its values to callbacks and loggers, and reset it."""
        meter = self._meter(split)
        values = {f"{split}/{name}": value for name, value in meter.compute().items()}
        if reset:
            meter.reset()
        # log_dict makes them visible to callbacks; the loggers get them below, in one row with our own epoch count.
        # The meters are already reduced over ranks, so there is nothing to sync, and NCCL rejects CPU tensors.
        self.log_dict({k: torch.tensor(v) for k, v in values.items()}, logger=False)
        self.reported |= values
        self.log_row(values)
        if not math.isfinite(values.get(f"{split}/loss", 0.0)):
            # The last step of an epoch can produce NaN weights: raise before they are saved.
            raise UserError(
                f"{split}/loss is not finite after epoch {self.epochs_done}; training stopped and the last checkpoint "
                "predates it. Try a lower optimizer.lr or trainer.gradient_clip_val=1."
            )

    def log_row(self, values: Mapping[str, float]) -> None:
        """Write one row to every logger; `epoch` counts finished epochs."""
        if values and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics({"epoch": self.epochs_done, **values}, step=self.global_step)

    @property
    def epochs_done(self) -> int:
        """Number of epochs trained, including the one that is just ending."""
        return epochs_done(self.trainer)

    # ---------------------------------------------------------------------------------------- set-up

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        is_compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        self.whole_slice = data.whole_slice() if is_compiled and isinstance(data, ImageData) else None
        if stage == "fit" and self.trainer.world_size > 1:
            check_ranks(self.trainer, own_classes(self.classes), self.splits())

    def configure_optimizers(self) -> Any:
        # Lightning refuses gradient clipping with a fused optimizer in mixed precision, with or without a scaler.
        clipped_mixed = self.trainer.precision.endswith("-mixed") and bool(self.trainer.gradient_clip_val)
        batch = images_of_a_step(self.trainer)
        optimizer = build_optimizer(self.model, self.optimizer_config, not clipped_mixed, batch)
        if rates := describe_rates(optimizer.param_groups):
            log.info("%s.", rates)
        self.trainer.fit_loop.setup_data()  # the schedule needs the length of an epoch
        check_batch_norm(self.trainer, self.model)
        steps = self.trainer.estimated_stepping_batches
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        length = RunLength(steps, max(1, math.ceil(batches)))
        schedule = build_schedule(optimizer, self.scheduler_config, length)
        self.warm_up_steps = warm_up_steps(self.scheduler_config, length)
        self._kept = Kept(optimizer, schedule and schedule["scheduler"], length)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(
            self.embed, classes=list(self.classes), train_sums=self.train_meter.state(), splits=self.splits(),
            reported=dict(self.reported), validated=self._validated, run_length=self._kept.run_length,
        )  # fmt: skip
        if accumulates(self.trainer):  # between two batches of one optimizer step
            # DDP only averages at the last batch of a step: until then each rank has its own partial gradient.
            reduce, named = self.trainer.strategy.reduce, self.model.named_parameters()
            gradients = ((name, p.grad) for name, p in named if p.grad is not None)
            # Clones, because `reduce` works in place, and training goes on with these.
            checkpoint["gradients"] = {n: reduce(g.clone(), reduce_op="mean") for n, g in gradients}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.begin_epoch_again:
            begin_epoch_again(checkpoint)
        self.train_meter.restore(checkpoint["train_sums"], self.trainer.world_size, self.global_rank)
        # A run without validation would report the values of an earlier one as its own.
        kept = ("train/", "val/") if self.trainer.limit_val_batches else ("train/",)
        self.reported = {k: v for k, v in checkpoint["reported"].items() if k.startswith(kept)}
        self._validated = checkpoint["validated"] and bool(self.trainer.limit_val_batches)
        self._gradients = checkpoint.get("gradients", {})
        for name, gradient in self._gradients.items():
            if gradient.shape != self.model.get_parameter(name).shape:
                raise ValueError(f"the gradient of {name} is {tuple(gradient.shape)}")
        self._changes = changes(checkpoint, self.embed.get("config", {}))
        if self._changes.schedule:
            checkpoint["lr_schedulers"] = []  # another schedule: the saved state does not fit


def logits_of_views(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images; for several views (N, V, C, H, W), the log of the mean softmax over views."""
    if images.dim() == 4:
        return network(images)
    views = network(images.flatten(0, 1)).float().log_softmax(1).unflatten(0, images.shape[:2])
    return views.logsumexp(1) - math.log(images.shape[1])


def _reads_without_sync(loss: Tensor) -> bool:
    return loss.device.type == "cpu"  # a function, so that tests can exercise the accelerator's path on CPU
