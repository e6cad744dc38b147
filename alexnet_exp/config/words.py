"""Names of settings in Keras, timm, ultralytics, Lightning and Hugging Face, and what they are called here.

They stay errors: the message suggests our setting, with the value that was typed. A test composes every suggestion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import yaml

from alexnet_exp.config.compose import options
from alexnet_exp.config.groups import RULES
from alexnet_exp.errors import shell_command
from alexnet_exp.models.spec import AlexNetConfig

# Our settings -> other names for them; the typed value carries over.
_SAME = {
    "trainer.max_epochs": "epochs num_epochs n_epochs nb_epoch nb_epochs max_epoch num_train_epochs train_epochs "
    "total_epochs epoch",
    "trainer.max_steps": "steps num_steps total_steps train_steps num_train_steps training_steps max_iter max_iters "
    "iterations num_iterations num_iters iters",
    "trainer.max_time": "time_limit max_hours",
    "data.batch_size": "bs b batch batchsize train_batch_size global_batch_size batch_size_train "
    "per_device_train_batch_size batch_size_per_gpu",
    "optimizer.lr": "learning_rate base_lr lr0 init_lr initial_lr lr_init start_lr max_lr blr rate",
    "optimizer.weight_decay": "wd decay l2 weightdecay l2_reg",
    "optimizer.layer_decay": "layer_lr_decay llrd layerwise_lr_decay layer_wise_lr_decay lr_layer_decay",
    "optimizer.momentum": "mom",
    "optimizer=adam optimizer.betas": "adam_betas opt_betas",
    "optimizer=adam optimizer.eps": "opt_eps adam_epsilon epsilon",
    "label_smoothing": "ls smoothing label_smooth label_smoothing_factor",
    "class_weights": "class_weight loss_weights cls_weights pos_weight",
    "freeze": "freeze_layers frozen_layers frozen freeze_modules",
    "freeze_epochs": "unfreeze_epoch unfreeze_at_epoch num_frozen_epochs frozen_epochs thaw_epoch",
    "data.balanced": "balance balanced_sampler weighted_sampler class_balanced oversample",
    "model.dropout": "drop drop_rate dropout_rate p_drop drop_prob",
    "model.input_size": "imgsz img_size image_size img img_sz size crop_size train_crop_size resolution res "
    "target_size input_shape img_dim image_dim",
    "model.num_classes": "nc n_classes classes num_class nb_classes num_labels",
    "data.channels": "in_chans in_channels num_channels n_channels chans input_channels",
    "data.num_workers": "workers j n_workers num_worker nworkers worker dataloader_num_workers num_proc threads",
    "data=folder data.root": "data_path dataset_path dataset_dir dataset_root data_root dataroot datadir train_dir "
    "image_dir imagenet_dir image_folder img_dir",
    "data.train_subset": "train_size n_train max_samples max_train_samples num_samples subset train_samples",
    "data.mean": "norm_mean img_mean",
    "data.std": "norm_std img_std",
    "scheduler=step scheduler.every_epochs": "step_size lr_step lr_step_size decay_epochs decay_step lr_decay_epochs",
    "scheduler=step scheduler.gamma": "lr_gamma lr_decay decay_rate lr_decay_rate lr_decay_factor",
    "scheduler=multistep scheduler.epochs": "milestones lr_steps lr_milestones decay_milestones",
    "scheduler=cosine scheduler.warmup_epochs": "warmup warmup_epochs lr_warmup_epochs",
    "scheduler=cosine scheduler.final_factor": "lrf min_lr_factor final_lr_factor",
    "trainer.num_nodes": "nodes nnodes num_machines",
    "trainer.accumulate_grad_batches": "accumulate accumulation accum grad_accum accum_iter accum_steps "
    "grad_accum_steps accumulation_steps accumulate_steps gradient_accumulation update_freq "
    "gradient_accumulation_steps",
    "trainer.gradient_clip_val": "clip grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip "
    "gradient_clipping clip_norm clip_value max_norm clipnorm",
    "trainer.log_every_n_steps": "log_interval print_freq log_freq log_every logging_steps print_every print_interval "
    "report_freq",
    "trainer.check_val_every_n_epoch": "val_interval eval_interval eval_freq eval_every val_freq val_every "
    "validation_freq validate_every eval_epochs",
    "trainer.sync_batchnorm": "sync_bn syncbn sync_batch_norm",
    "trainer.benchmark": "cudnn_benchmark",
    "trainer.overfit_batches": "overfit",
    "callbacks.checkpoint.every_n_steps": "save_steps save_interval save_freq save_every checkpoint_interval",
    "callbacks.checkpoint.monitor": "metric_for_best_model eval_metric checkpoint_metric",
    "callbacks.early_stopping.enabled=true callbacks.early_stopping.patience": "patience early_stopping_patience",
    "callbacks.ema.enabled=true callbacks.ema.decay": "ema_decay model_ema_decay",
    "weights": "init_weights load_weights pretrained_path pretrained_weights load_from initial_checkpoint finetune "
    "init_checkpoint load",
    "ckpt": "checkpoint checkpoint_path ckpt_path load_checkpoint restore restore_from model_path",
    "resume": "resume_from resume_from_checkpoint resume_path resume_dir auto_resume",
    "paths.data_dir": "download_dir",
    "paths.output_dir": "save_dir out_dir outdir out output save_path log_dir logdir work_dir workdir results_dir "
    "exp_dir default_root_dir output_folder",
    "hydra.run.dir": "run_dir",
    "seed": "random_seed rng_seed manual_seed seed_everything random_state rand_seed",
    "logger.wandb.project": "project project_name wandb_project",
    "logger.wandb.entity": "wandb_entity team",
    "logger.wandb.name": "name run_name exp_name experiment_name wandb_name wandb_run_name exp",
    "logger.wandb.group": "wandb_group",
    "logger.wandb.tags": "wandb_tags tag",
    "logger.wandb.notes": "wandb_notes comment",
    "augment.pad": "padding crop_padding",
    "augment.flip": "hflip fliplr horizontal_flip random_flip",
    "augment.centre_crop": "center_crop",
    "augment.mixup": "mixup_alpha",
    "augment.cutmix": "cutmix_alpha",
    "init": "initialization initialisation initializer weight_init",
    "compile": "torch_compile torchcompile torch_compile_model",
}  # fmt: skip
_KEYS = {word: key for key, words in _SAME.items() for word in words.split()}
# Settings of the other verbs, in addition to those above.
_OF_VERBS = {
    "ckpt": "weights model checkpoint model_path ckpt_path checkpoint_path run run_dir resume",
    "images": "source input inputs path image imgs img files folder data dataset",
    "top_k": "topk k top",
    "device": "gpu gpus cuda accelerator",
    "format": "to fmt type",
    "out": "output output_dir save_dir out_dir dst",
    "which": "figures plots kind",
    "split": "set subset dataset_split",
    "runs": "run run_dir dirs",
    "project": "wandb_project",
}
VERBS = {
    "fit": "train", "training": "train", "run": "train", "start": "train", "resume": "train", "finetune": "train",
    "sweep": "train", "tune": "train", "main": "train", "test": "evaluate", "eval": "evaluate", "val": "evaluate",
    "validate": "evaluate", "validation": "evaluate", "score": "evaluate", "infer": "predict",
    "inference": "predict", "classify": "predict", "detect": "predict", "plot": "figures", "plots": "figures",
    "visualize": "figures", "visualise": "figures", "viz": "figures", "show": "figures", "explain": "figures",
    "download": "prepare", "preprocess": "prepare", "cache": "prepare", "bench": "benchmark", "speed": "benchmark",
    "profile": "benchmark", "convert": "export", "onnx": "export", "deploy": "export", "diff": "compare",
    "report": "compare", "list": "models", "ls": "models", "info": "models", "summary": "models", "model": "models",
    "wandb": "dashboard", "replicate": "reproduce", "published": "reproduce", "results": "reproduce",
    "check": "inspect", "look": "inspect", "audit": "inspect", "analyze": "inspect",
    "analyse": "inspect", "duplicates": "inspect", "dedup": "inspect", "dedupe": "inspect", "eda": "inspect",
    "stats": "inspect", "data": "inspect", "dataset": "inspect",
}  # fmt: skip
# What is not configurable here, and why.
_NOT_SETTINGS = {
    "shuffle": "training images are reshuffled every epoch, in an order that depends on seed and epoch only",
    "drop_last": "the partial last batch is always used, weighted by its size",
    "pin_memory persistent_workers prefetch_factor": "the data loaders set it by device",
    "loss criterion loss_fn": "it is always cross-entropy; label_smoothing, augment.mixup and augment.cutmix modify it",
    "local_rank rank dist_url dist_backend master_port": "trainer.devices=N starts the ranks",
}  # fmt: skip
_REASONS = {word: reason for words, reason in _NOT_SETTINGS.items() for word in words.split()}
_OFF = ("false", "0", "no", "off", "none", "null", "disabled", "-1")
_ON = ("true", "1", "yes", "on")


def meant(typed: str, value: str | None = None) -> list[str]:
    """Return what to type instead of a setting that does not exist, most likely first.

    Args:
        typed: The setting as typed; only its last part counts.
        value: The typed value, if any.
    """
    word = _word(typed)
    if word in _TRANSLATED:
        return _TRANSLATED[word]("true" if value is None else value.strip("'\""))
    if word in _KEYS:
        return [with_value(_KEYS[word], value)]
    named = [key for key in RULES if key.rpartition(".")[2] == word]
    named += [f"model.{word}"] if word in _NETWORK and not named else []
    return [with_value(key, value) for key in named] if len(named) <= 2 else []  # more are a guess


def why_not(typed: str) -> str | None:
    """Return why a setting of other tools does not exist here, or None for any other word."""
    return _REASONS.get(_word(typed))


def _word(typed: str) -> str:
    return typed.rpartition(".")[2].strip("-").lower().replace("-", "_")


def meant_by_a_verb(typed: str, value: str | None, known: Sequence[str]) -> list[str]:
    """Return which of a verb's settings, `known`, to type instead of one that it does not have."""
    word = _word(typed)
    own = [key for key, words in _OF_VERBS.items() if key in known and word in words.split()]
    keys = [word, *own, _KEYS.get(word, "").rpartition(".")[2]]
    return [with_value(key, value) for key in keys if key in known][:1]


