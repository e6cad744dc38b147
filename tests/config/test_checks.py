"""Illegal values are refused with the key, the value and what would be legal."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from alexnet_exp.config import schema as rules
from alexnet_exp.config.checks import check_config, unknown
from alexnet_exp.config.compose import compose, group, options, plain
from alexnet_exp.config.groups import RULES, SCHEDULES
from alexnet_exp.errors import UserError

GONE = object()


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return plain(compose("train", ["logger=[wandb,tensorboard]"]))


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *parents, last = key.split(".")
    inner = config
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("data.batch_size", "abc", "an integer >= 1"),
        ("data.batch_size", 0, "an integer >= 1"),
        ("data.batch_size", -1, "an integer >= 1"),
        ("data.batch_size", 1.5, "an integer >= 1"),
        ("data.batch_size", True, "an integer >= 1"),
        ("data.batch_size", None, "an integer >= 1"),
        ("data.channels", 2, "1 or 3"),
        ("data.channels", True, "1 or 3"),
        ("data.val_split", "first", "one of random, last"),
        ("data.std", [0.0, 1.0, 1.0], "a list, each a positive number"),
        ("optimizer.lr", "fast", "a positive number"),
        ("optimizer.lr", -1, "a positive number"),
        ("optimizer.lr", float("nan"), "a positive number"),
        ("optimizer.lr", float("inf"), "a positive number"),
        ("optimizer.momentum", 1.0, "a number in [0, 1)"),
        ("optimizer.nesterov", "yes", "true or false"),
        ("scheduler.name", "cosin", "one of none, step"),
        ("trainer.devices", "two", "auto, or an integer >= 1, or a list of indices"),
        ("trainer.devices", 0, "auto, or an integer >= 1"),
        ("trainer.devices", [], "auto, or an integer >= 1"),
        ("trainer.precision", "float8", "one of auto, 32-true, bf16-mixed, 16-mixed, 64-true"),
        ("trainer.precision", "16-true", "one of auto, 32-true, bf16-mixed, 16-mixed, 64-true"),
        ("trainer.max_epochs", 0, "an integer >= 1"),
        ("trainer.max_steps", 0, "an integer >= 1, or -1"),
        ("trainer.limit_train_batches", 1.5, "a fraction in (0.0, 1.0]"),
        ("trainer.max_time", "1h", "a duration DD:HH:MM:SS, or null"),
        ("callbacks.early_stopping.monitor", "val/acc", "one of val/top1"),
        ("logger.wandb.mode", "on", "one of auto, online, offline, disabled"),
        ("weights", None, "a path, torchvision, or none"),
        ("trust", "package", r"a list of packages: \[my_package\]"),
        ("freeze", "features", r"a list of layers such as [features] or [conv1, conv2]"),
        ("freeze_epochs", 0, "an integer >= 1, or null"),
        ("optimizer.layer_decay", 0.0, "a number in (0, 1], or null"),
        ("optimizer.norm_weight_decay", -1, "a number >= 0, or null"),
        ("label_smoothing", 1.0, "a number in [0, 1)"),
        ("seed", None, "an integer in [0, 4294967295]"),
    ],
)
def test_an_invalid_value_is_reported_with_its_key_and_the_legal_values(
    shipped: dict[str, Any], key: str, value: Any, legal: str
):
    shown = repr(value) if isinstance(value, str) else "null" if value is None else str(value)
    with pytest.raises(UserError) as caught:
        check_config(changed(shipped, key, value))
    assert str(caught.value).startswith(f"invalid {key}={shown}: expected ")
    assert legal.replace("\\", "") in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.devices", 2),
        ("trainer.devices", "auto"),
        ("trainer.devices", -1),
        ("trainer.devices", [0, 1]),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.limit_train_batches", 3),
        ("trainer.limit_train_batches", 0.5),
        ("trainer.fast_dev_run", 2),
        ("trainer.max_time", "00:01:30:00"),
        ("data.val_size", 0),
        ("data.batch_size", 1),
        ("logger.wandb.tags", ["a", 3]),
        ("logger.wandb.name", 7),
        ("optimizer.lr", 1),
        ("optimizer.layers", {"fc8": {"lr_factor": 0.1}}),
        ("optimizer.layers", {"features.*": {"lr_factor": 0.1}}),
        ("optimizer.layer_decay", 0.75),
        ("optimizer.norm_weight_decay", 0.0),
        ("freeze", ["features", "fc[67]"]),
        ("published", [{"metric": "test/top1", "value": 0.74, "epoch": "final", "source": "a paper"}]),
    ],
)
def test_a_valid_value_is_accepted(shipped: dict[str, Any], key: str, value: Any):
    check_config(changed(shipped, key, value))


@pytest.mark.parametrize(
    "key", ["trainer.devices", "seed", "data.batch_size", "optimizer.lr", "augment.flip", "paths.output_dir"]
)
def test_a_deleted_setting_is_an_error(shipped: dict[str, Any], key: str):
    with pytest.raises(UserError, match=f"The setting {key} is missing"):
        check_config(changed(shipped, key, GONE))


@pytest.mark.parametrize("name", ["trainer", "data", "model", "paths"])
def test_a_deleted_group_is_an_error(shipped: dict[str, Any], name: str):
    with pytest.raises(UserError, match=f"The group {name} is missing: set {name}=NAME"):
        check_config(changed(shipped, name, GONE))


def test_deleting_an_optional_group_suggests_none(shipped: dict[str, Any]):
    with pytest.raises(UserError, match="set logger=none instead"):
        check_config(changed(shipped, "logger", GONE))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trainer.devics", r"no setting trainer\.devics\. Did you mean trainer\.devices\?"),
        ("trainr.devices", r"Did you mean trainer\.devices\?"),
        ("mode", r"Did you mean model\?"),
        ("zzz", r"There is no setting zzz\. python train\.py --cfg job lists all\."),
        ("model.features.conv2.grups", r"Did you mean groups"),
        ("model.features.conv9.kernel_size", r"chosen model has no setting model\.features\.conv9"),
        ("callbacks.early_stopping", r"is a group of settings: callbacks\.early_stopping\.enabled, "),
        ("data.root", r"It belongs to data=folder"),
        ("optimizer.betas", r"It belongs to optimizer=adam and optimizer=adamw\."),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(key: str, message: str):
    with pytest.raises(UserError, match=message):
        raise UserError(unknown(key))


def test_adding_a_setting_that_does_not_exist_is_an_error(shipped: dict[str, Any]):
    with pytest.raises(UserError, match=r"Did you mean trainer\.devices"):
        check_config(changed(shipped, "trainer.devics", 2))


def test_custom_classes_have_their_own_settings(shipped: dict[str, Any]):
    config = changed(shipped, "callbacks.mine", {"_target_": "my_package.Mine", "often": 3})
    config = changed(config, "optimizer", {"_target_": "my_package.Lion", "lr": 1, "beta": 2})
    check_config(changed(config, "model", {"_target_": "my_package.Net", "width": 3}))


@pytest.mark.parametrize(
    ("key", "value"), [("scheduler.monitor", "val/loss"), ("callbacks.early_stopping.enabled", True)]
)
def test_watching_validation_needs_validation_images(shipped: dict[str, Any], key: str, value: Any):
    config = changed(shipped, "data.val_size", 0)
    if key.startswith("scheduler"):
        config["scheduler"] = group("scheduler", "plateau")
    with pytest.raises(UserError, match=r"monitor=val/loss needs validation images, and data\.val_size=0"):
        check_config(changed(config, key, value))


def test_setting_only_the_name_of_a_schedule_suggests_its_file(shipped: dict[str, Any]):
    with pytest.raises(UserError, match="also needs every_epochs, gamma: set scheduler=step"):
        check_config(changed(shipped, "scheduler.name", "step"))


def test_setting_of_another_schedule_is_refused(shipped: dict[str, Any]):
    with pytest.raises(UserError, match="scheduler=cosine has no gamma"):
        check_config(changed(shipped, "scheduler.gamma", 0.1))


@pytest.mark.parametrize("name", options("scheduler"))
def test_each_schedule_has_the_settings_of_its_file(name: str):
    shipped = group("scheduler", name)
    assert shipped.pop("name") == name
    assert set(shipped) == SCHEDULES[name]


@pytest.mark.parametrize("epochs", [None, -1])
def test_schedule_over_the_whole_run_needs_its_end(shipped: dict[str, Any], epochs: int | None):
    config = changed(shipped, "trainer.max_epochs", epochs)
    with pytest.raises(UserError, match=r"needs an end: set trainer\.max_epochs or trainer\.max_steps"):
        check_config(config)
    check_config(changed(config, "trainer.max_steps", 100))


def test_normalisation_fits_the_channels(shipped: dict[str, Any]):
    with pytest.raises(UserError, match=r"data\.mean and data\.std need 3 values each"):
        check_config(changed(shipped, "data.mean", [0.5]))
    check_config(changed(shipped, "data.channels", 1))  # three values are averaged for one channel


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.input_size", 5, r"conv1: its 11x11 kernel .* smallest image that works is \d+x\d+"),
        ("model.input_size", "abc", r"invalid model\.input_size='abc': expected an integer"),
        ("model.num_classes", None, r"invalid model\.num_classes=null: expected"),
        ("model.dropout", 2.0, r"invalid model\.dropout=2\.0: expected a number in \[0, 1\]"),
        (
            "model.features.conv2.then",
            ["rel"],
            r"model\.features\.conv2: unknown operation 'rel'.* mean relu",
        ),
        ("model.features.conv2.groups", 7, r"groups=7 does not divide its 96 input and 256 output channels"),
        (
            "model.features.conv2.padding",
            "abc",
            r"conv2\.padding='abc': expected a number of pixels, or same",
        ),
        ("model.foo", 3, r"model has no key 'foo'"),
    ],
)
def test_an_impossible_network_is_rejected_without_building_it(
    shipped: dict[str, Any], key: str, value: Any, message: str
):
    config = {**shipped, "model": group("model", "alexnet")}
    with pytest.raises(UserError, match=message):
        check_config(changed(config, key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.stem", "cifr", r"invalid model\.stem='cifr': expected one of imagenet, cifar"),
        ("model.features", {}, r"The chosen model has no setting model\.features"),
        ("model.stm", 3, r"There is no setting model\.stm\. Did you mean stem"),
    ],
)
def test_an_impossible_resnet_is_rejected_without_building_it(
    shipped: dict[str, Any], key: str, value: Any, message: str
):
    config = {**shipped, "model": group("model", "resnet18")}
    with pytest.raises(UserError, match=message):
        check_config(changed(config, key, value))


def test_every_rule_describes_its_legal_values():
    assert all(rule.text and "lambda" not in rule.text for rule in RULES.values())
    assert (rules.at_least(1) | rules.null).text == "an integer >= 1, or null"


RMSPROP = {"_target_": "torch.optim.RMSprop", "alpha": 0.9}


@pytest.mark.parametrize(
    "optimizer",
    [
        RMSPROP,
        {"_target_": "torch.optim.Adagrad", "lr": 0.01, "lr_decay": 0.1, "eps": 1e-10, "bias_lr_factor": 2.0},
        {"_target_": "torch.optim.Adafactor", "eps": [None, 1e-3], "d": 2.0},
        {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.99], "amsgrad": True},
        {"_target_": "torch.optim.rmsprop.RMSprop", "centered": True},
    ],
)
def test_optimizers_of_torch_take_their_own_settings(shipped: dict[str, Any], optimizer: dict[str, Any]):
    check_config({**shipped, "optimizer": optimizer})


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            {**RMSPROP, "alhpa": 1},
            r"optimizer\.alhpa: torch\.optim\.RMSprop has no such argument\. Did you mean alpha",
        ),
        (
            {**RMSPROP, "nesterov": True},
            r"optimizer\.nesterov: .* has no such argument.* ~optimizer\.nesterov deletes it",
        ),
        (
            {**RMSPROP, "alpha": -1},
            r"optimizer: torch\.optim\.RMSprop rejects its settings: Invalid alpha value: -1\.$",
        ),
        ({**RMSPROP, "bias_lr_factor": -1}, r"invalid optimizer\.bias_lr_factor=-1: expected"),
        ({"_target_": "torch.optim.RMSProp"}, r"is not an optimizer of torch\. Did you mean RMSprop"),
        ({"_target_": "torch.optim.Optimizer"}, "is not an optimizer of torch"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, "is not an optimizer of torch"),
        ({"_target_": "torch.optim.LBFGS"}, "cannot train here: it evaluates each batch several times"),
        ({"_target_": "torch.optim.SGD", "momentum": 0.9}, r"setting optimizer\.lr is missing"),
    ],
)
def test_invalid_arguments_of_a_torch_optimizer_are_rejected(
    shipped: dict[str, Any], optimizer: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        check_config({**shipped, "optimizer": optimizer})


def test_a_removed_setting_is_an_error_when_typed(shipped: dict[str, Any]):
    message = r"trainer\.limit_predict_batches has been removed: it had no effect"
    with pytest.raises(UserError, match=message):
        check_config(changed(shipped, "trainer.limit_predict_batches", 2))
    assert "has been removed" in unknown("trainer.limit_predict_batches")
    assert "trainer.limit_predict_batches" not in RULES
