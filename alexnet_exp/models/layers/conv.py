"""Convolutions and pooling with TensorFlow's 'same' padding, cuda-convnet's ceil rule, or untied weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.models.arithmetic import border


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` for square maps, with strided 'same' padding and `ceil_mode`.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Side of the kernel in pixels.
        stride: Stride in pixels.
        padding: Pixels on every side, or 'same': ceil(in / stride) outputs, the odd pixel right and below.
        groups: Number of groups.
        bias: Add a bias.
        ceil_mode: Let the last window read zeros past the right and bottom border (224 -> 55).

    Source: TensorFlow's padding rule; cuda-convnet layer.py `modulesX`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        groups: int = 1,
        bias: bool = True,
        ceil_mode: bool = False,
    ) -> None:
        # torch rejects 'same' with a stride and has no ceil_mode: both pad ahead of an unpadded convolution.
        self.rule = (padding, ceil_mode) if padding == "same" or ceil_mode else None
        torch_padding = 0 if self.rule else padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, torch_padding, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.rule:
            x = _pad(x, self.kernel_size[0], self.stride[0], *self.rule)
        return super().forward(x)


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` with padding 'same'; padded pixels never win."""

    def __init__(
        self, kernel_size: int, stride: int, padding: int | str = 0, ceil_mode: bool = False
    ) -> None:
        self.same = padding == "same"
        super().__init__(kernel_size, stride, 0 if padding == "same" else padding, ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = _pad(x, self.kernel_size, self.stride, "same", False, value=-math.inf)
        return super().forward(x)


class LocallyConnected2d(nn.Module):
    """A convolution with untied weights: a separate filter bank and bias at every position.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        input_size: Side of the square input map; fixed, since every position has its own weights.
        kernel_size: Side of the kernel in pixels.
        stride: Stride in pixels.
        padding: Zeros on every side.
        bias: Add a bias per position and channel.

    Source: cuda-convnet's `local` layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.out_channels = out_channels
        self.output_size = (input_size + 2 * padding - kernel_size) // stride + 1
        positions, fan_in = self.output_size**2, in_channels * kernel_size**2
        # Positions first: they are the batch of `bmm`, so that no step has to rearrange weights.
        self.weight = nn.Parameter(torch.empty(positions, out_channels, fan_in))
        self.bias = nn.Parameter(torch.empty(positions, out_channels)) if bias else None
        bound = 1.0 / math.sqrt(fan_in)  # torch's default for nn.Conv2d
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        # im2col, then one matrix product per position: P = output_size**2 products of (N, fan_in) x (fan_in, out).
        columns = functional.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        out = torch.bmm(columns.permute(2, 0, 1), self.weight.mT)  # (P, N, out_channels)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.permute(1, 2, 0).unflatten(2, (self.output_size, self.output_size))  # (N, out, H, W)

    def extra_repr(self) -> str:
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.out_channels}, {window}"


def _pad(x: Tensor, kernel: int, stride: int, padding: int | str, ceil: bool, value: float = 0.0) -> Tensor:
    top, bottom = border(x.shape[2], kernel, stride, padding, ceil)
    left, right = border(x.shape[3], kernel, stride, padding, ceil)
    return pad(x, (left, right, top, bottom), value)


def pad(x: Tensor, sides: Sequence[int], value: float = 0.0) -> Tensor:
    """Do the same as `functional.pad`; exports concatenate, since ONNX cannot convert a Pad to opsets below 18.

    Args:
        x: Any tensor.
        sides: Before and after on the last axis, then on the one before it, and so on.
        value: Of the padding.
    """
    if not torch.compiler.is_exporting():
        return functional.pad(x, tuple(sides), value=value)
    for axis, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True), start=1):
        edge = torch.full_like(x.narrow(-axis, 0, 1), value)
        x = torch.cat([*[edge] * before, x, *[edge] * after], -axis) if before or after else x
    return x