def near(typed: str) -> list[str]:
    """Return the settings for a misspelt name, ours or another tool's: 'epocs', 'learningrate'."""
    words = [*_KEYS, *_TRANSLATED, *(key.rpartition(".")[2] for key in RULES)]
    close = get_close_matches(typed.rpartition(".")[2].lower(), words, n=1, cutoff=0.85)
    return [each.partition("=")[0] for each in meant(close[0]) if " " not in each] if close else []


def with_value(settings: str, value: str | None) -> str:
    """Append a value to the last of some settings, unless it would be invalid, and quote all for a shell."""
    *others, key = settings.split(" ")
    if value is not None and is_legal(key, value):
        key = f"{key}={value}"
    return shell_command([*others, key])


def is_legal(key: str, value: str) -> bool:
    """Return whether a value, or each of `1,2,3`, is valid for this key."""
    if key not in RULES:
        return True
    for texts in ([value], value.split(",")):
        with contextlib.suppress(yaml.YAMLError):
            if all(RULES[key].legal(_read(text)) for text in texts):
                return True
    return False


def _read(text: str) -> Any:
    """Parse a value as Hydra does; YAML reads 1e-4 as a string."""
    with contextlib.suppress(ValueError):
        return int(text) if text.isdecimal() else float(text)
    return yaml.safe_load(text)


