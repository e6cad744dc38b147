"""Whether batch normalisation can take the smallest batch of a run; torch says so in the middle of an epoch."""

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
_TOO_FEW = "more than 1 value per channel"  # how torch says so
_FURTHER = 64  # batch sizes beyond twice the present one that are tried for a better one


def check_batch_norm(trainer: Trainer, network: nn.Module) -> None:
    """Refuse a batch size that leaves batch normalisation a single value per channel to take statistics of.

    That is a slice of one image where the map has one pixel. Costs nothing where every slice has two images.

    Args:
        trainer: Its training batches are known.
        network: As it trains, on its device.

    Raises:
        UserError: Names a batch size that fits.
    """
    data, plan = getattr(trainer, "datamodule", None), getattr(trainer.train_dataloader, "sampler", None)
    if not isinstance(data, ImageData) or not isinstance(plan, BatchPlan):
        return
    batches = min(len(plan), trainer.num_training_batches)
    if trainer.max_steps > 0:
        batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
    if not batches or plan.smallest_slice(int(batches)) > 1:
        return
    side = data.preprocess.image_size
    alone = _alone(network, (data.channels, side, side))
    synchronised = alone == {True}  # such layers see the batches of all ranks together
    if not alone or (synchronised and plan.smallest_batch(int(batches)) > 1):
        return
    alone_on = (
        "a device with a single image of a batch" if plan.world_size > 1 else "a batch of a single image"
    )
    count = f"{plan.num_images} training images" + f" on {plan.world_size} devices" * (plan.world_size > 1)
    better = _better(plan, synchronised)
    raise UserError(
        f"data.batch_size={plan.batch_size} leaves {alone_on} ({count}), and batch normalisation needs more than one "
        f"value per channel: {f'set data.batch_size={better}' if better else 'it takes more training images'}."
    )


def _better(plan: BatchPlan, synchronised: bool) -> int | None:
    """Return the nearest batch size that leaves no rank a single image, and cuts evenly."""
    ranks = plan.world_size
    sizes = range(ranks, 2 * plan.batch_size + _FURTHER * ranks, ranks)
    for size in sorted(sizes, key=lambda size: abs(size - plan.batch_size)):
        other = replace(plan, batch_size=size)
        smallest = other.smallest_batch if synchronised else other.smallest_slice
        if smallest(len(other)) > 1:
            return size
    return None


def _alone(network: nn.Module, shape: tuple[int, int, int]) -> set[bool]:
    """Send one image through a network, and return which kinds of batch normalisation get a single value per channel.

    Nothing is changed by it: a layer that would update its statistics is in evaluation meanwhile.

    Returns:
        Of True (synchronised over the ranks) and False (every rank by itself) those that there are.
    """
    alone: set[bool] = set()
    held: set[nn.Module] = set()

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        if not module.training:
            return
        if given and given[0].numel() == given[0].shape[1]:
            alone.add(isinstance(module, nn.SyncBatchNorm))
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
        with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []), torch.no_grad():
            # Not called as a module: nothing is compiled for it.
            network.forward(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        # A layer without running statistics, or a function; anything else is for the first step to say.
        if _TOO_FEW in str(error) and not alone:
            alone.add(False)
    finally:
        for hook in hooks:
            hook.remove()
    return alone
