"""Dropout as in the 2012 code."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TestScaledDropout(nn.Module):
    """Zero units with probability `p` in training without rescaling; multiply by 1 - p at test time.

    `nn.Dropout` rescales in training instead. Both express the same networks but train differently: the gradients
    that reach the weights differ by the factor 1 - p.

    Source: Krizhevsky et al. 2012, section 4.2; src/layer.cu HiddenSexLayer.
    """

    __test__ = False  # pytest would collect the class for its name

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1.0 - self.p)
        return x * torch.empty_like(x).bernoulli_(1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
