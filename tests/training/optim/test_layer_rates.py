"""Rates and decays by layer: patterns, layer_decay, norm_weight_decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp import create_model
from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.training.layer_names import match_layers
from alexnet_exp.training.optim.build import base_group, build_optimizer, depths, describe_rates

BLOCKS = ["stem", "stem_bn", "block1.conv", "block1.bn", "block2.conv", "block2.bn", "fc"]


def network(name: str, **overrides: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **overrides)


def built(model: nn.Module, **settings: Any) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the settings of every parameter by its name, and the groups, at a rate of 1."""
    groups = build_optimizer(
        model, {**group("optimizer", "sgd"), "lr": 1.0, **settings}, fused=False
    ).param_groups
    of = {id(p): g for g in groups for p in g["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}, groups


@pytest.mark.parametrize(
    ("keys", "selected"),
    [
        (["block1.*"], {"block1.conv": "block1.*", "block1.bn": "block1.*"}),
        (["*bn"], dict.fromkeys(["stem_bn", "block1.bn", "block2.bn"], "*bn")),
        (["con?"], dict.fromkeys(["block1.conv", "block2.conv"], "con?")),  # suffixes, as for names
        (["block[2-9].conv"], {"block2.conv": "block[2-9].conv"}),
        (["block1.conv", "block1.*"], {"block1.conv": "block1.conv", "block1.bn": "block1.*"}),
        (
            ["*.conv", "block2.*"],
            {"block1.conv": "*.conv", "block2.conv": "block2.*", "block2.bn": "block2.*"},
        ),
        (["stem"], {"stem": "stem"}),
    ],
)
def test_names_win_over_patterns_and_later_patterns_over_earlier_ones(
    keys: list[str], selected: dict[str, str]
) -> None:
    assert match_layers(keys, BLOCKS, "freeze=") == selected


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("blok1.*", "block1"),
        ("block1", r"is not a layer but a block of layers: use 'block1\.\*'"),
        ("conv", r"is ambiguous \(block1\.conv, block2\.conv\)"),
        ("steem", "Did you mean stem"),
    ],
)
def test_what_selects_nothing_is_refused_with_the_nearest_name(key: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        match_layers([key], BLOCKS, "optimizer.layers.")
    assert str(caught.value).startswith(f"optimizer.layers.{key}") and "\n" not in str(caught.value)


def test_a_pattern_sets_the_rate_of_all_its_layers() -> None:
    of, groups = built(
        network("alexnet"), layers={"features.*": {"lr_factor": 0.1}, "fc8": {"lr_factor": 2.0}}
    )
    rates = {name.removesuffix(".weight"): g["lr"] for name, g in of.items() if name.endswith("weight")}
    convolutions = {f"features.conv{i}": 0.1 for i in range(1, 6)}
    assert rates == {**convolutions, "classifier.fc6": 1.0, "classifier.fc7": 1.0, "classifier.fc8": 2.0}
    assert [g["name"] for g in groups if g["name"].startswith("weights")] == [
        "weights of features.*", "weights", "weights of fc8"
    ]  # fmt: skip


def test_layer_decay_multiplies_the_rate_once_for_every_layer_above() -> None:
    of, groups = built(network("alexnet"), layer_decay=0.5, bias_lr_factor=2.0)
    layers = [f"features.conv{i}" for i in range(1, 6)] + [f"classifier.fc{i}" for i in (6, 7, 8)]
    for above, layer in enumerate(reversed(layers)):
        assert of[f"{layer}.weight"]["lr"] == 0.5**above
        assert of[f"{layer}.bias"]["lr"] == 2 * 0.5**above
    assert [g["name"] for g in groups] == [
        f"{kind} of {layer}" for layer in layers for kind in ("weights", "biases")
    ]
    own, _ = built(network("alexnet"), layer_decay=0.5, layers={"features.*": {"lr_factor": 0.1}})
    assert own["features.conv5.weight"]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_a_norm_lies_as_deep_as_its_layer() -> None:
    found = depths(network("alexnet_icpm_bn", input=["batch_norm"]))
    assert found["features.conv1"] == found["features.conv1_bn"] == found["features.conv2"] + 1
    assert found["features.input_bn"] == found["features.conv1"]  # before all layers
    assert found["classifier.fc8"] == 0 and found["classifier.fc7"] == 1
    assert sorted(set(found.values())) == list(range(8))


def test_norm_weight_decay_is_that_of_the_weights_and_biases_of_batch_norm_alone() -> None:
    of, _ = built(network("resnet18"), norm_weight_decay=0.0, weight_decay=0.1, bias_weight_decay=0.2)
    norms = {name for name in of if ".bn" in name or name.startswith("bn") or "downsample.1" in name}
    assert len(norms) == 2 * 20
    for name, each in of.items():
        assert each["weight_decay"] == (0.0 if name in norms else 0.2 if name.endswith("bias") else 0.1), name
    of, _ = built(network("resnet18"), norm_weight_decay=0.0, layers={"layer4.1.bn2": {"weight_decay": 0.3}})
    assert of["layer4.1.bn2.weight"]["weight_decay"] == 0.3  # a layer's own setting wins
    assert of["layer4.1.bn2.bias"]["weight_decay"] == 0.0


def test_without_these_settings_the_groups_are_as_they_were() -> None:
    _, groups = built(network("alexnet_icpm_bn"), norm_weight_decay=None, layer_decay=None)
    assert len(groups) == 1
    _, groups = built(network("alexnet_icpm_bn"), bias_weight_decay=0.0)
    assert [g["name"] for g in groups] == ["weights", "biases"]


def test_the_logged_rate_is_the_one_without_factors() -> None:
    for settings in (
        {},
        {"bias_lr_factor": 2.0},
        {"layers": {"features.*": {"lr_factor": 0.1}}},
        {"layers": {"fc8": {"lr_factor": 10.0}}},
        {"layer_decay": 0.5},
    ):
        _, groups = built(network("alexnet"), **settings)
        assert base_group(groups)["lr"] == 1.0, settings


def test_the_rates_are_listed_from_the_input_up_if_they_differ() -> None:
    _, groups = built(network("alexnet_cifar"), layer_decay=0.5)
    assert describe_rates(groups) == (
        "Learning rates: features.conv1 0.0312, features.conv2 0.0625, features.conv3 0.125, features.conv4 0.25, "
        "features.conv5 0.5, classifier.fc8 1"
    )
    _, groups = built(network("alexnet_cifar"), layers={"fc8": {"lr_factor": 10.0}})
    assert describe_rates(groups) == "Learning rates: the others 1, fc8 10"
    _, groups = built(network("alexnet_cifar"), bias_lr_factor=2.0)
    assert describe_rates(groups) is None
    _, groups = built(network("resnet18"), layer_decay=0.9)
    assert describe_rates(groups).count(" ") < 30  # type: ignore[union-attr]
