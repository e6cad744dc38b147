"""How a run ends: the last epoch is always validated, and a run that ends inside an epoch can be resumed.

Lightning counts the epoch as finished wherever training ends, and only validates on its own schedule.
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
    """Return whether training ends after the current batch, for any reason other than a signal."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.should_stop and may_stop_early(trainer):  # trainer.max_time
        return True
    epochs = trainer.max_epochs
    last = epochs not in (None, -1) and epochs_ended(trainer) + 1 >= epochs
    return bool(last and not inside_epoch(trainer))


def epochs_done(trainer: Trainer) -> int:
    """Return how many epochs are complete, including one that is just ending."""
    # Neither of Lightning's counters is right everywhere: trainer.current_epoch lags at the end of an epoch,
    # `processed` counts an epoch that max_steps has cut short.
    begun, ended = epochs_begun(trainer), epochs_ended(trainer)
    if begun == ended:  # Lightning also counts an epoch that the run ended inside
        return ended - int(begun > 0 and inside_epoch(trainer))
    # Validation after the last batch runs before Lightning counts the epoch.
    return ended + int(batches_begun(trainer) >= trainer.num_training_batches)


def validate_at_the_end(trainer: Trainer) -> None:
    """Add a validation if the run ends inside an epoch, or in one without a scheduled validation."""

    def is_missing() -> bool:
        every = trainer.check_val_every_n_epoch
        not_this_epoch = every is not None and (trainer.current_epoch + 1) % every != 0
        return trainer.enable_validation and (inside_epoch(trainer) or not_this_epoch) and run_ends(trainer)

    also_validate(trainer, is_missing)
