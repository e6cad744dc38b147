"""The LightningModule by itself (with a minimal trainer), and its guarantees in small runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from small_runs import DROPOUT, NARROW, checkpoint, resume, rows, run, same
from torch import nn
from torch.nn import functional

from alexnet_exp.data.loaders import Batch, BatchPlan
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training import ImageClassifier

CLASSES = [str(i) for i in range(10)]


def classifier(
    world_size: int = 1, rank: int = 0, step: int = 0, model: nn.Module | None = None, **options: Any
) -> Any:
    """Make a classifier as on one rank in the middle of training."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    made = ImageClassifier(model, CLASSES, {"_target_": "torch.optim.SGD", "lr": 0.1}, **options)
    loops = SimpleNamespace(total_batch_idx=step)
    made._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world_size,
        global_rank=rank,
        fit_loop=loops,
        global_step=step,
        current_epoch=0,
        accumulate_grad_batches=1,
    )
    made._fabric = None
    return made


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 2, 2, generator=generator), torch.randint(10, (count,), generator=generator)


def gradient(made: Any, batch: Batch) -> torch.Tensor:
    made.zero_grad()
    made.training_step(batch, 0).backward()
    return made.model[1].weight.grad.clone()


@pytest.mark.parametrize(("count", "ranks"), [(8, 2), (7, 2), (5, 3), (1, 2), (2, 3)])
def test_the_mean_gradient_over_ranks_is_that_of_the_whole_batch(count: int, ranks: int) -> None:
    x, y = images(count)
    whole = gradient(classifier(), Batch(x, y, torch.arange(count), count, count))
    parts = []
    for rank in range(ranks):
        (own,) = BatchPlan(count, count, rank=rank, world_size=ranks)
        batch = Batch(x[own.indices], y[own.indices], own.indices, own.size, own.global_size)
        parts.append(gradient(classifier(world_size=ranks, rank=rank), batch))
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-5, atol=1e-7)


def test_a_rank_without_images_adds_no_gradient_and_no_metrics() -> None:
    x, y = images(1)
    made = classifier(world_size=2)
    slope = gradient(made, Batch(x, y, torch.arange(1), 0, 1))
    assert torch.equal(slope, torch.zeros_like(slope))
    assert made.train_meter.compute() == {}


def test_label_smoothing_is_only_used_in_training() -> None:
    x, y = images(6)
    batch = Batch(x, y, torch.arange(6), 6, 6)
    made = classifier(label_smoothing=0.2)
    logits = made.model(x).detach()
    plain = float(functional.cross_entropy(logits, y))
    spread = float(
        (
            0.8 * functional.cross_entropy(logits, y, reduction="none") - 0.2 * logits.log_softmax(1).mean(1)
        ).mean()
    )
    assert float(made.training_step(batch, 0).detach()) == pytest.approx(spread, rel=1e-5)
    made.validation_step(batch, 0)
    assert made.val_meter.compute()["loss"] == pytest.approx(plain, rel=1e-5)


def dropped(seed: int, step: int, rank: int) -> list[bool]:
    made = classifier(world_size=2, rank=rank, step=step, seed=seed)
    torch.manual_seed(torch.seed())  # any global state
    made.on_train_batch_start(None, 0)
    return (functional.dropout(torch.ones(64), 0.5) == 0).tolist()


def test_dropout_depends_only_on_seed_step_and_rank() -> None:
    assert dropped(1, 5, 0) == dropped(1, 5, 0)
    others = [dropped(2, 5, 0), dropped(1, 6, 0), dropped(1, 5, 1)]
    assert all(other != dropped(1, 5, 0) for other in others)


def test_two_runs_with_the_same_seed_are_bit_identical(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, *DROPOUT, f"seed={seed}", "trainer.log_every_n_steps=1", "test=false")
    a, b, c = (checkpoint(tmp_path / name) for name in "abc")
    assert same(a["state_dict"], b["state_dict"]) and same(a["optimizer_states"], b["optimizer_states"])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert not same(a["state_dict"], c["state_dict"])


def test_32_images_are_overfitted(tmp_path: Path) -> None:
    wider = [override.replace("=8", "=32") for override in NARROW]
    result = run(tmp_path, *wider, "data.train_subset=32", "augment=none", "optimizer=adam", "optimizer.lr=0.003",
                 "scheduler=none", "trainer.max_epochs=120", "trainer.check_val_every_n_epoch=120",
                 "callbacks.checkpoint.enabled=false", "test=false")  # fmt: skip
    assert result["metrics"]["train/loss"] < 0.01
    assert result["metrics"]["train/top1"] == 1.0


class Spoil(Callback):
    """Make a weight NaN before one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step - 1:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


def test_a_non_finite_loss_stops_the_run_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    spoil = {"spoil": {"_target_": f"{__name__}.Spoil", "step": 10}}
    with pytest.raises(UserError, match=r"not finite at step 10 \(epoch 1\)"):
        run(tmp_path, "trainer.max_epochs=3", "test=false", callbacks=spoil)
    result = RunDirectory(tmp_path).result()
    assert result is not None and result["status"] == "failed" and "step 10" in result["error"]
    last = checkpoint(tmp_path)
    assert last["global_step"] == 7
    assert all(torch.isfinite(weight).all() for weight in last["state_dict"].values())
    again = resume(tmp_path)
    assert again is not None and again["status"] == "finished"


def test_the_epoch_column_counts_completed_epochs(tmp_path: Path) -> None:
    result = run(tmp_path, "trainer.max_epochs=2", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3",
                 "test=false")  # fmt: skip
    seen = [
        (row["step"], row["epoch"], next(k for k in row if k not in ("step", "epoch")))
        for row in rows(tmp_path)
    ]
    assert [(step, epoch) for step, epoch, _ in seen if step in (3, 6, 9, 12)] == [
        (3, 0),
        (6, 0),
        (9, 1),
        (12, 1),
    ]
    validations = [(row["step"], row["epoch"]) for row in rows(tmp_path) if "val/loss" in row]
    assert validations == [(4, 0), (11, 1)]
    assert [(row["step"], row["epoch"]) for row in rows(tmp_path) if "train/loss" in row] == [(7, 1), (14, 2)]
    assert result["epochs"] == 2
