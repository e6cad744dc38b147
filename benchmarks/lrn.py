"""Our local response normalisation against torch's, alone and within a training step of alexnet_lrn.

    python benchmarks/lrn.py [lrn.batch_size=32 lrn.compile=true repeats=7 ...] [trainer.precision=bf16-mixed ...]

With `lrn.compile`, both are also measured with torch.compile if a compiler is found (first call: 10 to 30 s).
"""

from __future__ import annotations

from script import Settings, run

# isort: split

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from baseline import with_torch_lrn
from torch import Tensor, nn

from alexnet_exp.config import groups
from alexnet_exp.config.schema import at_least, flag, read
from alexnet_exp.models.layers import LocalResponseNorm, missing_compiler
from alexnet_exp.runs.benchmark.loop import LAYOUTS, PRECISIONS, known_precision, layout_of, step_of
from alexnet_exp.runs.benchmark.subject import Subject
from alexnet_exp.runs.benchmark.timing import Row, alternate, rows
from alexnet_exp.training.automatic import settle_arithmetic, use_fast_matmul
from alexnet_exp.zoo import create_model

SETTINGS: Settings = {"lrn.batch_size": (32, at_least(1)), "lrn.compile": (True, flag)}
# The maps that alexnet_lrn normalises, (channels, side).
MAPS = ((96, 55), (256, 27))


class _Case(NamedTuple):
    """Precision, memory format and device of a run with the same settings."""

    precision: str  # a key of PRECISIONS
    layout: str  # a key of LAYOUTS
    device: str

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}"

    def autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device, dtype, enabled=dtype is not None)

    def laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device).contiguous(memory_format=LAYOUTS[self.layout])


def measure_lrn(subject: Subject) -> list[Row]:
    """Time forward and backward of LRN on both maps of alexnet_lrn, then whole training steps.

    Precision and memory format are those of the run: `trainer.precision` and `channels_last`, resolved if `auto`.

    Returns:
        One row per case. For the layer alone, `ratio` is torch's eager time over that of the case, and `kept` the bytes
        saved for the backward pass over those of the input; for the step, `ratio` is its time over that without LRN.

    Raises:
        UserError: Unsupported precision.
    """
    config = subject.config()
    settle_arithmetic(config, torch.device(subject.device))
    settings = read(groups.Settings, config)
    precision = known_precision(str(settings.trainer.precision))
    case = _Case(precision, layout_of(settings), subject.device)
    options = subject.further["lrn"]
    _as_a_run(settings.trainer, subject.device)
    missing = missing_compiler(subject.device) if options["compile"] else None
    compiled = options["compile"] and missing is None
    if missing:
        subject.notes.append(f"Compiled cases are skipped: they need {missing}.")
    alone = [row for size in MAPS for row in _alone(case, size, options["batch_size"], subject, compiled)]
    return alone + _steps(case, options["batch_size"], subject, compiled)


def _as_a_run(trainer: groups.Trainer, device: str) -> None:
    """Set matmul precision and cuDNN's benchmark mode as in a run."""
    use_fast_matmul(torch.device(device))
    chosen = trainer.benchmark
    torch.backends.cudnn.benchmark = not trainer.deterministic if chosen is None else chosen


def _alone(
    case: _Case, size: tuple[int, int], batch_size: int, subject: Subject, compiled: bool
) -> list[Row]:
    """Time the layer on maps of (channels, side)."""
    channels, side = size
    shape = (batch_size, channels, side, side)
    dtype = PRECISIONS[case.precision] or torch.float32  # of a convolution's output
    x, grad = (case.laid_out(torch.randn(shape, dtype=dtype)) for _ in range(2))
    with case.autocast():
        layers = _layers(compiled)
        kept = {name: _kept(layer, x) for name, layer in layers.items()}
        cases = {name: partial(_forward_backward, layer, x, grad) for name, layer in layers.items()}
        made = rows(
            f"LRN alone {shape}, {case}", alternate(cases, subject.repeats, subject.device), None, "torch"
        )
    return [row | {"kept": kept[row["case"]]} for row in made]


def _layers(compiled: bool) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        "ours": LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        "torch": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
    }
    if compiled:
        layers["ours, compiled"] = LocalResponseNorm(5, 1e-4, 0.75, 2.0, compiled=True)
        layers["torch, compiled"] = torch.compile(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    return layers


def _kept(layer: nn.Module, x: Tensor) -> float:
    """Return the bytes saved for the backward pass, relative to those of the input."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x.detach().requires_grad_())
    del out  # alive until here, so that no two storages can have the same address
    return sum(kept.values()) / x.untyped_storage().nbytes()


def _forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    out = layer(leaf)
    out.backward(grad.to(out.dtype))  # torch's layer returns float32 under autocast


def _steps(case: _Case, batch_size: int, subject: Subject, compiled: bool) -> list[Row]:
    networks = {
        "without LRN": create_model("alexnet", num_classes=10),
        "with ours": create_model("alexnet_lrn", num_classes=10),
        "with ours, compiled": create_model("alexnet_lrn", num_classes=10, lrn={"compiled": True}),
        "with torch's": with_torch_lrn(create_model("alexnet_lrn", num_classes=10)),
    }
    if not compiled:
        del networks["with ours, compiled"]
    images = case.laid_out(torch.randn(batch_size, 3, 227, 227))
    labels = torch.randint(0, 10, (batch_size,), device=case.device)
    cases = {name: _step(net, case, images, labels) for name, net in networks.items()}
    times = alternate(cases, subject.repeats, subject.device, warmup=1)
    fast = times["without LRN"]["median_seconds"]
    what = f"training step, alexnet_lrn, batch {batch_size}, {case}"
    return [
        {"what": what, "case": name, **t, "ratio": t["median_seconds"] / fast, "ratio_is": "time over that without LRN"}
        for name, t in times.items()
    ]  # fmt: skip


def _step(net: nn.Module, case: _Case, images: Tensor, labels: Tensor) -> Callable[[], object]:
    net = net.to(case.device, memory_format=LAYOUTS[case.layout])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return partial(step_of(net, optimizer, case.precision), images, labels)


if __name__ == "__main__":
    sys.exit(run(measure_lrn, SETTINGS))
