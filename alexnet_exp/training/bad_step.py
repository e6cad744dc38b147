"""The step at which the loss or a gradient is not finite: which images it had, and a file that makes it again.

On the processor, and with trainer.detect_anomaly=true everywhere, such a step is noticed before it changes the weights.
RUN_DIR/bad_step.pt then holds all that it is made of: a checkpoint (without what training goes on from), the images as
augmentation left them, their labels and the random state. `python -m alexnet_exp.runs.bad_step FILE` makes it again.
On an accelerator it is noticed later, when the weights are bad already: the images are named, and the run resumed with
trainer.detect_anomaly=true comes to the same step again.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from alexnet_exp.data.loaders import Batch
from alexnet_exp.errors import UserError

if TYPE_CHECKING:
    from alexnet_exp.training.classifier import ImageClassifier

log = logging.getLogger("run")  # train.log alone
NAME = "bad_step.pt"
_ADVICE = "Try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.detect_anomaly=true."
_SHOWN = 3  # images that a message names


def not_finite(
    classifier: ImageClassifier, batch: Batch, losses: Tensor, what: str = "The loss"
) -> UserError:
    """Keep the step that is being taken, and return the error that names it.

    Args:
        classifier: In the middle of the step, its weights as before.
        batch: As the network got it.
        losses: (size,) of its images.
        what: Is not finite.
    """
    indices = batch.indices[: batch.size]
    bad = indices[~losses.isfinite()] if what == "The loss" else indices
    file = _write(classifier, batch, losses)
    again = f" python -m alexnet_exp.runs.bad_step {file} makes the step again." if file else ""
    return _error(classifier, what, classifier.global_step + 1, bad, again)


def noticed_late(classifier: ImageClassifier, step: int, indices: list[Tensor]) -> UserError:
    """Return the error for a step that is over.

    Args:
        classifier: Its weights are of no use any more.
        step: The first whose loss was not finite.
        indices: Of its images, batch by batch.
    """
    again = " resume=RUN_DIR trainer.detect_anomaly=true comes to the step again, and keeps it."
    return _error(classifier, "The loss", step, torch.cat(indices), again)


def check_weights(trainer: Trainer) -> None:
    """Stop the run if a weight or its moving average is not finite; waits for the device.

    The loss of a step says nothing of the weights that the step leaves behind.

    Raises:
        UserError: Names the step after which it was noticed.
    """
    classifier = trainer.lightning_module
    averages = [c._average_model for c in trainer.callbacks if isinstance(c, WeightAveraging)]
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


@torch.no_grad()
def _are_finite(tensors: Iterable[Tensor]) -> bool:
    found = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    # The largest magnitude of each in one pass; the device is asked once.
    largest = torch._foreach_norm(found, math.inf) if found else []
    return not largest or bool(torch.stack([value.isfinite() for value in largest]).all())


def _error(classifier: ImageClassifier, what: str, step: int, indices: Tensor, again: str) -> UserError:
    names = image_names(classifier, indices)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f", with {', '.join(names[:_SHOWN])}{more}"
    log.info("The images of step %d: %s", step, ", ".join(names))
    return UserError(
        f"{what} is not finite at step {step} (epoch {classifier.current_epoch}){which}; training stopped and the "
        f"last checkpoint is from before.{again} {_ADVICE}"
    )


def image_names(classifier: ImageClassifier, indices: Tensor) -> list[str]:
    """Return the names of training images; their positions where there is no data module."""
    data = getattr(classifier.trainer, "datamodule", None)
    if data is None:
        return [f"image {index}" for index in indices.tolist()]
    return [data.sources["train"].image_name(index) for index in indices.tolist()]


def _write(classifier: ImageClassifier, batch: Batch, losses: Tensor) -> Path | None:
    """Write the file; return None where that is not possible, since the step itself is the thing to say."""
    folder = getattr(classifier.trainer, "default_root_dir", None)
    if folder is None:
        return None
    rank = classifier.global_rank
    path = Path(folder) / (NAME if rank == 0 else f"rank{rank}_{NAME}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(_content(classifier, batch, losses), temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # the latter is how torch says that a disk is full
        log.warning("%s cannot be written: %s", path, error)
        return None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _content(classifier: ImageClassifier, batch: Batch, losses: Tensor) -> dict[str, Any]:
    mixing = classifier.mixing(batch)
    return {
        **classifier.embed,
        "classes": list(classifier.classes),
        "state_dict": classifier.state_dict(),
        "step": classifier.global_step + 1,
        "epoch": classifier.current_epoch,
        "random_seed": classifier.random_seed(),
        "names": image_names(classifier, batch.indices),
        **{key: value.detach().cpu() for key, value in _tensors(batch, losses).items()},
        "size": batch.size,
        "global_size": batch.global_size,
        "partners": None if mixing is None else mixing.partners.cpu(),
        "shares": None if mixing is None else mixing.shares.cpu(),
    }


def _tensors(batch: Batch, losses: Tensor) -> dict[str, Tensor]:
    return {"images": batch.images, "labels": batch.labels, "indices": batch.indices, "losses": losses}
