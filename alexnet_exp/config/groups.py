"""The settings of a run: one class per group of conf/, with the bounds of every setting beside it.

conf/*.yaml say what each setting does, and have the defaults. A class lists the keys of all yamls of its group; what
only some of them have carries `absent`, its value under the others. Keys of a custom class (`_target_`) are its own and
stay in the plain settings, like those of conf/model.
"""

from __future__ import annotations

import re
from typing import Any

from alexnet_exp.config.schema import (
    VIEWS,
    Rule,
    at_least,
    choice,
    declared,
    flag,
    fraction,
    group,
    has_only,
    integer,
    is_integer,
    list_of,
    metric,
    name,
    nested,
    null,
    number,
    path,
    positive,
    rules_of,
    setting,
    text,
)


@group
class Paths:
    data_dir: str = setting(path)
    output_dir: str = setting(path)
    cache_dir: str | None = setting(path | null)  # None: the user's cache folder


_RANGE = Rule("[min, max]", lambda v: list_of(positive, 2).legal(v) and v[0] <= v[1])
_RESIZED_CROP = Rule(
    "{scale: [min, max], ratio: [min, max]}, also whole_image: true or false",
    lambda v: (
        has_only(v, {"scale": _RANGE, "ratio": _RANGE, "whole_image": flag})
        and {"scale", "ratio"} <= v.keys()
    ),
)
_JITTER = {"brightness": number(), "contrast": number(), "saturation": number(), "hue": number(0.0, 0.5)}
_COLOUR_JITTER = Rule(
    "{brightness, contrast, saturation: >= 0, hue: in [0, 0.5]} with at least one of them > 0",
    lambda v: has_only(v, _JITTER) and any(v.values()),
)
_ERASING = Rule(
    "{probability: in [0, 1], scale: [min, max], ratio: [min, max]}",
    lambda v: has_only(v, {"probability": fraction, "scale": _RANGE, "ratio": _RANGE}) and len(v) == 3,
)


@group
class Augment:
    flip: bool | str = setting(flag | choice("alternating"))  # horizontal; alternating: every other epoch
    pad: int = setting(at_least(0))  # pixels of the stored image
    crop: bool = setting(flag)  # random, of the input size
    centre_crop: bool = setting(flag)  # in training, too
    mean_image: str = setting(choice("none", "aligned", "centre"))  # subtract the mean training image
    resized_crop: dict[str, Any] | None = setting(_RESIZED_CROP | null)
    whiten: bool = setting(flag)  # mean 0 and variance 1 for each image
    colour_noise: str = setting(choice("none", "paper", "source"))  # PCA noise
    colour_noise_epochs: int | None = setting(at_least(0) | null)
    policy: str = setting(choice("none", "randaugment", "trivialaugment"))  # random operations per image
    num_ops: int | None = setting(at_least(1) | null)  # of randaugment, per image
    magnitude: int | None = setting(integer(0, 30) | null)  # of randaugment
    contrast: list[float] | None = setting(_RANGE | null, recorded=None)  # range of a factor per image
    colour_jitter: dict[str, float] | None = setting(_COLOUR_JITTER | null)
    erasing: dict[str, Any] | None = setting(_ERASING | null)
    mixup: float | None = setting(positive | null)  # alpha of the Beta distribution
    cutmix: float | None = setting(positive | null)
    views: str = setting(choice(*VIEWS))  # of a test image


