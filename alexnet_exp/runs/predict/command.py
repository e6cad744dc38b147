"""`alexnet-exp predict`: classify images."""

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
from alexnet_exp.config.schema import (
    VIEWS,
    at_least,
    checked,
    choice,
    group,
    list_of,
    null,
    path,
    setting,
    text,
    trusted,
)
from alexnet_exp.data.datasets.left_out import JUNK_FOLDERS, LeftOut
from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.errors import UserError, printable
from alexnet_exp.tracking.log import log, logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import learned_nothing
from alexnet_exp.tracking.terminal import nearby

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet_exp.inference import LoadedClassifier, Prediction
    from alexnet_exp.runs.predict.output import Embeddings, Row


@group
class Predict:
    """Keys of conf/predict.yaml."""

    ckpt: str = setting(path)
    images: str | list[str] = setting(path | list_of(path))
    top_k: int = setting(at_least(1))
    views: str | None = setting(choice(*VIEWS) | null)
    embed: str | None = setting(text | null)
    batch_size: int = setting(at_least(1))
    device: str = setting(text)
    trust: list[str] = setting(trusted)


def predict(config: dict[str, Any], run_dir: Path, command: str) -> int:
    """Classify images; print a table, and write predictions.csv, .jsonl and .png, report.html and embeddings.npz.

    Args:
        config: Keys of conf/predict.yaml.
        run_dir: Output directory.
        command: The command line, for the record.

    Returns:
        Exit code: 0, or 2 if some images could not be read.

    Raises:
        UserError: Illegal setting, checkpoint that cannot be read, unknown layer, non-finite network output, no images,
            or not enough memory for embeddings.
    """
    settings = checked(Predict, config)
    files = find_images(settings.images)
    from alexnet_exp.inference import load_classifier
    from alexnet_exp.runs.predict.output import Embeddings, print_rows, remark, write_all, write_embeddings
    from alexnet_exp.runs.predict.seen import trained_on

    console, run = Console(), RunDirectory(run_dir)
    with run.fresh(), logging_to(None, on_screen=True):
        classifier = load_classifier(settings.ckpt, settings.device, settings.trust)
        if warning := learned_nothing({"at_chance": classifier.at_chance}):
            log.warning(warning)
        views = settings.views or classifier.config["augment"].get("views") or "centre"
        config = {**config, "views": views}
        _check(classifier, settings, views)
        embeddings = None if settings.embed is None else Embeddings(settings.embed, len(files))
        rows = list(_predict(classifier, files, settings, views, embeddings))
        print_rows(rows, console)
        good = [row.path for row in rows if row.error is None]
        facts: dict[str, Any] = {"command": command, "settings": config, "checkpoint": str(classifier.path)}
        if seen := trained_on(classifier, good):
            facts["training_images"] = len(seen)
            log.warning(remark(len(seen), len(good)))
        if embeddings is not None:
            write_embeddings(run.path / "embeddings.npz", embeddings.array, rows, classifier.classes)
        write_all(run, rows, facts)
    for what, place in (("report:       ", run_dir / "report.html"), ("run directory:", run_dir)):
        line = f"{what} {printable(nearby(place))}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 2 if any(row.error for row in rows) else 0


def _check(classifier: LoadedClassifier, settings: Predict, views: str) -> None:
    """Check views and layer before images are read."""
    from alexnet_exp.models.activations import find_layer

    classifier.preprocess.pipeline.check_views(views, classifier.preprocess.stored_size)
    if settings.embed is not None:
        find_layer(classifier.model, settings.embed, "embed")


def _predict(
    classifier: LoadedClassifier,
    files: list[str],
    settings: Predict,
    views: str,
    embeddings: Embeddings | None,
) -> Iterator[Row]:
    """Yield a row per file, in order, with a progress bar on a terminal."""
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
        task, batch_size = progress.add_task("images", total=len(files)), settings.batch_size
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            images = list(pool.map(lambda file: _read(classifier, file), batch))
            good = [image for image in images if not isinstance(image, str)]
            found = iter(_classify(classifier, good, settings, views, embeddings) if good else [])
            for file, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    yield Row(file, error=image)
                else:
                    yield Row(file, next(found))
            progress.advance(task, len(batch))


