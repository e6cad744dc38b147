"""Local response normalisation against torch's, alone and inside a training step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs.benchmark_baseline import with_torch_lrn
from alexnet_exp.runs.timing import Row, alternate
from alexnet_exp.zoo import create_model

# What alexnet_lrn normalises, for one image: (channels, side).
MAPS = ((96, 55), (256, 27))


def measure_lrn(device: str, batch_size: int, repeats: int, compiled: bool) -> list[Row]:
    """Time forward and backward of LRN on both maps of alexnet_lrn, then whole training steps.

    Args:
        device: 'cpu' or 'cuda'.
        batch_size: Images.
        repeats: Timed runs of each case.
        compiled: Whether to time torch.compile of torch's layer, too, where there is a compiler.

    Returns:
        One row per case with its seconds; `ratio` is torch's eager time over the case's for the layer alone, with
        `kept`, what it keeps for the backward pass over its input's bytes, and the case's time over the time without
        LRN for the step.
    """
    rows: list[Row] = []
    for channels, side in MAPS:
        x = torch.randn(batch_size, channels, side, side, device=device)
        layers = _layers(compiled and (device == "cuda" or shutil.which("gcc") or shutil.which("clang")))
        grad = torch.randn_like(x)
        cases = {name: partial(_forward_backward, layer, x, grad) for name, layer in layers.items()}
        kept = {name: _kept(layer, x) for name, layer in layers.items()}
        times = alternate(cases, repeats, device)
        slow = times["torch"]["median_seconds"]
        what = f"LRN alone {tuple(x.shape)}"
        rows += [
            {
                "what": what,
                "case": name,
                **t,
                "ratio": slow / t["median_seconds"],
                "ratio_is": "times as fast as torch",
            }
            | {"kept": kept[name]}
            for name, t in times.items()
        ]
    return rows + _steps(device, batch_size, repeats, compiled)


def _layers(compiled: object) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        "ours": LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        "torch": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
    }
    if compiled:
        layers["ours, compiled"] = LocalResponseNorm(5, 1e-4, 0.75, 2.0, compiled=True)
        layers["torch, compiled"] = torch.compile(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    return layers


def _kept(layer: nn.Module, x: Tensor) -> float:
    """Return the bytes kept for the backward pass over those of the input."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x.detach().requires_grad_())
    del out  # until here, so that no two storages share an address
    return sum(kept.values()) / x.untyped_storage().nbytes()


def _forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    layer(leaf).backward(grad)


def _steps(device: str, batch_size: int, repeats: int, compiled: bool) -> list[Row]:
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
        "with torch's": with_torch_lrn(create_model("alexnet_lrn", num_classes=10)),
    }
    cases = {name: _step(net.to(device), images, labels) for name, net in networks.items()}
    times = alternate(cases, repeats, device, warmup=1)
    fast = times["without LRN"]["median_seconds"]
    what = f"training step, alexnet_lrn, batch {batch_size}"
    return [
        {
            "what": what,
            "case": name,
            **t,
            "ratio": t["median_seconds"] / fast,
            "ratio_is": "time over that without LRN",
        }
        for name, t in times.items()
    ]


def _step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return run
