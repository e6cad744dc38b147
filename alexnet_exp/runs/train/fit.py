"""Build data, network and trainer, and run them, on every rank; imports torch and Lightning."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from alexnet_exp import cores
from alexnet_exp.config.groups import Callbacks, Checkpoint, Settings, Trainer
from alexnet_exp.config.schema import read
from alexnet_exp.data.module import ImageData
from alexnet_exp.errors import UserError, printable
from alexnet_exp.models.initialise import scale_to_unit_variance
from alexnet_exp.models.summary import LayerRow, layer_table
from alexnet_exp.settings import assigned
from alexnet_exp.targets import build
from alexnet_exp.tracking.log import log, quiet_lightning
from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.tracking.redact import without_passwords
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb.logger import WandbTracker
from alexnet_exp.training.automatic import compile_network, settle, use_fast_matmul
from alexnet_exp.training.callbacks.chance import ChanceLevel, guess
from alexnet_exp.training.callbacks.early_stopping import EarlyStopping
from alexnet_exp.training.callbacks.ema import MovingAverage
from alexnet_exp.training.callbacks.freeze import FreezeLayers
from alexnet_exp.training.callbacks.progress import Bar, SameBatches
from alexnet_exp.training.callbacks.step_log import StepLog
from alexnet_exp.training.checkpoint.callback import BestAndLast, StopUnsaved
from alexnet_exp.training.checkpoint.identity import OtherDataError, check_same_data
from alexnet_exp.training.checkpoint.read import checkpoints_before, read_checkpoint
from alexnet_exp.training.checkpoint.resume import resuming
from alexnet_exp.training.checkpoint.start import (
    check_same_network,
    check_same_optimizer,
    load_weights,
    put_in_place,
    read_latest,
)
from alexnet_exp.training.checkpoint.write import AtomicCheckpointIO
from alexnet_exp.training.classifier import ImageClassifier
from alexnet_exp.training.ending import validate_at_the_end
from alexnet_exp.training.launch.ranks import device_type
from alexnet_exp.training.launch.signals import training_loop
from alexnet_exp.training.lightning_internals import (
    check_limit,
    epochs_of,
    leave_signals_to_us,
    make_profiler,
)
from alexnet_exp.training.metrics import Outcomes, class_weights
from alexnet_exp.training.optim.auto import has_norm, settle_recipe

LSUV_IMAGES = 64
OUR_CALLBACKS = [each.name for each in fields(Callbacks)]


def prepare_data(config: dict[str, Any]) -> ImageData:
    """Read the images."""
    quiet_lightning()
    data: ImageData = build(config["data"], augment=config["augment"], seed=config["seed"])
    data.setup()
    _splits(data)  # starts hashing the images in the background
    return data


def _splits(data: Any) -> Callable[[], dict[str, Any]]:
    """Return the function that identifies the images of each split; a custom data module may not have one."""
    return data.identity if isinstance(data, ImageData) else dict


def fit_to_data(config: dict[str, Any], data: ImageData, typed: list[str]) -> None:
    """Fill in settings: the network's classes and channels from the data, every `auto` from machine and network.

    Args:
        config: Modified in place.
        data: As returned by `prepare_data`.
        typed: The overrides as typed.

    Raises:
        UserError: If a typed value does not match the data.
    """
    keys = assigned(typed)
    config["data"] |= getattr(data, "chosen", {})  # a custom data module has none
    model, classes = config["model"], len(data.classes)
    if "model.num_classes" not in keys:
        model["num_classes"] = classes
    elif model["num_classes"] < classes:
        raise UserError(
            f"invalid model.num_classes={model['num_classes']}: expected at least {classes}, the classes of the data. "
            "Leave it out."
        )
    if "model.in_channels" not in keys:
        model["in_channels"] = data.channels
    elif model["in_channels"] != data.channels:
        raise UserError(
            f"model.in_channels={model['in_channels']} does not match data.channels={data.channels}. Leave it out."
        )
    device = torch.device(device_type(read(Settings, config).trainer))
    if chosen := settle(config, device, len(data.sources["train"])):
        log.info("Chosen for this machine: %s", " ".join(chosen))
    if chosen := settle_recipe(config, typed, len(data.sources["train"])):
        log.info("Chosen for this network: %s", " ".join(chosen))


@dataclass
class Fit:
    """Everything that takes part in training on one rank."""

    config: dict[str, Any]
    settings: Settings  # `config` as an object
    data: ImageData
    classifier: ImageClassifier
    trainer: lightning.Trainer
    layers: list[LayerRow]
    step_log: StepLog
    checkpoint: BestAndLast | None
    chance: ChanceLevel
    start_step: int = 0  # step of the checkpoint that training resumes from
    # Rows of metrics.csv to keep on resuming: those up to a step, and their number if the checkpoint records it.
    kept_rows: tuple[int, int | None] = (-1, None)
    fold: Outcomes | None = None  # predictions for the held-out fold (data.folds)
    training_seconds: float | None = None  # wall time of Trainer.fit, including validation and checkpoints

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.classifier.model.parameters())


def assemble(
    config: dict[str, Any], data: ImageData, run_dir: Path, loggers: list[Any], console: Console
) -> Fit:
    """Build network, callbacks and trainer from settings that `fit_to_data` has filled in.

    Raises:
        UserError: If settings do not work together.
    """
    settings = read(Settings, config)
    lightning.seed_everything(settings.seed, verbose=False)  # initial weights draw from the global generator
    model = build(settings.model)
    # Not where a checkpoint replaces the weights: images are decoded for it.
    if settings.init == "lsuv" and not settings.ckpt and not _continues(settings, run_dir):
        scale_to_unit_variance(model, data.examples(LSUV_IMAGES))
    unused = (f"unused {i}" for i in range(len(data.classes), settings.model["num_classes"]))
    classes = (*data.classes, *unused)
    classifier = ImageClassifier(
        model,
        classes,
        config["optimizer"],
        config["scheduler"],
        settings.label_smoothing,
        settings.seed,
        embed={"config": without_passwords(config), "preprocessing": data.preprocessing()},
        channels_last=bool(settings.channels_last),
        splits=_splits(data),
        class_weights=_class_weights(settings, data, classes),
    )
    size = settings.model.get("input_size", settings.data.image_size)
    layers = layer_table(model, (data.channels, size, size))
    chosen = settings.callbacks
    _check_monitors(settings, data)
    step_log = StepLog(lr=chosen.lr_monitor.enabled, throughput=chosen.throughput.enabled)
    checkpoint = _checkpoint(chosen.checkpoint, run_dir)
    chance = _chance_level(settings, data, classifier)
    callbacks = [step_log, chance, *_callbacks(chosen, console, step_log)]
    callbacks += [build(own) for key, own in config["callbacks"].items() if key not in OUR_CALLBACKS]
    callbacks.append(checkpoint or StopUnsaved())
    if settings.trainer.overfit_batches:
        callbacks.append(SameBatches())
    if settings.freeze:
        callbacks.append(FreezeLayers(model, settings.freeze, settings.freeze_epochs))
    trainer = _trainer(config["trainer"], run_dir, loggers, callbacks, chosen)
    compile_network(model, settings.compile)
    use_fast_matmul(trainer.strategy.root_device)
    return Fit(config, settings, data, classifier, trainer, layers, step_log, checkpoint, chance)


def _class_weights(settings: Settings, data: ImageData, classes: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the weight of each class in the training loss, and log their range."""
    wanted = settings.class_weights
    weights = None if wanted == "none" else class_weights(wanted, classes, data.sources["train"].labels)
    if weights is not None:
        low, high = (end(range(len(weights)), key=weights.__getitem__) for end in (min, max))
        log.info("Class weights: %s %.3g ... %s %.3g", printable(classes[low]), weights[low],
                 printable(classes[high]), weights[high])  # fmt: skip
    return weights


