"""The most confident mistakes of every class."""

from __future__ import annotations

import torch

from alexnet_exp.runs.figures_subject import LeftOutError, Subject
from alexnet_exp.tracking.figure_data import ClassMistakes, Guess

MAX_CLASSES, PER_CLASS = 12, 5


def mistakes(subject: Subject) -> tuple[list[ClassMistakes], str]:
    """Send the whole split through the network, and find the mistakes of which it was most certain.

    Returns:
        The classes with the largest share of mistakes, and a sentence about them.

    Raises:
        LeftOutError: If there is no mistake.
    """
    labels, said, certainty = _predicted(subject)
    wrong = labels != said
    if not wrong.any():
        raise LeftOutError(
            f"all {len(labels):,} images of the {subject.split} split are classified correctly."
        )
    totals = torch.bincount(labels, minlength=len(subject.classes))
    errors = torch.bincount(labels[wrong], minlength=len(subject.classes))
    shares = errors / totals.clamp(min=1)
    order = shares.argsort(descending=True, stable=True)[: int((errors > 0).sum())].tolist()
    found = []
    for label in order[:MAX_CLASSES]:
        mine = ((labels == label) & wrong).nonzero()[:, 0]
        top = mine[certainty[mine].argsort(descending=True, stable=True)[:PER_CLASS]]
        guesses = [_guess(subject, int(i), int(said[i]), float(certainty[i])) for i in top]
        found.append(ClassMistakes(subject.classes[label], int(errors[label]), int(totals[label]), guesses))
    text = f"{int(errors.sum()):,} of {len(labels):,} images of the {subject.split} split are misclassified."
    if len(order) > MAX_CLASSES:
        text += f" The {MAX_CLASSES} classes with the largest share of mistakes, of {len(order):,} that have some."
    return found, text


def _predicted(subject: Subject) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return label, predicted class and its probability of every image, each (N,), in the order of the split."""
    parts = []
    for batch in subject.batches(subject.split, "mistakes"):
        probabilities = subject.predict(subject.prepared(batch.images[: batch.size]))
        certainty, said = probabilities.max(1)
        indices, labels = (column[: batch.size].cpu() for column in (batch.indices, batch.labels))
        parts.append((indices, labels, said, certainty))
    indices, labels, said, certainty = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return labels[order], said[order], certainty[order]


def _guess(subject: Subject, index: int, said: int, certainty: float) -> Guess:
    return Guess(subject.picture(index), [(subject.classes[said], certainty)])
