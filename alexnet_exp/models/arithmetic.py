"""Sizes of maps, on paper: the three rules by which published networks count windows. No torch here."""

from __future__ import annotations

import math
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.models import spec


def border(size: int, kernel: int, stride: int, padding: int | str, ceil: bool) -> tuple[int, int]:
    """Return the zeros before and after one axis.

    Args:
        size: Length of the axis in pixels.
        kernel: Length of the window.
        stride: Step of the window.
        padding: Pixels on both sides, or 'same': ceil(size / stride) windows, the odd pixel after.
        ceil: Whether a last window may reach past the end (cuda-convnet's 1 + ceil((2p + in - k) / s)).
    """
    if padding == "same":
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    assert isinstance(padding, int)
    if not ceil:
        return padding, padding
    windows = 1 + math.ceil((2 * padding + size - kernel) / stride)
    return padding, max((windows - 1) * stride + kernel - size - padding, padding)


def window_count(size: int, kernel: int, stride: int, padding: int | str, ceil: bool) -> int:
    """Return the number of windows along an axis; zero or less when none fits."""
    before, after = border(size, kernel, stride, padding, ceil)
    return (size + before + after - kernel) // stride + 1


def pooled(size: int, pool: dict[str, Any]) -> int:
    """Return the side of a map after pooling; ceil_mode drops a window that would start past the image."""
    kernel, stride, padding, ceil = (pool[k] for k in ("kernel_size", "stride", "padding", "ceil_mode"))
    count = window_count(size, kernel, stride, padding, ceil)
    if ceil and padding != "same" and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def map_sizes(net: spec.AlexNetConfig, input_size: int) -> dict[str, int]:
    """Follow one side of the image through the features.

    Returns:
        The side after each layer and the operations around it, by layer name.

    Raises:
        UserError: Where a map shrinks to nothing; names the layer, its input and the smallest that fits.
    """
    size, sizes = input_size, {}
    for name, layer in net.features.items():
        for what, new in _steps(net, layer, size):
            if new < 1:
                smallest = _smallest_input(net, input_size)
                raise UserError(
                    f"{name}: its {what} does not fit a {size}x{size} map (image {input_size}x{input_size}); "
                    f"the smallest image that works is {smallest}x{smallest}: model.input_size={smallest}."
                )
            size = new
        sizes[name] = size
    return sizes


def _steps(net: spec.AlexNetConfig, layer: spec.ConvLayer, size: int) -> list[tuple[str, int]]:
    """Return (what, size after it) for the convolution and pools of a layer, up to the first that fails."""
    steps = []
    for what in [*layer.before, "conv", *layer.then]:
        if what == "conv":
            size = window_count(size, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            what = f"{layer.kernel_size}x{layer.kernel_size} kernel"
        elif what in ("max_pool", "avg_pool"):
            settings = spec.inherit(getattr(layer, what), getattr(net, what))
            size = pooled(size, settings)
            what = f"{what} {settings['kernel_size']}x{settings['kernel_size']}"
        else:
            continue
        steps.append((what, size))
        if size < 1:
            break
    return steps


def _smallest_input(net: spec.AlexNetConfig, failing: int) -> int:
    for size in range(failing + 1, 4096):
        current = size
        for layer in net.features.values():
            current = min([step for _, step in _steps(net, layer, current)], default=current)
            if current < 1:
                break
        else:
            return size
    raise UserError("model.features shrinks every image below 4096 pixels to nothing.")
