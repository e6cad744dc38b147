"""Every network of conf/model/ against its published numbers, on the meta device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from torch import nn

from alexnet_exp import create_model, list_models
from alexnet_exp.errors import UserError
from alexnet_exp.models import AlexNet, LocalResponseNorm, layer_table
from alexnet_exp.models.layers import SpatialResponseNorm, TestScaledDropout

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
ALEXNETS = sorted(published.SIDES)


def build(name: str, **overrides: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **overrides)


def table(name: str, **overrides: Any) -> list[Any]:
    net = build(name, **overrides)
    in_channels = 1 if name == "alexnet_d2l" else 3
    return layer_table(net, (in_channels, net.input_size, net.input_size))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_tables_cover_every_network():
    assert set(list_models()) == set(published.PARAMETERS)
    resnets = {"resnet18", "resnet18_cifar"}
    assert set(published.SIDES) == set(published.ORDER) == set(published.PARAMETERS) - resnets


@pytest.mark.parametrize("name", sorted(published.PARAMETERS))
def test_parameter_count_is_the_published_one(name: str):
    assert count(build(name)) == published.PARAMETERS[name]


@pytest.mark.parametrize(("name", "overrides", "parameters"), published.OTHER_PARAMETERS)
def test_parameter_count_follows_classes_and_input(name: str, overrides: dict[str, int], parameters: int):
    assert count(build(name, **overrides)) == parameters


@pytest.mark.parametrize("name", sorted(published.PARAMETERS))
def test_header_states_source_input_parameters_accuracy_and_differences(name: str):
    text = (CONF / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines()[:12] if line.startswith("#")]
    keys = [m[1] for line in header if (m := re.match(r"# (\w+): {2,}\S", line))]
    assert keys == ["Source", "Input", "Parameters", "Published", "Differs"]
    stated = {k: next(line for line in header if line.startswith(f"# {k}:")) for k in keys}
    assert stated["Parameters"].split()[2] == f"{published.PARAMETERS[name]:,}"
    assert stated["Input"].split()[2] == str(build(name).input_size)


@pytest.mark.parametrize("name", ALEXNETS)
def test_feature_maps_have_the_published_sizes(name: str):
    windows = ("Conv2d", "MaxPool2d", "AvgPool2d", "LocallyConnected2d")
    assert tuple(row.output_shape[-1] for row in table(name) if row.type in windows) == published.SIDES[name]


def test_resnet_stages_have_the_published_sizes():
    sides = {row.name: row.output_shape[-1] for row in table("resnet18")}
    last = [f"layer{i}.1.conv2" for i in (1, 2, 3, 4)]
    assert [sides[name] for name in ("conv1", "maxpool", *last)] == [112, 56, 56, 28, 14, 7]


@pytest.mark.parametrize("name", ALEXNETS)
def test_layers_have_the_published_widths(name: str):
    layers = [row for row in table(name) if row.type in ("Conv2d", "LocallyConnected2d", "Linear")]
    assert tuple(row.output_shape[0] for row in layers[:-1]) == published.WIDTHS[name]


@pytest.mark.parametrize("name", ALEXNETS)
def test_operations_are_in_the_published_order(name: str):
    words = {
        "ReLU": "relu",
        "LocalResponseNorm": "lrn",
        "SpatialResponseNorm": "rn",
        "MaxPool2d": "max",
        "AvgPool2d": "avg",
        "BatchNorm2d": "bn",
        "BatchNorm1d": "bn",
        "Dropout": "dropout",
        "TestScaledDropout": "dropout",
    }
    order = [words.get(row.type, row.name.split(".")[-1]) for row in table(name)]
    assert " ".join(order) == published.ORDER[name]


@pytest.mark.parametrize("name", ALEXNETS)
def test_norms_have_the_published_constants(name: str):
    modules = list(build(name).modules())
    lrns = {(m.size, m.alpha, m.beta, m.k, m.groups) for m in modules if isinstance(m, LocalResponseNorm)}
    spatial = {(m.size, m.alpha, m.beta, m.k) for m in modules if isinstance(m, SpatialResponseNorm)}
    assert lrns == ({published.LRN[name]} if name in published.LRN else set())
    assert spatial == ({published.SPATIAL_NORM[name]} if name in published.SPATIAL_NORM else set())


@pytest.mark.parametrize("name", ALEXNETS)
def test_towers_and_dropout_are_the_published_ones(name: str):
    net = build(name)
    groups = {n: m.groups for n, m in net.features.named_children() if isinstance(m, nn.Conv2d)}
    two = {"conv2", "conv4", "conv5"} if name in published.TWO_TOWERS else set()
    assert {n for n, g in groups.items() if g == 2} == two
    dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout | TestScaledDropout)]
    assert all(isinstance(m, TestScaledDropout) == (name in published.TEST_SCALED) for m in dropouts)
    assert all(m.p == 0.5 for m in dropouts)


@pytest.mark.parametrize("name", ALEXNETS)
def test_windows_are_rounded_by_the_published_rule(name: str):
    # At the published size both rules often agree, so neither sizes nor logits can tell them apart.
    net = build(name)
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    assert {m.ceil_mode for m in pools} == {name in published.POOLS_ROUND_UP}
    past = {n for n, layer in net.spec.features.items() if layer.ceil_mode}
    assert past == published.CONVOLUTIONS_ROUND_UP.get(name, set())


@pytest.mark.parametrize("name", ALEXNETS)
def test_batch_norms_have_the_published_constants(name: str):
    norms = [m for m in build(name).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    expected = {published.BATCH_NORM[name]} if name in published.BATCH_NORM else set()
    assert {(m.eps, m.momentum) for m in norms} == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (
            "alexnet_original",
            [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000],
        ),
        ("alexnet", [34_944, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000]),
        (
            "alexnet_keras_bn",
            [
                34_944,
                192,
                614_656,
                512,
                885_120,
                768,
                147_840,
                768,
                98_560,
                512,
                4_198_400,
                16_781_312,
                40_970,
            ],
        ),
        ("alexnet_two_fc", [23_296, 307_392, 663_936, 884_992, 590_080, 37_752_832, 4_097_000]),
        ("alexnet_stride4", [34_944, 614_656, 885_120, 1_327_488, 884_992, 1_052_672, 16_781_312, 40_970]),
    ],
)
def test_each_layer_has_the_published_parameters(name: str, parameters: list[int]):
    assert [row.parameters for row in table(name) if row.parameters] == parameters


@pytest.mark.parametrize(
    ("name", "millions"), [("alexnet_original", 724.4), ("alexnet_owt", 714), ("resnet18", 1814)]
)
def test_multiply_adds_are_the_published_ones(name: str, millions: float):
    digits = 1 if isinstance(millions, float) else 0
    assert round(sum(row.multiply_adds for row in table(name)) / 1e6, digits) == millions


def test_keras_batch_norm_has_its_running_statistics():
    net = build("alexnet_keras_bn")
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(m.running_mean.numel() + m.running_var.numel() for m in norms) == 2_752


def test_cvgj_learns_scale_and_shift_on_the_input_only():
    net = build("alexnet_bn")
    learned = {n for n, m in net.named_modules() if hasattr(m, "affine") and m.affine}
    assert learned == {"features.input_bn"}
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_receptive_fields_match_published_values():
    rows = {row.name.split(".")[-1]: row.receptive_field for row in table("alexnet_lrn")}
    layers = ("conv1", "conv1_pool", "conv2", "conv2_pool", "conv3", "conv4", "conv5", "conv5_pool", "fc6")
    assert [rows[name] for name in layers] == [11, 19, 51, 67, 99, 131, 163, 195, 355]
    spatial = {row.name.split(".")[-1]: row.receptive_field for row in table("alexnet_original")}
    assert spatial["conv2_spatial_norm"] == spatial["conv2"] + 4 * 8
    assert {row.receptive_field for row in table("resnet18")} == {None}


def test_the_classifier_sees_the_whole_final_map():
    def seen(**overrides: Any) -> tuple[int, int]:
        rows = {row.name: row for row in table("alexnet_owt", **overrides)}
        return rows["features.conv5_pool"].output_shape[-1], rows["classifier.fc6"].receptive_field

    assert seen() == (6, 195 + 5 * 32)
    assert seen(input_size=288) == (8, 195 + 7 * 32)  # averaged to 6
    assert seen(map_size=1) == (6, 195 + 5 * 32)


def test_torchvision_alexnet_needs_63_pixels():
    assert table("alexnet_owt", input_size=63)[-1].output_shape == (1000,)
    with pytest.raises(UserError, match=r"input_size=63\."):
        build("alexnet_owt", input_size=62)


@pytest.mark.parametrize("size", [67, 128, 224, 256])
def test_alexnet_lrn_works_at_other_sizes(size: int):
    assert table("alexnet_lrn", input_size=size, num_classes=10)[-1].output_shape == (10,)


def test_an_image_too_small_names_the_layer_and_the_smallest_size():
    with pytest.raises(UserError, match=r"conv5: its max_pool 3x3 does not fit a 2x2 map .*input_size=67\."):
        build("alexnet_lrn", input_size=64)
    with pytest.raises(UserError, match=r"conv1: its 11x11 kernel does not fit a 8x8 map"):
        build("alexnet_lrn", input_size=8)


def test_parameters_are_named_after_the_layers():
    names = [n for n, _ in build("alexnet_bn").named_parameters()]
    assert names[:4] == [
        "features.input_bn.weight",
        "features.input_bn.bias",
        "features.conv1.weight",
        "features.conv1.bias",
    ]
    assert names[-2:] == ["classifier.fc8.weight", "classifier.fc8.bias"]
    assert isinstance(build("alexnet"), AlexNet)
