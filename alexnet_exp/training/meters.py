"""Sums over an epoch, kept on the device and read once."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics import Metric


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