def _chance_level(settings: Settings, data: ImageData, classifier: ImageClassifier) -> ChanceLevel:
    """Return the callback that notices a network which does no better than guessing."""
    # The few images of overfit_batches have a distribution of labels of their own.
    if "train" not in data.sources or settings.trainer.overfit_batches:
        return ChanceLevel(None)
    labels, augment, weights = data.sources["train"].labels, settings.augment, classifier.class_weights
    smoothing, balanced = classifier.label_smoothing, bool(settings.data.balanced)
    prediction = guess(labels, len(classifier.classes), weights, smoothing, balanced)
    plain = weights is None and not smoothing and not augment.mixup and not augment.cutmix
    val = data.sources["val"].labels if "val" in data.sources else None
    advice = ["a lower optimizer.lr"]
    if not has_norm(classifier.model):
        if settings.init != "lsuv" and settings.weights == "none":
            advice.append("init=lsuv")
        advice.append("a network with batch norm (model=alexnet_bn)")
    if settings.weights == "none" and not settings.ckpt:
        advice.append("trained weights (model=alexnet_owt weights=torchvision)")
    return ChanceLevel(prediction, plain, val, ", ".join(advice))


def _check_monitors(settings: Settings, data: ImageData) -> None:
    """Check that scheduler and early stopping do not monitor validation metrics without validation images.

    The checkpoint callback needs no check: without validation, the best checkpoint is the last.

    Raises:
        UserError: Says how to get validation images from this data set.
    """
    stopping = settings.callbacks.early_stopping
    monitors = {"scheduler": settings.scheduler.monitor}
    if stopping.enabled:
        monitors["callbacks.early_stopping"] = stopping.monitor
    for key, monitor in monitors.items():
        if "val" not in data.sources and str(monitor).startswith("val/"):
            need = data.needs_for_validation
            raise UserError(f"{key} needs validation images (monitor={monitor}): {need}.")


