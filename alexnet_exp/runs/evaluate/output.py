"""Outputs of an evaluation: tables, figures, report, result.json, and rows in W&B."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.files import text_file
from alexnet_exp.report.evaluation import Evaluation, Sample, class_rows
from alexnet_exp.report.figures import draw_all
from alexnet_exp.report.run import write_report
from alexnet_exp.runs.evaluate.data import is_own_data
from alexnet_exp.runs.evaluate.members import Member, Outcome
from alexnet_exp.runs.evaluate.scores import BINS
from alexnet_exp.runs.evaluate.settings import Evaluate
from alexnet_exp.tracking.environment import provenance
from alexnet_exp.tracking.log import log
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.terminal import print_fitted
from alexnet_exp.tracking.wandb.internals import find_run_id, is_offline, run_folders
from alexnet_exp.tracking.wandb.logger import WandbTracker
from alexnet_exp.tracking.wandb.media import wandb_place

if TYPE_CHECKING:
    from wandb import Run


NUM_MISTAKES, NUM_SAMPLES, MAX_ROWS = 36, 16, 30


def write_all(
    run: RunDirectory,
    members: list[Member],
    outcome: Outcome,
    settings: Evaluate,
    facts: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Print the scores and write every file, result.json last.

    Args:
        run: Where to write.
        members: What was evaluated; images come from the first.
        outcome: The result.
        settings: Of the evaluation.
        facts: Further keys of result.json.
        console: Where to print.

    Returns:
        What result.json holds.
    """
    evaluation = _evaluation(members[0], outcome)
    rows = class_rows(evaluation.per_class())
    result = {"status": "finished", **facts, **_result(members, outcome), "per_class": rows}
    _print_scores(console, members, outcome)
    _print_classes(console, rows)
    write_predictions(run.path / "predictions.csv", outcome, members[0].classes)
    _write_classes(run.path / "per_class.csv", rows)
    conv1 = _first_filters(members[0])
    figures = draw_all(run.path, [], evaluation, conv1)
    wandb_run = wandb_run_of(settings.ckpt, settings.logger)
    if wandb_run is not None:
        result["wandb"] = log_to_wandb(wandb_run, members[0], outcome, evaluation, figures, settings)
    write_report(run.path, evaluation, conv1, result=result)
    run.write_result(result)
    return result


def _result(members: list[Member], outcome: Outcome) -> dict[str, Any]:
    first = members[0]

    def prefixed(metrics: dict[str, float]) -> dict[str, float]:
        return {f"{first.split}/{name}": value for name, value in metrics.items()}

    return {
        "metrics": prefixed(outcome.metrics),
        "split": first.split,
        "views": first.data.views,
        "data": first.data.sources[first.split].name,
        "images": {first.split: len(outcome.table)},
        "members": [
            {"ckpt": str(member.path), "metrics": prefixed(metrics)}
            for member, metrics in zip(members, outcome.members, strict=True)
        ],
        "calibration": {"bins": BINS, "width": "equal", "error": outcome.metrics["ece"]},
        "classes": first.classes,
        "images_per_second": round(outcome.images_per_second, 1),
        "device": outcome.device,
        **provenance(),
    }


def _evaluation(member: Member, outcome: Outcome) -> Evaluation:
    table = outcome.table

    def sample(index: int) -> Sample:
        image = member.data.stored_image(member.split, index).permute(1, 2, 0).cpu().numpy()
        name = member.data.sources[member.split].image_name(index)
        prediction = int(table.top[index, 0]), float(table.probabilities[index, 0])
        return Sample(image, int(table.labels[index]), *prediction, index, name)

    return Evaluation(
        split=member.split,
        classes=member.classes,
        confusion=table.confusion(len(member.classes)),
        mistakes=[sample(int(i)) for i in table.worst(NUM_MISTAKES)],
        samples=[sample(i) for i in sorted(member.data.spread(member.split)[:NUM_SAMPLES].tolist())],
    )


def _first_filters(member: Member) -> np.ndarray | None:
    """Return the weight (out, in, kH, kW) of the first convolution, if it reads images."""
    weights = [w for w in member.checkpoint["state_dict"].values() if w.dim() == 4]
    return weights[0].float().cpu().numpy() if weights and weights[0].shape[1] in (1, 3) else None


def write_predictions(path: Path, outcome: Outcome, classes: list[str]) -> None:
    """Write one row per image: path or number, true class, the top five classes with their probabilities."""
    table = outcome.table
    header = ["image", "label", *prediction_columns(table.top.shape[1])]
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for name, label, top, values in zip(
            outcome.names, table.labels, table.top, table.probabilities, strict=True
        ):
            cells = [cell for c, p in zip(top, values, strict=True) for cell in (classes[c], f"{p:.6g}")]
            writer.writerow([name, classes[label], *cells])


