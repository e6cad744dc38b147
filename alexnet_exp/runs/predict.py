"""`alexnet-exp predict`: name what is in images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet_exp import cores
from alexnet_exp.config.checks import shown
from alexnet_exp.config.rules import at_least, list_of, path, text
from alexnet_exp.errors import UserError, printable
from alexnet_exp.runs.predict_files import find_images
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.terminal import nearby

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet_exp.inference import LoadedClassifier, Prediction
    from alexnet_exp.runs.predict_output import Row

RULES = {
    "ckpt": path,
    "images": path | list_of(path),
    "top_k": at_least(1),
    "batch_size": at_least(1),
    "device": text,
    "trust": list_of(text),
}


def predict(config: dict[str, Any], run_dir: Path, command: str) -> int:
    """Name what is in images; print a table, and write predictions.csv, .jsonl and .png, and report.html.

    Args:
        config: Keys of conf/predict.yaml.
        run_dir: Where everything goes.
        command: The command line, for the record.

    Returns:
        Exit code: 0, or 2 if some of the images could not be read.

    Raises:
        UserError: For an illegal setting, a checkpoint that cannot be read, a network whose
            output is not finite, or no images.
    """
    for key, rule in RULES.items():
        if not rule.legal(config[key]):
            raise UserError(f"{key}={shown(config[key])} is not possible: it must be {rule.text}.")
    files = find_images(config["images"])
    from alexnet_exp.inference import load_classifier
    from alexnet_exp.runs.predict_output import print_rows, write_all

    console, run = Console(), RunDirectory(run_dir)
    with run.fresh():
        classifier = load_classifier(config["ckpt"], config["device"], config["trust"])
        rows = list(_predicted(classifier, files, config["top_k"], config["batch_size"]))
        print_rows(rows, console)
        write_all(run, rows, {"command": command, "settings": config, "checkpoint": str(classifier.path)})
    for what, place in (("report:       ", run_dir / "report.html"), ("run directory:", run_dir)):
        line = f"{what} {printable(nearby(place))}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 2 if any(row.error for row in rows) else 0


def _predicted(classifier: LoadedClassifier, files: list[str], top_k: int, batch_size: int) -> Iterator[Row]:
    """Yield a row for every file, in their order; a bar on a terminal says how far it is."""
    import torch

    from alexnet_exp.runs.predict_output import Row

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    workers = max(1, min(8, cores.available_cores()))
    screen = Console(stderr=True)
    with (
        Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        task = progress.add_task("images", total=len(files))
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            images = list(pool.map(lambda file: _stored(classifier, file), batch))
            good = [image for image in images if not isinstance(image, str)]
            said = iter(_named(classifier, torch.stack(good), top_k) if good else [])
            for file, image in zip(batch, images, strict=True):
                yield Row(file, error=image) if isinstance(image, str) else Row(file, next(said))
            progress.advance(task, len(batch))


def _named(classifier: LoadedClassifier, images: Tensor, top_k: int) -> list[Prediction]:
    probabilities = classifier.probabilities(images)
    if not probabilities.isfinite().all():
        raise UserError(f"{classifier.path}: the network's output is not finite; its training went wrong.")
    return classifier.top(probabilities, top_k)


def _stored(classifier: LoadedClassifier, file: str) -> Tensor | str:
    """Return an image as stored, or what is wrong with its file."""
    try:
        return classifier.preprocess.stored(file)
    except UserError as error:
        return str(error).removeprefix(f"{printable(file)} ")  # a row names its file
