"""Loading and augmentation without a network, against torchvision's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch

from alexnet_exp.data.module import ImageData
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.runs.benchmark_folder import measure_folder
from alexnet_exp.runs.benchmark_plain import PilImages, PlainLoader, transform_of
from alexnet_exp.runs.benchmark_subject import Subject, title
from alexnet_exp.runs.benchmark_workers import RunLoader, take
from alexnet_exp.runs.timing import Row, alternate, rows
from alexnet_exp.targets import build

_BATCH = 512  # of the kernels on one thread: large enough for their fixed costs not to count


def measure_data(subject: Subject) -> list[Row]:
    """Time the run's loader, the kernels of CIFAR's augmentation on one thread, and folders of JPEG files.

    Returns:
        Rows with images per second; `ratio` is how many times faster than torchvision's way.
    """
    return [*_measure_loader(subject), *_measure_kernels(subject), *measure_folder(subject)]


def _measure_loader(subject: Subject) -> list[Row]:
    """Time batches as the network gets them: ours from each place they can be kept, torchvision's from workers."""
    fits = {name: one.fit() for name, one in _places(subject).items()}
    fit = next(iter(fits.values()))
    transform = transform_of(fit.data, fit.config["augment"])
    device, steps = fit.trainer.strategy.root_device, subject.options["steps"]
    with contextlib.ExitStack() as stack:
        cases: dict[str, Callable[[], object]] = {}
        for name, ours in fits.items():
            cases[name] = partial(take, stack.enter_context(RunLoader(ours)), steps)
        images = PilImages(fit.data.sources["train"], transform)
        loader = PlainLoader(images, fit.data.batch_size, subject.options["workers"], device)
        theirs = stack.enter_context(loader)
        reference = f"torchvision, PIL, {subject.options['workers']} workers"
        cases[reference] = partial(take, theirs, steps)
        times = alternate(cases, subject.repeats, subject.device, warmup=1, parts=steps)
    what = f"load and augment: {title(fit, subject.overrides)}"
    return rows(what, times, fit.data.batch_size, reference)


def _places(subject: Subject) -> dict[str, Subject]:
    if subject.device == "cpu":
        return {"ours": subject}
    return {
        f"ours, data.resident={p}": subject.with_overrides(f"data.resident={p}") for p in ("device", "host")
    }


def _measure_kernels(subject: Subject) -> list[Row]:
    """Time padding, crop, mirror image and normalisation at 32 pixels, on one thread of the processor."""
    small = ["model=alexnet_cifar", "data=digits", "augment=flip_crop"]
    config = Subject(subject.options, small, "cpu", subject.scratch).config()
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
