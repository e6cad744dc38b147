"""Sums over an epoch, kept on the device and read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics import Metric

from alexnet_exp.data.loaders import Batch


class ClassificationMeter(Metric):
    """Mean loss, top-1 and top-5 of everything since the last reset, over all ranks.

    Args:
        num_classes: Logits of the network.
        confusion: Whether to count (true, predicted) pairs too.
    """

    full_state_update = False
    totals: Tensor
    loss: Tensor
    confusion: Tensor
    confusion_counts: Tensor

    def __init__(self, num_classes: int, confusion: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.with_confusion = confusion
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        if confusion:
            cells = torch.zeros(num_classes, num_classes, dtype=torch.long)
            self.add_state("confusion", cells, dist_reduce_fx="sum")

    def update(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            losses: (N,) loss of each image.
            logits: (N, K).
            labels: (N,) int64.
        """
        self.loss += losses.detach().float().sum()
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
        hits = best == labels[:, None]
        counts = torch.stack([hits[:, 0].sum(), hits.sum(), hits.new_full((), 0, dtype=torch.long)])
        counts[2] += len(labels)
        self.totals += counts
        if self.with_confusion:
            cells = torch.bincount(labels * self.num_classes + best[:, 0], minlength=self.num_classes**2)
            self.confusion += cells.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, float]:
        """Return loss, top1 and, for more than five classes, top5."""
        if self.with_confusion:
            self.confusion_counts = (
                self.confusion.cpu()
            )  # over all ranks, while torchmetrics has them together
        loss, (top1, top5, images) = float(self.loss), self.totals.tolist()
        if images == 0:
            return {}
        values = {"loss": loss / images, "top1": top1 / images}
        if self.num_classes > 5:
            values["top5"] = top5 / images
        return values

    def state(self) -> Tensor:
        """Return the sums of each rank as (ranks, 4) float64, for a checkpoint in the middle of an epoch."""
        sums = torch.cat([self.loss.cpu().double()[None], self.totals.cpu().double()])
        if not (distributed.is_available() and distributed.is_initialized()):
            return sums[None]
        here = sums.to(self.loss.device)
        ranks = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, here)
        return torch.stack(ranks).cpu()

    def restore(self, state: Tensor, world_size: int = 1, rank: int = 0) -> None:
        """Go on from what `state` returned; among another number of ranks, the first carries all."""
        if len(state) != world_size:
            state = functional.pad(state.sum(0, keepdim=True), (0, 0, 0, world_size - 1))
        self.loss = state[rank, 0].to(self.loss)
        self.totals = state[rank, 1:].to(self.totals)
        self._update_count = 1  # torchmetrics warns about reading a metric that was never updated


NUM_MISTAKES = 36
NUM_SAMPLES = 16


@dataclass
class Outcome:
    """One image: its position in the split, true and predicted label, probability of the prediction."""

    index: int
    label: int
    prediction: int
    probability: float


@dataclass
class Outcomes:
    """The most confident mistakes of a test, and a fixed sample of predictions."""

    confusion: Tensor | None = None  # (K, K) int64, rows are true labels
    mistakes: list[Outcome] = field(default_factory=list)  # worst first; filled by `gather`
    samples: list[Outcome] = field(default_factory=list)  # `wanted`, or the first images of the split
    wanted: Tensor | None = None  # positions of the samples in the split, int64 (S,), on the device
    _mistakes: list[Tensor] = field(
        default_factory=list
    )  # each (M, 4): probability, index, label, prediction
    _samples: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Keep what may be worth a look from one batch; nothing is copied from the device."""
        probabilities, predictions = logits.softmax(1).max(1)
        indices, labels = batch.indices[: batch.size], batch.labels[: batch.size]
        table = torch.stack([probabilities.double() if logits.device.type != "mps" else probabilities,
                             indices, labels, predictions], dim=1)  # fmt: skip
        wrong = torch.where(predictions == labels, -1.0, probabilities)
        self._mistakes.append(table[wrong.topk(min(NUM_MISTAKES, len(wrong))).indices])
        if self.wanted is not None:
            # topk instead of a mask, whose length the device would have to be asked for.
            is_wanted = torch.isin(indices, self.wanted).to(wrong.dtype)
            self._samples.append(table[is_wanted.topk(min(len(self.wanted), len(wrong))).indices])
        elif len(self._samples) * len(table) < NUM_SAMPLES:
            self._samples.append(table[:NUM_SAMPLES])

    def gather(self) -> None:
        """Bring the finds of all ranks together; every rank must call it."""
        worst = [o for o in _everywhere(self._mistakes) if o.label != o.prediction]
        self.mistakes = sorted(worst, key=lambda o: (-o.probability, o.index))[:NUM_MISTAKES]
        samples = sorted(_everywhere(self._samples), key=lambda o: o.index)
        wanted = None if self.wanted is None else set(self.wanted.tolist())
        self.samples = [o for o in samples if wanted is None or o.index in wanted][:NUM_SAMPLES]


def _everywhere(tables: list[Tensor]) -> list[Outcome]:
    rows: list[Any] = torch.cat(tables).tolist() if tables else []
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return [Outcome(int(i), int(label), int(p), probability) for probability, i, label, p in rows]


def image_losses(
    logits: Tensor, labels: Tensor, smoothing: float, partners: Tensor | None, shares: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each image's loss and the label it is counted by.

    Args:
        logits: (N, K).
        labels: (N,).
        smoothing: Share of the target spread over all classes.
        partners: (N,), position of the image that each is mixed with; None: no images are mixed.
        shares: (N,), of the image itself.
    """

    def against(wanted: Tensor) -> Tensor:
        return functional.cross_entropy(logits, wanted, reduction="none", label_smoothing=smoothing)

    losses = against(labels)
    if partners is not None and shares is not None:
        others = labels[partners]
        losses = torch.lerp(against(others), losses, shares.to(losses.dtype))
        labels = torch.where(shares < 0.5, others, labels)
    return losses, labels
