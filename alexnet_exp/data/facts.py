"""What a run says of its splits at the start, and records: images, classes, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import printable

_NAMED = 5  # classes without an image
_LONGEST = 40  # characters of a class name


def facts(source: ArraySource | FileSource, origin: str) -> dict[str, Any]:
    """Return images, classes, smallest and largest class and origin of a split, as plain values."""
    counts = _counts(source)
    present = [i for i, count in enumerate(counts) if count]
    ends = {"smallest": min(present, key=counts.__getitem__), "largest": max(present, key=counts.__getitem__)}
    named = {end: {"class": source.classes[i], "images": counts[i]} for end, i in ends.items()}
    return {"images": len(source), "classes": len(present), **named, "origin": origin}


def lines(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each split, such as 'train  324 images, 10 classes (hat 21 ... t-shirt 64), folder train'.

    Args:
        splits: `facts` of each.
    """
    for split, found in splits.items():
        small, large = found["smallest"], found["largest"]
        sizes = (
            f"{_short(small['class'])} {small['images']:,} ... {_short(large['class'])} {large['images']:,}"
        )
        if small["images"] == large["images"]:
            sizes = f"{small['images']:,} of each"
        origin = printable(found["origin"])
        yield f"{split:<5}  {found['images']:,} images, {found['classes']:,} classes ({sizes}), {origin}"


def missing(split: str, source: ArraySource | FileSource) -> str:
    """Say which classes have no image in a split, or return an empty string."""
    names = [_short(name) for name, count in zip(source.classes, _counts(source), strict=True) if not count]
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMED else ""
    what = f"{len(names):,} of {len(source.classes):,} classes"
    return f"{split} has no images of {what}: {', '.join(names[:_NAMED])}{more}"


def _counts(source: ArraySource | FileSource) -> list[int]:
    return torch.bincount(source.labels, minlength=len(source.classes)).tolist()


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