def prediction_columns(count: int) -> list[str]:
    """Return class_1, probability_1, class_2 ..."""
    return [f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability")]


def _write_classes(path: Path, rows: list[dict[str, Any]]) -> None:
    with text_file(path) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _print_scores(console: Console, members: list[Member], outcome: Outcome) -> None:
    named = [(str(member.path), scores) for member, scores in zip(members, outcome.members, strict=True)]
    if len(members) > 1:
        named.append((f"ensemble of {len(members)}", outcome.metrics))
    rows = [
        [
            name if len(named) > 1 else members[0].split, f"{scores['top1']:.2%}",
            f"{scores['top5']:.2%}" if "top5" in scores else "", f"{scores['balanced_accuracy']:.2%}",
            f"{scores['loss']:.4f}", f"{scores['ece']:.4f}",
        ]
        for name, scores in named
    ]  # fmt: skip
    head = ["", "top-1", "top-5", "balanced", "loss", "calibration error"]
    print_fitted(head, rows, console, numbers=range(1, 6))


def _print_classes(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the scores of every class, or of those with the lowest recall."""
    kept = [row for row in rows if row["images"]]
    if cut := len(rows) > MAX_ROWS:
        kept = sorted(kept, key=lambda row: row["recall"])[:MAX_ROWS]
    cells = [
        [
            str(row["class"]), f"{row['images']:,}",
            *("–" if row[key] is None else f"{row[key]:.1%}" for key in ("precision", "recall")),
        ]
        for row in kept
    ]  # fmt: skip
    print_fitted(["class", "images", "precision", "recall"], cells, console, numbers=range(1, 4))
    if cut:
        text = f"The {len(kept)} lowest recalls of {len(rows)} classes; per_class.csv has all."
        console.print(text, highlight=False)


MAX_TABLE_ROWS = 1000


class WandbAppender(WandbTracker):
    """Appends to a finished W&B run, without touching its settings, environment and code."""

    def _describe(self, run: Run, config: dict[str, Any], save_code: bool) -> None:
        run.define_metric("evaluate/*", step_metric="step")

    def _say_offline(self, reason: str) -> None:
        # Nothing to explain if the user typed the mode.
        why = "" if reason.startswith("logger.wandb.mode=") else f" ({reason})"
        what = "The figures go to the run's offline W&B files"
        log.info("%s%s. To upload them later: %s", what, why, self._sync_command())


def wandb_run_of(checkpoints: list[str], logger: dict[str, Any] | None) -> Path | None:
    """Return the run directory whose W&B run an evaluation is added to.

    Args:
        checkpoints: Files.
        logger: The chosen conf/logger; None if none was chosen.

    Returns:
        None if there is no such run, or logging to it is turned off.

    Raises:
        UserError: If logger=wandb was given and there is no such run.
    """
    if logger is not None and "wandb" not in logger:
        return None
    path = Path(checkpoints[0])
    run_dir = path.parent.parent
    if len(checkpoints) == 1 and path.parent.name == "checkpoints" and find_run_id(run_dir) is not None:
        return run_dir
    if logger is None:
        return None
    why = "an ensemble has several" if len(checkpoints) > 1 else f"{run_dir} has no W&B run"
    raise UserError(f"logger=wandb adds to the W&B run of the checkpoint, but {why}: leave it out.")


def log_to_wandb(
    run_dir: Path,
    member: Member,
    outcome: Outcome,
    evaluation: Evaluation,
    figures: list[Path],
    settings: Evaluate,
) -> dict[str, Any] | None:
    """Add scores, tables and figures to the W&B run in `run_dir`.

    Args:
        run_dir: Of the checkpoint.
        member: The checkpoint.
        outcome: The result.
        evaluation: The result, for figures.
        figures: PNG files.
        settings: Of the evaluation.

    Returns:
        The entry for result.json; None, with a warning, on failure.
    """
    options = dict((settings.logger or {}).get("wandb") or (member.config["logger"] or {}).get("wandb") or {})
    options["name"] = options.get("name") or run_dir.name
    offline = any(map(is_offline, run_folders(run_dir, find_run_id(run_dir) or "*")))
    if offline and options.get("mode") in (None, "auto", "online"):
        options["mode"] = "offline"  # the run itself is not on the server yet; one command uploads both
    try:
        with RunDirectory(run_dir).lock():  # fails while the run is still training, and logging to W&B
            options["log_model"] = False
            tracker = WandbAppender(run_dir, member.config, **options, save_code=False)
            _log(tracker, _place(member, settings.data), member, outcome, evaluation, figures)
            tracker.finish()
    except Exception as error:
        log.warning("The evaluation could not be added to the W&B run of %s: %s", run_dir, error)
        return None
    return {"id": tracker.run_id, "mode": tracker.mode, "url": tracker.url}


def _place(member: Member, typed: dict[str, Any]) -> str:
    """Return the metric prefix: next to the run's own figures, or separate for another data set."""
    source = member.data.sources[member.split]
    another = "" if is_own_data(member.config["data"], typed) else source.name.rpartition(" ")[0]
    return wandb_place(member.split, member.data.views, another)


def _log(
    tracker: WandbTracker,
    where: str,
    member: Member,
    outcome: Outcome,
    evaluation: Evaluation,
    figures: list[Path],
) -> None:
    metrics = {f"{where}/{name}": value for name, value in outcome.metrics.items()}
    tracker.log_metrics(metrics, step=member.checkpoint["global_step"])
    classes, table = member.classes, outcome.table
    count = min(MAX_TABLE_ROWS, len(table))
    labels, predictions = ([classes[i] for i in part[:count]] for part in (table.labels, table.top[:, 0]))
    columns = (outcome.names[:count], labels, predictions, table.probabilities[:count, 0].tolist())
    rows = [list(row) for row in zip(*columns, strict=True)]
    tracker.log_table(f"{where}/predictions", ["image", "label", "prediction", "probability"], rows)
    scores = [[s.name, s.support, s.precision, s.recall] for s in evaluation.per_class()]
    tracker.log_table(f"{where}/classes", ["class", "images", "precision", "recall"], scores)
    for path in figures:
        if path.stem != "conv1_filters":  # the run has logged it already
            tracker.log_images(f"{where}/{path.stem}", [(path, path.stem.replace("_", " "))])
