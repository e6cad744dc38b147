"""Everything that depends on Lightning's private parts and on how its loops count (written against 2.6.6).

tests/training/test_lightning_internals.py fails as soon as Lightning renames one of these names, stops calling it or
counts differently. No other module of this package touches the loops.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from torch import nn

# Module attribute that Lightning sets to the name of the running hook, dozens of times per step.
HOOK_NAME = "_current_fx_name"


# ---------------------------------------------------------------------------------------- before a run


def find_devices(accelerator: str, devices: Any, num_nodes: int) -> list[Any]:
    """Return the devices of this machine that a Trainer would use; building one would also print them.

    Raises:
        MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError: If such devices do not exist.
    """
    connector = _AcceleratorConnector(accelerator=accelerator, devices=devices, num_nodes=num_nodes)
    return list(connector._parallel_devices)


def check_limit(stage: RunningStage, num_batches: int, limit: float) -> None:
    """Refuse a trainer.limit_*_batches below one batch; Lightning itself only checks when the split is first used.

    Raises:
        MisconfigurationException: If the limit rounds down to no batch.
    """
    _parse_num_batches(stage, num_batches, limit)


def leave_signals_to_us(trainer: Trainer) -> None:
    """Disable Lightning's signal handling; training/launch/signals.py does it instead.

    Args:
        trainer: Not run yet.
    """
    # Its SIGTERM handler runs a collective inside the signal handler, where ranks can deadlock.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # With several devices it broadcasts the SIGTERM flag before every step, which is a device sync.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def augment_as_in_training(trainer: Trainer) -> None:
    """Make the data module of an idle trainer transfer batches as in training, augmentation included."""
    trainer.training = True


class NoProfiler(PassThroughProfiler):
    """No profiling. Lightning's PassThroughProfiler creates a generator for each of about thirty actions per step."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def make_profiler(name: str | None, run_dir: Path) -> Profiler:
    """Return a profiler that writes into the run directory, or a no-op if `name` is None."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return kinds[name](dirpath=run_dir, filename="profile") if name else NoProfiler()


# ---------------------------------------------------------------------------------------- progress


def epochs_begun(trainer: Trainer) -> int:
    """Return how many epochs have begun, including those before a resume; trainer.current_epoch lags behind."""
    return int(trainer.fit_loop.epoch_progress.current.ready)


def epochs_ended(trainer: Trainer) -> int:
    """Return how many epochs have ended; Lightning counts before it calls on_train_epoch_end."""
    return int(trainer.fit_loop.epoch_progress.current.processed)


def batches_begun(trainer: Trainer) -> int:
    """Return how many batches of this epoch have begun."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def batch_of_run(trainer: Trainer) -> int:
    """Return the index of this batch in the whole run, from 0; differs from global_step under accumulation."""
    return int(trainer.fit_loop.total_batch_idx)


def inside_epoch(trainer: Trainer) -> bool:
    """Return whether the epoch has batches left; at the end of a run, whether it ended inside an epoch."""
    return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def accumulates(trainer: Trainer) -> bool:
    """Return whether the optimizer step still waits for further batches (gradient accumulation)."""
    return bool(trainer.fit_loop._should_accumulate())


def may_stop_early(trainer: Trainer) -> bool:
    """Return whether trainer.should_stop takes effect: not before trainer.min_epochs and trainer.min_steps."""
    return bool(trainer.fit_loop._can_stop_early)


# ---------------------------------------------------------------------------------------- validation


def validates_now(trainer: Trainer) -> bool:
    """Return whether validation runs after this batch, for any reason."""
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def validates_by_schedule(trainer: Trainer) -> bool:
    """Return whether the settings schedule a validation after this batch.

    A validation that only runs because the run stops must not affect the resumed run: an uninterrupted run would not
    have had it.
    """
    loop = trainer.fit_loop.epoch_loop
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        # The class's own function: the one of the instance may be that of `also_validate`, which is not part of the
        # settings.
        return bool(type(loop)._should_check_val_fx(loop, trainer.fit_loop._data_fetcher))
    finally:
        trainer.should_stop = stops


def also_validate(trainer: Trainer, wanted: Callable[[], bool]) -> None:
    """Make a trainer validate after additional batches; its settings can only express fixed intervals.

    Args:
        trainer: Not run yet.
        wanted: Called after each batch without a scheduled validation.
    """
    loop = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx
    loop._should_check_val_fx = lambda fetcher: is_due(fetcher) or wanted()


