"""seed=N makes runs reproducible; on CUDA with trainer.deterministic=true, which all our layers support."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from alexnet_exp import create_model, list_models
from alexnet_exp.runs.train.results import is_deterministic
from tests.training.small_runs import DROPOUT, checkpoint, rows, run, same

HARD = [
    *DROPOUT,
    "test=false",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.ema.enabled=true",
]
LAYERS = {  # each option of a layer, in the middle of a network
    "lrn": {"then": ["relu", "lrn"]},
    "lrn in towers": {"then": ["relu", "lrn"], "lrn": {"groups": 2, "beta": 0.5, "size": 4}},
    "spatial norm": {"then": ["relu", "spatial_norm"], "spatial_norm": {"size": 3, "alpha": 5e-5}},
    "overlapping max pool": {"then": ["relu", "max_pool"], "max_pool": {"kernel_size": 3, "stride": 2}},
    "clipped max pool": {"then": ["max_pool"], "max_pool": {"kernel_size": 3, "stride": 2, "ceil_mode": True}},
    "max pool, same": {"then": ["max_pool"], "max_pool": {"kernel_size": 3, "stride": 2, "padding": "same"}},
    "average pool": {"then": ["avg_pool"], "avg_pool": {"kernel_size": 3, "stride": 2, "ceil_mode": True}},
    "batch norm": {"then": ["batch_norm", "relu"]},
    "dropout": {"then": ["relu", "dropout"], "dropout": 0.5},
    "locally connected": {"local": True, "out_channels": 8},
    "groups": {"groups": 2},
    "past the border": {"ceil_mode": True, "stride": 2},
    "same": {"padding": "same", "stride": 2},
}  # fmt: skip


def test_two_runs_with_the_same_seed_are_bit_identical_and_say_so(tmp_path: Path) -> None:
    plain, again = (run(tmp_path / name, *HARD, "seed=5") for name in ("plain", "again"))
    strict = run(tmp_path / "strict", *HARD, "seed=5", "trainer.deterministic=true")
    for name in ("again", "strict"):
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(checkpoint(tmp_path / "plain")[part], checkpoint(tmp_path / name)[part])
        assert rows(tmp_path / "plain") == rows(tmp_path / name)
    assert all(result["deterministic"] is True for result in (plain, again, strict))
    assert {result["seed"] for result in (plain, again, strict)} == {5}


@pytest.mark.parametrize(
    ("device", "setting", "data", "said"),
    [
        ("cpu", False, "alexnet_exp.data.CIFAR10", True),
        ("cpu", "warn", "alexnet_exp.data.Folder", True),
        ("cpu", False, "my_package.Data", False),  # its randomness is unknown
        ("cuda", False, "alexnet_exp.data.CIFAR10", False),
        ("cuda", "warn", "alexnet_exp.data.CIFAR10", False),
        ("cuda", True, "alexnet_exp.data.CIFAR10", True),
    ],
)
def test_a_result_says_deterministic_if_the_run_is_reproducible(
    device: str, setting: bool | str, data: str, said: bool
) -> None:
    settings: Any = SimpleNamespace(
        trainer=SimpleNamespace(deterministic=setting), data=SimpleNamespace(_target_=data)
    )
    strategy = SimpleNamespace(root_device=torch.device(device))
    fit: Any = SimpleNamespace(trainer=SimpleNamespace(strategy=strategy))
    assert is_deterministic(settings, fit) is said


@pytest.fixture
def deterministic() -> Iterator[torch.device]:
    """Return the CUDA device; non-deterministic operations are errors."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield torch.device("cuda")
    torch.use_deterministic_algorithms(before)


def gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    functional.cross_entropy(model(images), torch.arange(len(images), device=images.device) % 5).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_deterministic_on_cuda(deterministic: torch.device, layer: str, autocast: bool) -> None:
    conv2 = {"out_channels": 16, "kernel_size": 3, "padding": 1, "then": ["relu"], **LAYERS[layer]}
    model = create_model("alexnet_cifar", num_classes=5, input_size=33, features={"conv2": conv2}, map_size=1)
    model = model.to(deterministic)
    images = torch.randn(16, 3, 33, 33, generator=torch.Generator().manual_seed(1)).to(deterministic)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        first, second = gradients(model, images), gradients(model, images)
    assert first and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list_models())
def test_every_network_trains_deterministically_on_cuda(deterministic: torch.device, name: str) -> None:
    model = create_model(name, num_classes=5).to(deterministic)
    size = getattr(model, "input_size", 224)
    channels = next(p for p in model.parameters() if p.dim() == 4).shape[1]
    images = torch.randn(2, channels, size, size, device=deterministic)
    first, second = gradients(model, images), gradients(model, images)
    assert first and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_two_runs_with_the_same_seed_are_bit_identical_on_cuda(tmp_path: Path) -> None:
    typed = [*HARD, "trainer.accelerator=gpu", "trainer.devices=1", "trainer.deterministic=true"]
    results = [run(tmp_path / name, *typed) for name in "ab"]
    assert same(checkpoint(tmp_path / "a")["state_dict"], checkpoint(tmp_path / "b")["state_dict"])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert all(result["deterministic"] is True for result in results)
