"""Response normalisation within a map, the original network's second normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        mean = functional.avg_pool2d(wide * wide, self.size, stride=1, padding=self.size // 2)
        return (wide * (mean * self.alpha + self.k).pow(-self.beta)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
