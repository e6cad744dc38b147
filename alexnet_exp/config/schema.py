"""What every setting may be, in one table."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from alexnet_exp.config import words
from alexnet_exp.config.compose import conf_dir, options
from alexnet_exp.config.overrides import GROUPS
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.models import spec
from alexnet_exp.models.arithmetic import map_sizes
from alexnet_exp.models.spec import known_keys
from alexnet_exp.targets import TRUSTED, torch_optimizer


@dataclass(frozen=True)
class Rule:
    """Which values are legal, and how to say so."""

    text: str
    legal: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.text}, or {other.text}", lambda v: self.legal(v) or other.legal(v))


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63  # floats end somewhere, and so do the counters of torch
    return isinstance(value, float) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def at_least(least: int) -> Rule:
    return Rule(f"a whole number, {least} or more", lambda v: _is_integer(v) and v >= least)


def number(least: float = 0.0, most: float = float("inf"), above: bool = False) -> Rule:
    bound = f"above {least:g}" if above else f"{least:g} or more"
    text = f"a number {bound}" + (f" and at most {most:g}" if most != float("inf") else "")
    return Rule(text, lambda v: _is_number(v) and (v > least if above else v >= least) and v <= most)


def choice(*values: str) -> Rule:
    return Rule(("one of " if len(values) > 1 else "") + ", ".join(values), lambda v: v in values)


def list_of(rule: Rule) -> Rule:
    return Rule(f"a list, each {rule.text}", lambda v: isinstance(v, list) and all(rule.legal(x) for x in v))


null = Rule("null", lambda v: v is None)
flag = Rule("true or false", lambda v: isinstance(v, bool))
text = Rule("text", lambda v: isinstance(v, str) and v != "")
path = Rule("a path", text.legal)
# What the user types as a name may look like a number to YAML.
name = Rule("text", lambda v: isinstance(v, str | int | float) and not isinstance(v, bool) and v != "")
positive = number(above=True)
fraction = number(0.0, 1.0)
# What W&B takes.
_short_name = Rule("1 to 128 characters of text", lambda v: name.legal(v) and len(str(v)) <= 128)
_project = Rule(
    "1 to 128 characters of text without / \\ # ? % :",
    lambda v: _short_name.legal(v) and not set(str(v)) & set("/\\#?%:") and str(v).isprintable(),
)
_tags = Rule(
    "a list, each 1 to 64 characters of text",
    lambda v: isinstance(v, list) and all(name.legal(x) and len(str(x)) <= 64 for x in v),
)
# What Lightning seeds numpy with.
number_of_32_bits = Rule(
    "a whole number, 0 or more and at most 4294967295", lambda v: _is_integer(v) and 0 <= v < 1 << 32
)
device_list = Rule("a list of indices such as [0,1]", lambda v: v != [] and list_of(at_least(0)).legal(v))
some_batches = at_least(1) | Rule(
    "a fraction above 0 up to 1.0", lambda v: isinstance(v, float) and 0.0 < v <= 1.0
)
batches = at_least(0) | Rule("a fraction from 0.0 to 1.0", lambda v: isinstance(v, float) and 0.0 <= v <= 1.0)
metric = choice("val/top1", "val/top5", "val/loss", "train/loss", "train/top1", "train/top5")


def _has_only(value: Any, rules: dict[str, Rule]) -> bool:
    return isinstance(value, dict) and all(k in rules and rules[k].legal(v) for k, v in value.items())


_RANGE = Rule("[least, most]", lambda v: list_of(positive).legal(v) and len(v) == 2 and v[0] <= v[1])
_BETAS = Rule(
    "two numbers from 0 up to, not including, 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(x) and 0 <= x < 1 for x in v),
)
_RESIZED_CROP = Rule(
    "{scale: [least, most], ratio: [least, most]}",
    lambda v: _has_only(v, {"scale": _RANGE, "ratio": _RANGE}) and len(v) == 2,
)
_ERASING = Rule(
    "{probability: 0 to 1, scale: [least, most], ratio: [least, most]}",
    lambda v: _has_only(v, {"probability": fraction, "scale": _RANGE, "ratio": _RANGE}) and len(v) == 3,
)
_JITTER = {"brightness": number(), "contrast": number(), "saturation": number(), "hue": number(0.0, 0.5)}
_COLOUR_JITTER = Rule(
    "{brightness, contrast, saturation: 0 or more, hue: 0 to 0.5}, at least one of them above 0",
    lambda v: _has_only(v, _JITTER) and any(v.values()),
)
_LAYER = {
    "lr_factor": number(),
    "weight_decay": number() | null,
    "bias_lr_factor": number() | null,
    "bias_weight_decay": number() | null,
}
_LAYERS = Rule(
    "{LAYER: {lr_factor, weight_decay, bias_lr_factor, bias_weight_decay: numbers, 0 or more}}",
    lambda v: isinstance(v, dict) and all(x is None or _has_only(x, _LAYER) for x in v.values()),
)
_CHANGE = {"epoch": at_least(0), "lr": number(), "bias_lr": number(), "layer": text, "but": text}
_CHANGES = Rule(
    "a list of {epoch, lr, bias_lr, layer, but}",
    lambda v: isinstance(v, list) and all(_has_only(x, _CHANGE) and "epoch" in x for x in v),
)
# The settings that go with each schedule.
SCHEDULES: dict[str, set[str]] = {
    "none": set(),
    "step": {"every_epochs", "gamma"},
    "multistep": {"epochs", "gamma"},
    "plateau": {"monitor", "mode", "factor", "patience", "min_lr"},
    "cosine": {"warmup_epochs", "final_factor"},
    "onecycle": {"pct_start", "div_factor", "final_div_factor"},
    "table": {"changes"},
    "dexp": {"factor", "steps", "bias_factor", "bias_steps"},
    "poly": {"power", "warmup_epochs"},
}

_PRECISIONS = (
    "auto", 16, 32, 64, "16", "32", "64", "bf16", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "32-true",
    "64-true", "transformer-engine", "transformer-engine-float16",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "seed": number_of_32_bits,
    "test": flag,
    "test_weights": choice("best", "last"),
    "compile": flag | choice("auto", "lrn"),
    "channels_last": flag | choice("auto"),
    "label_smoothing": Rule(
        "a number from 0 up to, not including, 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "resume": path | null,
    "ckpt": path | null,
    "weights": Rule("a path, torchvision, or none", path.legal),
    "sweep.resume": path | null,
    "trust": Rule("a list of packages: [my_package]", list_of(text).legal),
    "paths.data_dir": path,
    "paths.output_dir": path,
    "paths.cache_dir": path | null,
    "augment.flip": flag | choice("alternating"),
    "augment.pad": at_least(0),
    "augment.crop": flag,
    "augment.centre_crop": flag,
    "augment.mean_image": choice("none", "aligned", "centre"),
    "augment.resized_crop": _RESIZED_CROP | null,
    "augment.whiten": flag,
    "augment.colour_noise": choice("none", "paper", "source"),
    "augment.colour_noise_epochs": at_least(0) | null,
    "augment.policy": choice("none", "randaugment", "trivialaugment"),
    "augment.num_ops": at_least(1) | null,
    "augment.magnitude": Rule("a whole number from 0 to 30", lambda v: _is_integer(v) and 0 <= v <= 30)
    | null,
    "augment.colour_jitter": _COLOUR_JITTER | null,
    "augment.erasing": _ERASING | null,
    "augment.mixup": positive | null,
    "augment.cutmix": positive | null,
    "augment.views": choice("centre", "flip", "flip_translate", "ten_crop"),
    "data._target_": text,
    "data.data_dir": path,
    "data.download": flag,
    "data.root": path,
    "data.url": path,
    "data.batch_size": at_least(1),
    "data.val_size": at_least(0),
    "data.val_split": choice("random", "last"),
    "data.val_seed": at_least(0),
    "data.val_fraction": Rule("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1) | null,
    "data.train_subset": at_least(1) | null,
    "data.test_subset": at_least(1) | null,
    "data.subset_seed": at_least(0) | null,
    "data.split_rule": choice("by_name", "by_order"),
    "data.channels": Rule("1 or 3", lambda v: v in (1, 3) and _is_integer(v)),
    "data.image_size": at_least(1),
    "data.stored_size": at_least(1) | null,
    "data.cache": choice("auto", "ram", "disk", "off"),
    "data.cache_dir": path | null,
    "data.resident": choice("auto", "device", "host", "off"),
    "data.num_workers": Rule("a whole number from 0 to 256", lambda v: _is_integer(v) and 0 <= v <= 256)
    | null,
    "data.verify": flag,
    "data.on_bad_image": choice("error", "skip"),
    "data.follow_links": flag,
    "data.mean": list_of(number()),
    "data.std": list_of(positive),
    "optimizer._target_": text,
    "optimizer.lr": positive,
    "optimizer.momentum": Rule(
        "a number from 0 up to, not including, 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "optimizer.weight_decay": number(),
    "optimizer.nesterov": flag,
    "optimizer.betas": _BETAS,
    "optimizer.eps": positive,
    "optimizer.trust": positive,
    "optimizer.bias_lr_factor": number(),
    "optimizer.bias_weight_decay": number() | null,
    "optimizer.layers": _LAYERS,
    "optimizer.lr_scaling": choice("none", "linear", "sqrt"),
    "optimizer.base_batch": at_least(1),
    "scheduler.name": choice(*SCHEDULES),
    "scheduler.every_epochs": at_least(1),
    "scheduler.epochs": list_of(at_least(1)),
    "scheduler.gamma": positive,
    "scheduler.monitor": metric,
    "scheduler.mode": choice("min", "max"),
    "scheduler.factor": positive,
    "scheduler.patience": at_least(0),
    "scheduler.min_lr": number(),
    "scheduler.warmup_epochs": number(),
    "scheduler.final_factor": fraction,
    "scheduler.pct_start": fraction,
    "scheduler.div_factor": positive,
    "scheduler.final_div_factor": positive,
    "scheduler.changes": _CHANGES,
    "scheduler.steps": at_least(2),
    "scheduler.bias_factor": positive | null,
    "scheduler.bias_steps": at_least(2) | null,
    "scheduler.power": positive,
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": choice("auto")
    | at_least(1)
    | device_list
    | Rule("-1 (all)", lambda v: v in (-1, "-1")),
    "trainer.num_nodes": at_least(1),
    "trainer.strategy": text,
    "trainer.precision": Rule(
        "auto or a precision such as 32-true, bf16-mixed, 16-mixed", lambda v: v in _PRECISIONS
    ),
    "trainer.max_epochs": at_least(1) | Rule("-1 (no end)", lambda v: v == -1) | null,
    "trainer.min_epochs": at_least(0) | null,
    "trainer.max_steps": at_least(-1),
    "trainer.min_steps": at_least(0) | null,
    "trainer.max_time": Rule(
        "a time, DD:HH:MM:SS", lambda v: bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v)))
    )
    | null,
    "trainer.limit_train_batches": some_batches,
    "trainer.limit_val_batches": batches,
    "trainer.limit_test_batches": batches,
    "trainer.overfit_batches": batches,
    "trainer.fast_dev_run": flag | at_least(1),
    "trainer.val_check_interval": at_least(1) | number(0.0, 1.0, above=True),
    "trainer.check_val_every_n_epoch": at_least(1) | null,
    "trainer.num_sanity_val_steps": at_least(-1),
    "trainer.log_every_n_steps": at_least(1),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.gradient_clip_val": number() | null,
    "trainer.gradient_clip_algorithm": choice("norm", "value"),
    "trainer.deterministic": flag | choice("warn"),
    "trainer.benchmark": flag | null,
    "trainer.inference_mode": flag,
    "trainer.profiler": choice("simple", "advanced") | null,
    "trainer.detect_anomaly": flag,
    "trainer.sync_batchnorm": flag,
    "callbacks.checkpoint.enabled": flag,
    "callbacks.checkpoint.monitor": metric,
    "callbacks.checkpoint.mode": choice("min", "max"),
    "callbacks.checkpoint.every_n_steps": at_least(1) | null,
    "callbacks.checkpoint.every_n_minutes": positive | null,
    "callbacks.checkpoint.keep_last": at_least(1),
    "callbacks.early_stopping.enabled": flag,
    "callbacks.early_stopping.monitor": metric,
    "callbacks.early_stopping.mode": choice("min", "max"),
    "callbacks.early_stopping.patience": at_least(0),
    "callbacks.early_stopping.min_delta": number(),
    "callbacks.ema.enabled": flag,
    "callbacks.ema.decay": fraction,
    "callbacks.lr_monitor.enabled": flag,
    "callbacks.progress_bar.enabled": flag,
    "callbacks.progress_bar.refresh_per_second": positive,
    "callbacks.model_summary.enabled": flag,
    "callbacks.throughput.enabled": flag,
    "logger.wandb.mode": choice("auto", "online", "offline", "disabled"),
    "logger.wandb.project": _project,
    "logger.wandb.entity": _project | null,
    "logger.wandb.group": _short_name | null,
    "logger.wandb.tags": _tags,
    "logger.wandb.notes": name | null,
    "logger.wandb.name": _short_name | null,
    "logger.wandb.log_model": flag,
    "logger.tensorboard.enabled": flag,
}
# Settings that there were once: refused when typed, ignored where an old run has recorded them.
RETIRED = {
    "trainer.limit_predict_batches": "it had no effect; name fewer images: alexnet-exp predict RUN 'photos/0*.jpg'",
}

# Groups whose keys belong to a class of the user's own when its _target_ is not one of ours.
_WITH_CLASS = ("data", "optimizer")
# Settings of an optimizer that are ours, whatever its class.
_TREATMENT = ("bias_lr_factor", "bias_weight_decay", "layers", "lr_scaling", "base_batch")
# Whichever file is chosen, these are there: all keys of some groups, a few of others.
_WHOLE_GROUPS = ("augment", "trainer", "callbacks", "paths")
_ALWAYS = (
    "data._target_", "data.batch_size", "data.channels", "data.mean", "data.std",
    "optimizer._target_", "optimizer.lr", "scheduler.name",
)  # fmt: skip


def check_config(config: Mapping[str, Any]) -> None:
    """Check every setting of a composed configuration.

    Args:
        config: Plain values, as `train` takes them.

    Raises:
        UserError: For the first unknown or missing key, illegal value or combination.
    """
    _check_groups(config)
    check_network(config["model"])
    own = [group for group in _WITH_CLASS if not _is_ours(config[group])]
    torchs = _torch_arguments(config["optimizer"])
    leaves = _leaves({k: v for k, v in config.items() if k not in ("model", "choices", *own)})
    for key, value in leaves.items():
        if key.startswith("optimizer.") and key.removeprefix("optimizer.") in torchs:
            continue
        rule = RULES.get(key)
        if rule is None:
            raise UserError(unknown(key, None if value is None else str(value)))
        if not rule.legal(value):
            raise UserError(f"{key}={shown(value)} is not possible: it must be {rule.text}.")
    for key in RULES:
        group = key.split(".")[0]
        always = group == key or group in _WHOLE_GROUPS or key in _ALWAYS
        if always and group not in own and key not in leaves and not (torchs and key == "optimizer.lr"):
            raise UserError(f"The setting {key} is missing: give it a value and do not take it away with ~.")
    _check_combinations(config)


def check_recorded(config: Mapping[str, Any], groups: Sequence[str], where: str) -> None:
    """Check settings that a checkpoint carries, as far as there is a rule: an older version had others.

    Args:
        config: Plain values.
        groups: Which of them are going to be used.
        where: The checkpoint, for the message.

    Raises:
        UserError: For the first illegal value.
    """
    for key, value in _leaves({group: config[group] for group in groups}).items():
        if key in RULES and not RULES[key].legal(value):
            raise UserError(f"{where} has {key}={shown(value)[:200]}, and it must be {RULES[key].text}.")


def unknown(key: str, value: str | None = None) -> str:
    """Return the sentence about a setting that does not exist, with the nearest that do.

    Args:
        key: As typed.
        value: As typed, for the settings that another word means.
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
        return f"{key} is not one setting but several: {', '.join(inside)}."
    siblings = [known.rpartition(".")[2] for known in RULES if known.rpartition(".")[0] == group]
    near = get_close_matches(last, siblings, n=2) if group else []
    close = words.meant(key, value) or [f"{group}.{name}" for name in near] or words.near(key)
    close = close or get_close_matches(key, [*RULES, *GROUPS], n=1)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"There is no setting {key}.{meant} python train.py --cfg job lists all."


