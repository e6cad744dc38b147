"""Metrics as sums over an epoch, accumulated on the device and read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics import Metric

from alexnet_exp.data.loaders import Batch
from alexnet_exp.errors import UserError, nearest


def macro_scores(confusion: Tensor) -> dict[str, float]:
    """Return balanced accuracy and macro F1, which weigh every class equally.

    Balanced accuracy is the mean recall over classes that have images. Macro F1 is the mean F1 over classes that have
    images or were predicted, 0 for a class without true positives. Both match scikit-learn.

    Args:
        confusion: (K, K) counts of at least one image, rows are true labels, on any device; one sync.
    """
    counts = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]).cpu().double()
    hits, support, predicted = counts
    recall = (hits / support)[support > 0]  # drops 0 / 0
    f1 = (2 * hits / (support + predicted))[support + predicted > 0]
    return {"balanced_accuracy": float(recall.mean()), "macro_f1": float(f1.mean())}


class ClassificationMeter(Metric):
    """Mean loss, top-1 and top-5 since the last reset, over all ranks.

    Args:
        num_classes: Number of logits.
        confusion: Also accumulate a confusion matrix, for balanced accuracy and macro F1.
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
            cells = labels * self.num_classes + best[:, 0]  # (N,) positions in the flattened matrix
            if cells.is_cuda:  # bincount would sync to read the largest cell
                self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
            else:
                self.confusion += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.confusion)

    def compute(self) -> dict[str, float]:
        """Return loss, top1, top5 with more than five classes, and `macro_scores` if there is a confusion matrix."""
        if self.with_confusion:
            # Inside compute the matrix is summed over ranks; torchmetrics restores the local one afterwards.
            self.confusion_counts = self.confusion
        loss, (top1, top5, images) = float(self.loss), self.totals.tolist()
        if images == 0:
            return {}
        values = {"loss": loss / images, "top1": top1 / images}
        if self.num_classes > 5:
            values["top5"] = top5 / images
        if self.with_confusion:
            values |= macro_scores(self.confusion)
        return values

    def state(self) -> Tensor:
        """Return every rank's sums, (ranks, 4) float64, for a mid-epoch checkpoint."""
        sums = torch.cat([self.loss.cpu().double()[None], self.totals.cpu().double()])
        if not (distributed.is_available() and distributed.is_initialized()):
            return sums[None]
        own = sums.to(self.loss.device)  # NCCL gathers device tensors only
        ranks = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, own)
        return torch.stack(ranks).cpu()

    def restore(self, state: Tensor, world_size: int = 1, rank: int = 0) -> None:
        """Restore what `state` returned; if the number of ranks has changed, rank 0 takes the total."""
        if len(state) != world_size:
            state = functional.pad(state.sum(0, keepdim=True), (0, 0, 0, world_size - 1))
        self.loss = state[rank, 0].to(self.loss)
        self.totals = state[rank, 1:].to(self.totals)
        self._update_count = 1  # else torchmetrics warns about computing a metric that was never updated


NUM_MISTAKES = 36
NUM_SAMPLES = 16


@dataclass
class Outcome:
    """Prediction for one image: its position in the split, true and predicted label, probability of the latter."""

    index: int
    label: int
    prediction: int
    probability: float