def _is_on(value: str) -> bool:
    return value.lower() not in _OFF


def _device(value: str) -> list[str]:
    """Translate `cpu`, `cuda:1`, `mps`, `0`, `0,1` or `[0,1]`."""
    text = value.lower().replace(" ", "").strip("[]()")
    if text in ("cpu", "mps", "auto", "tpu"):
        return [f"trainer.accelerator={text}"]
    if text in ("cuda", "gpu", "true"):
        return ["trainer.accelerator=gpu"]
    indices = [each.rpartition(":")[2] for each in text.split(",")]
    if all(each.isdecimal() for each in indices):
        return [with_value("trainer.accelerator=gpu trainer.devices", f"[{','.join(indices)}]")]
    return ["trainer.accelerator", "trainer.devices"]


def _number_of_gpus(value: str) -> list[str]:
    """Translate a number of GPUs, where -1 is all, or a list of indices."""
    if value in ("0", "none", "null", "false"):
        return ["trainer.accelerator=cpu"]
    return [f"trainer.devices={value}"] if value.isdecimal() or value == "-1" else _device(value)


def _one_gpu(value: str) -> list[str]:
    """Translate `gpu=0`: the index of a GPU, not their number."""
    off = value.lower() in ("-1", "false", "none", "null")
    return ["trainer.accelerator=cpu"] if off else _device(value)


def _accelerator(on: str, off: str) -> Callable[[str], list[str]]:
    """Translate a switch, or a device such as `cuda:1`."""
    return lambda v: _device(v) if ":" in v else [f"trainer.accelerator={on if _is_on(v) else off}"]


def _precision(sixteen: str) -> Callable[[str], list[str]]:
    def translate(value: str) -> list[str]:
        text = value.lower().removeprefix("torch.")
        named = {
            "bf16": "bf16-mixed", "bfloat16": "bf16-mixed", "fp16": "16-mixed", "float16": "16-mixed",
            "half": "16-mixed", "16": "16-mixed", "fp32": "32-true", "float32": "32-true", "32": "32-true",
            "float64": "64-true", "no": "32-true", "1": sixteen, "mixed": sixteen,
        }  # fmt: skip
        if text in named or not RULES["trainer.precision"].legal(text):
            text = named.get(text, sixteen if _is_on(text) else "32-true")
        return [f"trainer.precision={text}"]

    return translate


