"""Outputs of a run: result.json, the report and its figures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_exp.config.groups import Settings
from alexnet_exp.config.schema import read
from alexnet_exp.files import text_file
from alexnet_exp.report.evaluation import Evaluation, Sample, class_rows
from alexnet_exp.report.figures import draw_all
from alexnet_exp.report.run import write_report
from alexnet_exp.tracking.environment import provenance
from alexnet_exp.tracking.loggers import Tracker
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import Run
from alexnet_exp.training.ending import epochs_done

if TYPE_CHECKING:
    import numpy as np

    from alexnet_exp.runs.train.fit import Fit
    from alexnet_exp.training.metrics import Outcome


def make_result(
    config: dict[str, Any],
    fit: Fit | None,
    status: str,
    error: str | None,
    seconds: float,
    command: str,
    loggers: list[Any],
) -> dict[str, Any]:
    """Return the content of result.json."""
    settings = read(Settings, config)
    result: dict[str, Any] = {
        "status": status,
        "error": error,
        "metrics": {},
        "seconds": round(seconds, 2),
        "seed": settings.seed,
        "deterministic": is_deterministic(settings, fit),
        "command": command,
        **provenance(),
    }
    if settings.published:  # an experiment that reproduces a published value
        result["published"] = settings.published
    if fit is not None:
        result |= _from_fit(fit)
    for logger in loggers:
        if getattr(logger, "run_id", None):
            result["wandb"] = {"id": logger.run_id, "mode": logger.mode, "url": logger.url}
    return result


def is_deterministic(settings: Settings, fit: Fit | None) -> bool:
    """Return whether the same settings and seed give bitwise identical results on this machine.

    CPU kernels reduce in a fixed order, and our loaders depend only on seed, epoch and image. CUDA is deterministic
    only if nondeterministic operations raise, so deterministic="warn" is not enough.

    Args:
        settings: Of the run.
        fit: None if the run failed before it was assembled.
    """
    if settings.trainer.deterministic is True:
        return True
    own_data = str(settings.data._target_).startswith("alexnet_exp.")
    return own_data and fit is not None and fit.trainer.strategy.root_device.type == "cpu"


def _from_fit(fit: Fit) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metrics": {**fit.classifier.reported},
        "parameters": fit.parameters,
        "multiply_adds": sum(row.multiply_adds for row in fit.layers),
        "flops": 2 * sum(row.multiply_adds for row in fit.layers),
        "epochs": epochs_done(fit.trainer),
        "steps": fit.trainer.global_step,
        "devices": fit.trainer.world_size,
        "precision": fit.trainer.precision,
        "classes": list(fit.classifier.classes),
        "images": {split: len(source) for split, source in fit.data.sources.items()},
        "splits": fit.data.facts(),
    }
    if getattr(fit.data, "bad_images", None) is not None:  # a folder whose files were verified
        found["bad_images"] = fit.data.bad_images
    if not fit.chance.learned and (at_chance := fit.chance.at_chance):
        found["at_chance"] = at_chance
    if fit.classifier.class_weights is not None:
        found["class_weights"] = dict(zip(fit.classifier.classes, fit.classifier.class_weights, strict=True))
    if fit.training_seconds is not None:
        found["training_seconds"] = round(fit.training_seconds, 2)
    if fit.step_log.images_per_second is not None:
        found["images_per_second"] = round(fit.step_log.images_per_second, 1)
    if fit.checkpoint is not None and fit.checkpoint.best is not None:
        found["best"] = {"metric": fit.checkpoint.monitor, **fit.checkpoint.best}
    if (evaluation := evaluation_of(fit, pictures=False)) is not None:
        found["per_class"] = class_rows(evaluation.per_class())
    return found


def evaluation_of(fit: Fit, pictures: bool = True) -> Evaluation | None:
    """Return the confusion matrix of the test and, with `pictures`, images of mistakes and samples."""
    outcomes = fit.classifier.outcomes
    if outcomes.confusion is None:
        return None
    return Evaluation(
        split=fit.classifier.test_split,
        classes=list(fit.classifier.classes),
        confusion=outcomes.confusion.numpy(),
        mistakes=[_sample(fit, outcome) for outcome in outcomes.mistakes if pictures],
        samples=[_sample(fit, outcome) for outcome in outcomes.samples if pictures],
    )


def _sample(fit: Fit, outcome: Outcome) -> Sample:
    split = fit.classifier.test_split
    image = fit.data.stored_image(split, outcome.index).permute(1, 2, 0).numpy()  # (H, W, C)
    name = fit.data.sources[split].image_name(outcome.index)
    return Sample(image, outcome.label, outcome.prediction, outcome.probability, outcome.index, name)


def first_filters(fit: Fit) -> np.ndarray | None:
    """Return the weights (out, in, kH, kW) of the first convolution, if it reads images."""
    import torch

    for module in fit.classifier.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            return module.weight.detach().float().cpu().numpy() if module.weight.shape[1] in (1, 3) else None
    return None


def write_fold(path: Path, fit: Fit) -> None:
    """Write the predictions for the held-out fold, in the format of evaluate's predictions.csv."""
    source, classes = fit.data.sources["val"], fit.classifier.classes
    assert fit.fold is not None
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "class_1", "probability_1"])
        for o in fit.fold.every:
            name = source.image_name(o.index)
            writer.writerow([name, classes[o.label], classes[o.prediction], f"{o.probability:.6g}"])


def log_pictures(fit: Fit, run: RunDirectory, loggers: list[Any]) -> None:
    """Draw the figures and log them to the trackers."""
    evaluation = evaluation_of(fit)
    rows = Run(run.path).rows
    paths = {path.stem: path for path in draw_all(run.path, rows, evaluation, first_filters(fit))}
    for logger in loggers:
        if not hasattr(logger, "log_confusion"):
            continue
        if "conv1_filters" in paths:
            logger.log_images("conv1_filters", [(paths["conv1_filters"], "filters of the first layer")])
        if evaluation is not None:
            names = evaluation.classes
            logger.log_confusion(evaluation.confusion, names)
            pictures = [
                (s.image, f"{names[s.label]} -> {names[s.prediction]} {s.probability:.2f}")
                for s in evaluation.samples
            ]
            logger.log_images("predictions", pictures)


def make_report(run: RunDirectory, fit: Fit | None, result: dict[str, Any]) -> None:
    """Write report.html from the run directory and what is in memory."""
    evaluation, filters = (None, None) if fit is None else (evaluation_of(fit), first_filters(fit))
    write_report(run.path, evaluation, filters, result=result)


def close_loggers(loggers: list[Any], fit: Fit | None, exit_code: int) -> None:
    """Finish the trackers, so that the next run in this process does not log to them."""
    checkpoint = fit.checkpoint if fit is not None and exit_code == 0 else None
    for logger in loggers:
        if isinstance(logger, Tracker) and checkpoint is not None and (best := checkpoint.best) is not None:
            # At the step of the best epoch, where a tracker then draws it, not at the end of the run.
            values = {"epoch": best["epoch"], f"best/{checkpoint.monitor}": best["value"]}
            logger.log_metrics(values, step=int(best["step"]))
        if hasattr(logger, "log_checkpoint") and checkpoint is not None and checkpoint.best_path.exists():
            logger.log_checkpoint(checkpoint.best_path, {"best": checkpoint.best or {}})
        if hasattr(logger, "finish"):
            logger.finish(exit_code)
