"""`alexnet-exp figures`: visualise what a network has learned, as PNG files and one HTML page."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.checks import beside_checkpoint
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError
from alexnet_exp.runs.figures.settings import NAMES, Figures
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from alexnet_exp.runs.figures.page import Figure
    from alexnet_exp.runs.figures.subject import Subject


def figures(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> dict[str, Any]:
    """Draw the figures of a network; write figures.html and one PNG file per figure.

    Args:
        config: Keys of conf/figures.yaml.
        overrides: Overrides on the command line.
        run_dir: Output directory; must not contain another run.
        command: The command line, for the record.

    Returns:
        The content of result.json.

    Raises:
        UserError: Illegal setting, or a checkpoint or images that cannot be read; no figure is written.
    """
    settings = check_settings(config, overrides)
    from alexnet_exp.runs.figures.subject import open_subject

    started = time.perf_counter()
    console, run = Console(soft_wrap=True, highlight=False), RunDirectory(run_dir)
    with run.fresh(), logging_to(None, on_screen=True):
        subject = open_subject(settings)
        made, left_out = _make(subject, settings.which, console)  # all of them, before any file is written
        _draw(run, subject, made, left_out)
        result = _result(subject, made, left_out, command, time.perf_counter() - started)
        run.write_result(result)
    shown_dir = Path(os.path.relpath(run_dir))
    console.print(f"page:          {shown_dir / 'figures.html'}", markup=False)
    console.print(f"run directory: {shown_dir}", markup=False)
    return result


def check_settings(config: dict[str, Any], overrides: list[str]) -> Figures:
    """Return the settings, without those that the checkpoint determines.

    Raises:
        UserError: Illegal value, or a setting that the checkpoint determines.
    """
    where = beside_checkpoint(config, Figures, overrides)
    wanted = config["which"] if isinstance(config["which"], list) else [config["which"]]
    which = [name for name in NAMES if name in wanted or "all" in wanted]
    if not which:
        raise UserError("which=[] selects no figure: set which=all, or name some.")
    return read(Figures, {**config, **where, "which": which, "views": "centre"})


def _make(subject: Subject, which: list[str], console: Console) -> tuple[list[Figure], dict[str, str]]:
    """Return the figures, and for each skipped one the reason."""
    from alexnet_exp.runs.figures.make import FIGURES, grad_cam_layer
    from alexnet_exp.runs.figures.subject import LeftOutError

    if subject.settings.layer is not None:
        with contextlib.suppress(LeftOutError):
            grad_cam_layer(subject)  # an unknown layer ends the command before it reads images
    made, left_out = [], {}
    for name in (name for name in FIGURES if name in which):
        try:
            made.append(FIGURES[name](subject))
        except LeftOutError as reason:
            left_out[name] = str(reason)
            console.print(f"skipping {name}: {reason}", markup=False)
    return made, left_out


def _draw(run: RunDirectory, subject: Subject, made: list[Figure], left_out: dict[str, str]) -> None:
    from alexnet_exp.runs.figures.page import KINDS, write_page

    for figure in made:
        KINDS[figure.name].draw(*figure.content, run.path / "figures" / f"{figure.name}.png")
    folder, name = subject.path.parent, subject.path.name
    name = folder.parent.name if folder.name == "checkpoints" else name  # the run, if the file belongs to one
    about = [("checkpoint", name), ("classes", f"{len(subject.classes):,}")]
    if subject.has_read_data:
        about.append(("images", subject.data.sources[subject.split].name))
    write_page(made, run.path, about, left_out)


def _result(
    subject: Subject, made: list[Figure], left_out: dict[str, str], command: str, seconds: float
) -> dict[str, Any]:
    from alexnet_exp.tracking.environment import provenance

    uses_images = subject.has_read_data
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
        **provenance(),
    }