def _classify(
    classifier: LoadedClassifier,
    images: list[Tensor],
    settings: Predict,
    views: str,
    embeddings: Embeddings | None,
) -> list[Prediction]:
    """Return the predictions of stored images, and add their embeddings."""
    import torch

    stored = torch.stack(images)
    if embeddings is None or settings.embed is None:
        probabilities = classifier.probabilities(stored, views)
    else:
        probabilities, found = classifier.probabilities_and_activations(stored, settings.embed, views)
        embeddings.add(found.numpy())
    if not probabilities.isfinite().all():
        raise UserError(f"{classifier.path}: the network's output is not finite; its training diverged.")
    return classifier.top(probabilities, settings.top_k)


def _read(classifier: LoadedClassifier, file: str) -> Tensor | str:
    """Return the stored image of a file, or the reason why it cannot be read."""
    try:
        return classifier.preprocess.stored(file)
    except UserError as error:
        return str(error).removeprefix(f"{printable(file)} ")  # the row names the file already


def find_images(wanted: str | list[str]) -> list[str]:
    """List the requested image files without duplicates.

    Args:
        wanted: A file, a folder (searched recursively), a glob pattern, '-' (one path per line on stdin), or a list of
            these. Folders and patterns are filtered by file extension. Files named explicitly are not, and may be
            missing as long as another exists: their rows then contain the error.

    Raises:
        UserError: No file was found, or a named folder is not readable.
    """
    named = [wanted] if isinstance(wanted, str) else list(wanted)
    asked = [path for one in named for path in (_lines() if one == "-" else [str(one)])]
    left_out = LeftOut(os.curdir, readable_extensions())
    found = list(dict.fromkeys(path for one in asked for path in _expand(os.path.expanduser(one), left_out)))
    if not any(os.path.exists(path) for path in found):
        for one in map(os.path.expanduser, asked):
            # A file needs only a searchable folder; a pattern also lists its names.
            _check_open(_folder_of(one), os.R_OK | os.X_OK if glob.has_magic(one) else os.X_OK)
        said = ", ".join("standard input" if one == "-" else str(one) for one in named[:3])
        raise UserError(
            f"No image found in {said or '[]'}: pass a file, a folder, a pattern or a list of them "
            f"({', '.join(readable_extensions())})."
        )
    if text := left_out.text():
        print(f"warning: skipping {text}", file=sys.stderr)
    return found


def _lines() -> list[str]:
    # File names need not be valid UTF-8, and may contain what str.splitlines takes for the end of a line.
    text = os.fsdecode(sys.stdin.buffer.read()) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _expand(path: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images of a path, folder or pattern; other files of a folder or pattern are counted in `left_out`."""
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
    """Yield the images below a folder, except hidden ones, in an order that does not depend on the file system."""
    for root, folders, files in os.walk(folder):
        seen = sorted(name for name in folders if not name.startswith(".") and name not in JUNK_FOLDERS)
        folders[:] = [name for name in seen if os.access(os.path.join(root, name), os.R_OK | os.X_OK)]
        for closed in sorted(os.path.join(root, name) for name in set(seen) - set(folders)):
            print(f"warning: skipping {printable(closed)}: permission denied.", file=sys.stderr)
        for name in sorted(files):
            if not name.startswith(".") and _is_image(os.path.join(root, name), left_out):
                yield os.path.join(root, name)


def _folder_of(path: str) -> str:
    """Return the innermost existing folder on the way to a file or pattern."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or "."


def _check_open(folder: str, how: int = os.R_OK | os.X_OK) -> None:
    if not os.access(folder, how):  # R_OK: list its names; X_OK: open its files
        raise UserError(
            f"{folder} is not readable: change its permissions (chmod u+rx), or use another folder."
        )
