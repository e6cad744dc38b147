"""What a run prints: the progress bar, one line per epoch, the layer summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alexnet_exp.tracking.terminal import print_fitted
from alexnet_exp.training.callbacks.step_log import StepLog


class SameBatches(Callback):
    """Use the same image order in every epoch, so that trainer.overfit_batches=N always sees the same batches."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.train_dataloader.sampler.repeated = True


class Bar(ProgressBar):
    """One permanent line per epoch, and a progress bar on a terminal.

    Args:
        console: Output console.
        refresh_per_second: Maximum refresh rate of the bar.
        step_log: Source of the throughput; None if nothing is trained.
    """

    def __init__(
        self, console: Console, refresh_per_second: float = 5.0, step_log: StepLog | None = None
    ) -> None:
        super().__init__()
        self.console, self.period, self.step_log = console, 1.0 / refresh_per_second, step_log
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = self._started = 0.0
        self._images = 0
        self._ended: int | None = None  # finished epoch whose line is still to be printed

    def disable(self) -> None:  # Lightning calls it on every rank but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._enabled = trainer.is_global_zero

    def _open(self, what: str, total: int | float) -> None:
        self._close()
        self._started, self._images = time.perf_counter(), 0
        if not (self._enabled and self.console.is_terminal):
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        )  # fmt: skip
        # auto_refresh=False: a refresh thread could hold a lock while worker processes are forked.
        self._progress = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self._progress.start()
        self._task = self._progress.add_task(what, total=None if total == float("inf") else total, rate="")

    def _advance(self, batch: Any, done: int, rate: Callable[[], float | None] | None = None) -> None:
        self._images += batch.global_size
        now = time.perf_counter()
        if self._progress is None or self._task is None or now - self._drawn < self.period:
            return
        self._drawn = now
        mean = self._images / (now - self._started)
        self._progress.update(self._task, completed=done, rate=_per_second(mean if rate is None else rate()))
        self._progress.refresh()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_epoch(trainer)  # a resumed epoch has no on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer, pl_module)
        self._open_epoch(trainer)

    def _open_epoch(self, trainer: Trainer) -> None:
        self._open(f"epoch {trainer.current_epoch + 1}{_of_epochs(trainer)}", self.total_train_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        self._advance(batch, batch_idx + 1, self.step_log and self.step_log.latest)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        # The module's hook runs after the callbacks, so the epoch's metrics are not there yet: print its line later.
        self._ended = trainer.current_epoch + 1

    def _print_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ended is None or not self._enabled:
            return
        epoch, self._ended = self._ended, None
        metrics = _metrics_text(pl_module.reported, ("train", "val"))
        # The median of the run so far, as in result.json.
        speed = _per_second(self.step_log and self.step_log.images_per_second)
        self.console.print(
            f"epoch {epoch:>3}{_of_epochs(trainer)}  {metrics}  {speed}".rstrip(), highlight=False
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                          batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        self._advance(batch, batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        if self._enabled and (metrics := _metrics_text(pl_module.reported, ("test",))):
            self.console.print(f"test           {metrics}", highlight=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f} images/s"


def _of_epochs(trainer: Trainer) -> str:
    """Return "/30" for a run of 30 epochs, "" if the number is unknown."""
    ends = [trainer.max_epochs] if trainer.max_epochs not in (None, -1) else []
    if trainer.max_steps != -1:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        ends.append(math.ceil(trainer.max_steps / max(1, steps)))
    return f"/{min(ends)}" if ends else ""


def _metrics_text(metrics: dict[str, float], splits: tuple[str, ...]) -> str:
    names = [f"{split}/{name}" for split in splits for name in ("loss", "top1")]
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)


def print_summary(rows: list[Any], console: Console) -> None:
    """Print output shape, parameters and multiply-adds of every layer with parameters."""
    cells = [
        [r.name, r.type, " x ".join(map(str, r.output_shape)), f"{r.parameters:,}", f"{r.multiply_adds:,}"]
        for r in rows
        if r.parameters
    ]
    total = f"{sum(r.parameters for r in rows):,}", f"{sum(r.multiply_adds for r in rows):,}"
    head = ["layer", "type", "output", "parameters", "multiply-adds"]
    print_fitted(head, [*cells, ["total", "", "", *total]], console, numbers=range(3, 5), spare=(1, 2))
    flops = 2 * sum(r.multiply_adds for r in rows)
    console.print(f"{flops / 1e6:,.1f} MFLOPs per image (2 per multiply-add)", highlight=False)