def _weights(value: str) -> list[str]:
    if value.lower() in (*_ON, "imagenet", "default", "imagenet1k_v1"):
        return ["weights=torchvision"]
    return [with_value("weights", value if _is_on(value) else "none")]


def _tracker(value: str) -> list[str]:
    text = value.lower()
    if text in ("offline", "online"):
        return [f"logger.wandb.mode={text}"]
    if text in ("csv", "tensorboard", "wandb", "mlflow", "comet"):
        return _logger(text)
    return ["logger=wandb" if _is_on(text) else "logger=none"]


def _when_on(on: str, off: str) -> Callable[[str], list[str]]:
    return lambda value: [on if _is_on(value) else off]


def _flag(key: str, inverse: bool = False) -> Callable[[str], list[str]]:
    return lambda value: [f"{key}={'true' if _is_on(value) != inverse else 'false'}"]


def _option(group: str, names: dict[str, str], without: str = "") -> Callable[[str], list[str]]:
    """Translate the name of an option to a file in conf/`group`."""

    def translate(value: str) -> list[str]:
        text = value.lower().replace("-", "").replace("_", "")
        known = {option.replace("_", ""): option for option in options(group)} | names
        # cifar100 is not a typo of cifar10, nor resnet50 of resnet18: only names with equal digits match.
        wanted = _digits(text)
        near = [name for name, option in known.items() if not wanted or _digits(option) in ("", wanted)]
        close = text if text in known else next(iter(get_close_matches(text, near, n=1)), "")
        if close:
            return [f"{group}={known[close]}"]
        return [with_value(without, value) if without and "/" in value else f"{group}=NAME"]

    return translate


def _digits(name: str) -> str:
    return "".join(filter(str.isdecimal, name))


def _early_stopping(value: str) -> list[str]:
    if value.isdecimal() and int(value) > 1:
        return [f"callbacks.early_stopping.enabled=true callbacks.early_stopping.patience={value}"]
    return [f"callbacks.early_stopping.enabled={'true' if _is_on(value) else 'false'}"]


def _validation(value: str) -> list[str]:
    """Translate a fraction (image folders) or a count (data sets in memory)."""
    if value.isdecimal() and value != "0":
        return [f"data.val_size={value}"]
    return [with_value("data=folder data.val_fraction", value), "data.val_size=N"]


def _data_dir(value: str) -> list[str]:
    """Translate a folder: where data sets are downloaded to, or one of images."""
    return [with_value("paths.data_dir", value), with_value("data=folder data.root", value)]


_OPTIMIZERS = {"momentum": "sgd", "nesterov": "sgd"}
_SCHEDULES = {
    "steplr": "step", "multisteplr": "multistep", "cosineannealing": "cosine", "cosineannealinglr": "cosine",
    "cosinelr": "cosine", "reducelronplateau": "plateau", "onecyclelr": "onecycle", "1cycle": "onecycle",
    "constant": "none", "null": "none", "polynomial": "poly", "linear": "poly",
}  # fmt: skip
_DATA = {"cifar": "cifar10", "imagefolder": "folder", "imagenet1k": "imagenet", "ilsvrc2012": "imagenet"}
_AUGMENTS = {
    "false": "none", "0": "none", "true": "flip_crop", "1": "flip_crop", "rand": "randaugment", "basic": "flip_crop",
}  # fmt: skip


def _logger(value: str) -> list[str]:
    """Translate the name of a tracker: a file in conf/logger, or one of Lightning's loggers."""
    names = {"mlflow": "MLFlowLogger", "comet": "CometLogger", "litlogger": "LitLogger"}
    name = next((name for name in names if value.lower() in (name, f"{name}logger")), None)
    if name is not None:
        return [f"logger.{name}._target_=lightning.pytorch.loggers.{names[name]}"]
    return _option("logger", _LOGGERS)(value)


_LOGGERS = {"wandblogger": "wandb", "tb": "tensorboard", "tensorboardlogger": "tensorboard", "false": "none"}


