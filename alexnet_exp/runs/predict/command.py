"""`alexnet-exp predict`: name what is in images."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet_exp import cores
from alexnet_exp.config.checks import check_rules
from alexnet_exp.config.schema import at_least, list_of, path, text
from alexnet_exp.data.datasets.left_out import JUNK_FOLDERS, LeftOut
from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.errors import UserError, printable
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.terminal import nearby

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet_exp.inference import LoadedClassifier, Prediction
    from alexnet_exp.runs.predict.output import Row

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
    check_rules(config, RULES)
    files = find_images(config["images"])
    from alexnet_exp.inference import load_classifier
    from alexnet_exp.runs.predict.output import print_rows, write_all

    console, run = Console(), RunDirectory(run_dir)
    with run.fresh(), logging_to(None, on_screen=True):
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

    from alexnet_exp.runs.predict.output import Row

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


def find_images(wanted: str | list[str]) -> list[str]:
    """List the files that the user means, each once.

    Args:
        wanted: A file, a folder (every image below it), a pattern, '-' (a path on each line of standard input), or a
            list of these. Of folders and patterns only files with the ending of an image count; a file that is named
            counts whatever its ending, and also if it does not exist, as long as another does.

    Raises:
        UserError: If there is no such file, or a folder that is named may not be read.
    """
    named = [wanted] if isinstance(wanted, str) else list(wanted)
    asked = [path for one in named for path in (_lines() if one == "-" else [str(one)])]
    left_out = LeftOut(os.curdir, readable_extensions())
    found = list(
        dict.fromkeys(path for one in asked for path in _expanded(os.path.expanduser(one), left_out))
    )
    if not any(os.path.exists(path) for path in found):
        for one in map(os.path.expanduser, asked):
            # The names in a folder are asked for by a pattern alone.
            _check_open(_folder_of(one), os.R_OK | os.X_OK if glob.has_magic(one) else os.X_OK)
        said = ", ".join("standard input" if one == "-" else str(one) for one in named[:3])
        raise UserError(
            f"There is no image in {said or '[]'}: give a file, a folder, a pattern or a list of them "
            f"({', '.join(readable_extensions())})."
        )
    if text := left_out.text():
        print(f"warning: left out: {text}", file=sys.stderr)
    return found


def _lines() -> list[str]:
    # The bytes of a name need not be text, and a name may hold what Unicode counts as the end of a line.
    text = os.fsdecode(sys.stdin.buffer.read()) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _expanded(path: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images that one path, folder or pattern means; what else a folder or pattern has is counted."""
    if os.path.isdir(path):
        _check_open(path)
        yield from _below(path, left_out)
    elif os.path.lexists(path) or not glob.has_magic(path):
        yield path
    else:
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(match) and _is_image(match, left_out):
                yield match


def _is_image(path: str, left_out: LeftOut) -> bool:
    if os.path.splitext(path)[1][1:].lower() in left_out.read:
        return True
    left_out.file(path)
    return False


def _below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images below a folder, hidden ones left out, in an order that is the same on every machine."""
    for root, folders, files in os.walk(folder):
        seen = sorted(name for name in folders if not name.startswith(".") and name not in JUNK_FOLDERS)
        folders[:] = [name for name in seen if _is_open(os.path.join(root, name))]
        for closed in sorted(os.path.join(root, name) for name in set(seen) - set(folders)):
            print(f"warning: {printable(closed)} may not be read: its images are left out.", file=sys.stderr)
        for name in sorted(files):
            if not name.startswith(".") and _is_image(os.path.join(root, name), left_out):
                yield os.path.join(root, name)


def _folder_of(path: str) -> str:
    """Return the innermost folder on the way to a file or pattern, of those that can be seen."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or "."


def _check_open(folder: str, how: int = os.R_OK | os.X_OK) -> None:
    if not _is_open(folder, how):
        raise UserError(f"{folder} may not be read: allow it (chmod u+rx), or name another folder.")


def _is_open(folder: str, how: int = os.R_OK | os.X_OK) -> bool:
    return os.access(folder, how)  # names, and what they stand for
