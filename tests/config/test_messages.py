"""Errors of Hydra and OmegaConf are reported in one line that tells the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.messages import explain, of_composing
from alexnet_exp.errors import UserError


def message(*overrides: str, verb: str = "train") -> str:
    """Compose an invalid configuration and return the error message."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the class is up to Hydra)
        plain(compose(verb, list(overrides)))
    said = explain(caught.value, verb)
    assert said is not None
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data=cifar", "data=cifar: conf/data has no file cifar.yaml. Did you mean cifar10? It has cifar10,"),
        (
            "optimizer=sdg",
            "optimizer=sdg: conf/optimizer has no file sdg.yaml. Did you mean sgd? It has adam,",
        ),
        (
            "logger=[wandb,tensorbord]",
            "logger=tensorbord: conf/logger has no file tensorbord.yaml. Did you mean",
        ),
        ("+experiment=nothing", "experiment=nothing: conf/experiment has no file nothing.yaml."),
        ("hydra/launcher=foo", "hydra/launcher=foo: conf/hydra/launcher has no file foo.yaml."),
        ("trainer.devics=2", "There is no setting trainer.devics. Did you mean trainer.devices?"),
        ("model.features.conv2.grups=2", "no setting model.features.conv2.grups. Did you mean groups"),
        ("hydra.foo=2", "There is no setting hydra.foo. alexnet-exp train --cfg hydra lists all."),
        ("optimizer.betas=[0.9,0.9]", "It belongs to optimizer=adam and optimizer=adamw."),
        ("+trainer.devices=2", "+trainer.devices: the setting exists; omit the +."),
        ("~trainer.devics", "~trainer.devics: there is no such setting to delete."),
        ("+model=alexnet", "set model=NAME once."),
        ("seed=1,2", "seed=1,2 has several values: -m seed=1,2 sweeps over them,"),
        ("data.batch_size", "'data.batch_size' is not KEY=VALUE: write data.batch_size=VALUE."),
        ("alexnet", "'alexnet' is not KEY=VALUE. Did you mean model=alexnet?"),
        (
            "model.features.conv2.then=[relu",
            "then=[relu: close every bracket and quote",
        ),
        ("logger.wandb.name=it's", "'logger.wandb.name=\"...\"'"),
        ("data=folder", "data.root is required: set data.root=VALUE."),
        (
            "data.batch_size=${nope}",
            "data.batch_size=${nope}: there is no setting nope.",
        ),
        ("seed=${oc.env:NO_SUCH_VARIABLE}", "seed: the environment variable NO_SUCH_VARIABLE is not set."),
        ("model.input_size=abc", "invalid model.input_size='abc': expected an integer."),
        ("model.dropout=abc", "invalid model.dropout='abc': expected a number."),
        (
            "model.features.conv2.bias=perhaps",
            "conv2.bias='perhaps': expected true or false.",
        ),
        ("model.features.conv2.then=relu", "expected a list; set 'model.features.conv2.then=[relu]'."),
        (
            "model.features.conv2.then=null",
            "invalid model.features.conv2.then=null: expected a value.",
        ),
        ("model.features.conv2=3", "it is a group of settings; set model.features.conv2.KEY=VALUE."),
    ],
)
def test_a_mistake_in_an_override_is_a_one_line_error(override: str, said: str):
    assert said in message(override)


def test_a_large_group_lists_only_close_matches():
    said = message("model=alexnett")
    assert "Did you mean alexnet," in said
    assert "convnet_11pct" not in said


def test_all_names_are_listed_without_a_close_match():
    said = message("model=zzz")
    assert "Did you mean" not in said
    assert "alexnet_lrn" in said
    assert "zfnet" in said


def test_other_verbs_name_their_own_settings():
    said = message("formt=json", verb="models")
    assert said.startswith("There is no setting formt. Did you mean format?")
    assert "trainer" not in said


def with_custom_yaml(directory: Path, text: str) -> str:
    file = directory / "model" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(text)
    return message(f"hydra.searchpath=[file://{directory}]", "model=mine")


def test_a_typo_in_a_custom_yaml_names_the_file(tmp_path: Path):
    said = with_custom_yaml(tmp_path, "defaults: [alexnet, _self_]\nfeatures:\n  conv2: {grups: 2}\n")
    assert "model/mine.yaml: There is no setting model.features.conv2.grups. Did you mean groups" in said


def test_invalid_yaml_names_file_and_line(tmp_path: Path):
    said = with_custom_yaml(tmp_path, "input_size: 32\nnum_classes: [3\nin_channels: 3\n")
    assert said.startswith(f"{tmp_path}/model/mine.yaml, line 3, is not YAML: ")


def test_a_user_error_is_printed_verbatim():
    assert explain(UserError("Say please.")) == "Say please."


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), RuntimeError("ours")])
def test_a_bug_is_not_blamed_on_the_user(error: Exception):
    assert explain(error) is None


@pytest.mark.parametrize("prefix", ["+", "++"])
@pytest.mark.parametrize(
    ("setting", "part", "name"),
    [
        ("model.features.conv6.out_channels=8", "features", "conv6"),
        ("model.features.conv6={out_channels: 8, then: [relu]}", "features", "conv6"),
        ("model.classifier.fc9.out_features=8", "classifier", "fc9"),
    ],
)
def test_adding_a_layer_on_the_command_line_suggests_a_yaml(prefix: str, setting: str, part: str, name: str):
    said = message(prefix + setting)
    assert said.startswith(f"+model.{part}.{name}: adding a layer takes a yaml")
    assert f"'defaults: [NETWORK, _self_]' and '{part}: {{{name}: {{KEY: VALUE}}}}'" in said
    assert said.endswith("then --config-dir my_conf model=mine.")


def test_a_yaml_that_extends_a_network_can_add_a_layer(tmp_path: Path):
    (tmp_path / "model").mkdir()
    text = "defaults: [alexnet, _self_]\nfeatures: {conv6: {out_channels: 64, then: [relu]}}\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    layers = plain(compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "model=mine"]))["model"][
        "features"
    ]
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6"]
    assert layers["conv6"]["kernel_size"] == 3


@pytest.mark.parametrize(
    ("typed", "say"),
    [
        (["seed=1"], "hydra.run.dir=DIR or paths.output_dir=DIR"),
        (["resume=null"], "hydra.run.dir=DIR or paths.output_dir=DIR"),
        (["-m", "seed=1,2"], "hydra.sweep.dir=DIR or paths.output_dir=DIR"),
        (["resume=/mine/run"], "another resume=DIR"),
    ],
)
def test_an_error_creating_a_directory_names_its_setting(typed: list[str], say: str):
    said = of_composing(PermissionError(13, "Permission denied", "/mine"), typed)
    assert str(said) == f"/mine cannot be written (Permission denied): set {say}."
