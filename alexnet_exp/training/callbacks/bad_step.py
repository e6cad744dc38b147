"""Stop at a step whose loss or gradient is not finite, and name its images.

On CPU, or with trainer.detect_anomaly=true, the step is caught before it changes the weights. On an accelerator it is
noticed later, to avoid a sync at every step; resuming with trainer.detect_anomaly=true reaches the same step again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from alexnet_exp.errors import UserError
from alexnet_exp.training.lightning_internals import average_of

log = logging.getLogger("run")  # goes to train.log only
_ADVICE = "Try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.detect_anomaly=true."
_SHOWN = 3  # images named in the message


def not_finite(what: str, step: int, epoch: int, names: list[str]) -> UserError:
    """Return the error for a step whose loss or gradient is not finite.

    Args:
        what: What is not finite, capitalised.
        step: The first bad step, from 1.
        epoch: Epoch in which it was noticed.
        names: Names of the images in that step.
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f", with {', '.join(names[:_SHOWN])}{more}"
    log.info("The images of step %d: %s", step, ", ".join(names))
    return UserError(
        f"{what} is not finite at step {step} (epoch {epoch}){which}; training stopped, and the last checkpoint is "
        f"from before that step. resume=RUN_DIR trainer.detect_anomaly=true repeats it. {_ADVICE}"
    )


def check_weights(trainer: Trainer) -> None:
    """Stop the run if a weight or an averaged weight is not finite; waits for the device.

    Needed beside the check of the loss, which is computed before the update.

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
        tensors = [t for t in _trained(module) if t.is_floating_point() and t.numel()]
        # The largest magnitude of all tensors, so that the device is read once.
        # NaN propagates through the maximum.
        if not get_total_norm(tensors, math.inf).isfinite():
            raise UserError(
                f"The {what} are not finite after step {trainer.global_step} (epoch {trainer.current_epoch}); training "
                "stopped, and the last checkpoint is from before that step. "
                f"resume=RUN_DIR trainer.detect_anomaly=true repeats it. {_ADVICE}"
            )


def _trained(module: nn.Module) -> Iterator[Tensor]:
    """Yield what training updates; other buffers, such as an attention mask, may be infinite by design."""
    yield from module.parameters()
    yield from (
        value for name, value in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    )
