"""What only a GPU can show: `python -m pytest -m gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from tests.training.small_runs import SMALL, assert_same_end, checkpoint, resume, rows, run, same, train_until

GPU = ["trainer.accelerator=gpu", "trainer.devices=1"]
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
# Largest difference of a normalised pixel, and the share of images that may differ by more: a box by one pixel at an
# edge, or a colour by one step of 256.
TOLERANCE, OTHER_IMAGES = 1e-4, 0.02
AUGMENTS = [
    "none", "flip", "flip_crop", "fast", "paper", "zoom", "resized_crop", "colour_jitter", "randaugment",
    "trivialaugment", "erasing", "mixup", "cutmix",
]  # fmt: skip


def pipeline(overrides: list[str], size: int) -> Pipeline:
    options = plain(compose("train", overrides))["augment"]
    return Pipeline(
        Preprocess(size, MEAN, STD, bool(options.get("crop") or options.get("centre_crop"))), options
    )


def batch(count: int = 256, side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count)


# ------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentation_on_cuda_is_that_of_the_cpu(name: str) -> None:
    images, indices = batch()
    own = [f"augment={name}"]
    expected = pipeline(own, 32).train(images, indices, 3, 1)
    found = pipeline(own, 32).train(images.cuda(), indices.cuda(), 3, 1).cpu()
    differ = ((found - expected).abs() > TOLERANCE).flatten(1).any(1).float().mean()
    assert differ <= (0 if name in ("none", "flip", "flip_crop", "fast") else OTHER_IMAGES)


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.gpu
def test_a_default_run_ends_in_a_report(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *GPU)
    assert result["status"] == "finished" and result["precision"].startswith(("bf16", "32"))
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert {"last.ckpt", "best.ckpt"} <= {f.name for f in (tmp_path / "run" / "checkpoints").iterdir()}


@pytest.mark.gpu
def test_ddp_on_one_gpu_with_nccl_gives_the_same_run(tmp_path: Path) -> None:
    strict = [*GPU, "trainer.deterministic=true"]
    one = run(tmp_path / "one", *strict)
    ddp = run(tmp_path / "ddp", *strict, "trainer.strategy=ddp", "callbacks.ema.enabled=false")
    assert ddp["status"] == "finished"
    assert ddp["metrics"]["train/loss"] == pytest.approx(one["metrics"]["train/loss"], rel=1e-3)


class NoWaiting(Callback):
    """Refuse whatever makes a step wait for the device, once throughput has warmed up."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx >= 4 else "default")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("resident", ["device", "host"])
def test_no_step_waits_for_the_device(tmp_path: Path, resident: str) -> None:
    callbacks = {"watch": {"_target_": f"{__name__}.NoWaiting"}}
    settings = [*GPU, f"data.resident={resident}", "augment=fast", "callbacks.ema.enabled=true", "test=false",
                "trainer.log_every_n_steps=50", "data.batch_size=16"]  # fmt: skip
    assert run(tmp_path / "run", *settings, callbacks=callbacks)["status"] == "finished"


@pytest.mark.gpu
def test_float16_with_clipping_and_accumulation_resumes_with_its_scaler(tmp_path: Path) -> None:
    settings = [
        *GPU, "trainer.precision=16-mixed", "trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2",
        "trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=1", "trainer.deterministic=true",
    ]  # fmt: skip
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", 5, *settings)
    assert checkpoint(tmp_path / "parts")["MixedPrecision"]["scale"] > 0
    resume(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.gpu
def test_the_default_layout_and_precision_are_deterministic_if_asked(tmp_path: Path) -> None:
    settings = [
        *GPU,
        "trainer.deterministic=true",
        "trainer.max_epochs=2",
        "model.features.conv1.then=[relu,lrn]",
    ]
    for name in "ab":
        run(tmp_path / name, *settings)
    assert same(checkpoint(tmp_path / "a")["state_dict"], checkpoint(tmp_path / "b")["state_dict"])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "then"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_checkpoint_of_one_device_serves_every_verb_on_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["trainer.devices=1", f"trainer.accelerator={first}", "trainer.precision=32-true"]
    run(tmp_path / "run", *own)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
    device = "cuda" if then == "gpu" else "cpu"
    verbs = [
        ["evaluate", "run", f"device={device}", "hydra.run.dir=evaluated"],
        ["predict", "run", "one.png", f"device={device}", "hydra.run.dir=predicted"],
        ["figures", "run", f"device={device}", "hydra.run.dir=drawn"],
        ["export", "run", "format=torch_export", "hydra.run.dir=exported"],
        [
            "train",
            *SMALL,
            "ckpt=run",
            "trainer.max_epochs=2",
            f"trainer.accelerator={then}",
            "hydra.run.dir=longer",
        ],
    ]
    assert [main(verb) for verb in verbs] == [0] * len(verbs)
    before, after = (
        json.loads((tmp_path / name / "result.json").read_text())["metrics"]["test/top1"]
        for name in ("run", "longer")
    )
    assert 0 <= before <= 1 and 0 <= after <= 1
