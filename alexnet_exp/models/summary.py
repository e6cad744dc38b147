"""The layer table of a network: output shapes, parameters and multiply-adds, computed on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_exp.models.alexnet import AlexNet
from alexnet_exp.models.arithmetic import map_sizes
from alexnet_exp.models.layers import LocallyConnected2d, SpatialResponseNorm


@dataclass
class LayerRow:
    """One layer: output shape without the batch axis, trainable parameters, multiply-adds per image.

    `receptive_field` is the side in image pixels, padding included; None unless the network is a plain chain.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: int | None = None


def layer_table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerRow]:
    """List the leaf modules of a network in the order in which they run.

    Args:
        model: Any network that maps (N, C, H, W) to logits.
        image_shape: (C, H, W) of one image.

    Returns:
        One row per leaf module that ran; the rows add up to the network's parameters and multiply-adds.
    """
    rows: list[LayerRow] = []
    fields = _receptive_fields(model, image_shape[-1]) if isinstance(model, AlexNet) else {}

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        shape = tuple(output.shape[1:])
        work = _multiply_adds(module, shape)
        rows.append(LayerRow(name, type(module).__name__, shape, parameters, work, fields.get(name)))

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    # name=n binds the name now; a closure would see the last one in every hook.
    hooks = [
        m.register_forward_hook(lambda module, _, out, name=n: record(name, module, out)) for n, m in leaves
    ]
    was_training = model.training
    try:
        # Meta tensors have shapes but no storage: even the largest network takes no memory here.
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        image = torch.empty((1, *image_shape), device="meta")
        model.eval()  # batch norm would refuse a batch of one
        with torch.no_grad():
            torch.func.functional_call(model, meta, (image,))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return rows


def _multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * shape[-1] * shape[-2]
    # Each weight is used once per image: untied ones belong to one position.
    return module.weight.numel() if isinstance(module, nn.Linear | LocallyConnected2d) else 0


def _receptive_fields(model: AlexNet, image_side: int) -> dict[str, int]:
    """Return the receptive field by module name, in image pixels."""
    # A window adds (kernel - 1) * jump, where jump is the product of all strides before it.
    field, jump, fields = 1, 1, {}
    for name, module in model.features.named_children():
        kernel, stride = _window(module)
        field, jump = field + (kernel - 1) * jump, jump * stride
        fields[f"features.{name}"] = field
    # From the last map, not map_size: adaptive pooling reads all of it.
    sides = [image_side, *map_sizes(model.spec, image_side).values()]
    whole = field + (sides[-1] - 1) * jump
    return fields | {f"classifier.{name}": whole for name, _ in model.classifier.named_children()}


def _window(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, SpatialResponseNorm):
        return module.size, 1
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | LocallyConnected2d):
        return 1, 1
    # nn.Conv2d keeps pairs, the pools keep what they were given.
    kernel, stride = (v[0] if isinstance(v, tuple) else v for v in (module.kernel_size, module.stride))
    return kernel, stride
