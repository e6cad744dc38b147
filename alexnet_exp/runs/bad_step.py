"""Make a step again whose loss was not finite: `python -m alexnet_exp.runs.bad_step RUN_DIR/bad_step.pt`.

For a network of your own, name the package that you trust after the file.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_exp.errors import UserError, printable
from alexnet_exp.training.losses import image_losses
from alexnet_exp.training.reading import read_checkpoint
from alexnet_exp.training.rebuild import network_of

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_BATCH = ("images", "labels", "losses", "names", "step", "epoch", "random_seed", "size")


@dataclass
class Again:
    """A step made again.

    Args:
        step: Its number, from 1.
        names: Of the images.
        labels: (N,).
        losses: (N,), with the gradient's history.
        recorded: (N,), the losses as they were in the run.
        first: Where the first value that is not finite is met: 'weights of X', 'output of X' or 'gradient of X'.
    """

    step: int
    names: list[str]
    labels: Tensor
    losses: Tensor
    recorded: Tensor
    first: str | None


def make_again(path: Path, trust: tuple[str, ...] = ()) -> Again:
    """Take the step of a file that a run has left, on the processor.

    Args:
        path: bad_step.pt.
        trust: Packages whose classes the file may name.

    Raises:
        UserError: If the file is none of these.
    """
    kept = read_checkpoint(path)
    if any(key not in kept for key in _BATCH):
        raise UserError(f"{path} holds no step: bad_step.pt of a run is wanted.")
    model = network_of(kept, trust).train()
    try:
        return _taken(kept, model)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:  # the file may be anybody's
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} holds a step that cannot be made again ({reason}).") from error


def _taken(kept: dict[str, Any], model: nn.Module) -> Again:
    config, size = kept["config"], kept["size"]
    layout = torch.channels_last if config.get("channels_last") is True else torch.contiguous_format
    model = model.to(memory_format=layout)
    seen = _Watch(model)
    torch.manual_seed(kept["random_seed"])
    with _precision(config):
        logits = model(kept["images"].contiguous(memory_format=layout))
    smoothing = config.get("label_smoothing", 0.0)
    losses = image_losses(logits, kept["labels"], smoothing, kept["partners"], kept["shares"])[0][:size]
    losses.sum().backward()
    return Again(
        kept["step"], kept["names"][:size], kept["labels"][:size], losses, kept["losses"], seen.first()
    )


def _precision(config: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    dtype = _AUTOCAST.get(config["trainer"].get("precision"))
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


class _Watch:
    """Remembers which layer of a network first gives a value that is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.output: str | None = None
        for name, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(lambda module, given, output, name=name: self._see(name, output))

    def _see(self, name: str, output: Tensor) -> None:
        if self.output is None and not output.isfinite().all():
            self.output = name

    def first(self) -> str | None:
        """Say where it was, once the step has been taken."""
        named = list(self.model.named_parameters())
        weights = next((name for name, p in named if not p.isfinite().all()), None)
        gradient = next(
            (name for name, p in reversed(named) if p.grad is not None and not p.grad.isfinite().all()), None
        )
        found = {"weights": weights, "output": self.output, "gradient": gradient}
        return next((f"{what} of {name}" for what, name in found.items() if name is not None), None)


def main(arguments: list[str]) -> int:
    """Print what a step was made of; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return int(not arguments)
    try:
        again = make_again(Path(arguments[0]), tuple(arguments[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"step {again.step}: loss {float(again.losses.detach().mean())} over {len(again.names)} images")
    print(f"not finite first: {again.first or 'nothing'}")
    for name, label, loss in zip(again.names, again.labels.tolist(), again.losses.tolist(), strict=True):
        print(f"  {printable(name)}  label {label}  loss {loss}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
