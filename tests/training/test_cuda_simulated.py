"""What can be shown of CUDA without a GPU: fake tensors, a scaler on CPU, checkpoints that say they are from CUDA.

test_compiled.py, test_collectives.py and tests/models/test_lrn.py show more of it; test_cuda.py needs a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet_exp import load_classifier
from alexnet_exp.config.compose import options
from alexnet_exp.data.augment import mixing, policies
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import EpochUniforms, constant, uniforms
from tests.training.small_runs import assert_same_end, checkpoint, resume, run, same, train_until
from tests.training.test_cuda import pipeline

CACHES = (constant, policies._strengths, mixing._beta_table)
MORE = {  # settings that no file of conf/augment has
    "mean image": ["augment=paper", "augment.mean_image=centre"],
    "aligned mean image": ["augment=flip_crop", "augment.mean_image=aligned"],
    "contrast": ["augment=flip", "augment.contrast=[0.2,1.8]", "augment.whiten=true"],
    "colour noise of the source": ["augment=flip", "augment.colour_noise=source"],
}
CASES = {name: [f"augment={name}"] for name in options("augment")} | MORE
READS = {"randaugment", "trivialaugment", "colour_jitter"}  # how many images of a batch each operation gets


class Transfers(TorchDispatchMode):
    """Note the operations between CUDA and main memory; scalars from main memory are arguments of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {
            x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.dim()
        }
        if len(devices) > 1:
            self.found.append(str(func))
        return out


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """CUDA, whose tensors have no values; constants made of them are forgotten."""
    for cache in CACHES:
        cache.cache_clear()
    with FakeTensorMode():
        yield torch.device("cuda", 0)
    for cache in CACHES:
        cache.cache_clear()


def augmenting(overrides: list[str]) -> Pipeline:
    made = pipeline(overrides, 32)
    if (made.options.get("mean_image") or "none") != "none":
        made.mean_image = torch.zeros(3, 40, 40)
    made.augment.draw = EpochUniforms(64)  # as in a run
    return made


@pytest.mark.parametrize("case", CASES)
def test_augmentation_on_cuda_neither_waits_nor_touches_main_memory(
    cuda: torch.device, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, ...]] = []

    def even(counts: Tensor) -> list[list[int]]:
        """Stand in for reading how many of 64 images each of K operations gets."""
        reads.append(tuple(counts.shape))
        share, left = divmod(64, counts.shape[1])
        return [[share + (i < left) for i in range(counts.shape[1])]] * counts.shape[0]

    monkeypatch.setattr(FakeTensor, "tolist", even)
    augment = augmenting(CASES[case])
    images = torch.empty(64, 3, 40, 40, dtype=torch.uint8, device=cuda)
    indices = torch.empty(64, dtype=torch.long, device=cuda)
    augment.train(images, indices, 1, 0)  # makes the constants
    reads.clear()
    with Transfers() as transfers:
        found = augment.train(images, indices, 1, 0)
    assert (found.device, found.shape, found.dtype) == (cuda, (64, 3, 32, 32), torch.float32)
    assert transfers.found == []
    assert len(reads) == (case in READS)


def test_fake_tensors_refuse_to_be_read_and_transfers_are_noted(cuda: torch.device) -> None:
    drawn = uniforms(torch.arange(4, device=cuda), 2, "augment", 0, 0)
    with pytest.raises(DataDependentOutputException):
        drawn[0, 0].item()
    with pytest.raises(RuntimeError, match="found at least two devices"):
        drawn + torch.ones(4, 2)
    with Transfers() as transfers:
        drawn.cpu()
        torch.tensor([1.0], device=cuda)
    assert len(transfers.found) == 2


def test_float16_with_clipping_and_accumulation_resumes_with_its_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Any = lightning.Trainer

    def scaled(**options: Any) -> Any:
        """Lightning itself replaces 16-mixed by bf16-mixed on CPU."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        options["precision"] = None
        options["plugins"] = [*options["plugins"], MixedPrecision("16-mixed", "cpu", scaler)]
        return trainer(**options)

    monkeypatch.setattr(lightning, "Trainer", scaled)
    settings = [
        "trainer.precision=16-mixed", "trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2",
        "trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=1", "test=false",
    ]  # fmt: skip
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", 5, *settings)
    assert checkpoint(tmp_path / "parts")["MixedPrecision"]["scale"] > 2.0**10
    resume(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert checkpoint(tmp_path / "parts")["MixedPrecision"]["scale"] == 2.0**16


def test_a_checkpoint_of_cuda_is_read_and_resumed_on_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", "test=false")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        train_until(tmp_path / "parts", 4, "callbacks.checkpoint.every_n_steps=1", "test=false")
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(last, weights_only=True)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert load_classifier(last, "cpu").probabilities(images).device.type == "cpu"
    resume(tmp_path / "parts", "callbacks.checkpoint.every_n_steps=null")
    for part in ("state_dict", "optimizer_states"):
        assert same(*(checkpoint(tmp_path / name)[part] for name in ("whole", "parts")))
