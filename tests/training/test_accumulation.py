"""The gradient of an optimizer step equals that of one large batch of its images, without dropout and batch norm."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed, nn
from torch.nn import functional

from alexnet_exp.data import ImageData
from alexnet_exp.data.loaders import ArrayLoader, BatchPlan
from alexnet_exp.training import ImageClassifier
from alexnet_exp.training.accumulation import Window
from tests.data.made import Made
from tests.training.small_runs import rows, run, train_until

TOLERANCE = {"64-true": 1e-10, "32-true": 1e-5}  # relative to the gradient's norm
PLAIN = ["augment=none", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0",
         "scheduler=none", "test=false"]  # fmt: skip
COMPARE = "tests.training.test_accumulation.Compare"


class Compare(Callback):
    """Compare the gradient of every step with that of one batch of its images from all ranks."""

    def __init__(self) -> None:
        self.taken: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.steps: list[tuple[int, float]] = []  # number of images, relative error of the gradient

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.taken.append((batch.images[: batch.size], batch.labels[: batch.size]))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        taken, self.taken = self.taken, []
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, taken)
            taken = [batch for part in parts for batch in part]
        images, labels = (torch.cat(column) for column in zip(*taken, strict=True))
        network = pl_module.model
        assert isinstance(network, nn.Module)
        parameters = list(network.parameters())
        with torch.enable_grad():
            smoothing = float(pl_module.label_smoothing)  # type: ignore[arg-type]
            loss = functional.cross_entropy(pl_module(images), labels, label_smoothing=smoothing)
            whole = flat(torch.autograd.grad(loss, parameters))
        found = flat([p.grad for p in parameters])
        self.steps.append((len(images), float((found - whole).norm() / whole.norm())))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "steps.json").write_text(json.dumps(self.steps))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def fit(data: ImageData, **options: Any) -> list[tuple[int, float]]:
    """Train for two epochs, and return the number of images and error of every step."""
    compare = Compare()
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    module = ImageClassifier(network(), ["a", "b", "c"], sgd, label_smoothing=0.1)
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, **dict.fromkeys(off, False), **options}
    lightning.Trainer(accelerator="cpu", devices=1, callbacks=[compare], **options).fit(
        module, datamodule=data
    )
    return compare.steps


def made(count: int) -> Made:
    data = Made(test=False)  # in batches of 5
    data.counts["train"] = count
    return data


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    ("count", "limit", "accumulate", "images"),
    [
        (20, None, 1, [5, 5, 5, 5]),
        (22, None, 1, [5, 5, 5, 5, 2]),
        (20, None, 2, [10, 10]),
        (17, None, 2, [10, 7]),
        (22, None, 2, [10, 10, 2]),
        (22, None, 3, [15, 7]),
        (22, 1, 4, [5]),  # fewer batches than one step accumulates
        (22, 0.8, 3, [15, 5]),
    ],
)
def test_a_step_uses_the_mean_gradient_over_its_images(
    precision: str, count: int, limit: float | None, accumulate: int, images: list[int], tmp_path: Path
) -> None:
    steps = fit(
        made(count), precision=precision, accumulate_grad_batches=accumulate, limit_train_batches=limit,
        default_root_dir=tmp_path,
    )  # fmt: skip
    assert [count for count, _ in steps] == 2 * images
    assert max(error for _, error in steps) < TOLERANCE[precision]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(
    "count", [10, 9, 13]
)  # in batches of 4: with a partial batch, and with a rank without images
def test_accumulated_slices_of_all_ranks_give_the_gradient_of_one_large_batch(
    ranks: int, accumulate: int, count: int
) -> None:
    source = made(count).load()["train"]
    model = network().double()
    images, labels = source.images.double() / 255, source.labels  # type: ignore[union-attr]
    loaders = [ArrayLoader(source, BatchPlan(count, 4, 0, rank, ranks)) for rank in range(ranks)]  # type: ignore[arg-type]
    batches = [list(loader) for loader in loaders]
    for start in range(0, len(loaders[0]), accumulate):
        window = range(start, min(start + accumulate, len(loaders[0])))
        found, taken = 0.0, []
        for rank, loader in enumerate(loaders):
            module = ImageClassifier(model, ["a", "b", "c"], {})
            module._trainer = trainer_of(loader, ranks, rank, accumulate)
            module._fabric = None
            for i in window:
                batch = batches[rank][i]
                batch = batch._replace(images=images[batch.indices])
                loss = module.training_step(batch, i) / accumulate  # as Lightning does
                found += flat(torch.autograd.grad(loss, model.parameters())) / ranks  # as DDP does
                taken += batch.indices[: batch.size].tolist()
        whole = functional.cross_entropy(model(images[taken]), labels[taken])
        expected = flat(torch.autograd.grad(whole, model.parameters()))
        assert (found - expected).norm() / expected.norm() < 1e-12


def trainer_of(
    loader: Any, ranks: int = 1, rank: int = 0, accumulate: int = 1, length: float | None = None
) -> Any:
    return SimpleNamespace(
        world_size=ranks, global_rank=rank, accumulate_grad_batches=accumulate, current_epoch=0, global_step=0,
        train_dataloader=loader, num_training_batches=len(loader) if length is None else length,
    )  # fmt: skip


def test_two_accumulating_ranks_step_as_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 65 images in batches of 32: the last batch has one image, so one rank has none.
    settings = [
        *PLAIN,
        "data.train_subset=65",
        "trainer.accumulate_grad_batches=2",
        "trainer.precision=64-true",
    ]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the other rank imports this file
    compare = {"compare": {"_target_": COMPARE}}
    for name, trainer in (("one", []), ("two", ["trainer.devices=2", "trainer.strategy=ddp"])):
        run(tmp_path / name, *settings, *trainer, callbacks=compare)
        steps = json.loads((tmp_path / name / "steps.json").read_text())
        assert [count for count, _ in steps] == [64, 1]
        assert max(error for _, error in steps) < 1e-10
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-6)


def test_the_logged_loss_does_not_depend_on_accumulation(tmp_path: Path) -> None:
    still = [*PLAIN, "optimizer.lr=1e-30", "trainer.log_every_n_steps=1"]
    run(tmp_path / "one", *still)
    run(tmp_path / "three", *still, "trainer.accumulate_grad_batches=3")
    one, three = rows(tmp_path / "one"), rows(tmp_path / "three")
    assert one[-1]["train/loss"] == pytest.approx(three[-1]["train/loss"], rel=1e-6)
    losses = [[row["train/loss_step"] for row in found if "train/loss_step" in row] for found in (one, three)]
    assert losses[1] == pytest.approx(
        [losses[0][i] for i in (2, 5, 6)], rel=1e-6
    )  # the last batch of each step


def test_a_new_run_from_inside_an_epoch_can_accumulate_fewer_batches(
    tmp_path: Path,
) -> None:
    # Saved after 3 of 7 batches; in pairs, the fourth batch is a step by itself.
    settings = [*PLAIN, "trainer.precision=64-true", "callbacks.checkpoint.every_n_steps=1"]
    train_until(tmp_path / "threes", 1, *settings, "trainer.accumulate_grad_batches=3")
    twos = ["trainer.accumulate_grad_batches=2", f"ckpt={tmp_path / 'threes'}"]
    run(tmp_path / "twos", *settings, *twos, callbacks={"compare": {"_target_": COMPARE}})
    steps = json.loads((tmp_path / "twos" / "steps.json").read_text())
    assert [count for count, _ in steps] == [32, 64, 8]
    assert max(error for _, error in steps) < 1e-10


def test_batches_of_a_custom_loader_are_assumed_to_be_of_equal_size() -> None:
    batch = next(iter(ArrayLoader(made(5).load()["train"], BatchPlan(5, 5))))  # type: ignore[arg-type]
    window = Window()
    for length in (4, float("inf")):
        trainer = trainer_of([], accumulate=4, length=length)
        assert [window.weight(trainer, batch, i) for i in range(4)] == [1.0] * 4
        window.begin()
    trainer = trainer_of([], accumulate=4, length=6)
    assert [window.weight(trainer, batch, i) for i in range(6)] == [1.0] * 4 + [2.0] * 2


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_partly_accumulated_step_averages_over_the_images_with_gradients(
    with_gradients: bool,
) -> None:
    loader = ArrayLoader(made(13).load()["train"], BatchPlan(13, 5))  # type: ignore[arg-type]
    trainer, batches = trainer_of(loader, accumulate=3), list(loader)
    window = Window()
    window.begin(with_gradients)
    images = 13 if with_gradients else 8  # the run was stopped after the first batch of five
    for number in (1, 2):
        size = batches[number].global_size
        assert window.weight(trainer, batches[number], number) == pytest.approx(3 * size / images)
    assert [batch.global_size for batch in batches] == [5, 5, 3]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_plan_knows_the_images_of_its_batches(world_size: int) -> None:
    plan = BatchPlan(13, 4, world_size=world_size)
    sizes = [part.global_size for part in plan]
    for first in range(4):
        for last in range(first, 5):
            assert plan.images(range(first, last)) == sum(sizes[first:last])
    slices = [len(s.indices) for rank in range(world_size) for s in BatchPlan(13, 4, None, rank, world_size)]
    assert plan.smallest_slice(4) == min(slices)
    assert (plan.smallest_slice(3), plan.smallest_batch(3), plan.smallest_batch(4)) == (4 // world_size, 4, 1)
