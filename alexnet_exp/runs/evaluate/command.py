"""`alexnet-exp evaluate`: score a trained network, or an ensemble of several."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp.config.checks import beside_checkpoint
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError, printable
from alexnet_exp.runs.evaluate.settings import Evaluate
from alexnet_exp.tracking.log import log, logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import learned_nothing
from alexnet_exp.tracking.terminal import nearby
from alexnet_exp.training.launch.ranks import Ranks
from alexnet_exp.training.launch.signals import stopping_on_signals

_FIGURES = ("conv1_filters", "confusion_matrix", "mistakes", "samples")
_OUTPUTS = (
    "config.yaml",
    "overrides.yaml",
    "evaluate.log",
    "predictions.csv",
    "per_class.csv",
    "report.html",
    "result.json",
    *(f"figures/{name}.png" for name in _FIGURES),
)
_EQUAL_VIEWS = (
    "views=ten_crop: the images are no larger than the network's input, so all five crops are the same: "
    "views=flip gives the same result in a fifth of the time."
)


class EvaluationRanks(Ranks):
    """The other processes of an evaluation on several devices."""

    module = "alexnet_exp.runs.evaluate.rank"
    stop_together = False


def evaluate(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> dict[str, Any]:
    """Evaluate one network, or several and their ensemble.

    Args:
        config: Keys of conf/evaluate.yaml.
        overrides: What the user typed.
        run_dir: Where everything goes; must not hold another run.
        command: The command line, for the record.

    Returns:
        What result.json holds.

    Raises:
        UserError: For anything the user can fix; nothing is left behind.
    """
    settings = check_settings(config, overrides)
    from alexnet_exp.inference import resolve_checkpoint
    from alexnet_exp.runs.evaluate.output import wandb_run_of

    paths = [os.path.abspath(resolve_checkpoint(each)) for each in settings.ckpt]
    settings = replace(settings, ckpt=paths)
    wandb_run_of(paths, settings.logger)  # fail before the evaluation, not after it
    run = RunDirectory(run_dir)
    console = Console(soft_wrap=True)
    with _fresh(run), logging_to(run_dir / "evaluate.log"), stopping_on_signals():
        run.write_settings(asdict(settings), overrides)
        try:
            result = _evaluate(run, settings, command, console)
        except SystemExit:  # Lightning raises it on Ctrl-C
            raise KeyboardInterrupt from None
    place = printable(nearby(run_dir))
    for line in (f"report:        {place}/report.html", f"run directory: {place}"):
        console.print(line, highlight=False, markup=False)
    return result


def check_settings(config: dict[str, Any], overrides: list[str]) -> Evaluate:
    """Return the settings of the evaluation, without those that the checkpoint determines.

    Raises:
        UserError: For an invalid value, or a setting that the checkpoint determines.
    """
    if config["ckpt"] == []:
        raise UserError("invalid ckpt=[]: expected at least one checkpoint.")
    where = beside_checkpoint(config, Evaluate, overrides, " (views= chooses the test views)")
    wanted = config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]]
    settings = read(Evaluate, {"logger": None, **config, **where, "ckpt": wanted})
    if settings.logger is not None and set(settings.logger) - {"wandb"}:
        raise UserError("evaluate logs to W&B or not at all: use logger=wandb or logger=none.")
    return settings


@contextlib.contextmanager
def _fresh(run: RunDirectory) -> Iterator[None]:
    """Hold a new run directory; on failure, remove what was written to it."""
    with run.fresh():
        new = [path for path in (run.path / name for name in _OUTPUTS) if not path.exists()]
        has_figures = (run.path / "figures").exists()
        try:
            yield
        except BaseException:
            for path in new:
                path.unlink(missing_ok=True)
            if not has_figures:
                with contextlib.suppress(OSError):  # not created yet, or it contains other files
                    (run.path / "figures").rmdir()
            raise


def _evaluate(run: RunDirectory, settings: Evaluate, command: str, console: Console) -> dict[str, Any]:
    started = time.time()
    with EvaluationRanks(run.path, settings.devices) as ranks:
        from alexnet_exp.data.identity import lines
        from alexnet_exp.runs.evaluate.data import has_equal_views
        from alexnet_exp.runs.evaluate.members import evaluate_all, open_members
        from alexnet_exp.runs.evaluate.output import write_all
        from alexnet_exp.training.checkpoint.identity import own_classes

        members = open_members(settings.ckpt, settings)
        first = members[0]
        source = first.data.sources[first.split]
        what = f"{len(source):,} images of {source.name}, views: {first.data.views}"
        known, found = len(own_classes(first.classes)), len(source.labels.unique())
        if found < known:
            what += f" ({found} of the checkpoint's {known} classes)"
        if settings.split == "auto" and first.split != "test":
            what += f" (there are no test images: split={first.split})"
        for line in (what, *lines({first.split: first.data.facts()[first.split]})):
            console.print(line, highlight=False, markup=False)
        for member in members:
            if warning := learned_nothing(member.checkpoint):
                log.warning("%s%s", f"{member.path}: " if len(members) > 1 else "", warning)
        if any(has_equal_views(member.data, member.split) for member in members):
            log.warning(_EQUAL_VIEWS)  # not an error: a run may have tested its network that way
        ranks.go(asdict(settings))
        outcome = evaluate_all(members, settings, console)
    facts = {"command": command, "seconds": round(time.time() - started, 2), "devices": settings.devices}
    if len(members) == 1 and learned_nothing(first.checkpoint):
        facts["at_chance"] = first.checkpoint["at_chance"]
    return write_all(run, members, outcome, settings, facts, console)
