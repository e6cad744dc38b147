"""An evaluation goes to the W&B run of its checkpoint, if that has one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_exp.errors import UserError
from alexnet_exp.runs.evaluate import wandb_place
from alexnet_exp.runs.evaluate_data import is_own_data
from alexnet_exp.tracking.evaluation import Evaluation
from alexnet_exp.tracking.log import log
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb_logger import WandbTracker, find_run_id

if TYPE_CHECKING:
    from wandb import Run

    from alexnet_exp.runs.evaluate_members import Member, Outcome

MAX_ROWS = 1000


class Visit(WandbTracker):
    """Adds to a W&B run that another process recorded, and leaves its settings, environment and code alone."""

    def _describe(self, run: Run, config: dict[str, Any], save_code: bool) -> None:
        run.define_metric("evaluate/*", step_metric="step")

    def _say_offline(self, reason: str) -> None:
        # A mode that was typed, or is that of the run's other parts, is no news.
        why = "" if reason.startswith("logger.wandb.mode=") else f" ({reason})"
        what = "The figures go to the run's offline W&B files"
        log.info("%s%s. To upload them later: %s", what, why, self._sync_command())


def wandb_run_of(checkpoints: list[str], logger: dict[str, Any] | None) -> Path | None:
    """Return the run directory whose W&B run an evaluation goes to.

    Args:
        checkpoints: Files.
        logger: conf/logger as the user chose it; None if they did not.

    Returns:
        None if there is no such run, or it is not wanted.

    Raises:
        UserError: If it is wanted and there is none.
    """
    if logger is not None and "wandb" not in logger:
        return None
    path = Path(checkpoints[0])
    run_dir = path.parent.parent
    if len(checkpoints) == 1 and path.parent.name == "checkpoints" and find_run_id(run_dir) is not None:
        return run_dir
    if logger is None:
        return None
    why = "an ensemble belongs to no one run" if len(checkpoints) > 1 else f"{run_dir} has no W&B run"
    raise UserError(f"logger=wandb adds to the W&B run of the checkpoint, and {why}: leave it out.")


def log_to_wandb(
    run_dir: Path,
    member: Member,
    outcome: Outcome,
    evaluation: Evaluation,
    figures: list[Path],
    settings: dict[str, Any],
) -> dict[str, Any] | None:
    """Add scores, tables and figures to the W&B run in `run_dir`.

    Args:
        run_dir: Of the checkpoint.
        member: The checkpoint.
        outcome: What came out.
        evaluation: The same for pictures.
        figures: PNG files.
        settings: Of the evaluation.

    Returns:
        What result.json says about it; None if it could not be done, which a warning says.
    """
    options = dict(
        (settings["logger"] or {}).get("wandb") or (member.config["logger"] or {}).get("wandb") or {}
    )
    options["name"] = options.get("name") or run_dir.name
    offline = any(run_dir.glob(f"wandb/offline-run-*-{find_run_id(run_dir)}"))
    if offline and options.get("mode") in (None, "auto", "online"):
        options["mode"] = "offline"  # its other parts are not on the server yet; one command uploads all
    try:
        with RunDirectory(run_dir).lock():  # a run that is still going on writes there itself
            tracker = Visit(run_dir, member.config, **{**options, "log_model": False}, save_code=False)
            _log(tracker, _place(member, settings["data"]), member, outcome, evaluation, figures)
            tracker.finish()
    except Exception as error:
        log.warning("The evaluation could not be added to the W&B run of %s: %s", run_dir, error)
        return None
    return {"id": tracker.run_id, "mode": tracker.mode, "url": tracker.url}


def _place(member: Member, typed: dict[str, Any]) -> str:
    """Return where the evaluation is logged: beside the run's own figures, or apart where the data is another."""
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
    count = min(MAX_ROWS, len(table))
    rows = [
        [
            outcome.names[i],
            classes[table.labels[i]],
            classes[table.top[i, 0]],
            float(table.probabilities[i, 0]),
        ]
        for i in range(count)
    ]
    tracker.log_table(f"{where}/predictions", ["image", "label", "prediction", "probability"], rows)
    scores = [[s.name, s.support, s.precision, s.recall] for s in evaluation.per_class()]
    tracker.log_table(f"{where}/classes", ["class", "images", "precision", "recall"], scores)
    for path in figures:
        if path.stem != "conv1_filters":  # the run has it
            tracker.log_images(f"{where}/{path.stem}", [(path, path.stem.replace("_", " "))])