@dataclass
class Outcomes:
    """The most confident mistakes of a test run, and a fixed sample of its predictions."""

    confusion: Tensor | None = None  # (K, K) int64, rows are true labels
    mistakes: list[Outcome] = field(default_factory=list)  # worst first; filled by `gather`
    samples: list[Outcome] = field(default_factory=list)  # `wanted`, or the first images of the split
    keep: bool = False  # keep every prediction in `every`
    every: list[Outcome] = field(default_factory=list)  # in split order; filled by `gather`
    wanted: Tensor | None = None  # positions of the samples in the split, int64 (S,), on the device
    # Each tensor is (M, 4): probability, index, label, prediction.
    _mistakes: list[Tensor] = field(default_factory=list)
    _samples: list[Tensor] = field(default_factory=list)
    _every: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Collect candidates from one batch, without a device sync."""
        probabilities, predictions = logits.softmax(1).max(1)
        indices, labels = batch.indices[: batch.size], batch.labels[: batch.size]
        # float64 holds every position exactly; MPS has no float64.
        table = torch.stack([probabilities.double() if logits.device.type != "mps" else probabilities,
                             indices, labels, predictions], dim=1)  # fmt: skip
        if self.keep:
            self._every.append(table)
        wrong = torch.where(predictions == labels, -1.0, probabilities)  # hits come last; `gather` drops them
        self._mistakes.append(table[wrong.topk(min(NUM_MISTAKES, len(wrong))).indices])
        if self.wanted is not None:
            # topk, not a boolean mask: the size of a mask's result would have to be read from the device.
            is_wanted = torch.isin(indices, self.wanted).to(wrong.dtype)
            self._samples.append(table[is_wanted.topk(min(len(self.wanted), len(wrong))).indices])
        elif len(self._samples) * len(table) < NUM_SAMPLES:
            self._samples.append(table[:NUM_SAMPLES])

    def gather(self) -> None:
        """Merge the candidates of all ranks; every rank must call it."""
        worst = [o for o in _gather_outcomes(self._mistakes) if o.label != o.prediction]
        self.mistakes = sorted(worst, key=lambda o: (-o.probability, o.index))[:NUM_MISTAKES]
        samples = sorted(_gather_outcomes(self._samples), key=lambda o: o.index)
        wanted = None if self.wanted is None else set(self.wanted.tolist())
        if self.keep:
            self.every = sorted(_gather_outcomes(self._every), key=lambda o: o.index)
        self.samples = [o for o in samples if wanted is None or o.index in wanted][:NUM_SAMPLES]


def _gather_outcomes(tables: list[Tensor]) -> list[Outcome]:
    rows: list[Any] = torch.cat(tables).tolist() if tables else []
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return [Outcome(int(i), int(label), int(p), probability) for probability, i, label, p in rows]


def image_losses(
    logits: Tensor,
    labels: Tensor,
    smoothing: float,
    partners: Tensor | None,
    shares: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each image's loss and the label it is scored by.

    Args:
        logits: (N, K).
        labels: (N,).
        smoothing: Share of the target spread over all classes.
        partners: (N,) position of the image that each is mixed with; None without mixing.
        shares: (N,) share of the image itself in the mix.
        weights: (K,) factor on the loss by target label. Unlike torch's `weight`, it does not reweight the classes
            that smoothing spreads the target over. Both labels of a mixed image use their own weight.
    """

    def against(wanted: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, wanted, reduction="none", label_smoothing=smoothing)
        return losses if weights is None else losses * weights[wanted].to(losses.dtype)

    losses = against(labels)
    if partners is not None and shares is not None:
        others = labels[partners]
        losses = torch.lerp(against(others), losses, shares.to(losses.dtype))
        labels = torch.where(shares < 0.5, others, labels)  # the larger share counts
    return losses, labels


def class_weights(
    wanted: str | Mapping[str, float], classes: Sequence[str], labels: Tensor
) -> tuple[float, ...] | None:
    """Return the weight of each class in the training loss, or None for equal weights.

    Args:
        wanted: 'none'; 'auto' for inverse frequency, N / (K n_c) over the K classes that have images, which averages
            to 1 over the N images; or weights by class name, used as given, 1 for the others.
        classes: Names, in label order.
        labels: (N,) labels of the training images.

    Raises:
        UserError: If a name is not a class.
    """
    if wanted == "none":
        return None
    if not isinstance(wanted, Mapping):
        counts = torch.bincount(labels, minlength=len(classes)).double()
        weights = len(labels) / (counts.count_nonzero() * counts)  # infinite without images
        return tuple(torch.where(counts > 0, weights, 1.0).tolist())
    # str, because YAML reads a class named 7 as an int.
    named = {str(name): float(weight) for name, weight in wanted.items()}
    for name in named:
        if name not in classes:
            raise UserError(f"class_weights: there is no class {name}.{nearest(name, classes)}")
    return tuple(named.get(name, 1.0) for name in classes)
