"""The run against the loop that people write today, both from files to weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.allocator import usual_limits
from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs.benchmark_loop import fresh
from alexnet_exp.runs.benchmark_plain import PilImages, PlainLoader, transform_of
from alexnet_exp.runs.benchmark_subject import Subject, title
from alexnet_exp.runs.benchmark_turns import take_turns
from alexnet_exp.runs.fit import Fit
from alexnet_exp.runs.timing import Row, rows
from alexnet_exp.training.optimizers import build_optimizer


def measure_baseline(subject: Subject) -> list[Row]:
    """Time a training step of `Trainer` on our data, and one of the loop in tutorials and READMEs.

    Theirs is the same network in float32 with nn.LocalResponseNorm, torch's optimizer as it comes, each image by
    itself through Pillow, ToTensor and Normalize in a DataLoader, and loss.item() at each step.

    Returns:
        Two rows; `ratio` of the first is how many times faster ours is.
    """
    fit = subject.fit(tracked=True)
    images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
    device = fit.trainer.strategy.root_device
    with PlainLoader(images, fit.data.batch_size, subject.options["workers"], device) as loader:
        loop = _Loop(fit, loader)
        with usual_limits():
            loop.steps(1)
        times = take_turns(fit, loop.steps, subject, around=usual_limits)
    ours = f"ours: Trainer, {fit.trainer.precision}"
    named = {ours: times["ours"], "the hand-written loop: PIL, 32-true": times["theirs"]}
    what = f"baseline=readme: {title(fit, subject.overrides)}"
    return rows(what, named, fit.data.batch_size, list(named)[1])


class _Loop:
    def __init__(self, fit: Fit, loader: PlainLoader) -> None:
        self.model = with_torch_lrn(fresh(fit)).to(fit.trainer.strategy.root_device).train()
        self.optimizer = build_optimizer(self.model, fit.config["optimizer"], fused=False)
        self.loader = loader
        self.running_loss = 0.0

    def steps(self, count: int) -> None:
        for images, labels in self.loader.steps(count):
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.running_loss += loss.item()


def with_torch_lrn(net: nn.Module) -> nn.Module:
    """Replace our local response normalisation by torch's, in place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LocalResponseNorm):
                torch_lrn = nn.LocalResponseNorm(child.size, child.alpha, child.beta, child.k)
                setattr(parent, name, torch_lrn if child.groups == 1 else _Towers(torch_lrn, child.groups))
    return net


class _Towers(nn.Module):
    """Each group of channels by itself, as people write it whose layer knows no groups."""

    def __init__(self, layer: nn.Module, groups: int) -> None:
        super().__init__()
        self.layer, self.groups = layer, groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(tower) for tower in x.chunk(self.groups, 1)], 1)
