"""Check composed settings without importing torch: keys, values, combinations, the layers of a network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from alexnet_exp.config import words
from alexnet_exp.config.compose import conf_dir, options
from alexnet_exp.config.groups import REQUIRED, RETIRED, RULES, SCHEDULES, Data, Paths, Settings
from alexnet_exp.config.schema import at_least, check, check_rules, choice, missing_setting, read, shown
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.models import spec
from alexnet_exp.models.arithmetic import map_sizes
from alexnet_exp.models.spec import known_keys
from alexnet_exp.settings import GROUPS, RUN_GROUPS, assigned, flat, key_of
from alexnet_exp.targets import TRUSTED, torch_optimizer
from alexnet_exp.tracking.redact import check_tracker_setting

# Groups whose keys are not ours to check where _target_ is a custom class.
_WITH_CLASS = ("data", "optimizer")
# Keys of conf/optimizer that we handle ourselves, whatever the optimizer's class.
_TREATMENT = (
    "bias_lr_factor", "bias_weight_decay", "norm_weight_decay", "layers", "layer_decay", "lr_scaling", "base_batch",
)  # fmt: skip
# Those that training/optim/auto.py has a learning rate for.
_WITH_AUTO_RATE = ("SGD", "PaperSGD", "Adam", "AdamW", "LARS")
# Fixed by the checkpoint: conf/data/*.yaml set them, evaluate and figures must not override them.
_OF_THE_CHECKPOINT = (
    "augment", "model", "data.image_size", "data.channels", "data.mean", "data.std", "data.stored_size", "data.fit",
)  # fmt: skip


def check_config(config: Mapping[str, Any]) -> Settings:
    """Check every setting of a composed configuration.

    Args:
        config: Plain values, as `train` takes them.

    Returns:
        The settings as an object.

    Raises:
        UserError: For the first unknown or missing key, invalid value or conflict.
    """
    for group in RUN_GROUPS:
        if not isinstance(config.get(group), Mapping):
            fix = f"set {group}=none instead" if "none" in options(group) else f"set {group}=NAME"
            raise UserError(f"The group {group} is missing: {fix}.")
    for key, value in flat(config["logger"], "logger.").items():
        check_tracker_setting(key, value)
    check_network(config["model"])
    _check_auto_rate(config["optimizer"])
    own = [group for group in _WITH_CLASS if not _is_ours(config[group].get("_target_"))]
    torchs = _torch_arguments(config["optimizer"])
    leaves = _leaves({k: v for k, v in config.items() if k not in ("model", "choices", *own)})
    for key, value in leaves.items():
        if key.startswith("optimizer.") and key.removeprefix("optimizer.") in torchs:
            continue
        rule = RULES.get(key)
        if rule is None:
            raise UserError(unknown(key, None if value is None else str(value)))
        check_rules({key: value}, {key: rule})
    for key in REQUIRED:
        left_to_class = key.split(".")[0] in own or (torchs and key == "optimizer.lr")
        if key not in leaves and not left_to_class:
            raise UserError(missing_setting(key))
    settings = read(Settings, config)
    _check_combinations(settings, set(config["scheduler"]))
    return settings


def beside_checkpoint(
    config: Mapping[str, Any], kind: type, overrides: Iterable[str], instead: str = ""
) -> dict[str, Any]:
    """Check the settings of a verb that loads a checkpoint and its data set.

    Args:
        config: As composed.
        kind: The class of the verb's settings.
        overrides: As typed.
        instead: Appended to the error about a setting that the checkpoint fixes.

    Returns:
        `data` and `data_dir`: where the images are, as `open_data` takes it.

    Raises:
        UserError: For an invalid value, or a setting that the checkpoint fixes.
    """
    check(kind, config)
    typed = {key_of(override) for override in overrides}
    for key in sorted(typed):
        if key == "data.batch_size":
            raise UserError("data.batch_size is for training: set batch_size=N instead.")
        if key in _OF_THE_CHECKPOINT or key.startswith(("augment.", "model.")):
            raise UserError(f"{key} is fixed by the checkpoint: leave it out{instead}.")
    data = dict(config.get("data") or {})
    if "cache" in data and "data.cache" not in typed:
        data["cache"] = "off"  # each image is read at most twice: building a cache would not pay
    data_dir = {"path": read(Paths, config["paths"]).data_dir, "typed": "paths.data_dir" in typed}
    return {"data": data, "data_dir": data_dir}


def check_recorded(config: Mapping[str, Any], groups: Sequence[str], where: str) -> None:
    """Check the settings recorded in a checkpoint; keys without a rule pass, since older versions had others.

    Args:
        config: Plain values.
        groups: The groups that will be used.
        where: The checkpoint, for the message.

    Raises:
        UserError: For the first invalid value.
    """
    for key, value in _leaves({group: config[group] for group in groups}).items():
        if key in RULES and not RULES[key].legal(value):
            raise UserError(f"{where} has an invalid {key}={shown(value)[:200]}: expected {RULES[key].text}.")


def unknown(key: str, value: str | None = None) -> str:
    """Return the error message for a setting that does not exist, with the nearest ones that do.

    Args:
        key: As typed.
        value: As typed; repeated in the suggestion where another tool's name for a setting was typed.
    """
    group, _, last = key.rpartition(".")
    if key.startswith("model.") and (last in known_keys() or group != "model" or not words.meant(last)):
        return unknown_in_network(key)
    if key in RETIRED:
        return f"{key} has been removed: {RETIRED[key]}."
    if key in RULES:
        files = [o for o in options(group) if f"\n{last}:" in (conf_dir() / group / f"{o}.yaml").read_text()]
        belongs = f" It belongs to {' and '.join(f'{group}={o}' for o in files)}." if files else ""
        return f"The chosen {group} has no setting {key}.{belongs}"
    inside = [known for known in RULES if known.startswith(f"{key}.")]
    if inside:
        return f"{key} is a group of settings: {', '.join(inside)}."
    if reason := words.why_not(key):
        return f"There is no setting {key}: {reason}."
    siblings = [known.rpartition(".")[2] for known in RULES if known.rpartition(".")[0] == group]
    near = get_close_matches(last, siblings, n=2) if group else []
    close = words.meant(key, value) or [f"{group}.{name}" for name in near] or words.near(key)
    close = close or get_close_matches(key, [*RULES, *GROUPS], n=1)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"There is no setting {key}.{meant} python train.py --cfg job lists all."


def _is_ours(target: Any) -> bool:
    return target is None or str(target).startswith(("torch.optim.", "alexnet_exp."))


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by dotted key, without those of custom callbacks and loggers."""
    ours = {key.rpartition(".")[0] for key in RULES}
    own = {
        f"{group}.{name}"
        for group in ("callbacks", "logger")
        for name, each in config.get(group, {}).items()
        if isinstance(each, Mapping) and "_target_" in each and f"{group}.{name}" not in ours
    }
    leaves = flat(config, whole={*RULES, *own})
    return {key: value for key, value in leaves.items() if key not in own and (value != {} or key in RULES)}


