"""optimizer.lr=auto, scheduler.warmup_epochs=auto and init=auto: what they choose, and what they leave alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from alexnet_exp.config.checks import _WITH_AUTO_RATE, check_config
from alexnet_exp.config.compose import compose, options, plain
from alexnet_exp.errors import UserError
from alexnet_exp.models.initialise import scale_to_unit_variance
from alexnet_exp.training.optim import auto
from alexnet_exp.training.optim.auto import has_norm, learning_rate, settle_recipe
from alexnet_exp.training.optim.build import build_optimizer
from alexnet_exp.zoo import create_model
from tests.training.small_runs import NARROW, resume, settings, train_until

SGD = {"_target_": "torch.optim.SGD", "lr": "auto", "momentum": 0.9}
PLAIN, NORMED = (
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
)


def settled(*typed: str, images: int = 1000) -> dict[str, Any]:
    config: dict[str, Any] = plain(compose("train", list(typed)))
    check_config(config)
    settle_recipe(config, typed, images)
    return config


def start(config: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    model = config["model"]
    layers = (*model["features"].values(), *model["classifier"].values())
    return [(model["init"], layer["weight_std"], layer["bias_init"]) for layer in layers]


def test_the_rate_grows_with_the_root_of_the_global_batch() -> None:
    rates = [learning_rate(PLAIN, SGD, batch) for batch in (64, 256, 16)]
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.05) and rates[2] == pytest.approx(
        rates[0] / 2, rel=0.05
    )
    config = settled("data.batch_size=16", "trainer.accumulate_grad_batches=4")
    assert config["optimizer"]["lr"] == settled("data.batch_size=64")["optimizer"]["lr"] == rates[0]


def test_a_network_with_batch_norm_gets_a_higher_rate() -> None:
    assert learning_rate(NORMED, SGD, 64) > learning_rate(PLAIN, SGD, 64)


def test_only_a_norm_behind_a_layer_counts() -> None:
    assert not has_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))  # of the images
    assert not has_norm(create_model("alexnet_small"))  # local response normalisation keeps no scale
    assert has_norm(create_model("resnet18_cifar"))


def test_lr_scaling_scales_the_rate_of_its_base_batch() -> None:
    scaled = {**SGD, "lr_scaling": "linear", "base_batch": 64}
    (group,) = build_optimizer(PLAIN, scaled, global_batch=128).param_groups
    assert group["lr"] == pytest.approx(2 * learning_rate(PLAIN, SGD, 64))


@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_has_a_rate(name: str) -> None:
    rate = settled(f"optimizer={name}")["optimizer"]["lr"]
    assert 0 < rate < math.inf
    assert settled(f"optimizer={name}", "optimizer.lr=0.123")["optimizer"]["lr"] == 0.123


def test_an_optimizer_without_a_rule_is_refused_before_anything_is_loaded() -> None:
    assert set(_WITH_AUTO_RATE) == set(auto._RATES)
    config, _ = settings("optimizer._target_=torch.optim.RMSprop")
    with pytest.raises(UserError, match=r"set optimizer\.lr=NUMBER"):
        check_config(config)
    with pytest.raises(UserError, match="RMSprop"):
        learning_rate(PLAIN, {"_target_": "torch.optim.RMSprop"}, 64)


def test_the_warm_up_is_a_part_of_the_run() -> None:
    assert settled("trainer.max_epochs=40")["scheduler"]["warmup_epochs"] == pytest.approx(2.0)
    steps = settled("trainer.max_steps=100", "data.batch_size=50", images=1000)  # 20 steps an epoch
    assert steps["scheduler"]["warmup_epochs"] == pytest.approx(0.25)
    few = settled(
        "trainer.max_steps=100", "data.batch_size=50", "trainer.limit_train_batches=10", images=1000
    )
    assert few["scheduler"]["warmup_epochs"] == pytest.approx(0.5)
    assert settled("scheduler.warmup_epochs=0.5")["scheduler"]["warmup_epochs"] == 0.5


def test_a_network_without_batch_norm_starts_with_lsuv_in_every_layer() -> None:
    config = settled("model=convnet_11pct")
    assert config["init"] == "lsuv" and set(start(config)) == {("he", None, None)}
    bn = settled("model=alexnet_keras_bn")
    assert bn["init"] == "published" and set(start(bn)) == {("keras", None, None)}
    assert settled("model=resnet18_cifar")["init"] == "published"


@pytest.mark.parametrize("typed", ["init=published", "model.init=caffe", "model.classifier.fc8.bias_init=0.5",
                                   "weights=torchvision"])  # fmt: skip
def test_a_typed_start_wins(typed: str) -> None:
    config = settled("model=alexnet_owt_lrn", typed)
    published = plain(compose("train", ["model=alexnet_owt_lrn", typed]))
    assert config["init"] == "published" and start(config) == start(published)


def test_two_starts_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"init=lsuv replaces model\.init"):
        settled("init=lsuv", "model.init=keras")
    with pytest.raises(UserError, match="is a class"):
        settled("init=lsuv", "model=resnet18")


@pytest.mark.parametrize("experiment", [name for name in options("experiment") if name != "none"])
def test_an_experiment_keeps_its_published_start_and_rate(experiment: str) -> None:
    extra = (
        ["data.root=photos"]
        if "imagenet" in experiment or experiment in ("lrn_folder", "finetune", "finetune_small")
        else []
    )
    typed = [f"experiment={experiment}", *extra]
    before = plain(compose("train", typed))
    config = settled(*typed)
    assert config["init"] == "published"
    for group in ("model", "optimizer", "scheduler"):
        assert config[group] == before[group]
    assert isinstance(before["optimizer"]["lr"], float)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_paper", "alexnet_stride4", "convnet_13pct"])
def test_lsuv_gives_every_layer_outputs_of_variance_one(name: str) -> None:
    size = {"alexnet_stride4": 73, "convnet_13pct": 24}.get(name, 67)
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, input_size=size, init="he", dropout=0.0)
    images, outputs = torch.randn(32, 3, size, size), {}
    scale_to_unit_variance(model, images)
    for layer, module in model.named_modules():
        if getattr(module, "weight", None) is not None:
            module.register_forward_hook(
                lambda _, __, out, layer=layer: outputs.update({layer: float(out.std())})
            )
    with torch.no_grad():
        model(images)
    assert len(outputs) in (5, 8)
    assert list(outputs.values()) == pytest.approx([1.0] * len(outputs), rel=1e-3)


def test_images_without_contrast_leave_the_weights_as_they_are() -> None:
    model = create_model("alexnet_cifar", init="he")
    before = [p.clone() for p in model.parameters()]
    scale_to_unit_variance(model, torch.zeros(4, 3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_choice_is_said_recorded_and_read_back(tmp_path: Path) -> None:
    train_until(tmp_path / "run", 3, "trainer.max_epochs=2")
    said = (tmp_path / "run" / "train.log").read_text()
    assert "Chosen for this network: init=lsuv optimizer.lr=" in said
    file = tmp_path / "run" / "config.yaml"
    recorded = yaml.safe_load(file.read_text())
    assert (recorded["init"], recorded["model"]["init"]) == ("lsuv", "he")
    recorded["optimizer"]["lr"] = 0.0123  # a rate that the rule would not choose
    file.write_text(yaml.safe_dump(recorded))
    resume(tmp_path / "run")
    ended = yaml.safe_load(file.read_text())
    assert (ended["optimizer"]["lr"], ended["init"]) == (0.0123, "lsuv")


def test_a_run_from_before_init_resumes_with_its_published_start(tmp_path: Path) -> None:
    train_until(tmp_path / "run", 3, "init=published", "optimizer.lr=0.03")
    file = tmp_path / "run" / "config.yaml"
    recorded = yaml.safe_load(file.read_text())
    del recorded["init"]
    file.write_text(yaml.safe_dump(recorded))
    overrides = tmp_path / "run" / "overrides.yaml"
    overrides.write_text(overrides.read_text().replace("- init=published\n", ""))
    for kept in (tmp_path / "run" / "checkpoints").glob("*"):
        kept.unlink()  # so that the initial weights are drawn again
    resume(tmp_path / "run")
    ended = yaml.safe_load(file.read_text())
    assert ended["init"] == "published" and ended["model"]["init"] == "torch"


def test_the_same_network_in_python_keeps_its_published_start() -> None:
    torch.manual_seed(0)
    found = create_model("alexnet_cifar").features.conv3.weight.detach()
    assert float(found.std()) == pytest.approx(1 / math.sqrt(3 * 192 * 9), rel=0.02)  # torch's uniform
    assert NARROW  # the small runs are of this network
