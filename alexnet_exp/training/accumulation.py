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
        self.begin()

    def begin(self, with_gradients: bool = False) -> None:
        """Start or resume training, perhaps with the gradients of the first batches of the next step."""
        self._epoch, self._batches, self._images, self._whole = -1, range(0), 0, with_gradients

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
        first = batch_idx - batch_idx % count
        end = min(first + count, trainer.num_training_batches)
        # A run resumed with another number of batches may start inside a window without the gradients of its start.
        start = first if self._whole else batch_idx
        self._epoch, self._batches = trainer.current_epoch, range(start, int(end))
        self._images = batch.global_size * len(self._batches)
        # A loader of the user's own has no plan: its batches are taken to be of one size.
        if isinstance(plan := getattr(trainer.train_dataloader, "sampler", None), BatchPlan):
            self._images = plan.images(self._batches)
