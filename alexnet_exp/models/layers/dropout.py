"""Dropout as the 2012 code did it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TestScaledDropout(nn.Module):
    """Zero units with probability `p` in training without rescaling; multiply by 1 - p at test.

    `nn.Dropout` scales in training instead. The two are the same function class but not the same trajectory:
    the gradients that reach the weights differ by 1 - p.

    Source: Krizhevsky et al. 2012, section 4.2; src/layer.cu HiddenSexLayer.
    """

    __test__ = False  # not a test class, whatever pytest thinks of the name

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1.0 - self.p)
        return x * torch.empty_like(x).bernoulli_(1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
