"""The identity of a split, as count and digest; stored in checkpoints, so that changed images are noticed later."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import printable

Identity = dict[str, dict[str, Any]]  # split -> count, digest and origin


def identify(source: Any, origin: str = "") -> dict[str, Any]:
    """Return the number of images in a split, a digest of them in order, and their origin.

    The digest covers paths relative to the data set's folder, file sizes and class names; for images in memory, pixels
    and classes. Moving the folder or caching does not change it. A file edited without a change of size goes unnoticed:
    detecting that would mean reading every file.

    Args:
        source: A split; a custom source, neither files nor arrays, has no digest (None).
        origin: A short phrase that includes the splitting rule.
    """
    if isinstance(source, DecodedSource):
        source = source.files if source.numbers is None else source.files.subset(source.numbers)
    return {"count": len(source), "digest": _digest(source), "origin": origin}


def identify_ahead(sources: Mapping[str, Any], origins: Mapping[str, str]) -> Callable[[], Identity]:
    """Identify splits in a thread (a million stat calls take seconds); the returned function waits for the result."""
    splits = dict(sources)

    def identify_all() -> Identity:
        return {split: identify(source, origins.get(split, "")) for split, source in splits.items()}

    executor = ThreadPoolExecutor(1, thread_name_prefix="identify")
    found = executor.submit(identify_all)
    executor.shutdown(wait=False)
    # A plain function, because the module is deep-copied for the moving average and a Future cannot be.
    return lambda: found.result()


def _digest(source: Any) -> str | None:
    if not isinstance(source, FileSource | ArraySource):
        return None
    # By class name: the label of a class changes when other classes are added.
    digest = hashlib.sha256(_text([source.classes[label] for label in source.labels.tolist()]))
    if isinstance(source, ArraySource):
        digest.update(source.images.contiguous().numpy().data)
        return digest.hexdigest()
    root = os.path.join(source.root, "")
    digest.update(_text([path.removeprefix(root) for path in source.paths]))
    checksum = getattr(source, "sha256", None)  # data=streaming: the checksum in its index
    digest.update(_text([checksum] if checksum else [str(_size(path)) for path in source.paths]))
    return digest.hexdigest()


def _text(values: list[str]) -> bytes:
    text = unicodedata.normalize("NFC", "\0".join([*values, "\n"]))  # macOS may store names decomposed
    return text.encode("utf-8", "surrogateescape")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # deleted since it was listed: the loader reports it
        return -1


_NAMED = 5  # empty classes listed by name
_LONGEST = 40  # characters shown of a class name


def facts(source: ArraySource | FileSource, origin: str) -> dict[str, Any]:
    """Return number of images and classes, smallest and largest class, and origin of a split, as plain values."""
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
        classes = f"{found['classes']:,} class{'' if found['classes'] == 1 else 'es'}"
        yield f"{split:<5}  {found['images']:,} images, {classes} ({sizes}), {origin}"


def missing(split: str, source: ArraySource | FileSource) -> str:
    """Name the classes without images in a split; empty if there are none."""
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
