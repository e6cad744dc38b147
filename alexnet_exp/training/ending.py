"""How a run ends: no epoch that it ends in goes without a validation, and an end inside an epoch can be resumed from.

Lightning ends an epoch wherever training ends, and validates at its own times alone.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def run_ends(trainer: Trainer) -> bool:
    """Return whether training ends with the batch just trained, whatever ends it but a signal."""
    loop = trainer.fit_loop
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.should_stop and loop._can_stop_early:  # trainer.max_time
        return True
    epochs = loop.max_epochs
    last = epochs not in (None, -1) and loop.epoch_progress.current.processed + 1 >= epochs
    return bool(last and not inside_epoch(trainer))


def inside_epoch(trainer: Trainer) -> bool:
    """Return whether the epoch has more batches; asked at its end, whether the run has ended inside it."""
    return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def epochs_done(trainer: Trainer) -> int:
    """Return how many epochs have been trained to their end, the one that ends just now included."""
    progress = trainer.fit_loop.epoch_progress.current
    if progress.ready == progress.processed:  # Lightning counts the epoch that the run has ended in, too
        return int(progress.processed) - int(progress.ready > 0 and inside_epoch(trainer))
    # Validation after an epoch's last batch comes before the epoch is counted as processed.
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return int(progress.processed) + int(batches >= trainer.num_training_batches)


def validate_at_the_end(trainer: Trainer) -> None:
    """Have a run validate once more where it ends inside an epoch, or in one that validates nothing."""
    loop = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx

    def should_check(fetcher: Any) -> bool:
        if is_due(fetcher):
            return True
        left_out = inside_epoch(trainer) or not loop._should_check_val_epoch()
        return trainer.enable_validation and left_out and run_ends(trainer)

    loop._should_check_val_fx = should_check


def at_its_time(trainer: Trainer) -> bool:
    """Return whether the settings ask for a validation after this batch.

    One that comes only because the run ends must leave no trace in what a resumed run does: the run that never
    stopped has not had it.
    """
    loop = trainer.fit_loop.epoch_loop
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return type(loop)._should_check_val_fx(loop, trainer.fit_loop._data_fetcher)
    finally:
        trainer.should_stop = stops


def stay_inside_epoch(trainer: Trainer, loops: MutableMapping[str, Any]) -> None:
    """Have a checkpoint of a run that has ended inside an epoch say so: Lightning has counted the epoch as done.

    Args:
        trainer: At the end of an epoch, or inside one, where nothing is to be done.
        loops: State of the fit loop in the checkpoint; changed in place.
    """
    epochs = loops["epoch_progress"]
    if not inside_epoch(trainer) or epochs["current"]["processed"] < epochs["current"]["ready"]:
        return
    for counted in epochs.values():
        counted["processed"] -= 1
    loop = trainer.fit_loop.epoch_loop
    if at_its_time(trainer) and not loop._should_accumulate():
        # Lightning leaves the validation out where it resumes, and counts the batch there.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
