"""`alexnet-exp inspect`: check a data set before training on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp import cores
from alexnet_exp.config.checks import check_config
from alexnet_exp.errors import UserError, printable, shell_command
from alexnet_exp.tracking.environment import hardware, versions
from alexnet_exp.tracking.log import log, logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.terminal import nearby

if TYPE_CHECKING:
    from alexnet_exp.data.module import ImageData
    from alexnet_exp.runs.inspect.output import Findings

LEAKS = 3  # exit code
# Overrides of augment: the report shows augmented pixels, before any mean image is subtracted.
_AS_PIXELS = {"mean_image": "none", "whiten": False, "views": "centre"}
# Overrides of data: no cache, and bad files are kept so that they can be reported.
_UNDECODED = {"cache": "off", "verify": False, "on_bad_image": "error"}


def inspect(config: dict[str, Any], run_dir: Path, command: str) -> int:
    """Read every image once; print a summary and write report.html, images.csv, duplicates.csv and exclude.txt.

    Args:
        config: Keys of conf/inspect.yaml, the same as those of a run.
        run_dir: Where everything goes.
        command: The command line, for the record.

    Returns:
        Exit code: 0, or 3 if val or test images are also in train.

    Raises:
        UserError: For an invalid setting, missing images, or an unsupported data set.
    """
    settings = check_config(config)
    if settings.resume or settings.ckpt:
        raise UserError("inspect looks at data, not at runs: leave resume= and ckpt= out.")
    if settings.data._target_ == "alexnet_exp.data.Streaming":
        raise UserError(
            "inspect does not read chunks: inspect the folder they were prepared from, data=folder data.root=FOLDER."
        )
    started = time.perf_counter()
    console, run = Console(soft_wrap=True, highlight=False, markup=False), RunDirectory(run_dir)
    with run.fresh(), logging_to(None, on_screen=True):
        with _collected_warnings() as notes:
            data = _open(config)
            data.tell(console.print)
        from alexnet_exp.runs.inspect.duplicates import find_groups
        from alexnet_exp.runs.inspect.look import look
        from alexnet_exp.runs.inspect.output import Findings, summary, write_page, write_tables

        workers = data.num_workers if data.num_workers is not None else cores.available_cores()
        seen = look(data.sources, data.channels, data.stored_size, workers)
        found = Findings.of(seen, find_groups(seen), notes)
        for line in summary(found):
            console.print(line)
        result = {
            "status": "finished",
            "command": command,
            "data": config["data"] | data.chosen,
            **_facts(data, found),
        }
        has_list = write_tables(run_dir, found)
        write_page(run_dir / "report.html", data, found, result)
        run.write_result({**result, "seconds": round(time.perf_counter() - started, 2)})
    if has_list:
        setting = shell_command([f"data.exclude={nearby(run_dir / 'exclude.txt')}"])
        console.print(printable(f"exclude     {len(found.left_out):,} training images with {setting}"))
    for what, place in (("report:       ", run_dir / "report.html"), ("run directory:", run_dir)):
        console.print(f"{what} {printable(nearby(place))}")
    return LEAKS if any(found.leaks.values()) else 0


def _facts(data: ImageData, found: Findings) -> dict[str, Any]:
    """Return what result.json says about the data and the machine."""
    return {
        "splits": data.facts(),
        "unreadable": len(found.unreadable),
        "duplicates": {
            "groups": len(found.groups),
            "exact": sum(group.exact for group in found.groups),
            "labels_differ": sum(group.conflicts for group in found.groups),
        },
        "leaks": found.leaks,
        "mean": found.look.mean,
        "std": found.look.std,
        "versions": versions(),
        "hardware": hardware(),
    }


def _open(config: dict[str, Any]) -> ImageData:
    """Find the images without decoding any: no cache, no mean image, and bad files are kept.

    Raises:
        UserError: If they are missing, or neither files nor in memory.
    """
    from alexnet_exp.data.module import ImageData
    from alexnet_exp.data.sources import ArraySource, FileSource
    from alexnet_exp.runs.evaluate.data import whole_folder
    from alexnet_exp.targets import build

    keys = whole_folder(config["data"], unsplit=(None,))  # "auto": as the run will split it
    keys |= {key: value for key, value in _UNDECODED.items() if key in keys}  # not all data sets have them
    data = build(keys, augment={**config["augment"], **_AS_PIXELS}, seed=config["seed"])
    if isinstance(data, ImageData):
        data.setup()
        if all(isinstance(source, ArraySource | FileSource) for source in data.sources.values()):
            return data
    raise UserError(
        f"inspect reads image files and in-memory images, but {keys['_target_']} has neither: use data=folder."
    )


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect this package's warnings, which name files that were left out, for the report."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(printable(record.getMessage()))

    handler = Notes(logging.WARNING)
    log.addHandler(handler)
    try:
        yield notes
    finally:
        log.removeHandler(handler)
