"""What a split holds, as a count and a digest: a checkpoint keeps both, so that other images are noticed later."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import printable

Identity = dict[str, dict[str, Any]]  # split -> count, digest and origin


def identify(source: Any, origin: str = "") -> dict[str, Any]:
    """Return how many images a split has, a digest of them in their order, and where they came from.

    The digest is over names relative to the data set's folder, sizes in bytes and names of classes; of images in
    memory over pixels and classes. A folder that has moved is the same data, and a cache changes nothing. What it
    does not see is a file that was edited without a change of its size: that would mean to read all of them.

    Args:
        source: A split; None for the digest where it is neither of files nor in memory.
        origin: One short phrase, with the rule that cut the split.
    """
    if isinstance(source, DecodedSource):
        source = source.files if source.numbers is None else source.files.subset(source.numbers)
    return {"count": len(source), "digest": _digest(source), "origin": origin}


def identify_ahead(sources: Mapping[str, Any], origins: Mapping[str, str]) -> Callable[[], Identity]:
    """Identify splits in a thread, since the sizes of a million files take seconds; the function waits for it."""
    splits = dict(sources)

    def all_of_them() -> Identity:
        return {split: identify(source, origins.get(split, "")) for split, source in splits.items()}

    with_one = ThreadPoolExecutor(1, thread_name_prefix="identify")
    found = with_one.submit(all_of_them)
    with_one.shutdown(wait=False)
    return lambda: (
        found.result()
    )  # a plain function: copies of a network, as its moving average is, can share it


def _digest(source: Any) -> str | None:
    if not isinstance(source, FileSource | ArraySource):
        return None
    digest = hashlib.sha256(_text(_named(source.labels, source.classes)))
    if isinstance(source, ArraySource):
        digest.update(source.images.contiguous().numpy().data)
        return digest.hexdigest()
    root = os.path.join(source.root, "")
    digest.update(_text([path.removeprefix(root) for path in source.paths]))
    checksum = getattr(source, "sha256", None)  # of data=streaming: what its index says
    digest.update(_text([checksum] if checksum else [str(_size(path)) for path in source.paths]))
    return digest.hexdigest()


def _named(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Return the class of every image by name: its number is another one among other classes."""
    return [classes[label] for label in labels.tolist()]


def _text(values: list[str]) -> bytes:
    text = unicodedata.normalize("NFC", "\0".join([*values, "\n"]))  # a Mac may store names decomposed
    return text.encode("utf-8", "surrogateescape")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone since it was found: for the loader to say
        return -1


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
        classes = f"{found['classes']:,} class{'' if found['classes'] == 1 else 'es'}"
        yield f"{split:<5}  {found['images']:,} images, {classes} ({sizes}), {origin}"


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
