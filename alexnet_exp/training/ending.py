"""How a run ends: no epoch that it ends in goes without a validation, and an end inside an epoch can be resumed from.

Lightning ends an epoch wherever training ends, and validates at its own times alone.
"""

from __future__ import annotations

from lightning.pytorch import Trainer

from alexnet_exp.training.lightning_internals import (
    also_validate,
    batches_begun,
    epochs_begun,
    epochs_ended,
    inside_epoch,
    may_stop_early,
)


def run_ends(trainer: Trainer) -> bool:
    """Return whether training ends with the batch just trained, whatever ends it but a signal."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.should_stop and may_stop_early(trainer):  # trainer.max_time
        return True
    epochs = trainer.max_epochs
    last = epochs not in (None, -1) and epochs_ended(trainer) + 1 >= epochs
    return bool(last and not inside_epoch(trainer))


def epochs_done(trainer: Trainer) -> int:
    """Return how many epochs have been trained to their end, the one that ends just now included."""
    begun, ended = epochs_begun(trainer), epochs_ended(trainer)
    if begun == ended:  # Lightning counts the epoch that the run has ended in, too
        return ended - int(begun > 0 and inside_epoch(trainer))
    # Validation after an epoch's last batch comes before the epoch is counted as ended.
    return ended + int(batches_begun(trainer) >= trainer.num_training_batches)


def validate_at_the_end(trainer: Trainer) -> None:
    """Have a run validate once more where it ends inside an epoch, or in one that validates nothing."""

    def is_left_out() -> bool:
        every = trainer.check_val_every_n_epoch
        not_this_epoch = every is not None and (trainer.current_epoch + 1) % every != 0
        return trainer.enable_validation and (inside_epoch(trainer) or not_this_epoch) and run_ends(trainer)

    also_validate(trainer, is_left_out)
