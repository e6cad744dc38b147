"""SGD as written in the 2012 paper, with the learning rate inside the velocity."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from alexnet_exp.torch_internals import foreach_add, foreach_add_, foreach_mul_


class PaperSGD(torch.optim.Optimizer):
    """v <- momentum * v - lr * (gradient + weight_decay * w); w <- w + v.

    Equal to torch.optim.SGD as long as the rate is constant. When the rate drops, the accumulated velocity keeps its
    size here, while in torch it shrinks with the rate. A rate of 0 freezes the weights, as in the 2012 code, which
    skips the whole update; otherwise the velocity would keep moving them.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        momentum: Momentum coefficient.
        weight_decay: L2 penalty.

    Source: Krizhevsky et al. 2012, section 5; src/weights.cu of the released code.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["lr"] == 0.0:
                continue
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            velocities = [self._velocity(p) for p in weights]
            gradients: list[Tensor] = [p.grad for p in weights]
            if group["weight_decay"]:
                # Not in place: these are the parameters' .grad.
                gradients = foreach_add(gradients, weights, alpha=group["weight_decay"])
            foreach_mul_(velocities, group["momentum"])
            foreach_add_(velocities, gradients, alpha=-group["lr"])
            foreach_add_(weights, velocities)
        return loss

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]