def _check_combinations(settings: Settings, schedule_keys: set[str]) -> None:
    data, optimizer = settings.data, settings.optimizer
    _check_schedule(settings, schedule_keys)
    if _is_ours(optimizer._target_) and optimizer.nesterov and not optimizer.momentum:
        raise UserError(
            "optimizer.nesterov=true needs momentum: set optimizer.nesterov=false, or optimizer.momentum=0.9."
        )
    if _is_ours(data._target_) and not {len(data.mean), len(data.std)} <= {3, data.channels}:
        raise UserError(f"data.mean and data.std need {data.channels} values each: one per data.channels.")
    if settings.ckpt and settings.weights != "none":
        raise UserError("ckpt= also loads the network's weights: set either ckpt= or weights=, not both.")
    if settings.class_weights == "auto" and data.balanced is True:
        raise UserError(
            "class_weights=auto and data.balanced=true both make up for rare classes: choose one of them."
        )
    if settings.freeze_epochs is not None and not settings.freeze:
        raise UserError(
            f"freeze_epochs={settings.freeze_epochs} needs layers to freeze: set freeze=[features], or "
            "freeze_epochs=null to freeze none."
        )
    if _is_ours(data._target_):
        _check_folds(data)
    _check_monitors(settings)


def _check_auto_rate(optimizer: Mapping[str, Any]) -> None:
    target = str(optimizer.get("_target_"))
    known = _is_ours(target) and target.rpartition(".")[2] in _WITH_AUTO_RATE
    if optimizer.get("lr") == "auto" and not known:
        raise UserError(
            f"optimizer.lr=auto knows no rate for {target}, only for {', '.join(_WITH_AUTO_RATE)}: set "
            "optimizer.lr=NUMBER."
        )