@group
class Data:
    _target_: str = setting(text)
    data_dir: str | None = setting(path, absent=None)  # of data sets that are downloaded
    download: bool = setting(flag, absent=False)
    root: str | None = setting(path, absent=None)  # of a folder of images
    url: str | None = setting(path, absent=None)  # of chunks
    batch_size: int = setting(at_least(1))  # over all devices
    val_size: int | None = setting(at_least(0), absent=None)
    val_split: str | None = setting(choice("random", "last"), absent=None)
    val_seed: int | None = setting(at_least(0), absent=None)  # of the split; not the run's seed
    val_fraction: float | str | None = setting(number(0.0, 1.0, "()") | choice("auto") | null, absent=None)
    train_subset: int | None = setting(at_least(1) | null, absent=None)
    test_subset: int | None = setting(at_least(1) | null, absent=None)
    subset_seed: int | None = setting(at_least(0) | null, absent=None)
    split_rule: str | None = setting(choice("stratified", "by_name", "by_order"), absent=None)
    balanced: bool = setting(flag, absent=False)  # sample every class equally often
    folds: int | None = setting(at_least(2) | null, absent=None)  # number of parts for cross-validation
    fold: int = setting(at_least(0), absent=0)  # the part that validates
    groups: str | None = setting(path | null, absent=None)  # images to keep in one fold
    channels: int = setting(Rule("1 or 3", lambda v: v in (1, 3) and is_integer(v)))
    image_size: int = setting(at_least(1), absent=None)  # of the network's input
    stored_size: int | None = setting(at_least(1) | null, absent=None)  # side of the square after decoding
    fit: str | None = setting(choice("crop", "squash", "pad"), absent=None)  # how images become square
    cache: str | None = setting(choice("auto", "ram", "disk", "off"), absent=None)  # decode once
    cache_dir: str | None = setting(path | null, absent=None)
    resident: str | None = setting(choice("auto", "device", "host", "off"), absent=None)
    num_workers: int | None = setting(integer(0, 256) | null, absent=None)
    verify: bool = setting(flag, absent=False)  # decode every file once before training
    on_bad_image: str | None = setting(choice("error", "skip"), absent=None)
    follow_links: bool = setting(flag, absent=False)
    exclude: str | None = setting(path | null, absent=None)  # text file of images to leave out
    mean: list[float] = setting(list_of(number()))  # one value per channel
    std: list[float] = setting(list_of(positive))


_LAYER = {
    "lr_factor": number(),
    "weight_decay": number() | null,
    "bias_lr_factor": number() | null,
    "bias_weight_decay": number() | null,
}
_LAYERS = Rule(
    "{LAYER: {lr_factor, weight_decay, bias_lr_factor, bias_weight_decay: numbers >= 0}}",
    lambda v: isinstance(v, dict) and all(x is None or has_only(x, _LAYER) for x in v.values()),
)


@group
class Optimizer:
    """Arguments of other torch optimizers are checked by their constructors; see config/checks.py."""

    _target_: str = setting(text)
    lr: float | str = setting(positive | choice("auto"))  # auto: chosen for network and batch
    momentum: float | None = setting(number(0.0, 1.0, "[)"), absent=None)
    weight_decay: float | None = setting(number(), absent=None)
    nesterov: bool = setting(flag, absent=False)
    betas: list[float] | None = setting(list_of(number(0.0, 1.0, "[)"), 2), absent=None)
    eps: float | None = setting(positive, absent=None)
    trust: float | None = setting(positive, absent=None)  # LARS's coefficient
    bias_lr_factor: float = setting(number(), absent=1.0)
    bias_weight_decay: float | None = setting(number() | null, absent=None)
    norm_weight_decay: float | None = setting(number() | null, absent=None)
    layers: dict[str, Any] | None = setting(_LAYERS, absent=None)  # settings by layer or pattern
    layer_decay: float | None = setting(number(0.0, 1.0, "(]") | null, absent=None)
    lr_scaling: str = setting(choice("none", "linear", "sqrt"), absent="none")
    base_batch: int = setting(at_least(1), absent=256)  # images of a step at which lr is meant


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
_CHANGE = {"epoch": at_least(0), "lr": number(), "bias_lr": number(), "layer": text, "but": text}
_CHANGES = Rule(
    "a list of {epoch, lr, bias_lr, layer, but}",
    lambda v: isinstance(v, list) and all(has_only(x, _CHANGE) and "epoch" in x for x in v),
)


@group
class Scheduler:
    name: str = setting(choice(*SCHEDULES))
    every_epochs: int | None = setting(at_least(1), absent=None)
    epochs: list[int] | None = setting(list_of(at_least(1)), absent=None)
    gamma: float | None = setting(positive, absent=None)
    monitor: str | None = setting(metric, absent=None)
    mode: str | None = setting(choice("min", "max"), absent=None)
    factor: float | None = setting(positive, absent=None)
    patience: int | None = setting(at_least(0), absent=None)
    min_lr: float | None = setting(number(), absent=None)
    warmup_epochs: float | str | None = setting(number() | choice("auto"), absent=None)
    final_factor: float | None = setting(fraction, absent=None)
    pct_start: float | None = setting(fraction, absent=None)
    div_factor: float | None = setting(positive, absent=None)
    final_div_factor: float | None = setting(positive, absent=None)
    changes: list[dict[str, Any]] | None = setting(_CHANGES, absent=None)  # of scheduler=table
    steps: int | None = setting(at_least(2), absent=None)
    bias_factor: float | None = setting(positive | null, absent=None)
    bias_steps: int | None = setting(at_least(2) | null, absent=None)
    power: float | None = setting(positive, absent=None)


