"""Local response normalisation over channels, fast.

`nn.LocalResponseNorm` is an average pool over a 5-D view and a pow: several times slower, it keeps four
copies of its input for the backward pass, and its CUDA backward is not deterministic. Here

- the window is an average pool over rows of whole maps, which torch has vectorised, in both directions;
- the power 0.75 comes from square roots;
- a CPU takes a few images at a time, so that temporaries stay in the cache and are never given back to the
  system, and the work is written in place: every operation is a point where the threads wait for each other,
  which costs little on a quiet machine and much on a busy one, so pieces are not smaller than need be;
- the backward pass keeps the input alone and computes the denominator again.

Inside a network that is being compiled or exported, the plain form is used, and fused by the compiler. Compiling
it by itself gains less than the 10 to 30 seconds that its first call takes, so nothing does that unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_PIECE = (
    2**21
)  # values that one piece has on a CPU: 8 MB in float32, of which a few temporaries exist at once


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
    total = squares[:, : x.shape[1]]
    for shift in range(1, size):
        total = total + squares[:, shift : shift + x.shape[1]]
    return (wide * _negative_power(total * (alpha / size) + k, beta)).to(x.dtype)


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
    """The same function with its derivative written out: dx = g d^-b - 2 a b * x * mean(g x d^(-b-1))."""

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
            # The window reversed: a channel acts on those that see it.
            through = _window_mean((direct * wide).div_(denominator), (size - 1) // 2, size // 2)
            torch.addcmul(direct, through, wide, value=-2.0 * alpha * beta, out=out[piece])
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
    return _window_mean(wide * wide, size // 2, (size - 1) // 2).mul_(alpha).add_(k)


def _window_mean(values: Tensor, before: int, after: int) -> Tensor:
    """Average each channel with those around it; channels past the ends count as zeros.

    Args:
        values: (N, C, H, W).
        before: Channels of the window ahead of its own.
        after: Channels behind it; `before`, or one more or less.

    Returns:
        A new tensor (N, C, H, W).
    """
    size, channels = before + 1 + after, values.shape[1]
    if values.is_contiguous():
        # Maps become the pixels of a row and channels the rows: (N, H * W, C, 1), which lies channels-last.
        rows = values.flatten(2).transpose(1, 2).unsqueeze(3)
        half = size // 2  # an even size gives C + 1 rows: one end is cut off
        mean = functional.avg_pool2d(
            rows, (size, 1), stride=1, padding=(half, 0)
        )
        mean = mean.narrow(2, half - before, channels)
        return mean.squeeze(3).transpose(1, 2).unflatten(2, values.shape[2:])
    total = values.clone()
    for shift in range(1, max(before, after) + 1):
        if shift <= before:
            total[:, shift:] += values[:, :-shift]
        if shift <= after:
            total[:, :-shift] += values[:, shift:]
    return total.div_(size)


def _negative_power(x: Tensor, beta: float) -> Tensor:
    """Return x ** -beta; pow is slow, and the published exponents need none."""
    if beta == 0.75:
        root = x.rsqrt()
        return root.sqrt() * root
    return x.rsqrt() if beta == 0.5 else x.pow(-beta)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