def _check_groups(config: Mapping[str, Any]) -> None:
    for group in (
        "model",
        "data",
        "augment",
        "optimizer",
        "scheduler",
        "trainer",
        "callbacks",
        "logger",
        "paths",
    ):
        if not isinstance(config.get(group), Mapping):
            hint = f"say {group}=none instead" if "none" in options(group) else f"a run needs {group}=NAME"
            raise UserError(f"The group {group} is missing: {hint}.")


def _is_ours(settings: Mapping[str, Any]) -> bool:
    target = settings.get("_target_")
    return target is None or str(target).startswith(("torch.optim.", "alexnet_exp."))


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in RULES:
            own_callback = prefix == "callbacks." and "_target_" in value
            leaves |= {} if own_callback else _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _check_combinations(config: Mapping[str, Any]) -> None:
    _check_schedule(config["scheduler"], config["optimizer"], config["trainer"])
    _check_optimizer(config["optimizer"])
    data = config["data"]
    if _is_ours(data) and not {len(data["mean"]), len(data["std"])} <= {3, data["channels"]}:
        raise UserError(f"data.mean and data.std need {data['channels']} values each, as data.channels says.")
    if config["ckpt"] and config["weights"] != "none":
        raise UserError("ckpt= restores the network's weights too: leave weights= out, or ckpt=.")
    _check_monitors(config)


