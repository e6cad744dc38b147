"""Feature map sizes without torch: the three rules by which published networks count windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.models import spec


def border(size: int, kernel: int, stride: int, padding: int | str, ceil: bool) -> tuple[int, int]:
    """Return the padding before and after one axis.

    Args:
        size: Length of the axis in pixels.
        kernel: Kernel size along the axis.
        stride: Stride along the axis.
        padding: Pixels on both sides, or 'same': ceil(size / stride) windows, the odd pixel after.
        ceil: Let the last window reach past the end (cuda-convnet's 1 + ceil((2p + in - k) / s)).
    """
    if padding == "same":
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    assert isinstance(padding, int)
    if not ceil:
        return padding, padding
    windows = 1 + math.ceil((2 * padding + size - kernel) / stride)
    return padding, (windows - 1) * stride + kernel - size - padding


def window_count(size: int, kernel: int, stride: int, padding: int | str, ceil: bool) -> int:
    """Return the number of windows along an axis; 0 or less if the kernel does not fit."""
    before, after = border(size, kernel, stride, padding, ceil)
    return (size + before + after - kernel) // stride + 1


def pooled_size(size: int, pool: dict[str, Any]) -> int:
    """Return the side of a map after pooling."""
    kernel, stride, padding, ceil = (pool[k] for k in ("kernel_size", "stride", "padding", "ceil_mode"))
    count = window_count(size, kernel, stride, padding, ceil)
    # As in torch, ceil_mode drops a last window that would start in the padding on the far side.
    if ceil and padding != "same" and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def map_sizes(net: spec.AlexNetConfig, input_size: int) -> dict[str, int]:
    """Compute the side of each layer's feature map.

    Returns:
        Layer name -> side after the layer and the operations around it, in pixels.

    Raises:
        UserError: A map shrinks to nothing; names the layer, its input and the smallest image that fits.
    """
    sizes, before = {}, input_size
    for name, what, size in _steps(net, input_size):
        if size < 1:
            smallest = _smallest_input(net, input_size)
            raise UserError(
                f"{name}: its {what} does not fit a {before}x{before} map (image {input_size}x{input_size}); "
                f"the smallest image that works is {smallest}x{smallest}: model.input_size={smallest}."
            )
        sizes[name] = before = size  # each step of a layer overwrites the one before it
    return sizes


def _steps(net: spec.AlexNetConfig, size: int) -> Iterator[tuple[str, str, int]]:
    """Yield (layer, convolution or pool, side after it) for everything that changes the side of a map."""
    for name, layer in net.features.items():
        for op in [*layer.before, "conv", *layer.then]:
            if op == "conv":
                size = window_count(size, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
                what = f"{layer.kernel_size}x{layer.kernel_size} kernel"
            elif op in ("max_pool", "avg_pool"):
                settings = spec.inherit(getattr(layer, op), getattr(net, op))
                size = pooled_size(size, settings)
                what = f"{op} {settings['kernel_size']}x{settings['kernel_size']}"
            else:
                continue
            yield name, what, size
            if size < 1:  # the sizes that follow would mean nothing
                return


def _smallest_input(net: spec.AlexNetConfig, failing: int) -> int:
    # Searched, not solved for: rounding up and 'same' padding have no exact inverse.
    for size in range(failing + 1, 4096):
        if all(after >= 1 for _, _, after in _steps(net, size)):
            return size
    raise UserError("model.features shrinks every image below 4096 pixels to nothing.")
