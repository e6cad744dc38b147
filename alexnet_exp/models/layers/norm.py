"""Local response normalisation over channels, fast.

`nn.LocalResponseNorm` is an average pool over a 5-D view and a pow: several times slower, it keeps four
copies of its input for the backward pass, and its CUDA backward is not deterministic. Here the window is
summed by doubling (5 = 4 + 1 channels: three additions), the power 0.75 comes from square roots, and the
backward pass saves only the input and recomputes the denominator.

On CPU the eager form processes a few images at a time, so that temporaries stay in the cache. Its threads
synchronise after every operation: cheap on an idle machine, expensive on a shared one. `compiled=True` has two
such barriers instead of hundreds and is faster everywhere, but costs 10 to 30 seconds at the first step (a few,
once torch has cached the kernel): worth it in long runs, so it is opt-in. In a network that is compiled as a
whole, the plain form is traced and fused. By default the compiler would save the padded squares in float32 for
the backward pass, more than twice the size of a bfloat16 input; under activation checkpointing the plain form
saves only its input. Exports use the plain form.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from alexnet_exp.models.layers.compiler import missing_compiler
from alexnet_exp.models.layers.conv import pad
from alexnet_exp.torch_internals import compile_for_any_batch

_PIECE = 2**21  # values per piece on CPU: 8 MB in float32, and a few temporaries of this size


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, groups: int = 1) -> Tensor:
    """Divide each value by (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta.

    The plain form in differentiable operations, for compilation and export.

    Args:
        x: Activations (N, C, H, W).
        size: Number of channels in the window; even sizes reach one channel further back, as torch's.
        alpha: Coefficient of the mean square, as in torch, Caffe and cuda-convnet (divided by `size`).
        beta: Exponent.
        k: Constant.
        groups: Number of equal groups of channels, normalised separately.

    Returns:
        The normalised activations in the dtype of `x`; computed in float32 (or float64).

    Source: Krizhevsky et al. 2012, section 3.3; cuda-convnet `cmrnorm`.
    """
    if groups > 1:
        return torch.cat(
            [local_response_norm(tower, size, alpha, beta, k) for tower in x.chunk(groups, 1)], 1
        )
    wide = _widen(x)
    squares = pad(wide * wide, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    denominator = _window_sum(squares, size, x.shape[1]) * (alpha / size) + k
    return (wide * _negative_power(denominator, beta)).to(x.dtype)


class LocalResponseNorm(nn.Module):
    """Cross-channel local response normalisation; computes in float32 and returns its input's dtype.

    Args:
        size: Number of neighbouring channels in the window.
        alpha: Coefficient, divided by `size` as in torch, Caffe and the original code.
        beta: Exponent.
        k: Constant.
        groups: Number of equal groups of channels, normalised separately (the towers of the original).
        compiled: Compile at the first use; without a compiler, warn and run eagerly.

    Source: Krizhevsky et al. 2012, section 3.3.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        groups: int = 1,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups
        self.compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        form: Callable[..., Tensor]
        if torch.compiler.is_exporting():
            form = local_response_norm
        elif torch.compiler.is_compiling():
            form = _recomputed
        else:
            form = _compiled(x.device.type) if self.compiled and not x.is_meta else _Pieces.apply
        # Autocast may stay on: it lowers none of these operations.
        return form(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}{groups}"


@cache
def _compiled(device: str) -> Callable[..., Tensor]:
    """Return the compiled function or, with a warning, the eager one if there is no compiler."""
    if missing := missing_compiler(device):
        warnings.warn(f"lrn.compiled=true needs {missing}, not found; staying eager.", stacklevel=3)
        return _Pieces.apply
    if device != "cuda":
        return torch.compile(_recomputed, dynamic=True)  # one kernel for all batch and map sizes
    compiled = torch.compile(_recomputed)

    def of_any_batch(x: Tensor, *settings: Any) -> Tensor:
        # One kernel per layer: static sizes save divisions in its index arithmetic.
        compile_for_any_batch(x)
        return compiled(x, *settings)

    return of_any_batch


def _recomputed(x: Tensor, *settings: Any) -> Tensor:
    """Compute the plain form, saving only `x` for the backward pass, which recomputes the rest."""
    if not torch.is_grad_enabled():
        return local_response_norm(x, *settings)
    return checkpoint(local_response_norm, x, *settings, use_reentrant=False, preserve_rng_state=False)


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
            direct = _negative_power(denominator, beta).mul_(grad[piece])  # g d^-b
            # The window reversed: a channel acts on those that see it.
            through, inner = _padded(wide, (size - 1) // 2, size // 2)
            torch.mul(direct, wide, out=inner).div_(denominator)  # g x d^(-b-1)
            indirect = _window_sum(through, size, wide.shape[1])
            torch.addcmul(direct, indirect, wide, value=-2.0 * alpha * beta / size, out=out[piece])
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
    squares, inner = _padded(wide, size // 2, (size - 1) // 2)
    torch.mul(wide, wide, out=inner)
    return torch.add(wide.new_full((), k), _window_sum(squares, size, wide.shape[1]), alpha=alpha / size)


def _padded(like: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Return a tensor like `like` with more channels, zero in those, and a view of its unfilled rest."""
    images, channels, height, width = like.shape
    # A map of one pixel has both layouts at once.
    layout = torch.contiguous_format if like.stride(1) != 1 or like.is_contiguous() else torch.channels_last
    shape = (images, before + channels + after, height, width)
    padded = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    padded[:, :before] = 0
    padded[:, before + channels :] = 0
    return padded, padded.narrow(1, before, channels)


def _window_sum(padded: Tensor, size: int, channels: int) -> Tensor:
    """Sum `size` neighbouring channels by doubling: 11 = 8 + 2 + 1.

    Args:
        padded: Values (N, channels + size - 1, H, W).
        size: Channels per window.
        channels: Number of windows.

    Returns:
        The sums (N, channels, H, W).
    """
    block, reach, offset, total = padded, 1, 0, None  # block[:, c] sums `reach` channels from c on
    while True:
        if size & reach:
            part = block.narrow(1, offset, channels)
            total = part if total is None else total + part
            offset += reach
        if 2 * reach > size:
            break
        # Sums of `reach` channels become sums of twice as many, so size 5 takes three additions instead of four.
        block = block[:, :-reach] + block[:, reach:]
        reach *= 2
    assert total is not None
    return total


def _negative_power(x: Tensor, beta: float) -> Tensor:
    """Return x ** -beta; pow is slow, and the published exponents need none."""
    if beta == 0.75:
        # x^-1/2 and its root x^-1/4.
        root = x.rsqrt()
        return root.sqrt() * root
    return x.rsqrt() if beta == 0.5 else x.pow(-beta)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class SpatialResponseNorm(nn.Module):
    """Divide by (k + alpha * mean of squares over a size x size window of the same map) ** beta.

    The window is centred; positions past the border count as zeros in the mean.

    Args:
        size: Side of the window in pixels, odd.
        alpha: Coefficient of the mean square (`scale` of cuda-convnet's `rnorm`).
        beta: Exponent.
        k: Constant.

    Source: cuda-convnet `rnorm`; layers cnorm2a/b of layers-145.cfg.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # avg_pool2d counts its padding by default, so past the border there are zeros, as in cuda-convnet.
        mean = functional.avg_pool2d(wide * wide, self.size, stride=1, padding=self.size // 2)
        return (wide * (mean * self.alpha + self.k).pow(-self.beta)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
