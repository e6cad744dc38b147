"""Layers of a network by name, and their activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_exp.errors import UserError, nearest
from alexnet_exp.models.alexnet import ACTIVATIONS
from alexnet_exp.models.layers import LocallyConnected2d

_CONVOLUTIONS = (nn.Conv2d, LocallyConnected2d)


def first_towers(network: nn.Module) -> list[np.ndarray]:
    """Return the filters (out, in, kH, kW) of the first convolution, split by the groups of the second.

    A grouped second convolution means several towers, as on the two GPUs of 2012; otherwise there is one array.
    """
    convolutions = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS)]
    if not convolutions or not isinstance(convolutions[0], nn.Conv2d):
        return []
    weight = convolutions[0].weight.detach().float().cpu().numpy()
    towers = getattr(convolutions[1], "groups", 1) if len(convolutions) > 1 else 1
    return np.split(weight, towers) if len(weight) % towers == 0 else [weight]


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return by layer name the module with its output: the ReLU after the layer, or the layer if none follows.

    For an AlexNet conv1, conv2 ... fc8; for a ResNet the stem, its four stages and fc.
    """
    found: dict[str, nn.Module] = {}
    open_layer = None
    for name, module in _units(network):
        if any(isinstance(part, (*_CONVOLUTIONS, nn.Linear)) for part in module.modules()):
            found[name], open_layer = module, name
        elif isinstance(module, tuple(ACTIVATIONS.values())) and open_layer is not None:
            found[open_layer], open_layer = module, None
    return found


def find_layer(network: nn.Module, name: str, key: str) -> nn.Module:
    """Return the module whose output is the activation of a layer.

    Args:
        network: Any.
        name: One of `layers_of`, or any other module: 'avgpool', 'features.pool5'.
        key: The setting that names it, for the message.

    Raises:
        UserError: There is none; suggests the nearest.
    """
    layers = layers_of(network)
    modules = {path: module for path, module in network.named_modules() if path} | layers
    if name not in modules:
        raise UserError(
            f"{key}={name}: the network has no such layer.{nearest(name, modules)} It has {', '.join(layers)}."
        )
    return modules[name]


def _units(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the top-level modules of a network in order; those of an AlexNet are in `features` and `classifier`."""
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and name in ("features", "classifier"):
            yield from child.named_children()
        else:
            yield name, child


def last_linear(network: nn.Module) -> nn.Linear | None:
    """Return the layer that gives the logits."""
    return next((m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear)), None)


@contextmanager
def record(modules: dict[str, nn.Module], inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that receives the outputs (or inputs) of the modules in each forward pass, by name.

    Outputs that are not one tensor, such as the tuple of an LSTM, are left out.
    """
    recorded: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def store(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            value = args[0] if inputs else output
            if isinstance(value, Tensor):
                # A copy, since a later operation may work in place.
                recorded[name] = value.detach().float().clone()

        return store

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def responses(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the activations of each layer on images x (N, C, H, W), in the order of the layers."""
    layers = layers_of(network)
    with torch.inference_mode(), record(layers) as outputs:
        network(x)
    return {name: outputs[name] for name in layers if name in outputs}


def hidden(network: nn.Module, last: nn.Linear, x: Tensor) -> Tensor:
    """Return the input of the last layer for images x (N, C, H, W): features (N, F), float32."""
    with torch.inference_mode(), record({"last": last}, inputs=True) as recorded:
        network(x)
    return recorded["last"]
