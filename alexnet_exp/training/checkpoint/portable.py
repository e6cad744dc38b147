"""Self-contained safetensors files, as written by `export format=safetensors`.

The tensors are the network's state dict. The metadata holds settings, class names, preprocessing and the record of the
run, with a SHA-256 over everything.
"""

from __future__ import annotations

import base64
import hashlib
import json
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
