"""LARS: layer-wise adaptive rate scaling; the step of each layer is proportional to the norm of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a local rate for each weight tensor: trust * |w| / (|g| + weight_decay * |w|).

    One-dimensional tensors (biases, batch norm) get plain SGD without decay, as is usual for LARS.

    Args:
        params: Parameters or parameter groups.
        lr: Global learning rate.
        momentum: v = momentum * v + rate * (g + weight_decay * w), with the rate inside the velocity.
        weight_decay: L2 penalty on weights.
        trust: Trust coefficient: relative step |dw| / |w| of a layer at lr = 1.
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
        """Take a step; return the loss of the closure."""
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
            # Not in place: this is the parameter's .grad.
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        # A product rather than add_'s alpha, which would read the rate from the device.
        velocity = state["velocity"].mul_(group["momentum"]).add_(gradient * rate)
        weight.sub_(velocity)


def _trust_ratio(weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the trust ratio as a tensor on the layer's device (no sync); 1 if weights or gradient are zero."""
    w, g = weight.norm(), gradient.norm()
    ratio = group["trust"] * w / (g + group["weight_decay"] * w + group["eps"])
    # A layer that starts at zero would never move at a ratio of 0.
    return torch.where((w > 0) & (g > 0), ratio, torch.ones_like(ratio))
