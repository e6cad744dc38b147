"""Check up front that the smallest batch of a run is large enough for batch normalisation.

Otherwise torch fails in the middle of an epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning import Trainer
from torch import nn

from alexnet_exp.data import ImageData
from alexnet_exp.data.loaders import BatchPlan
from alexnet_exp.errors import UserError

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TOO_FEW = "more than 1 value per channel"  # part of torch's own message
_EXTRA_SIZES = 64  # how many sizes beyond twice the current one are searched for a suggestion


def check_batch_norm(trainer: Trainer, network: nn.Module) -> None:
    """Refuse a batch size that leaves some batch normalisation layer a single value per channel.

    This happens when a rank gets one image and the feature map has one pixel. Free if every slice has two images.

    Args:
        trainer: With its number of training batches known.
        network: In training mode, on its device.

    Raises:
        UserError: Suggests a batch size that works.
    """
    # A custom data module or loader does not say how it slices; torch's own error has to do there.
    data, plan = getattr(trainer, "datamodule", None), getattr(trainer.train_dataloader, "sampler", None)
    if not isinstance(data, ImageData) or not isinstance(plan, BatchPlan):
        return
    batches = min(len(plan), trainer.num_training_batches)
    if trainer.max_steps > 0:
        batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
    if not batches or plan.smallest_slice(int(batches)) > 1:
        return
    side = data.preprocess.image_size
    kinds = _single_value_layers(network, (data.channels, side, side))
    synchronised = kinds == {True}  # SyncBatchNorm sees the whole batch, over all ranks
    if not kinds or (synchronised and plan.smallest_batch(int(batches)) > 1):
        return
    what = "a device with a single image of a batch" if plan.world_size > 1 else "a batch of a single image"
    count = f"{plan.num_images} training images" + f" on {plan.world_size} devices" * (plan.world_size > 1)
    better = _better(plan, synchronised)
    raise UserError(
        f"data.batch_size={plan.batch_size} leaves {what} ({count}), but batch normalisation needs more than one "
        f"value per channel: {f'set data.batch_size={better}' if better else 'use more training images'}."
    )


def _better(plan: BatchPlan, synchronised: bool) -> int | None:
    """Return the nearest batch size that divides evenly and leaves no rank a single image; None if there is none."""
    ranks = plan.world_size
    sizes = range(ranks, 2 * plan.batch_size + _EXTRA_SIZES * ranks, ranks)
    # Searched, not computed: the remainder of the last batch jumps with every size.
    for size in sorted(sizes, key=lambda size: abs(size - plan.batch_size)):
        other = replace(plan, batch_size=size)
        smallest = other.smallest_batch if synchronised else other.smallest_slice
        if smallest(len(other)) > 1:
            return size
    return None


def _single_value_layers(network: nn.Module, shape: tuple[int, int, int]) -> set[bool]:
    """Run one image through a network and return the kinds of batch normalisation that get one value per channel.

    Has no side effects: each batch normalisation layer is in eval mode while it runs, so no statistics are updated.

    Returns:
        True for a SyncBatchNorm layer, False for any other; empty if there is no such layer.
    """
    kinds: set[bool] = set()
    held: set[nn.Module] = set()

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        if not module.training:
            return
        if given and given[0].numel() == given[0].shape[1]:  # (N, C, ...)
            kinds.add(isinstance(module, nn.SyncBatchNorm))
        module.training = False
        held.add(module)

    def after(module: nn.Module, given: Any, output: Any) -> None:
        if module in held:
            module.training = True

    layers = [module for module in network.modules() if isinstance(module, _BATCH_NORM)]
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after, always_call=True) for layer in layers]
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        # Dropout draws random numbers here, which must not change those of the run.
        with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []), torch.no_grad():
            # forward() rather than __call__, which would trigger compilation.
            network.forward(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        # A layer without running statistics, or F.batch_norm. Any other error is left to the first training step.
        if _TOO_FEW in str(error) and not kinds:
            kinds.add(False)
    finally:
        for hook in hooks:
            hook.remove()
    return kinds
