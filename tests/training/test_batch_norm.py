"""A batch too small for batch norm is a one-line error before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from alexnet_exp.data.loaders import BatchPlan
from alexnet_exp.errors import UserError
from alexnet_exp.training.batch_norm import check_batch_norm
from tests.data.made import Made
from tests.training.small_runs import run


class Functional(nn.Module):
    """A network that has no batch norm layer, only the function."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(images.mean((2, 3)), None, None, training=self.training)


class OnlyInTraining(nn.Module):
    """A network with a second head that is only used in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.head(images.mean((2, 3)))
        return x + self.norm(x) if self.training else x


class Picky(nn.Module):
    """A network that fails for other reasons."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("it is Monday")


def sync_norm() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.SyncBatchNorm(3), nn.Flatten())


def pooled(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Dropout(), nn.Linear(3, 3))


def check(network: nn.Module, images: int, batch_size: int, ranks: int = 1, **options: Any) -> None:
    plan = BatchPlan(images, batch_size, world_size=ranks)
    trainer = {"num_training_batches": len(plan), "max_steps": -1, "accumulate_grad_batches": 1, **options}
    loader = SimpleNamespace(sampler=plan)
    check_batch_norm(SimpleNamespace(datamodule=Made(), train_dataloader=loader, **trainer), network)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "images", "batch_size", "ranks", "better"),
    [
        (pooled(nn.BatchNorm1d(3)), 17, 16, 1, 15),
        (pooled(nn.BatchNorm1d(3)), 17, 1, 1, 3),
        (pooled(nn.BatchNorm1d(3, track_running_stats=False)), 17, 16, 1, 15),
        (pooled(nn.BatchNorm1d(3)), 19, 16, 2, 14),  # 3 images: one and two
        (pooled(nn.BatchNorm1d(3)), 17, 16, 2, 18),  # one image, and a rank without any
        (pooled(nn.BatchNorm1d(3)), 16, 2, 2, 4),
        (sync_norm(), 17, 16, 2, 14),
        (Functional(), 17, 16, 1, 15),
        (OnlyInTraining(), 17, 16, 1, 15),
    ],
)
def test_a_slice_of_one_value_is_refused_with_a_batch_size_that_fits(
    network: nn.Module, images: int, batch_size: int, ranks: int, better: int
) -> None:
    with pytest.raises(
        UserError, match=rf"data\.batch_size={batch_size} leaves .* set data\.batch_size={better}\.$"
    ):
        check(network, images, batch_size, ranks)
    check(network, images, better, ranks)


def test_no_suggestion_is_made_if_no_batch_size_fits() -> None:
    with pytest.raises(UserError, match=r"use more training images\.$"):
        check(pooled(nn.BatchNorm1d(3)), 1, 4)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()),  # feature maps of many pixels
        pooled(nn.BatchNorm1d(3).eval()),  # frozen
        pooled(nn.LayerNorm(3)),
        Picky(),  # left to the first step
    ],
)
def test_a_network_that_accepts_single_images_passes(network: nn.Module) -> None:
    check(network, 17, 16)


def test_batches_beyond_the_end_of_the_run_do_not_count() -> None:
    network = pooled(nn.BatchNorm1d(3))
    check(network, 17, 16, num_training_batches=1)
    check(network, 33, 16, max_steps=1, accumulate_grad_batches=2)
    check(sync_norm(), 19, 16, ranks=2)  # such layers see all 3 images


def test_the_check_changes_neither_network_nor_random_state() -> None:
    network = pooled(nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    with pytest.raises(UserError):
        check(network, 17, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_run_is_refused_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^data\.batch_size=16 leaves a batch of a single image \(17 training"
    ):
        run(tmp_path, "model=alexnet_bn", "model.input_size=67", "data.train_subset=17", "data.batch_size=16")
    assert not (tmp_path / "checkpoints").exists()