def _torch_arguments(optimizer: Mapping[str, Any]) -> set[str]:
    """Return the settings that go to an optimizer of torch's other than as conf/optimizer has them, checked.

    The classes of conf/optimizer with the settings there have rules; for all else torch's own constructor is asked,
    whose import takes a second.

    Raises:
        UserError: For a class that is no optimizer or does not train networks like ours, an argument that it does not
            have, or a value that it refuses.
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
                f"~optimizer.{key} takes it away."
            )
    import torch

    try:
        kind([torch.nn.Parameter(torch.zeros(1, 1))], **given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"optimizer: {target} refuses its settings: {reason}.") from error
    return set(given)


def _check_optimizer(optimizer: Mapping[str, Any]) -> None:
    if _is_ours(optimizer) and optimizer.get("nesterov") and not optimizer.get("momentum"):
        raise UserError(
            "optimizer.nesterov=true needs momentum: say optimizer.nesterov=false, or optimizer.momentum=0.9."
        )


def _check_monitors(config: Mapping[str, Any]) -> None:
    """Refuse a watched metric that this run will not have, or whose better end is the other one."""
    callbacks = config["callbacks"]
    watchers = {"scheduler": config["scheduler"]} if config["scheduler"].get("monitor") else {}
    watchers |= {
        f"callbacks.{k}": callbacks[k] for k in ("early_stopping", "checkpoint") if callbacks[k]["enabled"]
    }
    unvalidated = {
        "data.val_size=0": config["data"].get("val_size") == 0,
        "trainer.limit_val_batches=0": config["trainer"]["limit_val_batches"] == 0,
    }
    for key, watcher in watchers.items():
        monitor, mode = watcher["monitor"], watcher["mode"]
        right = "min" if monitor.endswith("loss") else "max"
        if mode != right:
            raise UserError(
                f"{key}.monitor={monitor} with {key}.mode={mode} keeps the worst: say {key}.mode={right}."
            )
        for why, holds in unvalidated.items():
            # Without validation the best checkpoint is simply the last.
            if holds and monitor.startswith("val/") and key != "callbacks.checkpoint":
                raise UserError(f"{key}.monitor={monitor} needs validation images, and {why}.")


def _check_schedule(
    scheduler: Mapping[str, Any], optimizer: Mapping[str, Any], trainer: Mapping[str, Any]
) -> None:
    name = scheduler["name"]
    given = set(scheduler) - {"name"}
    if missing := SCHEDULES[name] - given:
        raise UserError(
            f"scheduler.name={name} needs {', '.join(sorted(missing))}, too: say scheduler={name}."
        )
    if more := given - SCHEDULES[name]:
        raise UserError(f"scheduler={name} has no {', '.join(sorted(more))}: leave it out.")
    if name == "table" and optimizer.get("lr_scaling", "none") != "none":
        raise UserError(
            "optimizer.lr_scaling scales the first rate alone, and scheduler=table names the others: say "
            "optimizer.lr_scaling=none, and the rates that are meant."
        )
    endless = trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1
    if endless and name in ("cosine", "onecycle", "dexp", "poly"):
        raise UserError(f"scheduler={name} needs an end: give trainer.max_epochs or trainer.max_steps.")


def shown(value: Any) -> str:
    """Write a value as the user would recognise it."""
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)


_RESNET_KEYS = ("_target_", "stem", "input_size", "in_channels", "num_classes")
_STEMS = ("imagenet", "cifar")


def check_network(model: Mapping[str, Any]) -> None:
    """Check a network's settings as far as they can be without building it.

    Args:
        model: Plain values of conf/model; those of a class of the user's own are their own affair.

    Raises:
        UserError: For an unknown key or operation, an illegal value, or an image too small for the layers.
    """
    for key in ("input_size", "in_channels", "num_classes"):
        value = model.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "null" if value is None else repr(value)
            raise UserError(f"model.{key}={said} is not possible: it must be a whole number, 1 or more.")
    target = model.get("_target_")
    if target == "alexnet_exp.models.resnet18":
        for key in model:
            if key not in _RESNET_KEYS:
                raise UserError(unknown_in_network(f"model.{key}"))
        if model.get("stem") not in _STEMS:
            raise UserError(
                f"model.stem={model.get('stem')} is not possible: it must be {' or '.join(_STEMS)}."
            )
    if target == "alexnet_exp.models.AlexNet":
        net = spec.parse_network({k: v for k, v in model.items() if k != "_target_"})
        map_sizes(net, net.input_size)


def check_typed(model: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Refuse a typed setting of an operation that no layer has: `model.dropout=0.3` without any dropout.

    What a yaml says of such an operation stays legal: a variant takes an operation away with `then` alone.

    Args:
        model: Plain values of conf/model, checked.
        typed: Settings as the user gave them: 'model.dropout=0.3'.

    Raises:
        UserError: Names the setting.
    """
    if model.get("_target_") != "alexnet_exp.models.AlexNet":
        return
    layers = [*model["features"].values(), *model["classifier"].values()]
    used = set(model["input"]).union(*([*layer["before"], *layer["then"]] for layer in layers))
    for setting in typed:
        key = setting.lstrip("+").partition("=")[0]
        group, _, rest = key.partition(".")
        op = rest.partition(".")[0].removesuffix("_scaling")
        if group == "model" and op in spec.OPERATIONS and op not in used:
            raise UserError(
                f"{key} does nothing: no layer of this network has {op}; add it to the list of one, "
                f"model.features.LAYER.then=[...,{op}]."
            )


def unknown_in_network(key: str) -> str:
    """Return the sentence about a setting that the chosen network lacks, with the nearest of any network."""
    last = key.rpartition(".")[2]
    known = [*spec.known_keys(), "stem"]
    if last in known:
        return f"The chosen model has no setting {key}. --cfg job shows its layers and their settings."
    return f"There is no setting {key}.{nearest(last, known)} --cfg job shows all of the chosen model."