_SHORT_PRECISIONS = (16, 32, 64, "16", "32", "64", "bf16")  # Lightning's short names
_DEVICES = choice("auto") | at_least(1)
_DEVICES |= Rule("a list of indices such as [0,1]", lambda v: v != [] and list_of(at_least(0)).legal(v))
_DEVICES |= Rule("-1 (all)", lambda v: v in (-1, "-1"))
_PRECISION = choice("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
_PRECISION |= Rule("their short names 16, 32, 64, bf16", lambda v: v in _SHORT_PRECISIONS)
_DURATION = Rule("a duration DD:HH:MM:SS", lambda v: bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v))))
# An int counts batches and a float is a fraction of them: 1 is one batch, 1.0 is all.
_SOME_BATCHES = at_least(1)
_SOME_BATCHES |= Rule("a fraction in (0.0, 1.0]", lambda v: isinstance(v, float) and 0.0 < v <= 1.0)
_BATCHES = at_least(0)
_BATCHES |= Rule("a fraction in [0.0, 1.0]", lambda v: isinstance(v, float) and 0.0 <= v <= 1.0)


@group
class Trainer:
    """Arguments of lightning.Trainer."""

    accelerator: str = setting(choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"))
    devices: int | str | list[int] = setting(_DEVICES)
    num_nodes: int = setting(at_least(1))
    strategy: str = setting(text)
    precision: str | int = setting(_PRECISION)
    max_epochs: int | None = setting(at_least(1) | Rule("-1 (no limit)", lambda v: v == -1) | null)
    min_epochs: int | None = setting(at_least(0) | null)
    max_steps: int = setting(at_least(1) | Rule("-1 (no limit)", lambda v: is_integer(v) and v == -1))
    min_steps: int | None = setting(at_least(0) | null)
    max_time: str | None = setting(_DURATION | null)
    limit_train_batches: int | float = setting(_SOME_BATCHES)  # int: batches, float: a fraction of them
    limit_val_batches: int | float = setting(_BATCHES)
    limit_test_batches: int | float = setting(_BATCHES)
    overfit_batches: int | float = setting(_BATCHES)
    fast_dev_run: bool | int = setting(flag | at_least(1))
    val_check_interval: int | float = setting(at_least(1) | number(0.0, 1.0, "(]"))
    check_val_every_n_epoch: int | None = setting(at_least(1) | null)
    num_sanity_val_steps: int = setting(at_least(-1))
    log_every_n_steps: int = setting(at_least(1))
    accumulate_grad_batches: int = setting(at_least(1))
    gradient_clip_val: float | None = setting(number() | null)
    gradient_clip_algorithm: str = setting(choice("norm", "value"))
    deterministic: bool | str = setting(flag | choice("warn"))
    benchmark: bool | None = setting(flag | null)
    inference_mode: bool = setting(flag)
    profiler: str | None = setting(choice("simple", "advanced") | null)
    detect_anomaly: bool = setting(flag)
    sync_batchnorm: bool = setting(flag)


@group
class Checkpoint:
    enabled: bool = setting(flag)
    monitor: str = setting(metric)
    mode: str = setting(choice("min", "max"))
    every_n_steps: int | None = setting(at_least(1) | null)
    every_n_minutes: float | None = setting(positive | null)
    keep_last: int = setting(at_least(1), recorded=2)


@group
class EarlyStopping:
    enabled: bool = setting(flag)
    monitor: str = setting(metric)
    mode: str = setting(choice("min", "max"))
    patience: int = setting(at_least(0))  # in epochs
    min_delta: float = setting(number())
    threshold: float | None = setting(number() | null, recorded=None)


@group
class MovingAverage:
    enabled: bool = setting(flag)
    decay: float = setting(fraction)


@group
class ProgressBar:
    enabled: bool = setting(flag)
    refresh_per_second: float = setting(positive)


@group
class Switch:
    enabled: bool = setting(flag)


@group
class Callbacks:
    """Other keys are custom callbacks."""

    checkpoint: Checkpoint = nested(Checkpoint)
    early_stopping: EarlyStopping = nested(EarlyStopping)
    ema: MovingAverage = nested(MovingAverage)
    lr_monitor: Switch = nested(Switch)
    progress_bar: ProgressBar = nested(ProgressBar)
    model_summary: Switch = nested(Switch)
    throughput: Switch = nested(Switch)


# The limits of W&B's server.
_SHORT_NAME = Rule("a string of 1 to 128 characters", lambda v: name.legal(v) and len(str(v)) <= 128)
_PROJECT = Rule(
    f"{_SHORT_NAME.text} without / \\ # ? % :",
    lambda v: _SHORT_NAME.legal(v) and not set(str(v)) & set("/\\#?%:") and str(v).isprintable(),
)
_TAG = Rule("a string of 1 to 64 characters", lambda v: name.legal(v) and len(str(v)) <= 64)


@group
class Wandb:
    """Names may be numbers, as YAML reads 2026."""

    mode: str = setting(choice("auto", "online", "offline", "disabled"), absent="auto")
    project: str | float = setting(
        Rule(f"{_PROJECT.text} (the default is WANDB_PROJECT)", _PROJECT.legal), absent="alexnet_exp"
    )
    entity: str | float | None = setting(_PROJECT | null, absent=None)
    group: str | float | None = setting(_SHORT_NAME | null, absent=None)
    tags: list[str | float] = setting(list_of(_TAG), absent=[])
    notes: str | float | None = setting(name | null, absent=None)
    name: str | float | None = setting(_SHORT_NAME | null, absent=None)
    log_model: bool = setting(flag, absent=False)


@group
class TensorBoard:
    enabled: bool = setting(flag, absent=False)


@group
class Logger:
    """Other keys are trackers of another package."""

    wandb: Wandb | None = nested(Wandb, optional=True)
    tensorboard: TensorBoard | None = nested(TensorBoard, optional=True)


@group
class Sweep:
    resume: str | None = setting(path | null, absent=None)


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
        and all(has_only(x, _ENTRY) and {"metric", "value", "epoch", "source"} <= x.keys() for x in v)
    ),
)
_CLASS_WEIGHTS = choice("none", "auto") | Rule(
    "{CLASS: weight, a number above 0}",
    lambda v: isinstance(v, dict) and v != {} and all(positive.legal(w) for w in v.values()),
)
_LAYER_NAMES = Rule("a list of layers such as [features] or [conv1, conv2]", list_of(text).legal)


