"""The layers written as plain loops over numbers in float64, straight from the sources' formulas."""

from __future__ import annotations

import math

import numpy as np


def lrn(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """The original: divide by (k + alpha / n * sum of n squares) ** beta; x is (N, C, H, W)."""
    out = np.empty_like(x)
    for n, c, i, j in np.ndindex(*x.shape):
        total = 0.0
        for other in range(c - size // 2, c + (size - 1) // 2 + 1):
            if 0 <= other < x.shape[1]:
                total += x[n, other, i, j] ** 2
        out[n, c, i, j] = x[n, c, i, j] / (k + alpha / size * total) ** beta
    return out


def tensorflow_lrn(x: np.ndarray, radius: int, bias: float, alpha: float, beta: float) -> np.ndarray:
    """tf.nn.local_response_normalization: the sum is not divided; x is (N, C, H, W)."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - radius) : c + radius + 1]
        out[:, c] = x[:, c] / (bias + alpha * (window**2).sum(axis=1)) ** beta
    return out


def spatial_norm(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """cuda-convnet's rnorm: (k + alpha / n^2 * sum of squares over n x n of the same map) ** beta."""
    out, half = np.empty_like(x), size // 2
    for n, c, i, j in np.ndindex(*x.shape):
        window = x[n, c, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1]
        out[n, c, i, j] = x[n, c, i, j] / (k + alpha / size**2 * (window**2).sum()) ** beta
    return out


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, before: int, outputs: int
) -> np.ndarray:
    """Slide a window that starts `before` pixels outside; pixels outside read zero.

    Args:
        x: (C, H, W).
        weight: (out, C, k, k), or (positions, out, C, k, k) with separate weights for every position.
        bias: (out,), or (positions, out).
        stride: Step of the window.
        before: Zeros above and to the left.
        outputs: Windows along each axis.
    """
    untied = weight.ndim == 5
    kernel = weight.shape[-1]
    out = np.zeros((weight.shape[1] if untied else weight.shape[0], outputs, outputs))
    for i, j in np.ndindex(outputs, outputs):
        w, b = (weight[i * outputs + j], bias[i * outputs + j]) if untied else (weight, bias)
        for o in range(out.shape[0]):
            total = b[o]
            for c, di, dj in np.ndindex(x.shape[0], kernel, kernel):
                row, column = i * stride + di - before, j * stride + dj - before
                if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    total += w[o, c, di, dj] * x[c, row, column]
            out[o, i, j] = total
    return out


def pool(x: np.ndarray, kernel: int, stride: int, before: int, outputs: int, what: str) -> np.ndarray:
    """Maximum or mean over the pixels of each window that lie inside the map; x is (C, H, W)."""
    out = np.empty((x.shape[0], outputs, outputs))
    for c, i, j in np.ndindex(*out.shape):
        top, left = i * stride - before, j * stride - before
        window = x[c, max(0, top) : top + kernel, max(0, left) : left + kernel]
        out[c, i, j] = window.max() if what == "max" else window.mean()
    return out


def tensorflow_same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the number of windows and the zeros before the first, by TensorFlow's rule."""
    outputs = math.ceil(size / stride)
    return outputs, max((outputs - 1) * stride + kernel - size, 0) // 2
