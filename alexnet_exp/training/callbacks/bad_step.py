"""The step at which the loss or a gradient is not finite, and the images that it had.

On CPU, and with trainer.detect_anomaly=true everywhere, such a step is noticed before it changes the weights. On an
accelerator it is noticed later, when the weights are bad already; the run resumed with trainer.detect_anomaly=true
comes to the same step again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from alexnet_exp.errors import UserError
from alexnet_exp.training.lightning_internals import average_of

log = logging.getLogger("run")  # train.log alone
_ADVICE = "Try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.detect_anomaly=true."
_SHOWN = 3  # images that a message names


def not_finite(what: str, step: int, epoch: int, names: list[str]) -> UserError:
    """Return the error for a step whose loss or gradient is not finite.

    Args:
        what: Is not finite.
        step: The first of them, from 1.
        epoch: In which that was noticed.
        names: Of its images.
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f", with {', '.join(names[:_SHOWN])}{more}"
    log.info("The images of step %d: %s", step, ", ".join(names))
    return UserError(
        f"{what} is not finite at step {step} (epoch {epoch}){which}; training stopped and the last checkpoint is from "
        f"before. resume=RUN_DIR trainer.detect_anomaly=true comes to the step again. {_ADVICE}"
    )


def check_weights(trainer: Trainer) -> None:
    """Stop the run if a weight or its moving average is not finite; waits for the device.

    The loss of a step says nothing of the weights that the step leaves behind.

    Raises:
        UserError: Names the step after which it was noticed.
    """
    classifier = trainer.lightning_module
    averages = [average_of(c) for c in trainer.callbacks if isinstance(c, WeightAveraging)]
    modules = [
        ("weights", classifier),
        *(("averaged weights", module) for module in averages if module is not None),
    ]
    for what, module in modules:
        if not _are_finite(_trained(module)):
            raise UserError(
                f"The {what} are not finite after step {trainer.global_step} (epoch {trainer.current_epoch}); training "
                "stopped and the last checkpoint is from before. resume=RUN_DIR trainer.detect_anomaly=true comes to "
                f"the step again. {_ADVICE}"
            )


def _trained(module: nn.Module) -> Iterator[Tensor]:
    """Yield what training changes; another buffer, such as the mask of an attention, may be infinite by design."""
    yield from module.parameters()
    yield from (
        value for name, value in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    )


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    found = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return bool(get_total_norm(found, math.inf).isfinite())  # the largest magnitude: the device is asked once
