"""Self-contained safetensors files, as written by `export format=safetensors`, and a reader for the format.

The tensors are the network's state dict. The metadata holds settings, class names, preprocessing and the record of the
run, with a SHA-256 over everything.

The pretrained networks of this package are such files, but the safetensors library is an optional dependency: hence
`parse`. A file is 8 bytes of header length, a JSON header, the data. Headers are untrusted: every claim is checked
against the file size before memory is allocated.

Source: huggingface/safetensors, README, section 'Format'.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KEY, _SUM = "alexnet_exp.network", "sha256"
# Settings that say where a run was, not what it was: reset to neutral values.
_NEUTRAL: dict[str, Any] = {
    "paths": {"data_dir": "data", "output_dir": "outputs", "cache_dir": None}, "logger": {}, "resume": None,
    "ckpt": None, "weights": "none", "sweep": {"resume": None}, "trust": [],
}  # fmt: skip
_NEUTRAL_DATA = {"data_dir": "data", "cache_dir": None, "root": None, "url": None}


def metadata_of(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    classes: list[str],
    preprocessing: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    at_chance: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        weights: The network's state dict, contiguous.
        config: Settings of the run; paths are dropped.
        classes: Class names.
        preprocessing: As in a checkpoint; the mean image may be a tensor.
        record: From result.json: metrics, commit, versions, hardware.
        at_chance: As in a checkpoint whose network is no better than guessing.
    """
    kept = {**config, **{key: value for key, value in _NEUTRAL.items() if key in config}}
    if "data" in kept:  # a network without a run has none
        kept["data"] = {**kept["data"], **{k: v for k, v in _NEUTRAL_DATA.items() if k in kept["data"]}}
    prepared = dict(preprocessing)
    if (mean := prepared["mean_image"]) is not None:
        prepared["mean_image"] = {
            "shape": list(mean.shape),
            "float32": base64.b64encode(mean.float().cpu().contiguous().numpy().tobytes()).decode("ascii"),
        }
    about = {"config": kept, "classes": classes, "preprocessing": prepared, "record": dict(record or {})}
    if at_chance is not None:
        about["at_chance"] = dict(at_chance)
    # One string, since safetensors' metadata maps strings to strings.
    text = json.dumps(about, ensure_ascii=False)
    return {_KEY: text, _SUM: _digest(text, weights)}


def as_checkpoint(weights: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of a file in the form of a checkpoint: what `metadata_of` took, and state_dict.

    Args:
        weights: Its tensors.
        metadata: Its metadata; if it was not made by `metadata_of`, the weights are returned as they are.

    Raises:
        ValueError: If the file is damaged or its metadata is malformed.
    """
    if _KEY not in metadata:
        return weights
    if metadata.get(_SUM) != _digest(metadata[_KEY], weights):
        raise ValueError("its SHA-256 does not match its content")
    about = json.loads(metadata[_KEY])
    try:
        mean = about["preprocessing"]["mean_image"]
        if mean is not None:
            numbers = torch.frombuffer(bytearray(base64.b64decode(mean["float32"])), dtype=torch.float32)
            about["preprocessing"]["mean_image"] = numbers.reshape(mean["shape"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError("its metadata is malformed") from error
    # Under the names of the LightningModule, whose network is `model`.
    return {**about, "state_dict": {f"model.{name}": value for name, value in weights.items()}}


def _digest(text: str, weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the metadata and all tensors in order of their names, with dtype and shape."""
    found = hashlib.sha256(text.encode("utf-8"))
    for name, value in sorted(weights.items()):
        found.update(f"\0{name} {value.dtype} {list(value.shape)}\0".encode())
        # As bytes, since numpy has no bfloat16; flat, since a 0-d tensor cannot be viewed as bytes.
        found.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if value.numel()
            else b""
        )
    return found.hexdigest()


# ---------------------------------------------------------------------------------------- the format

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