# ---------------------------------------------------------------------------------------- resuming


def complete_loops(trainer: Trainer) -> None:
    """Restore the counters and loader state that Lightning leaves behind on resume.

    Args:
        trainer: At on_train_start, after Lightning has restored its part.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:  # with max_steps, Lightning would end the finished epoch a second time
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        # Not `loop.restarting = False`: the setter of _FitLoop stays True for a run counted in steps
        # (`_iteration_based_training`).
        _Loop.restarting.fset(loop, False)
    # Augmentation is keyed by epoch; with max_steps the counter would still name the previous one.
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    # The loader was created before the checkpoint was read (to count steps), so it is still at the start.
    loop._load_combined_loader_states()


def epochs_of(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of complete epochs in a checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def stay_inside_epoch(trainer: Trainer, checkpoint: MutableMapping[str, Any]) -> None:
    """Correct a checkpoint of a run that ended inside an epoch, which Lightning has counted as finished.

    Args:
        trainer: Saving a checkpoint; a no-op unless the run just ended inside an epoch.
        checkpoint: Changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]
    if not inside_epoch(trainer) or epochs["current"]["processed"] < epochs["current"]["ready"]:
        return
    for counted in epochs.values():
        counted["processed"] -= 1
    if validates_by_schedule(trainer) and not accumulates(trainer):
        # On resume Lightning skips this validation and counts the batch itself.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def rewind_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Rewind a checkpoint taken inside an epoch to the start of that epoch.

    Args:
        checkpoint: Changed in place, before Lightning restores it.

    Returns:
        False if the checkpoint was at an epoch boundary and stays as it is.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if batches["is_last_batch"]:
        return False
    # Lightning marks a batch as completed on restore if it saved at the end of that batch; cancel that out.
    pending = batches["total"]["processed"] - batches["total"]["completed"]
    batches["current"] = {"ready": 0, "started": 0, "processed": 0, "completed": -pending}
    for place in loops["state_dict"].get("combined_loader", []):
        if isinstance(place, dict) and "batches" in place:
            place["batches"] = 0
    return True


def is_restoring(frames: Sequence[FrameSummary]) -> bool:
    """Return whether an error was raised while Lightning restored a checkpoint, judging by its traceback."""
    # By file, since restoring has no exception of its own and raises what it comes across.
    return any(frame.filename.endswith("checkpoint_connector.py") for frame in frames)


def is_of_a_setting(frames: Sequence[FrameSummary]) -> bool:
    """Return whether an error is about a setting such as val_check_interval, checked when Lightning counts batches."""
    return frames[-1].name in ("setup_data", _parse_num_batches.__name__)


# ---------------------------------------------------------------------------------------- averaged weights


def average_on(callback: WeightAveraging, device: torch.device) -> None:
    """Set the device of the average. Call it before `setup`, which takes that of a module not moved yet."""
    callback._device = device


def average_of(callback: WeightAveraging) -> nn.Module | None:
    """Return the averaged network, an AveragedModel; None before training."""
    return callback._average_model


# ---------------------------------------------------------------------------------------- frozen parameters


def can_rewrap(trainer: Trainer) -> bool:
    """Return whether `rewrap` supports the strategy: a single device, or DDP."""
    # DeepSpeed's is a subclass of DDPStrategy that wraps the module differently.
    return type(trainer.strategy) is DDPStrategy or isinstance(trainer.strategy, SingleDeviceStrategy)


def rewrap(trainer: Trainer) -> None:
    """Make DDP follow a change of which parameters require gradients.

    DDP registers its hooks when it is constructed, on the parameters that require gradients then: it would wait
    forever for the gradients of those frozen since, and never average those of parameters thawed since.
    `find_unused_parameters` only covers the first case, and searches the graph at every step.

    Args:
        trainer: Between two steps; every rank calls this. Without DDP there is nothing to do.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    # The module without its wrapper: configure_ddp would wrap the previous DistributedDataParallel once more.
    strategy.model = trainer.lightning_module
    gc.collect()  # the hooks of the previous DDP go with it, and it may be part of a reference cycle
    strategy.configure_ddp()
