"""Loss weights for gradient accumulation: each optimizer step gets the mean gradient over all of its images."""

from __future__ import annotations

from lightning import Trainer

from alexnet_exp.data.loaders import Batch, BatchPlan


class Window:
    """The batches that are accumulated into one optimizer step.

    Lightning divides each loss by trainer.accumulate_grad_batches. This gives the mean over the images only if the
    window is complete and its batches have equal sizes; in a short last window the gradient comes out too small.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self, with_gradients: bool = False) -> None:
        """Reset at the start of training.

        Args:
            with_gradients: Whether a resumed run has restored the gradients of a partly accumulated step.
        """
        self._epoch, self._batches, self._images, self._whole = -1, range(0), 0, with_gradients

    def weight(self, trainer: Trainer, batch: Batch, batch_idx: int) -> float:
        """Return the factor for a batch's mean loss, applied before Lightning divides.

        Args:
            trainer: Inside an epoch.
            batch: This rank's slice.
            batch_idx: Index of the batch in the epoch.
        """
        count: int = trainer.accumulate_grad_batches
        if count == 1:
            return 1.0
        if batch_idx not in self._batches or trainer.current_epoch != self._epoch:
            first = batch_idx - batch_idx % count
            end = min(first + count, trainer.num_training_batches)
            # Resuming with a different accumulate_grad_batches can land inside a window whose first gradients are lost.
            start = first if self._whole else batch_idx
            self._epoch, self._batches = trainer.current_epoch, range(start, int(end))
            self._images = batch.global_size * len(self._batches)
            # A custom loader has no plan; assume that its batches have equal sizes.
            if isinstance(plan := getattr(trainer.train_dataloader, "sampler", None), BatchPlan):
                self._images = plan.images(self._batches)
        # Lightning divides by `count`; what is left is this batch's share of the images of the step.
        return count * batch.global_size / self._images