@group
class Settings:
    """Keys of conf/train.yaml."""

    seed: int = setting(integer(0, 2**32 - 1))  # the range of numpy.random.seed, which Lightning calls
    test: bool = setting(flag)
    test_weights: str = setting(choice("best", "last"))  # best checkpoint, or after the last epoch
    init: str = setting(choice("auto", "published", "lsuv"), recorded="published")  # initial weights
    compile: bool | str = setting(flag | choice("auto", "lrn"))  # lrn: only local response normalisation
    channels_last: bool | str = setting(flag | choice("auto"))  # NHWC in memory
    label_smoothing: float = setting(number(0.0, 1.0, "[)"))
    class_weights: str | dict[Any, float] = setting(_CLASS_WEIGHTS, recorded="none")  # in the training loss
    freeze: list[str] = setting(_LAYER_NAMES, recorded=[])  # layers or patterns that do not train
    freeze_epochs: int | None = setting(at_least(1) | null, recorded=None)  # None: for the whole run
    published: list[dict[str, Any]] | None = setting(_PUBLISHED | null, recorded=None)
    resume: str | None = setting(path | null)  # a run directory, continued in place
    ckpt: str | None = setting(path | null)  # a checkpoint or run, continued as a new run
    weights: str = setting(Rule("a path, torchvision, or none", path.legal))
    sweep: Sweep = nested(Sweep)
    trust: list[str] = setting(Rule("a list of packages: [my_package]", list_of(text).legal))
    paths: Paths = nested(Paths)
    augment: Augment = nested(Augment)
    data: Data = nested(Data)
    optimizer: Optimizer = nested(Optimizer)
    scheduler: Scheduler = nested(Scheduler)
    trainer: Trainer = nested(Trainer)
    callbacks: Callbacks = nested(Callbacks)
    logger: Logger = nested(Logger)
    model: dict[str, Any]  # plain: its keys depend on the network


RULES = rules_of(Settings)
REQUIRED = [key for key, about in declared(Settings) if about["absent"] is ...]
# Settings that older runs have not recorded, and what those runs did.
ADDED = {key: about["recorded"] for key, about in declared(Settings) if about["recorded"] is not ...}
# Removed settings: an error when typed, ignored in the recorded config of an old run.
RETIRED = {
    "trainer.limit_predict_batches": "it had no effect; pass fewer images: alexnet-exp predict RUN 'photos/0*.jpg'"
}
