"""Hand-written training steps: the reference for `Trainer`, and the step that is timed on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.config.groups import Settings
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.targets import build
from alexnet_exp.training.automatic import compile_network
from alexnet_exp.training.callbacks.freeze import FreezeLayers
from alexnet_exp.training.optim.build import build_optimizer

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