def _checkpoint(settings: Checkpoint, run_dir: Path) -> BestAndLast | None:
    options = asdict(settings)
    del options["keep_last"]  # of AtomicCheckpointIO
    return BestAndLast(run_dir / "checkpoints", **options) if options.pop("enabled") else None


def _callbacks(chosen: Callbacks, console: Console, step_log: StepLog) -> list[Callback]:
    callbacks: list[Callback] = []
    stopping = asdict(chosen.early_stopping)
    if stopping.pop("enabled"):
        callbacks.append(EarlyStopping(**stopping, check_finite=False))
    if chosen.ema.enabled:
        callbacks.append(MovingAverage(chosen.ema.decay))
    if chosen.progress_bar.enabled:
        callbacks.append(Bar(console, chosen.progress_bar.refresh_per_second, step_log))
    return callbacks


def _trainer(
    settings: Mapping[str, Any],
    run_dir: Path,
    loggers: list[Any],
    callbacks: list[Callback],
    chosen: Callbacks,
) -> lightning.Trainer:
    options = dict(settings)
    options["profiler"] = make_profiler(options["profiler"], run_dir)
    if options["benchmark"] is None:
        options["benchmark"] = not options["deterministic"]
    # Not Lightning's overfit_batches, which only supports its own samplers: SameBatches repeats our batches.
    if overfit := options.pop("overfit_batches"):
        options |= {"limit_train_batches": overfit, "limit_val_batches": overfit}
    if isinstance(options["devices"], int) and options["devices"] > 1 and options["strategy"] == "auto":
        options["strategy"] = "ddp"
    try:
        trainer = lightning.Trainer(
            **options,
            logger=loggers or False,
            callbacks=callbacks,
            default_root_dir=str(run_dir),
            enable_checkpointing=chosen.checkpoint.enabled,
            enable_progress_bar=chosen.progress_bar.enabled,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(chosen.checkpoint.keep_last)],
        )
        leave_signals_to_us(trainer)
        validate_at_the_end(trainer)
        return trainer
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def start_point(fit: Fit, run_dir: Path) -> Path | None:
    """Load `weights=`, and return the checkpoint that training starts from, if any.

    Raises:
        UserError: If a checkpoint cannot be read or resumed.
    """
    settings = fit.settings
    own, in_place = RunDirectory(run_dir).last_checkpoint, _continues(settings, run_dir)
    start = run_dir if in_place else settings.ckpt
    if not start:
        if settings.weights != "none":
            log.info(load_weights(fit.classifier, settings.weights))
        elif settings.freeze:
            log.warning("freeze keeps random weights here: set weights= to start from trained ones.")
        return None
    path, checkpoint = read_latest(start)
    fit.start_step = checkpoint["global_step"]
    _check_data(fit, checkpoint, path, in_place)
    check_same_network(fit.classifier, checkpoint, path)
    check_same_optimizer(fit.classifier, checkpoint, path, groups_too=not _has_custom_callbacks(fit.trainer))
    for callback in fit.trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping):
            callback.starts_anew = not in_place
    if not in_place:
        _check_more_to_do(settings.trainer, checkpoint, path)
        return path
    if path != own and fit.trainer.is_global_zero:  # last.ckpt is damaged: an earlier save takes its place
        put_in_place(path, own)
    rows = checkpoint.get("num_rows")  # older checkpoints have none
    fit.kept_rows = checkpoint["global_step"], rows if isinstance(rows, int) else None
    return path


