"""A trained network taken apart: its towers, its layers, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_exp.models.layers import LocallyConnected2d

_CONVOLUTIONS = (nn.Conv2d, LocallyConnected2d)


def first_towers(network: nn.Module) -> list[np.ndarray]:
    """Return the filters (out, in, kH, kW) of the first convolution, split as the second one reads their maps.

    One array, or several where the second convolution is grouped: as on the two GPUs of 2012.
    """
    convolutions = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS)]
    if not convolutions or not isinstance(convolutions[0], nn.Conv2d):
        return []
    weight = convolutions[0].weight.detach().float().cpu().numpy()
    towers = getattr(convolutions[1], "groups", 1) if len(convolutions) > 1 else 1
    return np.split(weight, towers) if len(weight) % towers == 0 else [weight]


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose output stands for a layer: its activation, or the layer where none follows.

    For an AlexNet conv1, conv2 ... fc8, for a ResNet the stem, its four stages and fc.
    """
    found: dict[str, nn.Module] = {}
    open_layer = None
    for name, module in _units(network):
        if any(isinstance(part, (*_CONVOLUTIONS, nn.Linear)) for part in module.modules()):
            found[name], open_layer = module, name
        elif isinstance(module, nn.ReLU) and open_layer is not None:
            found[open_layer], open_layer = module, None
    return found


def _units(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a network in order; AlexNets hold theirs in `features` and `classifier`."""
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and name in ("features", "classifier"):
            yield from child.named_children()
        else:
            yield name, child


def last_linear(network: nn.Module) -> nn.Linear | None:
    """Return the layer that gives the logits."""
    return next((m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear)), None)


@contextmanager
def listening(modules: dict[str, nn.Module], inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Yield what the modules put out (or take in) at the next passes, by name; each pass replaces the last."""
    heard: dict[str, Tensor] = {}

    def listener(name: str) -> Callable[..., None]:
        # A copy: a later operation may work in place.
        def listen(module: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
            heard[name] = (taken[0] if inputs else given).detach().float().clone()

        return listen

    handles = [module.register_forward_hook(listener(name)) for name, module in modules.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def responses(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what each layer answers to images x (N, C, H, W), in the order of the layers."""
    layers = layers_of(network)
    with torch.inference_mode(), listening(layers) as heard:
        network(x)
    return {name: heard[name] for name in layers if name in heard}


def hidden(network: nn.Module, last: nn.Linear, x: Tensor) -> Tensor:
    """Return what the last layer reads of images x (N, C, H, W): the features (N, F), float32."""
    with torch.inference_mode(), listening({"last": last}, inputs=True) as heard:
        network(x)
    return heard["last"]
