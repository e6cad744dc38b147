"""What is used of Lightning's private parts, and of how its loops count: 2.6, read in 2.6.6.

tests/training/test_lightning_internals.py fails for each name that Lightning renames, no longer calls or no longer
counts by. Nothing else in this package knows the loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from torch import nn

# Lightning writes the name of every hook into this attribute of the module, dozens of times a step.
HOOK_NAME = "_current_fx_name"


# ---------------------------------------------------------------------------------------- before a run


def find_devices(accelerator: str, devices: Any, num_nodes: int) -> list[Any]:
    """Return the devices that a trainer of these settings would take, of this machine; a Trainer would announce them.

    Raises:
        MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError: If they do not exist.
    """
    connector = _AcceleratorConnector(accelerator=accelerator, devices=devices, num_nodes=num_nodes)
    return list(connector._parallel_devices)


def check_limit(stage: RunningStage, num_batches: int, limit: float) -> None:
    """Refuse a trainer.limit_*_batches that is less than one batch; Lightning looks when the split's turn comes.

    Raises:
        MisconfigurationException: Names the setting.
    """
    _parse_num_batches(stage, num_batches, limit)


def leave_signals_to_us(trainer: Trainer) -> None:
    """Take Lightning's own handling of signals out of a trainer; training/launch/signals.py does it.

    Args:
        trainer: Not run yet.
    """
    # Its handler of SIGTERM calls a collective operation from inside the signal, and ranks hang in it.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # On several devices it asks before every step whether the first rank has had one, which waits for the device.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def augment_as_in_training(trainer: Trainer) -> None:
    """Let the data module of a trainer that does not run give its batches as a training step gets them."""
    trainer.training = True


class NoProfiler(PassThroughProfiler):
    """Profiles nothing; Lightning's own makes a generator for each of thirty actions a step."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def make_profiler(name: str | None, run_dir: Path) -> Profiler:
    """Return a profiler that writes into a run directory; of no name, one that does nothing."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return kinds[name](dirpath=run_dir, filename="profile") if name else NoProfiler()


# ---------------------------------------------------------------------------------------- where a run stands


def epochs_begun(trainer: Trainer) -> int:
    """Return how many epochs have begun, those before a resume included; trainer.current_epoch lags behind it."""
    return int(trainer.fit_loop.epoch_progress.current.ready)


def epochs_ended(trainer: Trainer) -> int:
    """Return how many epochs have ended; it is counted before the callbacks of an epoch's end are called."""
    return int(trainer.fit_loop.epoch_progress.current.processed)


def batches_begun(trainer: Trainer) -> int:
    """Return how many batches of this epoch have begun."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def batch_of_run(trainer: Trainer) -> int:
    """Return the number of this batch in the whole run, from 0; several batches may share an optimizer step."""
    return int(trainer.fit_loop.total_batch_idx)


def inside_epoch(trainer: Trainer) -> bool:
    """Return whether the epoch has more batches; asked at its end, whether the run has ended inside it."""
    return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def accumulates(trainer: Trainer) -> bool:
    """Return whether gradients wait for further batches of the same optimizer step."""
    return bool(trainer.fit_loop._should_accumulate())


def may_stop_early(trainer: Trainer) -> bool:
    """Return whether trainer.should_stop ends the run: not before trainer.min_epochs and trainer.min_steps."""
    return bool(trainer.fit_loop._can_stop_early)


# ---------------------------------------------------------------------------------------- validation


def validates_now(trainer: Trainer) -> bool:
    """Return whether a validation follows this batch, for whatever reason."""
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def validates_by_schedule(trainer: Trainer) -> bool:
    """Return whether the settings ask for a validation after this batch.

    One that comes only because the run ends must leave no trace in what a resumed run does: the run that never
    stopped has not had it.
    """
    loop = trainer.fit_loop.epoch_loop
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return bool(type(loop)._should_check_val_fx(loop, trainer.fit_loop._data_fetcher))
    finally:
        trainer.should_stop = stops


def also_validate(trainer: Trainer, wanted: Callable[[], bool]) -> None:
    """Have a trainer validate after further batches than its settings say, which know the batch numbers alone.

    Args:
        trainer: Not run yet.
        wanted: Asked after each batch that no validation follows anyway.
    """
    loop = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx
    loop._should_check_val_fx = lambda fetcher: is_due(fetcher) or wanted()


# ---------------------------------------------------------------------------------------- resuming


def complete_loops(trainer: Trainer) -> None:
    """Bring counters and loader to where the checkpoint was written, which Lightning does in part.

    Args:
        trainer: As training starts, with what Lightning has restored.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:  # in a run counted in steps, Lightning would end the finished epoch again
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        _Loop.restarting.fset(loop, False)
    # The augmentation draws by epoch, and a run counted in steps would have the number of the one before.
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    # The loader was made to count the steps, before the checkpoint was read, and stands at the start.
    loop._load_combined_loader_states()


def epochs_of(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint has trained to their end."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def stay_inside_epoch(trainer: Trainer, checkpoint: MutableMapping[str, Any]) -> None:
    """Have the checkpoint of a run that has ended inside an epoch say so: Lightning has counted the epoch as done.

    Args:
        trainer: At the end of an epoch, or inside one, where nothing is to be done.
        checkpoint: Changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]
    if not inside_epoch(trainer) or epochs["current"]["processed"] < epochs["current"]["ready"]:
        return
    for counted in epochs.values():
        counted["processed"] -= 1
    if validates_by_schedule(trainer) and not accumulates(trainer):
        # Lightning leaves the validation out where it resumes, and counts the batch there.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def rewind_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Send a checkpoint from the middle of an epoch back to its start.

    Args:
        checkpoint: Changed in place, before Lightning restores it.

    Returns:
        Whether it was in the middle of one.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if batches["is_last_batch"]:
        return False
    # Lightning counts up the batch at whose end it saved, if it did.
    pending = batches["total"]["processed"] - batches["total"]["completed"]
    batches["current"] = {"ready": 0, "started": 0, "processed": 0, "completed": -pending}
    for place in loops["state_dict"].get("combined_loader", []):
        if isinstance(place, dict) and "batches" in place:
            place["batches"] = 0
    return True


def is_restoring(frames: Sequence[FrameSummary]) -> bool:
    """Return whether an error comes from Lightning's restoring of a checkpoint, by its traceback."""
    return any(frame.filename.endswith("checkpoint_connector.py") for frame in frames)


def is_of_a_setting(frames: Sequence[FrameSummary]) -> bool:
    """Return whether an error comes from counting batches, which judges settings such as trainer.val_check_interval."""
    return frames[-1].name in ("setup_data", _parse_num_batches.__name__)


# ---------------------------------------------------------------------------------------- averaged weights


def average_on(callback: WeightAveraging, device: torch.device) -> None:
    """Set the device of the average before its `setup`, which knows only that of a module not moved yet."""
    callback._device = device


def average_of(callback: WeightAveraging) -> nn.Module | None:
    """Return the averaged network, an AveragedModel; None before training."""
    return callback._average_model
