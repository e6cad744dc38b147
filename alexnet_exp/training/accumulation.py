"""The gradient of an optimizer step is the mean over its images, in however many batches and slices they come."""

from __future__ import annotations

from lightning import Trainer

from alexnet_exp.data.loaders import Batch, BatchPlan


class Window:
    """The batches whose gradients make one optimizer step.

    Lightning divides the loss of each by trainer.accumulate_grad_batches. That is the mean over the images where all of
    these batches are there and of one size, and too little in the last step of an epoch that has fewer left.
    """

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        """Forget the step that was not finished."""
        self._epoch, self._batches, self._images = -1, range(0), 0

    def weight(self, trainer: Trainer, batch: Batch, batch_idx: int) -> float:
        """Return what to multiply the mean loss of a batch by, ahead of Lightning's division.

        Args:
            trainer: In the middle of an epoch.
            batch: Any rank's slice of it.
            batch_idx: Its place in the epoch.
        """
        count: int = trainer.accumulate_grad_batches
        if count == 1:
            return 1.0
        if batch_idx not in self._batches or trainer.current_epoch != self._epoch:
            self._open(trainer, batch, batch_idx, count)
        return count * batch.global_size / self._images

    def _open(self, trainer: Trainer, batch: Batch, batch_idx: int, count: int) -> None:
        # A run resumed with another number of batches may start inside a window, and has no gradient of its start.
        end = min(batch_idx - batch_idx % count + count, trainer.num_training_batches)
        self._epoch, self._batches = trainer.current_epoch, range(batch_idx, int(end))
        self._images = batch.global_size * len(self._batches)
        # A loader of the user's own has no plan: its batches are taken to be of one size.
        if isinstance(plan := getattr(trainer.train_dataloader, "sampler", None), BatchPlan):
            self._images = plan.images(self._batches)
