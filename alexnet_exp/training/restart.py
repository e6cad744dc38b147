"""What Lightning 2.6 leaves undone when it goes on from a checkpoint."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop


def complete_restart(trainer: Trainer) -> None:
    """Bring counters and loader to where the checkpoint was written; to be called as training starts."""
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:  # in a run counted in steps, Lightning would end the finished epoch again
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        _Loop.restarting.fset(loop, False)
    # The augmentation draws by epoch, and a run counted in steps would have the number of the one before.
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    # The loader was made to count the steps, before the checkpoint was read, and stands at the start.
    loop._load_combined_loader_states()
    stopped = (c.stopped_epoch and c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)
    if any(stopped):  # before the test, which is all that is left to do
        trainer.should_stop = True
