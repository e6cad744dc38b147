"""Loading and augmentation without a network, with and without the decoded cache, against torchvision.

    python benchmarks/data.py [settings of train] [workers=2 repeats=7 steps=20 ...]

`workers` is the number of torchvision's worker processes, and of ours where JPEG files are decoded.
"""

from __future__ import annotations

from script import run

# isort: split

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from baseline import SETTINGS, PilImages, PlainLoader, transform_of

from alexnet_exp.data.module import ImageData
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.runs.benchmark.loop import RunLoader
from alexnet_exp.runs.benchmark.subject import SYNTHETIC, Subject, title
from alexnet_exp.runs.benchmark.timing import Row, alternate, rows
from alexnet_exp.targets import build

_BATCH = 512  # for the kernels on one thread: large enough to make fixed costs negligible


def measure_data(subject: Subject) -> list[Row]:
    """Time the run's loader, CIFAR augmentation on one thread, and folders of JPEG files.

    Returns:
        Rows with images per second; `ratio` is how many times faster than torchvision.
    """
    return [
        *_compare("load and augment", _places(subject), subject),
        *_measure_kernels(subject),
        *_compare("folder", _caches(subject), subject, whole_epochs=True),
    ]


def _compare(what: str, ours: dict[str, Subject], subject: Subject, whole_epochs: bool = False) -> list[Row]:
    """Time batches as the network receives them: ours in several variants, torchvision's from worker processes.

    Args:
        what: Start of the title.
        ours: Variants of the run that keep images in different places, by name.
        subject: Number of repeats, steps and workers.
        whole_epochs: Time epochs instead of `steps` batches; the first fills the decoded cache.
    """
    workers, steps = subject.further["workers"], subject.options.steps
    fits = {name: one.fit() for name, one in ours.items()}
    fit = next(iter(fits.values()))
    batch_size, device = fit.data.batch_size, fit.trainer.strategy.root_device
    if whole_epochs:
        steps = max(1, len(fit.data.sources["train"]) // batch_size)
    parts = 1 if whole_epochs else steps
    images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
    reference = f"torchvision, PIL, {workers} workers"
    loaders: dict[str, RunLoader | PlainLoader] = {name: RunLoader(each) for name, each in fits.items()}
    loaders[reference] = PlainLoader(images, batch_size, workers, device)
    with contextlib.ExitStack() as stack:
        for loader in loaders.values():
            stack.enter_context(loader)
        cases = {name: partial(take, loader, steps) for name, loader in loaders.items()}
        times = alternate(cases, subject.repeats, subject.device, warmup=1, parts=parts)
    what = f"{what}: {title(fit, next(iter(ours.values())).overrides)}"
    return rows(what, times, steps // parts * batch_size, reference)


def take(loader: RunLoader | PlainLoader, count: int) -> None:
    """Consume `count` batches."""
    for _ in loader.steps(count):
        pass


def _places(subject: Subject) -> dict[str, Subject]:
    if subject.device == "cpu":
        return {"ours": subject}
    return {
        f"ours, data.resident={p}": subject.with_overrides(f"data.resident={p}") for p in ("device", "host")
    }


def _caches(subject: Subject) -> dict[str, Subject]:
    """Return the run on its own folder, or on a generated one: decoding every time, and from the cache."""
    more = [f"data.num_workers={subject.further['workers']}"]
    if "data=folder" not in subject.overrides:
        kept = [o for o in subject.overrides if o.startswith(("paths", "trainer"))]
        subject = replace(subject, overrides=kept)
        more += ["model=alexnet_lrn", "data=folder", f"data.root={SYNTHETIC}"]
    return {
        "ours, decoding": subject.with_overrides(*more, "data.cache=off"),
        "ours, from the cache": subject.with_overrides(*more, "data.cache=disk"),
    }


def _measure_kernels(subject: Subject) -> list[Row]:
    """Time padding, crop, horizontal flip and normalisation at 32 pixels, on one CPU thread."""
    small = ["model=alexnet_cifar", "data=digits", "augment=flip_crop"]
    config = replace(subject, overrides=small, device="cpu").config()
    data: ImageData = build(config["data"], augment=config["augment"], seed=0)
    images, indices = torch.randint(0, 256, (_BATCH, 3, 32, 32), dtype=torch.uint8), torch.arange(_BATCH)
    data.sources["train"] = ArraySource(
        images, torch.zeros(_BATCH, dtype=torch.long), ("any",), "noise train"
    )
    theirs = PilImages(data.sources["train"], transform_of(data, config["augment"]))
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: data.pipeline.train(images, indices, 0, 0),
        "torchvision, PIL": lambda: torch.stack([theirs[i][0] for i in range(_BATCH)]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = alternate(cases, subject.repeats, "cpu", warmup=3)
    finally:
        torch.set_num_threads(threads)
    what = f"crop, flip, normalise at 32 pixels, batch {_BATCH}, one thread"
    return rows(what, times, _BATCH, "torchvision, PIL")


if __name__ == "__main__":
    sys.exit(run(measure_data, SETTINGS))