# Names whose values need translating, too; called with the value as text, 'true' if there is none.
_TRANSLATED: dict[str, Callable[[str], list[str]]] = {
    "device": _device,
    **dict.fromkeys(("gpus", "n_gpus", "num_gpus", "n_gpu", "ngpu", "ngpus", "num_devices", "nproc_per_node",
                     "gpus_per_node", "world_size", "n_devices"), _number_of_gpus),
    **dict.fromkeys(("gpu", "gpu_id", "gpu_ids", "device_id", "device_ids", "cuda_visible_devices"), _one_gpu),
    **dict.fromkeys(("cuda", "use_cuda", "use_gpu"), _accelerator("gpu", "cpu")),
    **dict.fromkeys(("no_cuda", "cpu", "use_cpu"), _accelerator("cpu", "gpu")),
    **dict.fromkeys(("mps", "use_mps"), _accelerator("mps", "cpu")),
    **dict.fromkeys(("ddp", "distributed", "multi_gpu", "dataparallel", "data_parallel"),
                    _when_on("trainer.devices=-1", "trainer.devices=1")),
    **dict.fromkeys(("amp", "mixed_precision", "use_amp", "autocast", "native_amp", "bf16", "bfloat16", "amp_dtype",
                     "dtype", "torch_dtype", "precision"), _precision("bf16-mixed")),
    **dict.fromkeys(("fp16", "half", "float16", "use_fp16"), _precision("16-mixed")),
    **dict.fromkeys(("fp32", "float32"), _precision("32-true")),
    **dict.fromkeys(("pretrained", "use_pretrained", "imagenet_weights"), _weights),
    **dict.fromkeys(("wandb", "use_wandb", "with_wandb", "log_wandb", "track", "tracker", "report_to", "log_with",
                     "log_to", "wandb_mode"), _tracker),
    "no_wandb": _when_on("logger=none", "logger=wandb"),
    **dict.fromkeys(("tensorboard", "tb", "use_tensorboard"), _when_on("logger=tensorboard", "logger=none")),
    **dict.fromkeys(("optimizer", "opt", "optim", "optimiser", "optimizer_name", "optimizer_type", "optim_type",
                     "solver"),
                    _option("optimizer", _OPTIMIZERS)),
    **dict.fromkeys(("scheduler", "sched", "lr_scheduler", "lr_schedule", "lr_sched", "schedule", "lr_policy",
                     "scheduler_name", "lr_scheduler_type", "scheduler_type"), _option("scheduler", _SCHEDULES)),
    "cos_lr": _when_on("scheduler=cosine", "scheduler=none"),
    **dict.fromkeys(("data", "dataset", "dataset_name", "data_name", "data_set", "ds"),
                    _option("data", _DATA, "data=folder data.root")),
    "data_dir": _data_dir,
    **dict.fromkeys(("model", "arch", "a", "architecture", "model_name", "net", "network", "backbone", "model_type",
                     "model_arch"), _option("model", {"resnet": "resnet18"})),
    **dict.fromkeys(("augment", "aug", "augmentation", "augmentations", "data_aug", "transform", "transforms",
                     "data_augmentation"), _option("augment", _AUGMENTS)),
    **dict.fromkeys(("aa", "auto_augment", "autoaugment", "augment_policy"),
                    _option("augment", {**_AUGMENTS, "true": "trivialaugment"})),
    "logger": _logger,
    "trainer": _option("trainer", {"cuda": "gpu"}),
    **dict.fromkeys(("verbose", "progress", "show_progress", "progress_bar", "enable_progress_bar"),
                    _flag("callbacks.progress_bar.enabled")),
    **dict.fromkeys(("quiet", "silent", "no_progress", "disable_tqdm", "no_progress_bar"),
                    _flag("callbacks.progress_bar.enabled", inverse=True)),
    **dict.fromkeys(("ema", "use_ema", "model_ema"), _flag("callbacks.ema.enabled")),
    **dict.fromkeys(("early_stopping", "early_stop", "earlystopping"), _early_stopping),
    **dict.fromkeys(("val_split", "val_ratio", "val_frac", "val_percent", "val_pct", "valid_size", "valid_ratio",
                     "validation_split", "validation_size", "valid_split", "test_size"), _validation),
    **dict.fromkeys(("save", "save_model", "save_checkpoint", "enable_checkpointing"),
                    _flag("callbacks.checkpoint.enabled")),
    **dict.fromkeys(("tta", "ten_crop", "tencrop"), _when_on("augment.views=ten_crop", "augment.views=centre")),
    **dict.fromkeys(("dry_run", "smoke_test", "fast_dev"), _flag("trainer.fast_dev_run")),
    **dict.fromkeys(("profile", "profiling"), _when_on("trainer.profiler=simple", "trainer.profiler=null")),
    **dict.fromkeys(("memory_format", "nhwc"), _flag("channels_last")),
}  # fmt: skip
_NETWORK = [field.name for field in fields(AlexNetConfig) if not field.name.startswith("_")]
