"""Read a pickle of tensors and plain values without making any of it: what stands there, checked for size and form.

For each name that a file of ours may hold there is a stand-in. A pickle can set attributes of what it has put onto its
stack, classes and functions included, so nothing of this process may ever lie there: a stand-in takes none.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, ClassVar

MAX_DEPTH = 50
MAX_VALUES = 1 << 24  # values and characters, an object counted as often as it is referred to
_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip


class RefusedError(Exception):
    """Say what is wrong with a file, as the end of a sentence."""


class _StandIn:
    """Stands for something that torch would make, and cannot be changed."""

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("it sets attributes of what takes none")


@dataclass(frozen=True)
class _Call(_StandIn):
    """Stands for a function or class, which a file may call."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


@dataclass(frozen=True)
class _Kind(_StandIn):
    """The type of a storage's items."""

    item_bytes: int


@dataclass(frozen=True)
class _Storage(_StandIn):
    count: int


@dataclass(frozen=True)
class _Tensor(_StandIn):
    """Stands for a tensor that fits into its storage."""


class _Attributes:
    """Keeps what a file would set as attributes, for `measure`."""

    attributes: Mapping[Any, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedError("the attributes of one of its values have no names")
        self.attributes = dict(state)


class _Namespace(_Attributes):
    """Stands for a command line, which torchvision's training script keeps beside the weights."""


class _Ordered(_Attributes, OrderedDict[Any, Any]):
    """Stands for an OrderedDict; that of a network has its modules' versions as `_metadata`."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if set(self.attributes) - {"_metadata"}:  # such as `items`, which whoever asks for them would call
            raise RefusedError("one of its dictionaries has attributes")


def _ordered() -> _Ordered:
    return _Ordered()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Check what `torch._utils._rebuild_tensor_v2` would be given."""
    formed = isinstance(storage, _Storage) and len(shape) == len(strides) <= 64
    if not formed or not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
        raise RefusedError("one of its tensors has no form")
    count = math.prod(shape)
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1 if count else 0
    if max(end, count) > storage.count:
        raise RefusedError(
            f"a tensor of shape {list(shape)} claims more values than the {storage.count} it has"
        )
    return _Tensor()


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise RefusedError("one of its parameters is no tensor")
    return tensor


def _counter(counts: Any = None) -> dict[Any, Any]:
    """Return the epochs of torch's MultiStepLR."""
    if type(counts) is not dict:
        raise RefusedError("one of its counters counts nothing")
    return dict(counts)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


class DryRun(pickle._Unpickler):  # the one in C takes sizes at their word
    """Reads a pickle and makes nothing but plain values and stand-ins.

    Args:
        file: The pickle.
        sizes: Bytes of each storage; None: not known, and `claimed` gathers them.
    """

    # A bytearray is made as long as it says before its bytes are read, and no file of torch.save has one.
    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: IO[bytes], sizes: Mapping[str, int] | None) -> None:
        super().__init__(file)
        self.sizes = sizes
        self.claimed: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _ITEM_BYTES:
            return _Kind(_ITEM_BYTES[name])
        if (module, name) == ("argparse", "Namespace"):
            return (
                _Namespace  # pickle makes objects of classes alone; without an object there is nothing to set
            )
        try:
            return _Call(_CALLS[f"{module}.{name}"])
        except KeyError:
            raise RefusedError(
                f"it names {module}.{name}, and only tensors and plain values are let in"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Kind):
            raise RefusedError("one of its tensors has no data")
        kind, key, count = pid[1], pid[2], pid[4]
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise RefusedError("one of its tensors has no data")
        claimed = count * kind.item_bytes
        self.claimed[key] = max(claimed, self.claimed.get(key, 0))
        if self.sizes is not None and claimed > self.sizes.get(key, -1):
            raise RefusedError(
                f"a tensor claims {claimed} bytes, and the file has {self.sizes.get(key, 0)} of it"
            )
        return _Storage(count)


def measure(value: Any) -> int:
    """Return how many values and characters there are, each counted as often as it is referred to.

    Raises:
        RefusedError: Too many, or too deep; what contains itself has no end of depth.
    """
    return _measure(value, 0, {})[0]


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values there are, and how many containers lie in one another."""
    if isinstance(value, str | bytes):
        return len(value) + 1, 0
    inside = _inside(value)
    if inside is None:
        return 1, 0
    count, height = known.get(id(value), (0, 0))
    if depth + height > MAX_DEPTH + 1 or depth > MAX_DEPTH:  # what is known already may lie deeper now
        raise RefusedError(f"its values are nested more than {MAX_DEPTH} deep")
    if not count:
        for each in inside:
            values, levels = _measure(each, depth + 1, known)
            count, height = count + values, max(height, levels)
        count, height = known[id(value)] = count + 1, height + 1
    if count > MAX_VALUES:
        raise RefusedError(f"it repeats its values more than {MAX_VALUES} times")
    return count, height


def _inside(value: Any) -> list[Any] | None:
    """Return what a value holds; None if it holds nothing."""
    found: list[Any] | None = None
    if isinstance(value, dict):
        found = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        found = list(value)
    if isinstance(value, _Attributes):
        found = [*(found or ()), *value.attributes.keys(), *value.attributes.values()]
    return found
