"""Small tensors of fixed numbers, made once for each device: a copy from the host at every step would wait for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return numbers, or rows of numbers, as a float32 tensor; everybody gets the same one, so it is never written to.

    Args:
        values: (K,) or (K, L).
        device: Where it lies.
    """
    with torch.inference_mode(False):  # validation may be the first to ask, and training uses it too
        return torch.tensor(values, dtype=torch.float32, device=device)