def _continues(settings: Settings, run_dir: Path) -> bool:
    """Return whether `resume=` finds a checkpoint; otherwise it starts a new run."""
    own = RunDirectory(run_dir).last_checkpoint
    return bool(settings.resume and (own.exists() or checkpoints_before(own)))


def attach_loggers(fit: Fit, loggers: list[Any]) -> None:
    """Set the loggers, and drop rows logged after the checkpoint of a resumed run: those steps run again.

    Not part of `assemble`, since a run that `start_point` refuses must not create a W&B run.
    """
    fit.trainer.loggers = loggers
    for logger in loggers:  # metrics.csv comes first, as the W&B tracker reads it
        if isinstance(logger, MetricsCSV | WandbTracker):
            logger.truncate(*fit.kept_rows)


def _check_data(fit: Fit, checkpoint: Mapping[str, Any], path: Path, in_place: bool) -> None:
    """Refuse other classes, and when resuming in place other images; a new run on other images restarts its epoch."""
    try:
        same = check_same_data(checkpoint, path, fit.data.classes, fit.classifier.splits(), in_place)
    except OtherDataError as error:
        if fit.trainer.is_global_zero:
            raise
        raise UserError(f"Rank {fit.trainer.global_rank} on {socket.gethostname()}: {error}") from error
    same_size = checkpoint["config"]["data"].get("batch_size") == fit.settings.data.batch_size
    # With other images or another batch size, the saved position in the epoch means nothing.
    fit.classifier.begin_epoch_again = not (same and same_size)


def _has_custom_callbacks(trainer: lightning.Trainer) -> bool:
    """Return whether the run has callbacks that may freeze layers and add parameter groups."""
    ours = ("alexnet_exp.", "lightning.pytorch.callbacks.timer")  # the latter is trainer.max_time
    return any(not type(callback).__module__.startswith(ours) for callback in trainer.callbacks)


def _check_more_to_do(trainer: Trainer, checkpoint: Mapping[str, Any], path: Path) -> None:
    for what, done, wanted in (
        ("epochs", epochs_of(checkpoint), trainer.max_epochs),
        ("steps", checkpoint["global_step"], trainer.max_steps),
    ):
        if wanted is not None and wanted != -1 and done >= wanted:
            raise UserError(
                f"{path} has already trained {done} {what}: set trainer.max_{what}=N to more than that."
            )


