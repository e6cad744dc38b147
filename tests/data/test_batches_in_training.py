"""What a training run sees (order, augmentation, position after resuming), and that its workers exit."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from alexnet_exp.data import Batch, Folder, ImageData
from alexnet_exp.data.randomness import permutation
from tests.data.made import COMMON, Made
from tests.data.makers import write_folder


class Recorder(lightning.LightningModule):
    """Records the batches it receives, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.train_batches: list[tuple[int, Batch]] = []
        self.other_batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.train_batches.append((self.current_epoch, batch))
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.other_batches.append(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def order(self) -> list[tuple[int, list[int]]]:
        return [(epoch, batch.indices.tolist()) for epoch, batch in self.train_batches]


class SaveAt(lightning.Callback):
    """Saves a checkpoint at a hook's first call in epoch 1; a batch hook, after the third batch."""

    def __init__(self, path: Path, hook: str) -> None:
        self.path, self.batches_before = path, -1
        setattr(self, hook, self._save)

    def _save(self, trainer: lightning.Trainer, module: Recorder, *batch: Any) -> None:
        due = trainer.current_epoch == 1 and (not batch or batch[-1] == 2)
        if due and self.batches_before < 0:
            self.batches_before = len(module.train_batches)
            trainer.save_checkpoint(self.path)


def make_trainer(*callbacks: lightning.Callback, max_epochs: int = 3, **options: Any) -> lightning.Trainer:
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = {"num_sanity_val_steps": 0, "max_epochs": max_epochs, **dict.fromkeys(quiet, False), **options}
    return lightning.Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **options)


def test_every_epoch_has_its_own_order_and_every_image_once():
    module, data = Recorder(), Made(seed=3)
    make_trainer().fit(module, datamodule=data)
    for epoch in range(3):
        seen = [i for at, indices in module.order() if at == epoch for i in indices]
        assert seen == permutation(22, "order", 3, epoch).tolist()


def test_training_without_validation_skips_it():
    module = Recorder()
    make_trainer(max_epochs=1).fit(module, datamodule=Made(val_size=0))
    assert (len(module.train_batches), len(module.other_batches)) == (5, 0)


def test_only_training_batches_are_augmented():
    module, data = Recorder(), Made(val_size=6, augment={"flip": True, "pad": 2})
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    changed = 0
    for epoch, batch in module.train_batches:
        images = data.sources["train"].images[batch.indices]
        augmented = data.pipeline.augment(images, batch.indices, 0, epoch)
        assert torch.equal(batch.images, data.preprocess(augmented))
        changed += int((augmented != images).flatten(1).any(1).sum())
    assert changed > 20  # of 32
    expected = [data.sources[split].images for split in ("val", "val", "test")]
    assert torch.equal(
        torch.cat([b.images for b in module.other_batches]), data.preprocess(torch.cat(expected))
    )


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("kind", ["array", "files", "decoded files"])
def test_a_resumed_run_sees_the_remaining_batches(tmp_path: Path, hook: str, limit: int | None, kind: str):
    def make_data() -> ImageData:
        if kind == "array":
            return Made(val_size=2, augment={"flip": True})
        cache = {"cache": "disk", "cache_dir": str(tmp_path / "kept")} if kind == "decoded files" else {}
        return Folder(
            str(tmp_path / "set"), val_fraction=0.1, num_workers=2, augment={"crop": True}, **cache, **COMMON
        )

    if kind != "array":
        write_folder(tmp_path / "set", {"a": 11, "b": 11}, size=(9, 8), extension="png")
    saver, whole, resumed = SaveAt(tmp_path / "at.ckpt", hook), Recorder(), Recorder()
    make_trainer(saver, limit_train_batches=limit).fit(whole, datamodule=make_data())
    make_trainer(limit_train_batches=limit).fit(
        resumed, datamodule=make_data(), ckpt_path=saver.path, weights_only=True
    )
    assert resumed.order() == whole.order()[saver.batches_before :] != []
    left = whole.train_batches[saver.batches_before :]
    for (_, batch), (_, expected) in zip(resumed.train_batches, left, strict=True):
        assert torch.equal(batch.images, expected.images)


def worker_processes() -> list[str]:
    return [child.name for child in multiprocessing.active_children()]


def test_worker_processes_exit_after_fit(tmp_path: Path):
    write_folder(tmp_path, {"a": 11, "b": 11}, size=(9, 8), extension="png")
    module, data = Recorder(), Folder(str(tmp_path), val_fraction=0.1, num_workers=2, **COMMON)
    trainer = make_trainer(max_epochs=1, limit_train_batches=2)
    trainer.fit(module, datamodule=data)
    assert worker_processes() == []
    trainer.validate(module, datamodule=data, verbose=False)
    assert len(module.other_batches) == 2
    assert worker_processes() == []


def test_worker_processes_exit_when_fit_fails(tmp_path: Path):
    class Failing(Recorder):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            assert len(worker_processes()) == 2
            raise FloatingPointError("the loss is not finite")

    write_folder(tmp_path, {"a": 11, "b": 11}, size=(9, 8), extension="png")
    data = Folder(str(tmp_path), val_fraction=0.0, num_workers=2, **COMMON)
    with pytest.raises(FloatingPointError):
        make_trainer().fit(Failing(), datamodule=data)
    assert worker_processes() == []


@pytest.mark.parametrize(("workers", "expected"), [(2, 1), (0, 2)])
def test_augmentation_uses_one_thread_when_workers_decode(tmp_path: Path, workers: int, expected: int):
    class Counting(Folder):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.threads: list[int] = []
            evaluate = self.pipeline.evaluate
            self.pipeline.evaluate = lambda x: (self.threads.append(torch.get_num_threads()), evaluate(x))[1]

    write_folder(tmp_path, {"a": 11, "b": 11}, size=(9, 8), extension="png")
    data, before = (
        Counting(str(tmp_path), val_fraction=0.5, num_workers=workers, **COMMON),
        torch.get_num_threads(),
    )
    torch.set_num_threads(2)
    try:
        make_trainer().validate(Recorder(), datamodule=data, verbose=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(data.threads) == {expected}
