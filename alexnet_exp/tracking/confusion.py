"""What a confusion matrix says: counts (K, K), rows are the true classes. For report, figures and W&B alike."""

from __future__ import annotations

import numpy as np


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Return (K, K) float64: each cell's share of its true class, 0 for a class without images."""
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return (true, predicted, images) of the most frequent mistakes, most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(cell), len(wrong)) for cell in order]
    return [
        (label, predicted, int(wrong[label, predicted]))
        for label, predicted in pairs
        if wrong[label, predicted]
    ]
