"""The safetensors format, read without its library: 8 bytes of length, a JSON header, the numbers.

A network that ships with this package is such a file, and the library is an extra. A header may claim anything, so
every claim is checked against the file's size before there is memory for it.

Source: huggingface/safetensors, README, section 'Format'.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

_MAX_HEADER = 100_000_000  # bytes, as the library
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def parse(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its metadata.

    Args:
        content: The whole file.

    Raises:
        ValueError: If it is no such file, or its header claims more or less than it holds.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, _MAX_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no map")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text")
    numbers = memoryview(content)[8 + length :]
    spans = {name: _span(name, entry, len(numbers)) for name, entry in header.items()}
    if sum(end - start for start, end in spans.values()) != len(numbers):  # tensors may not share bytes
        raise ValueError("its tensors are not as long as its data")
    return {name: _tensor(header[name], numbers[start:end]) for name, (start, end) in spans.items()}, metadata


def _span(name: str, entry: Any, available: int) -> tuple[int, int]:
    """Return where the numbers of a tensor lie, checked."""
    wrong = ValueError(f"its tensor {name[:80]} is not what a header says")
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        raise wrong
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        raise wrong
    if math.prod(shape) * _DTYPES[entry["dtype"]].itemsize != offsets[1] - offsets[0]:
        raise wrong
    return offsets[0], offsets[1]


def _whole_numbers(value: Any) -> list[int] | None:
    are = isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)
    return value if are else None


def _tensor(entry: dict[str, Any], numbers: memoryview) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if not len(numbers):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)
