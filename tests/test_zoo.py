"""The Python API builds the same networks as the command line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alexnet_exp
from alexnet_exp import create_model, list_models
from alexnet_exp.config.compose import compose, conf_dir, plain
from alexnet_exp.errors import UserError
from alexnet_exp.targets import build


def described(model: torch.nn.Module) -> tuple[str, dict[str, torch.Size]]:
    return repr(model), {name: p.shape for name, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def shapes_only() -> Any:
    with torch.device("meta"):
        yield


def test_models_are_the_files_of_conf_model():
    assert list_models() == sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    assert {"alexnet", "alexnet_lrn", "alexnet_owt", "alexnet_cifar", "resnet18"} <= set(list_models())


def test_the_api_is_exported_by_the_package():
    assert alexnet_exp.create_model is create_model
    assert {"create_model", "list_models"} <= set(alexnet_exp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'make_model'"):
        alexnet_exp.make_model  # noqa: B018


@pytest.mark.parametrize("name", ["alexnet_lrn", "alexnet_cifar", "caffe_cifar_full", "resnet18_cifar"])
def test_python_and_the_command_line_build_the_same(name: str):
    composed = plain(compose("train", [f"model={name}", "model.num_classes=7"]))["model"]
    assert described(create_model(name, num_classes=7)) == described(build(composed))


def test_a_nested_override_changes_only_its_key():
    model = create_model("alexnet", num_classes=10, features={"conv2": {"groups": 2}})
    same = plain(compose("train", ["model=alexnet", "model.features.conv2.groups=2", "model.num_classes=10"]))
    assert model.features.conv2.weight.shape == (256, 48, 5, 5)
    assert model.features.conv3.weight.shape == (384, 256, 3, 3)
    assert described(model) == described(build(same["model"]))


def test_overrides_do_not_leak_into_the_next_call():
    create_model("alexnet_cifar", features={"conv2": {"out_channels": 8}})
    assert create_model("alexnet_cifar").features.conv2.out_channels == 192


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("alexnett", {}, r"There is no model 'alexnett'\. Did you mean alexnet"),
        ("../train", {}, r"There is no model '\.\./train'"),
        ("alexnet", {"clases": 10}, r"has no key 'clases'\. Did you mean num_classes"),
        ("alexnet", {"features": {"conv2": {"grups": 2}}}, r"features\.conv2 has no key 'grups'.*groups"),
        ("resnet18", {"clases": 10}, r"unexpected keyword argument 'clases'"),
    ],
)
def test_the_error_names_what_is_wrong(name: str, overrides: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        create_model(name, **overrides)
