"""Local response normalisation over channels, fast.

`nn.LocalResponseNorm` is an average pool over a 5-D view and a pow: several times slower, it keeps four
copies of its input for the backward pass, and its CUDA backward is not deterministic. Here the window is
summed by doubling (5 = 4 + 1 channels: three additions), the power 0.75 comes from square roots, and on a
CPU the work goes piece by piece, so that everything between the first read and the last write stays in the
cache. The backward pass keeps the input alone and computes the denominator again, which is cheaper than to
fetch it from memory.

Eager, this is as fast as what `torch.compile` makes of `local_response_norm`, without the 10 to 30 seconds
of its first call; inside a network that is being compiled or exported, the plain form is used and fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_PIECE = 2**18  # values that one piece has on a CPU: with its temporaries a few MB, about a core's L2 cache


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, groups: int = 1) -> Tensor:
    """Divide each value by (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta.

    The plain form, in differentiable operations: what is compiled and exported.

    Args:
        x: Activations (N, C, H, W).
        size: Number of channels in the window; even sizes reach one channel further back, as torch's.
        alpha: Coefficient of the mean square, as in torch, Caffe and cuda-convnet (divided by `size`).
        beta: Exponent.
        k: Constant.
        groups: Normalise inside each of so many equal groups of channels.

    Returns:
        The normalised activations in the dtype of `x`; computed in float32 (or float64).

    Source: Krizhevsky et al. 2012, section 3.3; cuda-convnet `cmrnorm`.
    """
    if groups > 1:
        return torch.cat(
            [local_response_norm(tower, size, alpha, beta, k) for tower in x.chunk(groups, 1)], 1
        )
    wide = _widen(x)
    squares = functional.pad(wide * wide, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    denominator = _window_sum(squares, size, x.shape[1]) * (alpha / size) + k
    return (wide * _negative_power(denominator, beta)).to(x.dtype)


class LocalResponseNorm(nn.Module):
    """Cross-channel local response normalisation; computes in float32 and returns its input's dtype.

    Args:
        size: Number of neighbouring channels in the window.
        alpha: Coefficient, divided by `size` as in torch, Caffe and the original code.
        beta: Exponent.
        k: Constant.
        groups: Normalise inside each of so many equal groups of channels (the towers of the original).

    Source: Krizhevsky et al. 2012, section 3.3.
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, groups: int = 1
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups

    def forward(self, x: Tensor) -> Tensor:
        form = local_response_norm if torch.compiler.is_compiling() else _Pieces.apply
        # Autocast may stay on: it lowers none of these operations.
        return form(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}{groups}"


class _Pieces(torch.autograd.Function):
    """The same function with its derivative written out: dx = g d^-b - 2 a b / n * x * sum(g x d^(-b-1))."""

    @staticmethod
    def forward(x: Tensor, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
        out = torch.empty_like(x)
        for piece in _pieces(x, groups):
            wide = _widen(x[piece])
            power = _negative_power(_denominator(wide, size, alpha, k), beta)
            torch.mul(wide, power, out=out[piece])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.settings = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        size, alpha, beta, k, groups = ctx.settings
        out = torch.empty_like(x)
        for piece in _pieces(x, groups):
            wide = _widen(x[piece])
            denominator = _denominator(wide, size, alpha, k)
            direct = _negative_power(denominator, beta).mul_(grad[piece])
            through = _padded(wide, (size - 1) // 2, size // 2)  # the window reversed: who sees this channel
            inner = through.narrow(1, (size - 1) // 2, wide.shape[1])
            torch.mul(direct, wide, out=inner).div_(denominator)
            indirect = _window_sum(through, size, wide.shape[1]).mul_(wide)
            torch.add(direct, indirect, alpha=-2.0 * alpha * beta / size, out=out[piece])
        return out, None, None, None, None, None


def _pieces(x: Tensor, groups: int) -> Iterator[tuple[slice, slice]]:
    """Cut (N, C, H, W) into a few images of one tower each; a GPU takes all images at once."""
    width = x.shape[1] // groups
    per_image = max(width * x.shape[2] * x.shape[3], 1)
    step = max(1, _PIECE // per_image if x.device.type == "cpu" else x.shape[0])
    for first in range(0, x.shape[0], step):
        for tower in range(groups):
            yield slice(first, first + step), slice(tower * width, (tower + 1) * width)


def _denominator(wide: Tensor, size: int, alpha: float, k: float) -> Tensor:
    squares = _padded(wide, size // 2, (size - 1) // 2)
    torch.mul(wide, wide, out=squares.narrow(1, size // 2, wide.shape[1]))
    return torch.add(wide.new_tensor(k), _window_sum(squares, size, wide.shape[1]), alpha=alpha / size)


def _padded(like: Tensor, before: int, after: int) -> Tensor:
    """Return an unfilled tensor with more channels, zero in the new ones, laid out as `like`."""
    images, channels, height, width = like.shape
    layout = torch.channels_last if _is_channels_last(like) else torch.contiguous_format
    shape = (images, before + channels + after, height, width)
    padded = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    padded[:, :before] = 0
    padded[:, before + channels :] = 0
    return padded


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def _window_sum(padded: Tensor, size: int, channels: int) -> Tensor:
    """Sum `size` neighbouring channels of (N, channels + size - 1, H, W), by doubling: 11 = 8 + 2 + 1.

    Args:
        padded: Values with size - 1 extra channels.
        size: Channels per window.
        channels: Number of windows.

    Returns:
        A new tensor (N, channels, H, W).
    """
    block, reach, offset, total = padded, 1, 0, None  # block[c] = sum of `reach` channels from c on
    while True:
        if size & reach:
            part = block.narrow(1, offset, channels)
            total = part if total is None else total + part
            offset += reach
        if 2 * reach > size:
            break
        block = block[:, :-reach] + block[:, reach:]
        reach *= 2
    assert total is not None
    return total


def _negative_power(x: Tensor, beta: float) -> Tensor:
    """Return x ** -beta; pow is slow, and the published exponents need none."""
    if beta == 0.75:
        root = x.rsqrt()
        return root * root.sqrt()
    return x.rsqrt() if beta == 0.5 else x.pow(-beta)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
