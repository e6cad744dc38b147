"""The optimizer settings of the published recipes, against hand-computed learning rates and weight decays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from alexnet_exp.config.compose import compose, group, plain
from alexnet_exp.errors import UserError
from alexnet_exp.training.optim.build import build_optimizer
from alexnet_exp.training.optim.schedules import RunLength, build_schedule

LAYERS = ("conv1", "conv2", "conv3", "local3", "local4", "fc6", "fc7", "fc8")


class Stub(nn.Module):
    """Layers of one weight each, with the names of a real network."""

    def __init__(self, layers: tuple[str, ...] = LAYERS) -> None:
        super().__init__()
        self.features = nn.ModuleDict({name: nn.Linear(1, 1) for name in layers})


def recipe(experiment: str) -> dict[str, Any]:
    folder = ["data.root=nowhere"] if experiment.endswith("imagenet") else []
    return plain(compose("train", [f"experiment={experiment}", *folder]))


def treatment(model: Stub, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """Return an optimizer setting of every parameter, by its short name: 'conv1.weight'."""
    names = {id(p): name.removeprefix("features.") for name, p in model.named_parameters()}
    return {names[id(p)]: each[key] for each in optimizer.param_groups for p in each["params"]}


def rates(experiment: str, num_epochs: int, steps: int = 4, **changes: Any) -> list[dict[str, float]]:
    """Return every parameter's rate at every optimizer step of an experiment's schedule."""
    config, model = recipe(experiment), Stub(changes.pop("layers", LAYERS))
    optimizer = build_optimizer(model, config["optimizer"])
    described = build_schedule(optimizer, config["scheduler"], RunLength(num_epochs * steps, steps))
    assert described is not None
    seen = []
    for _ in range(num_epochs):
        for _ in range(steps):
            seen.append(treatment(model, optimizer, "lr"))
            optimizer.step()
            if described["interval"] == "step":
                described["scheduler"].step()
        if described["interval"] == "epoch":
            described["scheduler"].step()
    return seen


def test_the_original_follows_the_table_of_experiment_145() -> None:
    # weights of conv1, biases of conv1, other weights, other biases; the notes and the last state of the file
    expected = (
        25 * [(1e-2, 0.02, 1e-2, 0.02)]  # 0 to 24
        + 26 * [(1e-3, 0.02, 1e-3, 0.02)]  # 25 to 50: "set epsw to 0.001"
        + 16 * [(1e-4, 0.02, 1e-4, 0.02)]  # 51 to 66: "set epsw to 0.0001"
        + 5 * [(1e-5, 0.02, 1e-4, 0.02)]  # 67 to 71: "set epsw to 0.00001 on conv1"
        + 7 * [(0.0, 0.0, 1e-4, 0.02)]  # 72 to 78: "set epsw to 0 on conv1"; its epsB is 0 in the file, too
        + 13 * [(0.0, 0.0, 1e-5, 0.02)]  # 79 to 91: "set epsw to 0.00001"
    )
    assert len(expected) == 92
    layers = ("conv1", "conv2", "fc8")
    for epoch, seen in enumerate(rates("original_imagenet", 92, steps=1, layers=layers)):
        conv1, conv1_bias, others, biases = expected[epoch]
        assert (seen["conv1.weight"], seen["conv1.bias"]) == pytest.approx((conv1, conv1_bias)), epoch
        for name in ("conv2", "fc8"):
            assert (seen[f"{name}.weight"], seen[f"{name}.bias"]) == pytest.approx((others, biases)), epoch
    assert recipe("original_imagenet")["trainer"]["max_epochs"] == 91


def test_one_weird_trick_divides_the_rate_by_250_in_four_stages_and_that_of_biases_by_10_in_two() -> None:
    seen = rates("owt_imagenet", 4, steps=2)
    weights = [0.01, 0.01 / 6.2996, 0.01 / 39.685, 0.01 / 250]  # 250 ** (1/3) = 6.2996
    assert [s["conv1.weight"] for s in seen] == pytest.approx(np.repeat(weights, 2).tolist(), rel=1e-4)
    assert [s["fc8.bias"] for s in seen] == pytest.approx([0.02] * 4 + [0.002] * 4)


def test_cvgj_decays_linearly_to_zero_with_twice_the_rate_for_biases() -> None:
    seen = rates("cvgj_imagenet", 2, steps=4)
    assert [s["conv1.weight"] for s in seen] == pytest.approx([0.05 * (8 - k) / 8 for k in range(8)])
    assert [s["conv1.bias"] for s in seen] == pytest.approx([0.1 * (8 - k) / 8 for k in range(8)])


def test_the_small_alexnet_decays_by_5_percent_every_epoch() -> None:
    seen = rates("alexnet_small_plain", 4, steps=2)
    expected = [0.01, 0.01, 0.0095, 0.0095, 0.009025, 0.009025, 0.00857375, 0.00857375]
    assert [s["fc8.weight"] for s in seen] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [("convnet_13pct", (140, 150, 160)), ("convnet_11pct", (500, 510, 520))],
)
def test_the_local_nets_only_cut_the_rate_of_their_weights(
    experiment: str, changes: tuple[int, int, int]
) -> None:
    first, second, end = changes
    seen = rates(experiment, end, steps=1)
    weights = [0.001] * first + [1e-4] * (second - first) + [1e-5] * (end - second)
    assert [s["local3.weight"] for s in seen] == pytest.approx(weights)
    assert [s["conv1.weight"] for s in seen] == pytest.approx(weights)
    assert [s["local3.bias"] for s in seen] == pytest.approx([0.002] * end)


@pytest.mark.parametrize(
    ("experiment", "cuts"),
    [
        ("convnet_80sec", (8,)),
        ("convnet_18pct", (120, 130)),
        ("caffe_cifar_quick", (8,)),
        ("caffe_cifar_full", (120, 130)),
    ],
)
def test_the_other_nets_cut_all_their_rates(experiment: str, cuts: tuple[int, ...]) -> None:
    epochs = cuts[-1] + 2
    for epoch, seen in enumerate(rates(experiment, epochs, steps=1)):
        passed = sum(epoch >= cut for cut in cuts)
        assert seen["conv1.weight"] == pytest.approx(0.001 * 0.1**passed), epoch
        assert seen["conv1.bias"] == pytest.approx(0.002 * 0.1**passed), epoch


# Weight decay of weights; of biases.
DECAYS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "convnet_80sec": ({"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc6": 0.03, "fc8": 0.03}, {}),
    "convnet_19pct": ({"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc8": 3.0}, {}),
    "convnet_18pct": ({"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc8": 1.0}, {}),
    "convnet_13pct": ({"local3": 0.004, "local4": 0.004, "fc8": 0.004}, {}),
    "convnet_11pct": ({"local3": 0.004, "local4": 0.004, "fc8": 0.01}, {}),
    "caffe_cifar_quick": (
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc6": 0.004, "fc8": 0.004},
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc6": 0.004, "fc8": 0.004},
    ),
    "caffe_cifar_full": (
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc8": 1.0},
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc8": 0.0},
    ),
    "original_imagenet": ({"conv1": 5e-4, "conv2": 5e-4, "fc6": 5e-4, "fc8": 5e-4}, {}),
    "paper_imagenet": (
        {"conv1": 5e-4, "conv2": 5e-4, "fc6": 5e-4, "fc8": 5e-4},
        {"conv1": 5e-4, "conv2": 5e-4, "fc6": 5e-4, "fc8": 5e-4},
    ),
    "caffe_imagenet": ({"conv1": 5e-4, "fc6": 5e-4, "fc8": 5e-4}, {}),
    "cvgj_imagenet": ({"conv1": 5e-4, "fc6": 5e-4, "fc8": 5e-4}, {}),
    "tensorpack_imagenet": ({"conv1": 5e-4, "fc6": 5e-4, "fc8": 5e-4}, {}),
}


@pytest.mark.parametrize("experiment", DECAYS)
def test_every_layer_decays_as_its_source_says(experiment: str) -> None:
    weights, biases = DECAYS[experiment]
    absent = () if "local3" in weights else ("local3", "local4")
    if "fc6" not in weights:
        absent += ("fc6", "fc7")
    layers = tuple(name for name in LAYERS if name not in absent)
    model = Stub(layers)
    decay = treatment(model, build_optimizer(model, recipe(experiment)["optimizer"]), "weight_decay")
    base = 0.0 if "local3" in weights else weights["conv1"]
    for name in layers:
        assert decay[f"{name}.weight"] == weights.get(name, base), name
        assert decay[f"{name}.bias"] == (biases.get(name, weights["conv1"]) if biases else 0.0), name


BIAS_RATES = {"paper_imagenet": 1, "original_imagenet": 2, "caffe_imagenet": 2, "cvgj_imagenet": 2, "owt_imagenet": 2,
              "torchvision_imagenet": 1, "tensorpack_imagenet": 1, "convnet_18pct": 2, "convnet_11pct": 2,
              "caffe_cifar_quick": 2}  # fmt: skip


@pytest.mark.parametrize("experiment", BIAS_RATES)
def test_biases_have_the_learning_rate_of_the_source(experiment: str) -> None:
    model = Stub()
    lr = treatment(model, build_optimizer(model, recipe(experiment)["optimizer"]), "lr")
    for layer in LAYERS:
        assert lr[f"{layer}.bias"] == pytest.approx(BIAS_RATES[experiment] * lr[f"{layer}.weight"])


def test_caffe_s_full_net_has_a_different_bias_rate_in_one_layer() -> None:
    model = Stub(("conv1", "conv2", "conv3", "fc8"))
    lr = treatment(model, build_optimizer(model, recipe("caffe_cifar_full")["optimizer"]), "lr")
    factors = {name: lr[f"{name}.bias"] / lr[f"{name}.weight"] for name in ("conv1", "conv2", "conv3", "fc8")}
    assert factors == pytest.approx({"conv1": 2, "conv2": 2, "conv3": 1, "fc8": 2})


def test_one_column_of_the_original_follows_its_notes() -> None:
    expected = 20 * [1e-2] + 28 * [1e-3] + 48 * [1e-4]  # 0 to 19, 20 to 47, 48 to 95
    conv1 = expected[:66] + 6 * [1e-5] + 24 * [0.0]  # 66 to 71 at 1e-5, then frozen; its biases are not
    seen = rates("original_half_imagenet", 96, steps=1, layers=("conv1", "conv2", "fc8"))
    assert [epoch["fc8.weight"] for epoch in seen] == pytest.approx(expected)
    assert [epoch["conv1.weight"] for epoch in seen] == pytest.approx(conv1)
    assert {epoch[f"{layer}.bias"] for epoch in seen for layer in ("conv1", "conv2")} == {0.02}


def test_a_layer_set_to_null_loses_what_it_inherited() -> None:
    settings = {
        **group("optimizer", "sgd_paper"),
        "layers": {"fc6": {"weight_decay": 0.03}, "fc8": {"weight_decay": 0.03}},
    }
    model = Stub(("conv1", "fc8"))
    with pytest.raises(UserError, match=r"optimizer\.layers\.fc6: the network has no such layer"):
        build_optimizer(model, settings)
    settings["layers"]["fc6"] = None
    decay = treatment(model, build_optimizer(model, settings), "weight_decay")
    assert decay == {"conv1.weight": 5e-4, "conv1.bias": 0.0, "fc8.weight": 0.03, "fc8.bias": 0.0}


def test_a_layer_s_own_decay_only_applies_to_its_weights() -> None:
    settings = {**group("optimizer", "sgd"), "layers": {"fc8": {"weight_decay": 1.0}}}
    model = Stub(("conv1", "fc8"))
    decay = treatment(model, build_optimizer(model, settings), "weight_decay")
    assert decay == {"conv1.weight": 5e-4, "conv1.bias": 5e-4, "fc8.weight": 1.0, "fc8.bias": 5e-4}


def with_table(settings: Mapping[str, Any], *changes: Mapping[str, Any]) -> torch.optim.Optimizer:
    optimizer = build_optimizer(Stub(("conv1", "fc8")), settings)
    build_schedule(optimizer, {"name": "table", "changes": list(changes)}, RunLength(10, 1))
    return optimizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"epoch": 1, "lr": 0.1, "layer": "conv1"},
            r"layer conv1 needs a parameter group of its own.*\+optimizer\.layers\.conv1",
        ),
        ({"epoch": 1, "lr": 0.1, "but": "fc8"}, r"but fc8 needs a parameter group of its own"),
        ({"epoch": 1, "bias_lr": 0.1}, r"bias_lr needs a separate rate for biases"),
    ],
)
def test_changing_rates_without_a_parameter_group_of_their_own_is_an_error(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_table(group("optimizer", "sgd"), change)


def test_a_layer_that_starts_frozen_stays_frozen() -> None:
    settings = {**group("optimizer", "sgd_paper"), "layers": {"conv1": {"lr_factor": 0.0}}}
    optimizer = with_table(settings, {"epoch": 0, "lr": 0.5, "bias_lr": 0.25})
    lr = {each["name"]: each["lr"] for each in optimizer.param_groups}
    assert lr == {"weights of conv1": 0.0, "biases of conv1": 0.0, "weights": 0.5, "biases": 0.25}
