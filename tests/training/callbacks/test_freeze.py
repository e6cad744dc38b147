"""Frozen layers: nothing in them moves, the rest trains as without them, and they thaw when they should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from alexnet_exp import create_model
from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.training.callbacks.freeze import FreezeLayers
from tests.training.small_runs import (
    SMALL,
    assert_same_end,
    checkpoint,
    resume,
    run,
    same,
    train_until,
)

# 7 steps an epoch, with batch norm and dropout in the features.
NORMS = [
    "model.features.conv2.then=[batch_norm,relu,max_pool]", "model.features.conv3.then=[relu,dropout]",
    "model.dropout=0.5", "test=false", "scheduler=none", "optimizer.weight_decay=0.1",
]  # fmt: skip
PLAIN = ["test=false", "scheduler=none"]


class Notes(Callback):
    """Saves what is frozen as training starts and after every epoch."""

    def __init__(self) -> None:
        self.gradients: list[bool] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.gradients = [p.grad is not None for p in pl_module.model.features.parameters()]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        features = pl_module.model.features
        torch.save(
            {
                "state": {k: v.clone() for k, v in features.state_dict().items()},
                "gradients": self.gradients,
                "training": [m.training for m in features.modules()],
                "momentum": sum(p in trainer.optimizers[0].state for p in features.parameters()),
            },
            Path(trainer.default_root_dir) / f"notes-{trainer.global_step}.pt",
        )


def notes(run_dir: Path, step: int) -> dict[str, Any]:
    return torch.load(run_dir / f"notes-{step}.pt", weights_only=True)


NOTES = {"notes": {"_target_": f"{__name__}.Notes"}}


def test_frozen_layers_keep_their_bits_and_train_once_thawed(tmp_path: Path) -> None:
    run(tmp_path, *NORMS, "freeze=[features]", "freeze_epochs=2", "trainer.max_epochs=3", callbacks=NOTES)
    start, first, second, third = (notes(tmp_path, step) for step in (0, 7, 14, 21))
    for frozen in (first, second):  # weights, biases, running statistics and their count
        assert same(frozen["state"], start["state"])
        assert not any(frozen["gradients"]) and not any(frozen["training"]) and frozen["momentum"] == 0
    assert not any(same(third["state"][name], start["state"][name]) for name in start["state"])
    assert all(third["gradients"]) and all(third["training"]) and third["momentum"] == len(third["gradients"])
    log = (tmp_path / "train.log").read_text()
    assert "Frozen for 2 epochs: features (" in log and "Thawed after 2 epochs: features." in log


def test_the_rest_trains_as_above_layers_whose_rate_is_zero(tmp_path: Path) -> None:
    """Without norms and dropout, a rate of 0 is an independent way to keep layers as they are."""
    run(tmp_path / "frozen", *PLAIN, "freeze=['features.*']")
    run(tmp_path / "still", *PLAIN, "+optimizer.layers={features.*: {lr_factor: 0.0}}")
    frozen, still = (checkpoint(tmp_path / name)["state_dict"] for name in ("frozen", "still"))
    assert same(frozen, still)


def test_thawing_equals_a_new_run_that_starts_unfrozen_from_the_same_state(tmp_path: Path) -> None:
    run(tmp_path / "whole", *NORMS, "freeze=[features]", "freeze_epochs=1", "trainer.max_epochs=2")
    run(tmp_path / "first", *NORMS, "freeze=[features]", "trainer.max_epochs=1")
    run(tmp_path / "second", *NORMS, f"ckpt={tmp_path / 'first'}", "trainer.max_epochs=2")
    whole, second = (checkpoint(tmp_path / name) for name in ("whole", "second"))
    for key in ("state_dict", "optimizer_states", "train_sums"):
        assert same(whole[key], second[key]), key


HARD = [
    *NORMS, "freeze=[features]", "freeze_epochs=1", "trainer.max_epochs=3", "callbacks.ema.enabled=true",
    "callbacks.ema.decay=0.9", "trainer.log_every_n_steps=2", "optimizer.layer_decay=0.75",
]  # fmt: skip
ADAM = ["optimizer=adam", "optimizer.bias_lr_factor=2", "scheduler=cosine"]
CASES = {  # settings, callbacks.checkpoint.every_n_steps, where the run stops, where its checkpoint is from
    "before the thaw": (["scheduler=cosine"], 3, 5, 3),
    "at the thaw": (["scheduler=cosine"], None, 7, 7),
    "after the thaw, inside an epoch": (["scheduler=cosine"], 5, 12, 10),
    "after the thaw": (ADAM, None, 15, 14),
    "at the thaw, counted in steps": (["trainer.max_steps=18", "trainer.max_epochs=-1"], None, 8, 7),
    "accumulated gradients": (["scheduler=onecycle", "trainer.accumulate_grad_batches=2"], 3, 7, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_across_the_thaw_equals_an_uninterrupted_one(tmp_path: Path, case: str) -> None:
    overrides, every_n_steps, stop, saved = CASES[case]
    settings = [*HARD, *overrides, f"callbacks.checkpoint.every_n_steps={every_n_steps or 'null'}"]
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", stop, *settings)
    assert checkpoint(tmp_path / "parts")["global_step"] == saved
    assert resume(tmp_path / "parts") is not None
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_frozen_batch_norm_takes_batches_of_one_image(tmp_path: Path) -> None:
    ones = ["data.train_subset=33", "model.classifier.fc8.before=[batch_norm]", "test=false"]
    with pytest.raises(UserError, match=r"data\.batch_size=32 leaves a batch of a single image"):
        run(tmp_path / "trained", *ones)
    with pytest.raises(UserError, match=r"data\.batch_size=32 leaves a batch of a single image"):
        run(tmp_path / "thawed", *ones, "freeze=[fc8_bn]", "freeze_epochs=1")
    run(tmp_path / "frozen", *ones, "freeze=[fc8_bn]")


def test_a_compiled_network_thaws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Module.compile  # differentiates as inductor does, and makes no kernels
    monkeypatch.setattr(nn.Module, "compile", lambda self, **o: plain(self, backend="aot_eager", **o))
    torch.compiler.reset()
    thawing = [*PLAIN, "freeze=[features]", "freeze_epochs=1", "trainer.max_epochs=2", "optimizer.lr=0.1"]
    run(tmp_path / "eager", *thawing, "compile=false", callbacks=NOTES)
    run(tmp_path / "compiled", *thawing, "compile=true")
    torch.compiler.reset()
    eager, compiled = (checkpoint(tmp_path / name)["state_dict"] for name in ("eager", "compiled"))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    start = notes(tmp_path / "eager", 0)["state"]["conv5.weight"]
    assert (compiled["model.features.conv5.weight"] - start).abs().max() > 1e-3


def test_random_weights_are_not_frozen_without_a_warning(tmp_path: Path) -> None:
    run(tmp_path, *PLAIN, "freeze=[conv1]", "trainer.max_steps=1")
    assert "freeze keeps random weights" in (tmp_path / "train.log").read_text()


# ------------------------------------------------------------------------------------------------ without a run


def network(name: str = "alexnet_bn") -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["features"], ["features"]),
        (["conv1", "conv1_bn"], ["features.conv1", "features.conv1_bn"]),
        (["features", "conv1"], ["features"]),
        (["conv[12]"], ["features.conv1", "features.conv2"]),
        (["features.input_bn"], ["features.input_bn"]),
    ],
)
def test_layers_are_named_as_in_the_optimizer_s_settings(keys: list[str], names: list[str]) -> None:
    assert FreezeLayers(network(), keys, None).names == names


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["featurs"], r"freeze=featurs: the network has no such layer\. Did you mean features"),
        (["layer9*"], r"freeze=layer9\*: the network has no such layers"),
        (["conv1_relu"], "names only layers without weights"),
        (["features", "classifier"], r"freeze=\[features,classifier\] leaves nothing to train"),
        (["*"], "leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_one_line(keys: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        FreezeLayers(network(), keys, 3)
    assert "\n" not in str(caught.value)


def test_parameters_that_a_network_has_frozen_itself_stay_frozen() -> None:
    model = create_model("alexnet_cifar", num_classes=2)
    model.get_submodule("features.conv1").requires_grad_(False).eval()
    callback = FreezeLayers(model, ["features"], 1)
    callback.freeze(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.fc8.weight", "classifier.fc8.bias"
    ]  # fmt: skip
    callback.thaw(model)
    own = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert own == ["features.conv1.weight", "features.conv1.bias"]
    assert [name for name, m in model.named_modules() if not m.training] == ["features.conv1"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("freeze_epochs=3", "freeze_epochs=3 needs layers to freeze"),
        ("freeze=features", r"invalid freeze='features': expected a list of layers such as \[features\]"),
        ("freeze_layers=[features]", r"Did you mean '?freeze=\[features\]"),
        ("freeze=[fc8] freeze_epochs=0", "invalid freeze_epochs=0"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(
    setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, *setting.split()]) == 1
    assert re.search(said, capsys.readouterr().err)
