"""The legal values of every setting, in one table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alexnet_exp.tracking.metrics import monitored


@dataclass(frozen=True)
class Rule:
    """Which values are legal, and their description in error messages: "invalid KEY=VALUE: expected TEXT"."""

    text: str
    legal: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.text}, or {other.text}", lambda v: self.legal(v) or other.legal(v))


def _is_number(value: Any) -> bool:
    # bool is a subclass of int: without this check, data.batch_size=true would train with batches of 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63  # torch's counters are int64
    return isinstance(value, float) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def at_least(least: int) -> Rule:
    return Rule(f"an integer >= {least}", lambda v: _is_integer(v) and v >= least)


def _integer(low: int, high: int) -> Rule:
    return Rule(f"an integer in [{low}, {high}]", lambda v: _is_integer(v) and low <= v <= high)


def number(low: float = 0.0, high: float = math.inf, ends: str = "[]") -> Rule:
    """Return the rule of a number in an interval whose `ends` are closed, "[]", or open: "(]", "[)", "()"."""

    def legal(v: Any) -> bool:
        if not _is_number(v):
            return False
        return (v > low if ends[0] == "(" else v >= low) and (v < high if ends[1] == ")" else v <= high)

    if high != math.inf:
        return Rule(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", legal)
    return Rule("a positive number" if ends[0] == "(" else f"a number >= {low:g}", legal)


def choice(*values: str) -> Rule:
    return Rule(("one of " if len(values) > 1 else "") + ", ".join(values), lambda v: v in values)


def list_of(rule: Rule, length: int | None = None) -> Rule:
    def legal(v: Any) -> bool:
        return isinstance(v, list) and length in (None, len(v)) and all(rule.legal(x) for x in v)

    return Rule(f"a list{f' of {length}' if length else ''}, each {rule.text}", legal)


null = Rule("null", lambda v: v is None)
flag = Rule("true or false", lambda v: isinstance(v, bool))
text = Rule("a non-empty string", lambda v: isinstance(v, str) and v != "")
path = Rule("a path", text.legal)
_duration = Rule("a duration DD:HH:MM:SS", lambda v: bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v))))
# YAML reads a name such as 007 as a number.
name = Rule(text.text, lambda v: text.legal(v) or (isinstance(v, int | float) and not isinstance(v, bool)))
positive = number(ends="(]")
fraction = number(0.0, 1.0)
# The limits of W&B's server.
_short_name = Rule("a string of 1 to 128 characters", lambda v: name.legal(v) and len(str(v)) <= 128)
_project = Rule(
    f"{_short_name.text} without / \\ # ? % :",
    lambda v: _short_name.legal(v) and not set(str(v)) & set("/\\#?%:") and str(v).isprintable(),
)
_tags = list_of(Rule("a string of 1 to 64 characters", lambda v: name.legal(v) and len(str(v)) <= 64))
device_list = Rule("a list of indices such as [0,1]", lambda v: v != [] and list_of(at_least(0)).legal(v))
# An int counts batches and a float is a fraction of them: 1 is one batch, 1.0 is all.
some_batches = at_least(1) | Rule(
    "a fraction in (0.0, 1.0]", lambda v: isinstance(v, float) and 0.0 < v <= 1.0
)
batches = at_least(0) | Rule("a fraction in [0.0, 1.0]", lambda v: isinstance(v, float) and 0.0 <= v <= 1.0)
metric = choice(*monitored())


def _has_only(value: Any, rules: dict[str, Rule]) -> bool:
    return isinstance(value, dict) and all(k in rules and rules[k].legal(v) for k, v in value.items())


VIEWS = ("centre", "flip", "flip_translate", "ten_crop")  # of a test image
_RANGE = Rule("[min, max]", lambda v: list_of(positive, 2).legal(v) and v[0] <= v[1])
_RESIZED_CROP = Rule(
    "{scale: [min, max], ratio: [min, max]}, also whole_image: true or false",
    lambda v: (
        _has_only(v, {"scale": _RANGE, "ratio": _RANGE, "whole_image": flag})
        and {"scale", "ratio"} <= v.keys()
    ),
)
_ERASING = Rule(
    "{probability: in [0, 1], scale: [min, max], ratio: [min, max]}",
    lambda v: _has_only(v, {"probability": fraction, "scale": _RANGE, "ratio": _RANGE}) and len(v) == 3,
)
_JITTER = {"brightness": number(), "contrast": number(), "saturation": number(), "hue": number(0.0, 0.5)}
_COLOUR_JITTER = Rule(
    "{brightness, contrast, saturation: >= 0, hue: in [0, 0.5]} with at least one of them > 0",
    lambda v: _has_only(v, _JITTER) and any(v.values()),
)
_LAYER = {
    "lr_factor": number(),
    "weight_decay": number() | null,
    "bias_lr_factor": number() | null,
    "bias_weight_decay": number() | null,
}
_LAYERS = Rule(
    "{LAYER: {lr_factor, weight_decay, bias_lr_factor, bias_weight_decay: numbers >= 0}}",
    lambda v: isinstance(v, dict) and all(x is None or _has_only(x, _LAYER) for x in v.values()),
)
_CHANGE = {"epoch": at_least(0), "lr": number(), "bias_lr": number(), "layer": text, "but": text}
_CHANGES = Rule(
    "a list of {epoch, lr, bias_lr, layer, but}",
    lambda v: isinstance(v, list) and all(_has_only(x, _CHANGE) and "epoch" in x for x in v),
)
_ENTRY = {
    "metric": choice(*(f"{split}/{name}" for split in ("test", "val", "train") for name in ("top1", "top5"))),
    "value": fraction,
    "epoch": choice("final", "best", "unstated"),
    "source": text,
    "views": choice(*VIEWS),
    "cause": text,
}
_PUBLISHED = Rule(
    "a list of {metric: test/top1, value: 0 to 1, epoch: final, best, unstated, source: TEXT} (also views, cause)",
    lambda v: (
        isinstance(v, list)
        and all(_has_only(x, _ENTRY) and {"metric", "value", "epoch", "source"} <= x.keys() for x in v)
    ),
)
# The settings of each schedule.
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

_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
_SHORT_PRECISIONS = (16, 32, 64, "16", "32", "64", "bf16")  # Lightning's short names

RULES: dict[str, Rule] = {
    "seed": _integer(0, 2**32 - 1),  # the range of numpy.random.seed, which Lightning calls
    "test": flag,
    "test_weights": choice("best", "last"),
    "init": choice("auto", "published", "lsuv"),
    "compile": flag | choice("auto", "lrn"),
    "channels_last": flag | choice("auto"),
    "label_smoothing": number(0.0, 1.0, "[)"),
    "class_weights": choice("none", "auto")
    | Rule(
        "{CLASS: weight, a number above 0}",
        lambda v: isinstance(v, dict) and v != {} and all(positive.legal(w) for w in v.values()),
    ),
    "freeze": Rule("a list of layers such as [features] or [conv1, conv2]", list_of(text).legal),
    "freeze_epochs": at_least(1) | null,
    "published": _PUBLISHED | null,
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
    "augment.magnitude": _integer(0, 30) | null,
    "augment.contrast": _RANGE | null,
    "augment.colour_jitter": _COLOUR_JITTER | null,
    "augment.erasing": _ERASING | null,
    "augment.mixup": positive | null,
    "augment.cutmix": positive | null,
    "augment.views": choice(*VIEWS),
    "data._target_": text,
    "data.data_dir": path,
    "data.download": flag,
    "data.root": path,
    "data.url": path,
    "data.batch_size": at_least(1),
    "data.val_size": at_least(0),
    "data.val_split": choice("random", "last"),
    "data.val_seed": at_least(0),
    "data.val_fraction": number(0.0, 1.0, "()") | choice("auto") | null,
    "data.train_subset": at_least(1) | null,
    "data.test_subset": at_least(1) | null,
    "data.subset_seed": at_least(0) | null,
    "data.split_rule": choice("stratified", "by_name", "by_order"),
    "data.balanced": flag,
    "data.folds": at_least(2) | null,
    "data.fold": at_least(0),
    "data.groups": path | null,
    "data.channels": Rule("1 or 3", lambda v: v in (1, 3) and _is_integer(v)),
    "data.image_size": at_least(1),
    "data.stored_size": at_least(1) | null,
    "data.fit": choice("crop", "squash", "pad"),
    "data.cache": choice("auto", "ram", "disk", "off"),
    "data.cache_dir": path | null,
    "data.resident": choice("auto", "device", "host", "off"),
    "data.num_workers": _integer(0, 256) | null,
    "data.verify": flag,
    "data.on_bad_image": choice("error", "skip"),
    "data.follow_links": flag,
    "data.exclude": path | null,
    "data.mean": list_of(number()),
    "data.std": list_of(positive),
    "optimizer._target_": text,
    "optimizer.lr": positive | Rule("auto", lambda v: v == "auto"),
    "optimizer.momentum": number(0.0, 1.0, "[)"),
    "optimizer.weight_decay": number(),
    "optimizer.nesterov": flag,
    "optimizer.betas": list_of(number(0.0, 1.0, "[)"), 2),
    "optimizer.eps": positive,
    "optimizer.trust": positive,
    "optimizer.bias_lr_factor": number(),
    "optimizer.bias_weight_decay": number() | null,
    "optimizer.norm_weight_decay": number() | null,
    "optimizer.layers": _LAYERS,
    "optimizer.layer_decay": number(0.0, 1.0, "(]") | null,
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
    "scheduler.warmup_epochs": number() | Rule("auto", lambda v: v == "auto"),
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
    "trainer.precision": choice(*_PRECISIONS)
    | Rule("their short names 16, 32, 64, bf16", lambda v: v in _SHORT_PRECISIONS),
    "trainer.max_epochs": at_least(1) | Rule("-1 (no limit)", lambda v: v == -1) | null,
    "trainer.min_epochs": at_least(0) | null,
    "trainer.max_steps": at_least(1) | Rule("-1 (no limit)", lambda v: _is_integer(v) and v == -1),
    "trainer.min_steps": at_least(0) | null,
    "trainer.max_time": _duration | null,
    "trainer.limit_train_batches": some_batches,
    "trainer.limit_val_batches": batches,
    "trainer.limit_test_batches": batches,
    "trainer.overfit_batches": batches,
    "trainer.fast_dev_run": flag | at_least(1),
    "trainer.val_check_interval": at_least(1) | number(0.0, 1.0, "(]"),
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
    "callbacks.early_stopping.threshold": number() | null,
    "callbacks.ema.enabled": flag,
    "callbacks.ema.decay": fraction,
    "callbacks.lr_monitor.enabled": flag,
    "callbacks.progress_bar.enabled": flag,
    "callbacks.progress_bar.refresh_per_second": positive,
    "callbacks.model_summary.enabled": flag,
    "callbacks.throughput.enabled": flag,
    "logger.wandb.mode": choice("auto", "online", "offline", "disabled"),
    "logger.wandb.project": Rule(f"{_project.text} (the default is WANDB_PROJECT)", _project.legal),
    "logger.wandb.entity": _project | null,
    "logger.wandb.group": _short_name | null,
    "logger.wandb.tags": _tags,
    "logger.wandb.notes": name | null,
    "logger.wandb.name": _short_name | null,
    "logger.wandb.log_model": flag,
    "logger.tensorboard.enabled": flag,
}
# Settings that older runs have not recorded, and what those runs did.
ADDED: dict[str, Any] = {
    "published": None,
    "class_weights": "none",
    "init": "published",
    "freeze": [],
    "freeze_epochs": None,
    "callbacks.checkpoint.keep_last": 2,
    "augment.contrast": None,
    "callbacks.early_stopping.threshold": None,
}
# Removed settings: an error when typed, ignored in the recorded config of an old run.
RETIRED = {
    "trainer.limit_predict_batches": "it had no effect; pass fewer images: alexnet-exp predict RUN 'photos/0*.jpg'"
}
