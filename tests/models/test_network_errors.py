"""Error messages for network yamls that cannot be built."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from alexnet_exp import create_model
from alexnet_exp.config.checks import check_typed
from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.models import AlexNet


def build(conv2: dict[str, Any] | None = None, **changes: Any) -> AlexNet:
    config: dict[str, Any] = {
        "input_size": 16,
        "num_classes": 5,
        "features": {"conv1": {"out_channels": 6}, "conv2": {"out_channels": 8, **(conv2 or {})}},
        "classifier": {"fc6": {"out_features": 7}, "fc8": {}},
    }
    return AlexNet(**{**config, **changes})


@pytest.mark.parametrize(
    ("conv2", "changes", "message"),
    [
        ({}, {"clasifier": {}}, r"model has no key 'clasifier'\. Did you mean classifier"),
        ({"kernel": 3}, {}, r"model\.features\.conv2 has no key 'kernel'\. Did you mean kernel_size"),
        ({"lrn": {"sise": 3}}, {}, r"model\.features\.conv2\.lrn has no key 'sise'\. Did you mean size"),
        ({"then": ["rellu"]}, {}, r"model\.features\.conv2: unknown operation 'rellu'\. Did you mean relu"),
        ({"groups": 4}, {}, r"model\.features\.conv2\.groups=4 does not divide its 6 input and 8 output"),
        ({"then": ["lrn"], "lrn": {"groups": 3}}, {}, r"conv2: lrn\.groups=3 does not divide its 8 channels"),
        (
            {"then": ["spatial_norm"], "spatial_norm": {"size": 4}},
            {},
            r"invalid model\.features\.conv2\.spatial_norm\.size=4: expected an odd integer >= 1\.",
        ),
        (
            {"then": ["avg_pool"], "avg_pool": {"padding": "same"}},
            {},
            r"avg_pool does not support padding=same",
        ),
        ({"out_channels": -1}, {}, r"model\.features\.conv2\.out_channels=-1: expected an integer >= 1\."),
        ({"stride": 0}, {}, r"model\.features\.conv2\.stride=0: expected an integer >= 1\."),
        ({"groups": 0}, {}, r"model\.features\.conv2\.groups=0: expected an integer >= 1\."),
        (
            {"padding": "valid"},
            {},
            r"model\.features\.conv2\.padding='valid': expected a number of pixels, or same",
        ),
        ({"local": True, "groups": 2}, {}, r"model\.features\.conv2: a local layer does not support groups"),
        ({}, {"num_classes": 0}, r"invalid model\.num_classes=0: expected an integer >= 1\."),
        ({}, {"input_size": 0}, r"invalid model\.input_size=0: expected an integer >= 1\."),
        ({}, {"init": "papper"}, r"invalid model\.init='papper': expected one of .*\. Did you mean paper"),
        ({}, {"dropout_scaling": "both"}, r"invalid model\.dropout_scaling='both': expected train or test"),
        ({}, {"input": ["max_pool"]}, r"model\.input cannot pool"),
        ({}, {"classifier": {}}, r"model\.classifier is empty"),
        ({}, {"classifier": {"fc6": {}, "fc8": {}}}, r"model\.classifier\.fc6: .* needs out_features"),
        (
            {},
            {"classifier": {"fc8": {"before": ["max_pool"]}}},
            r"classifier\.fc8: max_pool needs a feature map",
        ),
        (
            {"stride": 8, "kernel_size": 15},
            {},
            r"conv2: its 15x15 kernel does not fit a 14x14 map .*input_size=17\.",
        ),
    ],
)
def test_an_invalid_network_error_says_where_and_why(
    conv2: dict[str, Any], changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        build(conv2, **changes)


WHOLE, ABOVE_0, AT_LEAST_0 = "an integer >= 1", "a number > 0", "a number >= 0"
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("op", "key", "value", "said"),
    [
        ("lrn", "groups", 0, WHOLE),
        ("lrn", "size", 0, WHOLE),
        ("lrn", "size", 2.5, WHOLE),
        ("lrn", "k", 0.0, ABOVE_0),
        ("lrn", "alpha", -1e-4, AT_LEAST_0),
        ("lrn", "alpha", NAN, AT_LEAST_0),
        ("lrn", "beta", INFINITE, "a finite number"),
        ("spatial_norm", "size", -1, "an odd integer >= 1"),
        ("spatial_norm", "k", -2.0, ABOVE_0),
        ("spatial_norm", "beta", NAN, "a finite number"),
        ("max_pool", "stride", 0, WHOLE),
        ("max_pool", "kernel_size", 0, WHOLE),
        ("max_pool", "padding", -1, "a number of pixels, or same"),
        ("max_pool", "padding", "valid", "a number of pixels, or same"),
        ("avg_pool", "stride", -2, WHOLE),
        ("batch_norm", "eps", 0.0, ABOVE_0),
        ("batch_norm", "momentum", 1.5, "a number in [0, 1]"),
        ("batch_norm", "affine", "no", "true or false"),
        ("max_pool", "ceil_mode", 1, "true or false"),
    ],
)
def test_an_invalid_value_of_an_operation_names_its_key(op: str, key: str, value: Any, said: str):
    message = rf"{op}\.{key}={re.escape(repr(value))}: expected {re.escape(said)}\.$"
    with pytest.raises(UserError, match=rf"^invalid model\.features\.conv2\.{message}"):
        build({"then": [op], op: {key: value}})
    with pytest.raises(UserError, match=rf"^invalid model\.{message}"):
        build(**{op: {key: value}})


@pytest.mark.parametrize(
    ("layer", "key", "value", "said"),
    [
        ("conv2", "padding", -1, "a number of pixels, or same"),
        ("conv2", "padding", 1.5, "a number of pixels, or same"),
        ("conv2", "kernel_size", 0, WHOLE),
        ("conv2", "weight_std", -0.1, AT_LEAST_0),
        ("conv2", "bias_init", NAN, "a finite number"),
        ("conv2", "bias", "no", "true or false"),
        ("conv2", "ceil_mode", 1, "true or false"),
        ("conv2", "local", None, "true or false"),
        ("fc6", "out_features", 0, WHOLE),
        ("fc6", "weight_std", INFINITE, AT_LEAST_0),
    ],
)
def test_an_invalid_value_of_a_layer_names_its_key(layer: str, key: str, value: Any, said: str):
    message = rf"\.{layer}\.{key}={re.escape(repr(value))}: expected {re.escape(said)}\.$"
    with pytest.raises(UserError, match=message):
        build({key: value}) if layer == "conv2" else build(
            classifier={"fc6": {"out_features": 7, key: value}, "fc8": {}}
        )


@pytest.mark.parametrize(
    ("conv2", "changes", "message"),
    [
        ({}, {"map_size": 0}, r"invalid model\.map_size=0: expected an integer >= 1"),
        ({}, {"dropout": 1.5}, r"invalid model\.dropout=1\.5: expected a number in \[0, 1\]\."),
        ({}, {"dropout": None}, r"invalid model\.dropout=None: expected a number in \[0, 1\]\."),
        (
            {"bias_init": 10**400},
            {},
            r"invalid model\.features\.conv2\.bias_init: expected a finite number and <",
        ),
        ({"dropout": -1}, {}, r"invalid model\.features\.conv2\.dropout=-1: expected a number in \[0, 1\]\."),
        ({}, {"input": ["lnr"]}, r"model\.input: unknown operation 'lnr'\. Did you mean lrn"),
        (
            {"then": ["max_pool"], "max_pool": {"kernel_size": 3, "padding": 2}},
            {},
            r"conv2\.max_pool\.padding=2 is more than half of kernel_size=3",
        ),
        (
            {"then": ["max_pool"], "max_pool": {"padding": "same"}},
            {"max_pool": {"ceil_mode": True}},
            r"conv2\.max_pool: padding=same already rounds up; remove ceil_mode or padding=same",
        ),
        ({"padding": "same", "ceil_mode": True}, {}, r"conv2: padding=same already rounds up"),
        (
            {"then": "relu"},
            {},
            r"conv2: expected a list of operations such as \[relu, max_pool\], not 'relu'",
        ),
        ({"max_pool": 3}, {}, r"conv2\.max_pool=3: expected a mapping with keys kernel_size, "),
        ({}, {"lrn": None}, r"invalid model\.lrn=None: expected a mapping with keys size, "),
        (
            {},
            {"features": None},
            r"invalid model\.features=None: expected a mapping from layer name to settings",
        ),
        (
            {},
            {"classifier": {"fc8": {"out_features": 7}}},
            r"model\.classifier\.fc8\.out_features=7: the last layer has model\.num_classes outputs",
        ),
        (
            {"local": True, "before": ["relu"]},
            {},
            r"conv2: a local layer does not support .* operations before it",
        ),
        (
            {"before": ["lrn"], "lrn": {"groups": 4}},
            {},
            r"conv2: lrn\.groups=4 does not divide its 6 channels",
        ),
        ({}, {"input": ["lrn"], "lrn": {"groups": 2}}, r"model\.input: lrn\.groups=2 does not divide its 3"),
        ({}, {"avg_pool": {"padding": "same"}}, r"model\.avg_pool: avg_pool does not support padding=same"),
    ],
)
def test_conflicting_values_are_refused(conv2: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        build(conv2, **changes)


@pytest.mark.parametrize(
    ("conv2", "said"),
    [
        (
            {"lrn": {"k": 3.0}},
            "model.features.conv2.lrn.k=3.0 does nothing: this layer has lrn neither in before nor in then",
        ),
        (
            {"then": ["relu"], "max_pool": {"stride": 1}},
            "model.features.conv2.max_pool.stride=1 does nothing",
        ),
        ({"batch_norm": {"affine": False}}, "set model.features.conv2.batch_norm.affine=null."),
        ({"dropout": 0.0}, "model.features.conv2.dropout=0.0 does nothing"),
        (
            {"bias": False, "bias_init": 1.0},
            "model.features.conv2.bias_init=1.0 does nothing: the layer has bias=false",
        ),
    ],
)
def test_a_setting_that_would_do_nothing_is_an_error(conv2: dict[str, Any], said: str):
    with pytest.raises(UserError) as caught:
        build(conv2)
    assert said in str(caught.value)


def test_an_operation_before_the_layer_uses_its_settings():
    net = build({"before": ["lrn"], "lrn": {"k": 3.0}})
    assert net.features.conv2_lrn.k == 3.0


@pytest.mark.parametrize(
    "typed",
    ["model.dropout=0.3", "model.dropout_scaling=test", "model.lrn.k=1.0", "++model.batch_norm={eps: 0.1}"],
)
def test_overriding_an_operation_that_no_layer_has_is_an_error(typed: str):
    key = typed.lstrip("+").partition("=")[0]
    with pytest.raises(UserError, match=rf"^{re.escape(key)} has no effect: no layer of this network uses"):
        check_typed(group("model", "alexnet_cifar"), ["seed=3", "model.max_pool.stride=3", typed])


def test_overriding_an_operation_that_a_layer_has_is_accepted():
    check_typed(group("model", "alexnet_owt"), ["model.dropout=0.3", "model.max_pool.kernel_size=2"])
    check_typed(
        group("model", "alexnet_bn"), ["model.batch_norm.eps=0.1", "model.input_size=227", "model=mine"]
    )
    check_typed(group("model", "resnet18"), ["model.dropout=0.3"])  # refused elsewhere: no such key


def test_images_of_another_size_name_the_setting_to_change():
    net = build()
    with pytest.raises(UserError, match=r"built for 16x16 images and got 20x18: set model\.input_size"):
        net(torch.zeros(1, 3, 20, 18))


def test_a_fixed_map_size_accepts_images_of_any_size():
    net = build(map_size=3).eval()
    assert net(torch.zeros(2, 3, 40, 33)).shape == (2, 5)


def test_unknown_network_names_the_nearest():
    with pytest.raises(UserError, match=r"no model 'alexnet_lnr'\. Did you mean alexnet_lrn"):
        create_model("alexnet_lnr")


def test_an_unknown_stem_is_refused():
    with pytest.raises(UserError, match=r"invalid model\.stem='mnist': expected imagenet or cifar"):
        create_model("resnet18", stem="mnist")


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar"])
def test_resnets_accept_greyscale_images(name: str):
    with torch.device("meta"):
        net = create_model(name, in_channels=1, num_classes=7)
        assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_a_layer_keeps_shared_settings_that_it_does_not_override():
    net = build({"then": ["lrn", "max_pool"], "lrn": {"size": 3}, "max_pool": {"stride": 1}}, lrn={"k": 7.0})
    assert (net.features.conv2_lrn.size, net.features.conv2_lrn.k, net.features.conv2_lrn.beta) == (
        3,
        7.0,
        0.75,
    )
    assert (net.features.conv2_pool.kernel_size, net.features.conv2_pool.stride) == (3, 1)