def train_and_test(fit: Fit, ckpt_path: Path | None) -> bool:
    """Train, then test the best weights.

    Returns:
        Whether a split was tested; without a test split, val is evaluated for the figures.
    """
    trainer, data = fit.trainer, fit.data
    with _cpu_threads(trainer), _explain_trainer_errors(fit.config["trainer"]):
        _check_limits(fit)
        started = time.perf_counter()
        try:
            with training_loop(), resuming(ckpt_path, lambda: fit.classifier.num_epochs_begun > 1):
                trainer.fit(fit.classifier, datamodule=data, ckpt_path=str(ckpt_path) if ckpt_path else None)
        finally:
            fit.training_seconds = time.perf_counter() - started
        if not fit.settings.test:
            return False
        if "test" not in data.sources:
            if "val" not in data.sources:
                log.info("There are no test images: skipping the test.")
                return False
            how = data.needs_for_test if isinstance(data, ImageData) else ""
            log.info("There are no test images: only validation metrics are reported.%s", how and f" {how}")
            data.test_split = fit.classifier.test_split = "val"
        trainer.strategy.barrier("best checkpoint")
        best_path = None
        if fit.checkpoint is not None and fit.settings.test_weights == "best":
            best_path = fit.checkpoint.best_path
        found = best_path is not None and best_path.exists() and not trainer.fast_dev_run
        # Rank 0 decides: ranks started by torchrun or SLURM may see another directory.
        chosen = trainer.strategy.broadcast(str(best_path) if found else "")
        if chosen:
            best = read_checkpoint(chosen)
            fit.classifier.load_state_dict(best["state_dict"])
        if isinstance(data, ImageData) and data.folds is not None:
            fit.fold = _predict_fold(fit)
            if data.test_split == "val":
                return True
        trainer.test(fit.classifier, datamodule=data, verbose=False)
    return True


def _predict_fold(fit: Fit) -> Outcomes:
    """Predict the held-out fold, for the out-of-fold scores of `compare`."""
    classifier, data, split = fit.classifier, fit.data, fit.classifier.test_split
    data.test_split = classifier.test_split = "val"
    classifier.outcomes = found = Outcomes(keep=True)
    fit.trainer.test(classifier, datamodule=data, verbose=False)
    found.gather()
    if split != "val":
        classifier.outcomes, data.test_split, classifier.test_split = Outcomes(), split, split
    return found


def _check_limits(fit: Fit) -> None:
    """Refuse fractions of less than one batch before training; Lightning checks each split when it gets there."""
    trainer, data = fit.trainer, fit.data
    test = data.test_split if "test" in data.sources else "val"
    splits = {
        RunningStage.TRAINING: ("train", trainer.limit_train_batches),
        RunningStage.VALIDATING: ("val", trainer.limit_val_batches),
        RunningStage.TESTING: (test if fit.settings.test else "", trainer.limit_test_batches),
    }
    for stage, (split, limit) in splits.items():
        if split in data.sources:
            check_limit(stage, -(-len(data.sources[split]) // data.batch_size), limit)
    interval = trainer.val_check_interval
    batches = -(-len(data.sources["train"]) // data.batch_size)
    if isinstance(interval, float) and interval * batches < 1 and trainer.is_global_zero:
        log.warning(
            "trainer.val_check_interval=%g is less than one of the %d batches of an epoch: validating after every "
            "batch.", interval, batches,
        )  # fmt: skip


@contextlib.contextmanager
def _explain_trainer_errors(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn Lightning's errors about a trainer setting into one sentence that names the setting.

    Args:
        settings: Trainer settings under their names on the command line.

    Raises:
        UserError: If Lightning raised, and its message names a setting; other exceptions pass through.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError) as error:
        module = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
        message = " ".join(str(error).split())
        if settings["overfit_batches"]:  # passed to Lightning as these two
            message = re.sub("limit_(train|val)_batches", "overfit_batches", message)
        # Words in backticks or with an underscore: a plain word such as "precision" may be just English.
        words = re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`|\w+_\w+", message)))
        key = next((word for word in words if word in settings), None)
        if key is None or not module.startswith("lightning."):
            raise
        raise UserError(f"trainer.{key}: {message}") from error


@contextlib.contextmanager
def _cpu_threads(trainer: lightning.Trainer) -> Any:
    """Divide the cores among the ranks of a run on CPU."""
    before = torch.get_num_threads()
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.num_devices > 1 and not cores.threads_are_typed():
        torch.set_num_threads(max(1, before // trainer.num_devices))
    try:
        yield
    finally:
        torch.set_num_threads(before)
