"""Every yaml of conf/ composes, with settings that the command line would accept; the surface is frozen."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.config.checks import check_config, check_network
from alexnet_exp.config.compose import compose, conf_dir, group, options, plain
from alexnet_exp.config.overrides import prepare
from alexnet_exp.settings import GROUPS

TOP_LEVEL = [
    "augment", "callbacks", "channels_last", "ckpt", "class_weights", "compile", "data", "freeze", "freeze_epochs",
    "init", "label_smoothing", "logger", "model", "optimizer",
    "paths", "published", "resume", "scheduler", "seed", "sweep", "test", "test_weights", "trainer", "trust", "weights",
]  # fmt: skip
GROUP_NAMES = [
    "augment", "callbacks", "data", "debug", "experiment", "hydra", "logger", "model", "optimizer", "paths",
    "scheduler", "sweep", "trainer",
]  # fmt: skip
TOGETHER = ("data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "logger", "paths")


def side_by_side() -> list[list[str]]:
    """Return overrides that name every option of these groups, in as few compositions as can be."""
    columns = [[f"{name}={option}" for option in options(name)] for name in TOGETHER]
    return [[override for override in row if override] for row in zip_longest(*columns)]


def composed(*overrides: str) -> dict[str, Any]:
    root = ["data.root=images"] if any("folder" in o or "imagenet" in o for o in overrides) else []
    url = ["data.url=images"] if "data=streaming" in overrides else []
    return plain(compose("train", [*overrides, *root, *url]))


def needs_a_folder(option: str) -> bool:
    """Whether an experiment reads an image folder, whose place only the user knows."""
    text = (conf_dir() / "experiment" / f"{option}.yaml").read_text(encoding="utf-8")
    parents = [o for o in options("experiment") if f"  - {o}\n" in text]
    return any(f"override /data: {name}\n" in text for name in ("folder", "imagenet")) or (
        "override /data" not in text and any(map(needs_a_folder, parents))
    )


def test_config_groups_are_frozen():
    folders = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    assert folders == GROUP_NAMES == sorted(GROUPS)


def test_top_level_keys_are_frozen():
    assert sorted(plain(compose("train", []))) == TOP_LEVEL


@pytest.mark.parametrize(
    "name", ["augment", "callbacks", "debug", "experiment", "logger", "scheduler", "sweep"]
)
def test_optional_group_can_be_none(name: str):
    assert "none" in options(name)


@pytest.mark.parametrize("overrides", side_by_side(), ids=" ".join)
def test_every_option_has_valid_settings(overrides: list[str]):
    check_config(composed(*overrides))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_is_made_of_legal_settings(name: str):
    check_config(composed(f"sweep={name}"))


@pytest.mark.parametrize("name", options("model"))
def test_every_network_has_valid_settings(name: str):
    model = group("model", name)
    check_network(model)
    assert {"_target_", "input_size", "in_channels", "num_classes"} <= set(model)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_has_valid_settings(name: str):
    root = ["data.root=images"] if needs_a_folder(name) else []
    check_config(plain(compose("train", [f"experiment={name}", *root])))


@pytest.mark.parametrize("name", options("debug"))
def test_every_debug_mode_has_valid_settings(name: str):
    check_config(composed(f"debug={name}"))


def test_data_sets_choose_a_default_augmentation_that_users_can_override():
    assert composed("data=cifar10")["augment"]["flip"] is True
    assert composed("data=cifar10", "augment=none")["augment"]["flip"] is False
    assert composed("augment=none", "data=cifar10")["augment"]["flip"] is False


def test_image_size_of_the_data_follows_the_network():
    assert composed("model=alexnet")["data"]["image_size"] == 227


def test_debugging_modes_do_what_they_say():
    assert composed("debug=fast_dev_run")["trainer"]["fast_dev_run"] is True
    overfit = composed("data=cifar10", "debug=overfit")
    assert overfit["augment"]["pad"] == 0
    assert overfit["trainer"]["overfit_batches"] == 1


def test_loggers_can_be_combined():
    assert set(composed("logger=[wandb,tensorboard]")["logger"]) == {"wandb", "tensorboard"}


def test_a_layer_takes_every_layer_key_without_a_plus():
    model = composed("model.features.conv2.groups=2", "model.features.conv3.lrn.size=9")["model"]
    assert model["features"]["conv2"]["groups"] == 2
    assert model["features"]["conv3"]["lrn"]["size"] == 9


def test_compositions_are_independent():
    before = plain(compose("train", []))
    compose("train", ["model=alexnet", "seed=5"])
    assert plain(compose("train", [])) == before


def test_settings_of_the_environment_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALEXNET_DATA_DIR", "/somewhere else")
    assert composed("data=mnist")["data"]["data_dir"] == "/somewhere else"


@pytest.mark.parametrize(
    ("environment", "typed", "project", "name"),
    [
        ({}, [], "alexnet_exp", None),
        ({"WANDB_PROJECT": "mine", "WANDB_NAME": "first"}, [], "mine", "first"),
        ({"WANDB_PROJECT": "", "WANDB_NAME": ""}, [], "alexnet_exp", None),
        (
            {"WANDB_PROJECT": "mine", "WANDB_NAME": "first"},
            ["logger.wandb.project=typed", "logger.wandb.name=null"],
            "typed",
            None,
        ),
    ],
)
def test_wandbs_variables_are_followed_unless_typed(
    environment: dict[str, str],
    typed: list[str],
    project: str,
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = plain(compose("train", typed))["logger"]["wandb"]
    assert (found["project"], found["name"]) == (project, name)


def test_center_is_recorded_as_centre():
    typed = composed("augment.views=center", "augment.mean_image=center", "augment.center_crop=true")
    assert (
        typed["augment"]
        == composed("augment.views=centre", "augment.mean_image=centre", "augment.centre_crop=true")[
            "augment"
        ]
    )
    assert plain(compose("evaluate", ["ckpt=run", "views=center"]))["views"] == "centre"
    assert prepare(["-m", "augment.views=center,flip", "+augment.center_crop=true", "data.root=center"])[1:] == [
        "augment.views=centre,flip", "+augment.centre_crop=true", "data.root='center'",
    ]  # fmt: skip


def test_a_custom_yaml_can_use_the_spelling_center(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    lines = "# @package _global_\naugment: {center_crop: true, mean_image: center}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(lines)
    augment = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")["augment"]
    assert (augment["centre_crop"], augment["mean_image"]) == (True, "centre")
    assert "center_crop" not in augment