def _check_folds(data: Data) -> None:
    if data.folds is None:
        for key, value in (("fold", data.fold), ("groups", data.groups)):
            if value:
                raise UserError(
                    f"data.{key}={value} needs data.folds, the number of folds: set data.folds=5."
                )
        return
    if data.fold >= data.folds:
        raise UserError(
            f"data.fold={data.fold}: expected 0 to {data.folds - 1}, since data.folds={data.folds}."
        )
    if data.val_fraction not in (None, "auto"):
        raise UserError("data.folds cuts the validation images: leave data.val_fraction out.")


def _torch_arguments(optimizer: Mapping[str, Any]) -> set[str]:
    """Return the arguments of a torch.optim class that our rules do not cover, checked by its constructor.

    The classes of conf/optimizer with the keys set there have rules. Anything else needs torch, whose import takes a
    second.

    Raises:
        UserError: If the class is not an optimizer or cannot train here, or rejects its arguments.
    """
    target = str(optimizer.get("_target_"))
    given = {str(k): v for k, v in optimizer.items() if k != "_target_" and k not in _TREATMENT}
    if not target.startswith("torch.optim."):
        return set()
    if target in TRUSTED and all(f"optimizer.{key}" in RULES for key in given):
        return set()
    kind = torch_optimizer(target)
    takes = [name for name in inspect.signature(kind).parameters if name != "params"]
    for key in given:
        if key not in takes:
            raise UserError(
                f"optimizer.{key}: {target} has no such argument.{nearest(key, takes)} It takes {', '.join(takes)}; "
                f"~optimizer.{key} deletes it."
            )
    import torch

    try:
        trial = {key: value for key, value in given.items() if value != "auto"}  # a rate that is chosen later
        kind([torch.nn.Parameter(torch.zeros(1, 1))], **trial)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"optimizer: {target} rejects its settings: {reason}.") from error
    return set(given)


def _check_monitors(settings: Settings) -> None:
    """Reject a monitor that this run will not log, or a mode that would keep the worst."""
    scheduler, callbacks = settings.scheduler, settings.callbacks
    watchers: dict[str, Any] = {"scheduler": scheduler} if scheduler.monitor else {}
    for name, callback in (
        ("early_stopping", callbacks.early_stopping),
        ("checkpoint", callbacks.checkpoint),
    ):
        if callback.enabled:
            watchers[f"callbacks.{name}"] = callback
    unvalidated = {
        "data.val_size=0": settings.data.val_size == 0 and not settings.data.folds,
        "trainer.limit_val_batches=0": settings.trainer.limit_val_batches == 0,
    }
    for key, watcher in watchers.items():
        monitor, mode = watcher.monitor, watcher.mode
        right = "min" if monitor.endswith("loss") else "max"
        if mode != right:
            raise UserError(
                f"{key}.monitor={monitor} with {key}.mode={mode} keeps the worst: set {key}.mode={right}."
            )
        for why, holds in unvalidated.items():
            # checkpoint may monitor a missing metric: without validation the best checkpoint is the last.
            if holds and monitor.startswith("val/") and key != "callbacks.checkpoint":
                raise UserError(f"{key}.monitor={monitor} needs validation images, and {why}.")


