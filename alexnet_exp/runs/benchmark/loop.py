"""A training loop written by hand, the reference for `Trainer`: plain steps, and the endless batches of a run."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.config.groups import Settings
from alexnet_exp.data.loaders import Batch
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.targets import build
from alexnet_exp.training.automatic import compile_network
from alexnet_exp.training.callbacks.freeze import FreezeLayers
from alexnet_exp.training.lightning_internals import augment_as_in_training
from alexnet_exp.training.optim.build import build_optimizer

T = TypeVar("T")

# Autocast dtype; None without autocast.
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Step = Callable[[Tensor, Tensor], Tensor]


def step_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, precision: str, smoothing: float = 0.0
) -> Step:
    """Return a function (images, labels) -> loss that takes one plain training step.

    Args:
        model: On its device, in its memory format and dtype.
        optimizer: Optimizer of its parameters.
        precision: A key of PRECISIONS.
        smoothing: Label smoothing.
    """
    device = next(model.parameters()).device.type
    dtype = PRECISIONS[precision]
    scaler = torch.amp.GradScaler(device, enabled=precision == "16-mixed")

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = functional.cross_entropy(model(images), labels, label_smoothing=smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def known_precision(precision: str) -> str:
    """Return the precision if it is a key of PRECISIONS.

    Raises:
        UserError: It is not.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} cannot be benchmarked: use one of {', '.join(PRECISIONS)}."
        )
    return precision


def fresh(fit: Fit) -> nn.Module:
    """Return a copy of the run's network in float32 and NCHW, not compiled by `compile`."""
    # Built anew, since the run's own has hooks, memory format and compiled code that a copy would carry along.
    network: nn.Module = build(fit.settings.model)
    network.load_state_dict(fit.classifier.model.state_dict())
    return network


def variant(fit: Fit, precision: str, layout: str, compiled: bool | str) -> Step:
    """Return the hand-written step of a copy of the run's network.

    Args:
        fit: The run.
        precision: A key of PRECISIONS.
        layout: A key of LAYOUTS.
        compiled: See `compile` of a run.

    Raises:
        UserError: Unsupported precision.
    """
    known_precision(precision)
    device = fit.trainer.strategy.root_device
    model = fresh(fit).to(device, memory_format=LAYOUTS[layout]).train()
    if compiled is True:
        # torch specialises its kernels for a few sizes of one network, and a benchmark may have more.
        torch.compiler.reset()
    compile_network(model, compiled)
    optimizer = build_optimizer(model, fit.config["optimizer"])
    if fit.settings.freeze:
        FreezeLayers(model, fit.settings.freeze, None).freeze(model)
    step = step_of(model, optimizer, precision, fit.settings.label_smoothing)
    return lambda images, labels: step(images.contiguous(memory_format=LAYOUTS[layout]), labels)


def as_the_run(fit: Fit) -> Step:
    """Return the hand-written equivalent of the run's training step."""
    return variant(fit, str(fit.trainer.precision), layout_of(fit.settings), fit.settings.compile)


def layout_of(settings: Settings) -> str:
    """Return the memory format of a run, a key of LAYOUTS."""
    return "channels_last" if settings.channels_last else "contiguous"


# ------------------------------------------------------------------------------------------------ batches


class Workers:
    """The worker processes of one side of a comparison; as a context manager, that side's turn.

    Outside their turn they would prefetch batches, which take cores from the other side and then cost nothing in their
    own turn.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._others: set[int] = set()

    def go(self) -> None:
        """Resume them; processes that start before the next `stop` belong to this side."""
        self._others = _running() - self._pids
        self._send(signal.SIGCONT)

    def stop(self) -> None:
        """Pause them."""
        self._pids = _running() - self._others
        self._send(signal.SIGSTOP)

    def free(self) -> None:
        """Resume them for good: a stopped process would not react to a shutdown."""
        self._send(signal.SIGCONT)
        self._pids = set()

    def __enter__(self) -> Workers:
        self.go()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _send(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has died; the loader reports why
                os.kill(pid, number)


def _running() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


class TurnLoader(Generic[T]):
    """Endless batches, whose workers pause outside their turn; as a context manager, shuts them down.

    Args:
        batches: Endless batches.
        close: Shuts down the workers.
    """

    def __init__(self, batches: Generator[T, None, None], close: Callable[[], object]) -> None:
        self._batches, self._close = batches, close
        self._workers = Workers()

    def steps(self, count: int) -> Iterator[T]:
        """Yield `count` batches; the workers run until the consumer is done with the last."""
        with self._workers:
            yield from itertools.islice(self._batches, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.free()
        self._batches.close()
        self._close()


class RunLoader(TurnLoader[Batch]):
    """The augmented training batches of a run.

    Args:
        fit: The run.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__(endless_batches(fit), fit.data.teardown)


def endless_batches(fit: Fit) -> Generator[Batch, None, None]:
    """Yield training batches as the network receives them: loaded, on the device, augmented.

    Smaller last batches are skipped, so that all steps do the same work.
    """
    augment_as_in_training(fit.trainer)
    data, device = fit.data, fit.trainer.strategy.root_device
    loader = data.loader("train", shuffle=True)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # Lightning's part; without it every epoch has the same order
        for batch in loader:
            # A data set may be smaller than a batch.
            if batch.size < min(data.batch_size, len(data.sources["train"])):
                continue
            yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
