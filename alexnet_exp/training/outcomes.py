"""What a test found out about single images: the ones to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alexnet_exp.data.loaders import Batch

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
