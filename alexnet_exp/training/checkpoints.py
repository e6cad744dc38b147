"""Checkpoints that are whole or not there: written beside, synced, renamed; the ones before are kept.

A file of torch.save is a zip archive with a CRC-32 of every record, and every read of ours compares them
(safe_load.py). So a checkpoint carries its checksum inside: none beside it can be lost, fall out of step or be copied
without it, and nothing is added to the time of a save.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.training.bad_step import check_weights
from alexnet_exp.training.ending import run_ends, stay_inside_epoch
from alexnet_exp.training.reading import checkpoints_before, read_checkpoint
from alexnet_exp.training.stopping import Stopped, agreed, due

LAST = "last.ckpt"
_BEST = {"value": float, "epoch": int, "step": int}


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reader and writer of checkpoint files, made safe.

    Args:
        keep_last: How many of the latest checkpoints stay: last.ckpt, last-1.ckpt (the one before it), and so on.
    """

    def __init__(self, keep_last: int = 2) -> None:
        self.keep_last = keep_last

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: There is no room for it, or it cannot be written; what was there before is untouched.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a run killed while it wrote
                stale.unlink()
            with open(temporary, "wb") as file:
                told = _Told(file)
                torch.save(checkpoint, told)  # it asks for no more than write and flush
                told.check()
            if path.name == LAST:
                _keep_before(path, self.keep_last)
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Not to the device it came from: another machine has none, and every rank would read onto the first one's.
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class BestAndLast(Checkpoint):
    """Write last.ckpt after every epoch, and keep the best by one metric as best.ckpt.

    Every validation is judged, also one inside an epoch: the best is both files then.

    Args:
        directory: Where the two files go.
        monitor: Metric that decides, of validation or, at the end of each epoch, another; where it is not measured
            (no validation), the best is the last.
        mode: 'max' or 'min'.
        every_n_steps: Write last.ckpt after so many optimizer steps, too.
        every_n_minutes: Write it when so much time has passed since the one before, too.
    """

    def __init__(
        self,
        directory: str | Path,
        monitor: str,
        mode: str = "max",
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.monitor, self.sign = monitor, 1.0 if mode == "max" else -1.0
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._saved_seconds = 0.0  # when, by a clock that nobody sets
        self.best: dict[str, float] | None = None  # value, epoch, step
        self._seen_step = 0
        self._stop: int | None = None  # the signal that asked for the end
        self._wanted = False  # a save inside an epoch that waits for the validation after this batch
        self._better = False  # than all before, and not saved yet

    @property
    def last_path(self) -> Path:
        return self.directory / LAST

    @property
    def best_path(self) -> Path:
        return self.directory / "best.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # several batches share a step where gradients are accumulated
        self._seen_step = step
        self._stop = due(step, trainer)
        if self._stop is None and not self._is_time(step, trainer):
            return
        if trainer.is_last_batch or run_ends(trainer) or trainer.fast_dev_run:
            return  # the epoch ends here and saves
        # A checkpoint from before a validation would resume after it.
        loop = trainer.fit_loop
        self._wanted = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._wanted:
            self._save_inside_epoch(trainer, pl_module)

    def _is_time(self, step: int, trainer: Trainer) -> bool:
        # Both are asked at every step: the ranks have clocks of their own, and must all come to the same answer.
        by_clock = self.every_n_minutes is not None and agreed(
            "save", time.monotonic() - self._saved_seconds >= 60 * self.every_n_minutes, step, trainer
        )
        return bool(by_clock) or (self.every_n_steps is not None and step % self.every_n_steps == 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if self._is_of_validation() and (value := pl_module.measured(self.monitor)) is not None:
            self._judge(value, trainer, pl_module)
        if (self._wanted or self._better) and not (trainer.is_last_batch or run_ends(trainer)):
            self._save_inside_epoch(trainer, pl_module)

    def _save_inside_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wanted = False
        pl_module.check_finite()
        self._save(trainer)
        if self._stop is not None:
            raise Stopped(self._stop, trainer.global_step)

    def _save(self, trainer: Trainer) -> None:
        # The loss of a step that spoils the weights is still finite, and nobody could go on from what it leaves.
        check_weights(trainer)
        trainer.save_checkpoint(self.last_path, weights_only=False)
        self._saved_seconds = time.monotonic()
        if self._better and trainer.is_global_zero:
            link(self.last_path, self.best_path)
        self._better = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step, self._saved_seconds = trainer.global_step, time.monotonic()
        if self.best is not None and trainer.is_global_zero:
            if self.best["step"] == trainer.global_step and self.last_path.exists():
                link(self.last_path, self.best_path)  # a kill may have come between the two
            elif not self.best_path.exists():
                self.best = None  # the file is lost: the next validation is the best that there is
        # All ranks must save at the same time, and only the first is sure to see the files.
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._judge_epoch(trainer, pl_module)
        self._save(trainer)
        self._stop = self._stop or due(trainer.global_step, trainer)
        if self._stop is not None:
            raise Stopped(self._stop, trainer.global_step)

    def _is_of_validation(self) -> bool:
        return self.monitor.startswith("val/")

    def _judge_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = pl_module.measured(self.monitor)
        if value is None:
            if "val/loss" in pl_module.reported:
                known = ", ".join(sorted(pl_module.reported))
                raise UserError(
                    f"callbacks.checkpoint.monitor={self.monitor} is not measured; there are {known}."
                )
            self._better = True  # no validation: best is last
        elif not self._is_of_validation():  # which has judged the weights that it has seen
            self._judge(value, trainer, pl_module)

    def _judge(self, value: float, trainer: Trainer, pl_module: LightningModule) -> None:
        if not math.isfinite(value):
            return  # nothing compares with NaN: it would stay the best for ever
        if self.best is None or self.sign * value > self.sign * self.best["value"]:
            self.best = {"value": value, "epoch": pl_module.epochs_done, "step": trainer.global_step}
            self._better = True

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                checkpoint["num_rows"] = logger.num_rows
        stay_inside_epoch(trainer, checkpoint["loops"]["fit_loop"])

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best) if self.best else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A new run has no checkpoints yet: its best counts from its own first epoch.
        in_place = self.best_path.exists() or self.last_path.exists()
        best = state_dict["best"] if in_place else None
        self.best = {key: kind(best[key]) for key, kind in _BEST.items()} if best else None


class _Told:
    """A file for torch.save, which would make a full disk into a complaint about positions in an archive.

    Args:
        file: Open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write while that works; `check` says whether it did."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Leave it to `check`."""

    def check(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: If something is not there.
        """
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def _keep_before(path: Path, keep_last: int) -> None:
    """Give last.ckpt the name last-1.ckpt as well, the one of that name last-2.ckpt; remove those beyond."""
    for number, file in sorted(checkpoints_before(path).items(), reverse=True):
        if number + 1 < keep_last:
            os.replace(file, path.with_name(f"{path.stem}-{number + 1}.ckpt"))
        else:
            file.unlink()
    if keep_last > 1 and path.exists():
        link(path, path.with_name(f"{path.stem}-1.ckpt"))


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` at once; copies where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for stale in target.parent.glob(f".{target.name}.*.tmp"):  # of a run killed in here
        stale.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _unwritable(target, error) from error
    os.replace(temporary, target)


def _unwritable(path: Path, error: OSError) -> UserError:
    before = f"; {path.name} of before is whole" if path.exists() else ""
    return UserError(
        f"{path} cannot be written ({error.strerror}){before}: make room, then go on with "
        f"resume={path.parent.parent}."
    )
