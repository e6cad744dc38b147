"""Image folders: decoding JPEG files, and the decoded cache, against torchvision's ImageFolder on Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from alexnet_exp.runs.benchmark_plain import PilImages, PlainLoader, transform_of
from alexnet_exp.runs.benchmark_subject import SYNTHETIC, Subject, title
from alexnet_exp.runs.benchmark_workers import RunLoader, take
from alexnet_exp.runs.fit import Fit
from alexnet_exp.runs.timing import Row, alternate, rows

_MADE = ("model=alexnet_lrn", "data=folder", f"data.root={SYNTHETIC}")


def measure_folder(subject: Subject) -> list[Row]:
    """Time whole epochs of training batches from a folder: the run's own (data=folder), or one made for it.

    Returns:
        One row for decoding, one for the decoded cache after its first epoch, and one for torchvision.
    """
    folder = _folder(subject)
    workers = subject.options["workers"]
    with contextlib.ExitStack() as stack:
        fits = {name: one.fit() for name, one in _caches(folder).items()}
        cases: dict[str, Callable[[], object]] = {}
        for name, ours in fits.items():
            cases[name] = partial(take, stack.enter_context(RunLoader(ours)), _epoch(ours))
        fit = next(iter(fits.values()))
        images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
        device = fit.trainer.strategy.root_device
        theirs = stack.enter_context(PlainLoader(images, fit.data.batch_size, workers, device))
        reference = f"torchvision, PIL, {workers} workers"
        cases[reference] = partial(take, theirs, _epoch(fit))
        times = alternate(cases, subject.repeats, subject.device, warmup=1)
    what = f"folder: {title(fit, folder.overrides)}"
    return rows(what, times, _epoch(fit) * fit.data.batch_size, reference)


def _folder(subject: Subject) -> Subject:
    more = [f"data.num_workers={subject.options['workers']}"]
    if "data=folder" not in subject.overrides:
        kept = [o for o in subject.overrides if o.startswith(("paths", "trainer"))]
        subject = Subject(subject.options, kept, subject.device, subject.scratch, subject.notes)
        more += _MADE
    return subject.with_overrides(*more)


def _caches(folder: Subject) -> dict[str, Subject]:
    return {
        "ours, decoding": folder.with_overrides("data.cache=off"),
        "ours, from the cache": folder.with_overrides("data.cache=disk"),
    }


def _epoch(fit: Fit) -> int:
    """Return the whole batches of an epoch."""
    return max(1, len(fit.data.sources["train"]) // fit.data.batch_size)
