"""A reader for the safetensors format: 8 bytes of header length, a JSON header, the data.

The pretrained networks of this package are such files, but the safetensors library is an optional dependency. Headers
are untrusted: every claim is checked against the file size before memory is allocated.

Source: huggingface/safetensors, README, section 'Format'.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

_MAX_HEADER = 100_000_000  # bytes; the limit of the library
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def parse(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata.

    Args:
        content: The whole file.

    Raises:
        ValueError: If it is not a safetensors file, or its header does not match the size of its data.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, _MAX_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata has non-string values")
    numbers = memoryview(content)[8 + length :]
    spans = {name: _span(name, entry, len(numbers)) for name, entry in header.items()}
    if sum(end - start for start, end in spans.values()) != len(numbers):  # tensors may not share bytes
        raise ValueError("its tensors do not add up to its data")
    return {name: _tensor(header[name], numbers[start:end]) for name, (start, end) in spans.items()}, metadata


def _span(name: str, entry: Any, available: int) -> tuple[int, int]:
    """Return the byte range of a tensor after validating its header entry."""
    wrong = ValueError(f"the header entry of tensor {name[:80]} is invalid")
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        raise wrong
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        raise wrong
    if math.prod(shape) * _DTYPES[entry["dtype"]].itemsize != offsets[1] - offsets[0]:
        raise wrong
    return offsets[0], offsets[1]


def _whole_numbers(value: Any) -> list[int] | None:
    # `type`, because isinstance takes True for an int.
    are = isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)
    return value if are else None


def _tensor(entry: dict[str, Any], numbers: memoryview) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if not len(numbers):  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)  # a writable copy
