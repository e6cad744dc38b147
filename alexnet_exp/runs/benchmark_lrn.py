"""Local response normalisation against torch's, alone and inside a training step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs.timing import alternate
from alexnet_exp.zoo import create_model

# What alexnet_lrn normalises, for one image: (channels, side).
MAPS = ((96, 55), (256, 27))


def measure_lrn(device: str, batch_size: int, repeats: int, compiled: bool) -> list[dict[str, Any]]:
    """Time forward and backward of LRN on both maps of alexnet_lrn, then whole training steps.

    Args:
        device: 'cpu' or 'cuda'.
        batch_size: Images.
        repeats: Timed runs of each case.
        compiled: Whether to time torch.compile of torch's layer, too, where there is a compiler.

    Returns:
        One row per case with its seconds; `ratio` is torch's eager time over the case's for the layer alone, and the
        case's time over the time without LRN for the step.
    """
    rows = []
    for channels, side in MAPS:
        x = torch.randn(batch_size, channels, side, side, device=device)
        cases = _alone(x, compiled and (device == "cuda" or shutil.which("gcc") or shutil.which("clang")))
        times = alternate(cases, repeats, device)
        slow = times["torch"]["median_seconds"]
        what = f"LRN alone {tuple(x.shape)}"
        rows += [
            {"what": what, "case": name, **t, "ratio": slow / t["median_seconds"]}
            for name, t in times.items()
        ]
    return rows + _steps(device, batch_size, repeats, compiled)


def _alone(x: Tensor, compiled: object) -> dict[str, Callable[[], object]]:
    layers: dict[str, nn.Module] = {
        "ours": LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        "torch": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
    }
    if compiled:
        layers["ours, compiled"] = LocalResponseNorm(5, 1e-4, 0.75, 2.0, compiled=True)
        layers["torch, compiled"] = torch.compile(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    grad = torch.randn_like(x)
    return {name: partial(_forward_backward, layer, x, grad) for name, layer in layers.items()}


def _forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    layer(leaf).backward(grad)


def _steps(device: str, batch_size: int, repeats: int, compiled: bool) -> list[dict[str, Any]]:
    images = torch.randn(batch_size, 3, 227, 227, device=device)
    labels = torch.randint(0, 10, (batch_size,), device=device)
    networks = {
        "without LRN": create_model("alexnet", num_classes=10),
        "with ours": create_model("alexnet_lrn", num_classes=10),
        **(
            {"with ours, compiled": create_model("alexnet_lrn", num_classes=10, lrn={"compiled": True})}
            if compiled
            else {}
        ),
        "with torch's": _with_torch_lrn(create_model("alexnet_lrn", num_classes=10)),
    }
    cases = {name: _step(net.to(device), images, labels) for name, net in networks.items()}
    times = alternate(cases, repeats, device, warmup=1)
    fast = times["without LRN"]["median_seconds"]
    what = f"training step, alexnet_lrn, batch {batch_size}"
    return [
        {"what": what, "case": name, **t, "ratio": t["median_seconds"] / fast} for name, t in times.items()
    ]


def _step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return run


def _with_torch_lrn(net: nn.Module) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LocalResponseNorm):
                setattr(parent, name, nn.LocalResponseNorm(child.size, child.alpha, child.beta, child.k))
    return net
