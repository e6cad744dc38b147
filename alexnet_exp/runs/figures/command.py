"""`alexnet-exp figures`: what a network has learned, as pictures and on one page."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.checks import shown
from alexnet_exp.config.schema import Rule, at_least, choice, list_of, null, path, text
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from alexnet_exp.runs.figures.page import Figure
    from alexnet_exp.runs.figures.subject import Subject


NAMES = (
    "filters", "top5", "nearest", "activations", "grad_cam", "mistakes", "weight_histograms", "activation_histograms",
)  # fmt: skip
_SOME = list_of(choice(*NAMES))
RULES = {
    "ckpt": path,
    "which": Rule(f"all, or some of [{', '.join(NAMES)}]", lambda v: v in ("all", *NAMES) or _SOME.legal(v)),
    "split": choice("auto", "test", "val", "train"),
    "sample": at_least(1),
    "seed": at_least(0),
    "layer": text | null,
    "batch_size": at_least(1) | null,
    "device": text,
    "trust": list_of(text),
}
_NOT_HERE = (
    "augment",
    "model",
    "data.image_size",
    "data.channels",
    "data.mean",
    "data.std",
    "data.stored_size",
    "data.fit",
)


def figures(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> dict[str, Any]:
    """Draw what a network has learned; write figures.html and a PNG file of each figure.

    Args:
        config: Keys of conf/figures.yaml.
        overrides: What the user typed.
        run_dir: Where everything goes; must not hold another run.
        command: The command line, for the record.

    Returns:
        What result.json holds.

    Raises:
        UserError: For an illegal setting, or a checkpoint or images that cannot be read; no figure is left then.
    """
    settings = check_settings(config, overrides)
    from alexnet_exp.runs.figures.subject import open_subject

    started = time.perf_counter()
    console, run = Console(soft_wrap=True, highlight=False), RunDirectory(run_dir)
    with run.fresh(), logging_to(None, on_screen=True):
        subject = open_subject(settings)
        made, left_out = _make(subject, settings["which"], console)
        _draw(run, subject, made, left_out)
        result = _result(subject, made, left_out, command, time.perf_counter() - started)
        run.write_result(result)
    shown_dir = Path(os.path.relpath(run_dir))
    console.print(f"page:          {shown_dir / 'figures.html'}", markup=False)
    console.print(f"run directory: {shown_dir}", markup=False)
    return result


def check_settings(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the settings without what belongs to the checkpoint.

    Raises:
        UserError: For an illegal value, or a setting that the checkpoint fixes.
    """
    for key, rule in RULES.items():
        if not rule.legal(config[key]):
            raise UserError(f"{key}={shown(config[key])} is not possible: it must be {rule.text}.")
    typed = {override.partition("=")[0].lstrip("+~") for override in overrides}
    for key in sorted(typed):
        if key == "data.batch_size":
            raise UserError("data.batch_size is for training: say batch_size=N.")
        if key in _NOT_HERE or key.startswith(("augment.", "model.")):
            raise UserError(f"{key} is the checkpoint's own affair: leave it out.")
    settings = {key: config[key] for key in RULES}
    wanted = settings["which"] if isinstance(settings["which"], list) else [settings["which"]]
    settings["which"] = [name for name in NAMES if name in wanted or "all" in wanted]
    if not settings["which"]:
        raise UserError("which=[] asks for no figure: say which=all or some of them.")
    settings["data"] = dict(config.get("data") or {})
    if "cache" in settings["data"] and "data.cache" not in typed:
        settings["data"]["cache"] = "off"  # every image is read once or twice
    settings["data_dir"] = {"path": config["paths"]["data_dir"], "typed": "paths.data_dir" in typed}
    return settings | {"cache_dir": config["paths"]["cache_dir"], "views": "centre"}


def _make(subject: Subject, which: list[str], console: Console) -> tuple[list[Figure], dict[str, str]]:
    """Return the figures, and why the others are left out."""
    from alexnet_exp.runs.figures.make import FIGURES, check_layer
    from alexnet_exp.runs.figures.subject import LeftOutError

    check_layer(subject)
    made, left_out = [], {}
    for name in (name for name in FIGURES if name in which):
        try:
            made.append(FIGURES[name](subject))
        except LeftOutError as reason:
            left_out[name] = str(reason)
            console.print(f"{name} is left out: {reason}", markup=False)
    return made, left_out


def _draw(run: RunDirectory, subject: Subject, made: list[Figure], left_out: dict[str, str]) -> None:
    from alexnet_exp.runs.figures.page import KINDS, write_page

    for figure in made:
        KINDS[figure.name].draw(*figure.content, run.path / "figures" / f"{figure.name}.png")
    about = [("checkpoint", _name(subject)), ("classes", f"{len(subject.classes):,}")]
    if "data" in subject.__dict__:  # read, because a figure asked for it
        about.append(("images", subject.data.sources[subject.split].name))
    write_page(made, run.path, about, left_out)


def _name(subject: Subject) -> str:
    """Return the name of the run, or the file's where it lies in none."""
    inside = subject.path.parent.name == "checkpoints"
    return subject.path.parent.parent.name if inside else subject.path.name


def _result(
    subject: Subject, made: list[Figure], left_out: dict[str, str], command: str, seconds: float
) -> dict[str, Any]:
    from alexnet_exp.tracking.environment import git_state, hardware, versions

    uses_images = "data" in subject.__dict__
    return {
        "status": "finished",
        "command": command,
        "ckpt": str(subject.path),
        "figures": {figure.name: f"figures/{figure.name}.png" for figure in made},
        "left_out": left_out,
        "split": subject.split if uses_images else None,
        "sample": subject.sample if uses_images else None,
        "seconds": round(seconds, 2),
        "device": str(subject.device),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
    }
