"""Layer-wise adaptive rate scaling: every layer steps by a fixed share of the size of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled for each weight tensor by trust * |w| / (|g| + weight_decay * |w|).

    Tensors of one dimension (biases, batch norm) take plain steps without decay: their norms say nothing of a layer.

    Args:
        params: Parameters or groups.
        lr: Rate of the whole network.
        momentum: Of the velocity, which the rate is inside of: v = momentum * v + rate * (g + weight_decay * w).
        weight_decay: Of weights.
        trust: The share of its weights' norm that a layer moves at lr = 1.
        eps: Added to the denominator.

    Source: Y. You, I. Gitman, B. Ginsburg 2017, Large batch training of convolutional networks, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-9,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the loss of the closure is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rate: Tensor | float = group["lr"]
        if weight.ndim > 1:
            rate = group["lr"] * _trust_ratio(weight, gradient, group)
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].mul_(group["momentum"]).add_(gradient * rate)
        weight.sub_(velocity)


def _trust_ratio(weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the layer's share as a tensor on its device; 1 where weights or gradient vanish."""
    size, slope = weight.norm(), gradient.norm()
    ratio = group["trust"] * size / (slope + group["weight_decay"] * size + group["eps"])
    return torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))