def _check_schedule(settings: Settings, given: set[str]) -> None:
    """Check that the keys `given` in conf/scheduler are those of the schedule, and that it fits the other groups."""
    name, optimizer, trainer = settings.scheduler.name, settings.optimizer, settings.trainer
    given = given - {"name"}
    if missing := SCHEDULES[name] - given:
        raise UserError(
            f"scheduler.name={name} also needs {', '.join(sorted(missing))}: set scheduler={name}."
        )
    if more := given - SCHEDULES[name]:
        raise UserError(f"scheduler={name} has no {', '.join(sorted(more))}: leave it out.")
    if name == "table" and optimizer.lr_scaling != "none":
        raise UserError(
            "optimizer.lr_scaling scales optimizer.lr but not the rates of scheduler=table: set "
            "optimizer.lr_scaling=none and write the scaled rates into the table."
        )
    if name == "table" and optimizer.layer_decay is not None:
        raise UserError(
            "scheduler=table sets the rates itself, and optimizer.layer_decay would not scale them: set "
            "optimizer.layer_decay=null."
        )
    endless = trainer.max_epochs in (None, -1) and trainer.max_steps == -1
    if endless and name in ("cosine", "onecycle", "dexp", "poly"):
        raise UserError(f"scheduler={name} needs an end: set trainer.max_epochs or trainer.max_steps.")


_RESNET_KEYS = ("_target_", "stem", "input_size", "in_channels", "num_classes")


def check_network(model: Mapping[str, Any]) -> None:
    """Check a network's settings as far as they can be without building it.

    Args:
        model: Plain values of conf/model; a custom class checks its own.

    Raises:
        UserError: For an unknown key or operation, an invalid value, or an image too small for the layers.
    """
    for key in ("input_size", "in_channels", "num_classes"):
        check_rules({key: model.get(key, 1)}, {key: at_least(1)}, "model.")
    target = model.get("_target_")
    if target == "alexnet_exp.models.resnet18":
        for key in model:
            if key not in _RESNET_KEYS:
                raise UserError(unknown_in_network(f"model.{key}"))
        check_rules({"stem": model.get("stem")}, {"stem": choice("imagenet", "cifar")}, "model.")
    if target == "alexnet_exp.models.AlexNet":
        net = spec.parse_network({k: v for k, v in model.items() if k != "_target_"})
        map_sizes(net, net.input_size)


def check_typed(model: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Reject a typed setting of an operation that no layer uses: `model.dropout=0.3` without any dropout.

    In a yaml such a setting is fine: a variant removes an operation by changing `then` alone.

    Args:
        model: Plain values of conf/model, checked.
        typed: Overrides: 'model.dropout=0.3'.

    Raises:
        UserError: Names the setting.
    """
    if model.get("_target_") != "alexnet_exp.models.AlexNet":
        return
    layers = [*model["features"].values(), *model["classifier"].values()]
    used = set(model["input"]).union(*([*layer["before"], *layer["then"]] for layer in layers))
    for key in assigned(typed):
        group, _, rest = key.partition(".")
        op = rest.partition(".")[0].removesuffix("_scaling")
        if group == "model" and op in spec.OPERATIONS and op not in used:
            raise UserError(
                f"{key} has no effect: no layer of this network uses {op}; add it to a layer with "
                f"model.features.LAYER.then=[...,{op}]."
            )


def unknown_in_network(key: str) -> str:
    """Return the error message for an unknown model setting, with the nearest one of any network."""
    last = key.rpartition(".")[2]
    known = [*spec.known_keys(), "stem"]
    if last in known:
        return f"The chosen model has no setting {key}. --cfg job shows its layers and their settings."
    return f"There is no setting {key}.{nearest(last, known)} --cfg job lists those of the chosen model."
