"""Read files of tensors that others have made: what they claim is checked before anything is allocated.

`torch.load(weights_only=True)` runs no code, but believes sizes: a file of 10 KB may ask for terabytes, or for a tensor
that is longer than the bytes it brings. So the file's pickle is first read by `_DryRun`, which makes no tensor and
knows the few names that a file of ours has, and the checksum of every record is compared.

What a file may be: a zip archive as torch writes it (records stored, not packed, so that nothing can grow), torch's
format of before version 1.6, or safetensors.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from alexnet_exp.errors import UserError

MAX_PICKLE = 1 << 26  # bytes; ours have some 100 KB, which grow by 200 for each parameter
MAX_DEPTH = 50
MAX_VALUES = 1 << 24  # values and characters, an object counted as often as it is referred to
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # torch's format of before version 1.6
_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip


class RefusedError(Exception):
    """Say what is wrong with a file, as the end of a sentence."""


def load_safely(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Read a file of tensors and plain values; never runs code from it, never allocates more than it has bytes.

    Args:
        path: A file of `torch.save`, or one that ends in .safetensors.
        map_location: As in `torch.load`.

    Raises:
        UserError: If the file cannot be read, is damaged, claims more than it holds, or holds something else.
    """
    try:
        if os.fspath(path).endswith(".safetensors"):
            return _load_safetensors(path)
        with open(path, "rb") as file:
            check_file(file)
        # torchvision's training script keeps its command line, an argparse.Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _damaged(path, error) from error


def _damaged(path: str | os.PathLike[str], error: Exception) -> UserError:
    said = (str(error).splitlines() or [""])[0][:200]
    # Of a byte that begins no pickle, Python says no more than its number.
    why = f" ({said})" if any(c.isalpha() for c in said) else ""
    return UserError(f"{path} cannot be read: it is damaged, or no file of tensors{why}.")


def _load_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read with the library, which checks every size in the header against the file."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs safetensors: pip install 'alexnet_exp[export]'.") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RefusedError(f"it is damaged, or no safetensors file ({error})") from error


def check_file(file: IO[bytes]) -> None:
    """Check a file of `torch.save` without making a tensor.

    Raises:
        RefusedError: It is damaged, claims what it does not hold, or holds more than tensors and plain values.
        Exception: Whatever a damaged pickle makes Python raise.
    """
    size = os.fstat(file.fileno()).st_size
    if file.read(4) == b"PK\x03\x04":  # as torch tells them apart
        content = _check_archive(file, size)
    else:
        file.seek(0)
        content = _check_old(file, size)
    _measure(content, 0, {})


def _check_archive(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}  # torch's reader does not tell A from a
        top = records[0].filename.split("/")[0]
        if len(names) != len(records) or not all(name.startswith(f"{top}/".lower()) for name in names):
            raise RefusedError("its records have names that torch does not give")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise RefusedError("its records are packed, and might be of any size once unpacked")
        if sum(record.file_size for record in records) > size:
            raise RefusedError("its records lie on top of each other")
        if damaged := archive.testzip():
            raise RefusedError(f"it is damaged ({damaged} does not have its checksum)")
        sizes = {r.filename.removeprefix(f"{top}/data/"): r.file_size for r in records}
        if archive.getinfo(f"{top}/data.pkl").file_size > MAX_PICKLE:
            raise RefusedError(f"what it says about its tensors has more than {MAX_PICKLE} bytes")
        return _DryRun(io.BytesIO(archive.read(f"{top}/data.pkl")), sizes).load()


def _check_old(file: IO[bytes], size: int) -> Any:
    """Check the format of before torch 1.6: four pickles, the keys of the storages, then their bytes."""
    text = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    if _DryRun(text, {}).load() != _OLD_MAGIC:
        raise RefusedError("it is damaged, or no file of torch.save")
    for _ in ("version of the format", "machine"):
        _DryRun(text, {}).load()
    reader = _DryRun(text, None)
    content = reader.load()
    if sum(reader.claimed.values()) > size:
        raise RefusedError(f"its tensors claim {sum(reader.claimed.values())} bytes, and it has {size}")
    return content


@dataclass(frozen=True)
class _Kind:
    """The type of a storage's items."""

    item_bytes: int


@dataclass(frozen=True)
class _Storage:
    count: int


@dataclass(frozen=True)
class _Tensor:
    """Stands for a tensor that fits into its storage."""


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


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _counter(counts: Any = None) -> Counter[Any]:
    """Return the epochs of torch's MultiStepLR."""
    if not isinstance(counts, dict):
        raise RefusedError("one of its counters counts nothing")
    return Counter(counts)


_CALLS = {
    "argparse.Namespace": argparse.Namespace,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


class _DryRun(pickle._Unpickler):  # the one in C takes sizes at their word
    """Reads a pickle and makes nothing but plain values.

    Args:
        file: The pickle.
        sizes: Bytes of each storage; None: not known, and `claimed` gathers them.
    """

    def __init__(self, file: IO[bytes], sizes: Mapping[str, int] | None) -> None:
        super().__init__(file)
        self.sizes = sizes
        self.claimed: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _ITEM_BYTES:
            return _Kind(_ITEM_BYTES[name])
        try:
            return _CALLS[f"{module}.{name}"]
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


def _measure(value: Any, depth: int, known: dict[int, int]) -> int:
    """Return how many values and characters there are, each counted as often as it is referred to.

    Raises:
        RefusedError: Too many, or too deep; what contains itself has no end of depth.
    """
    if isinstance(value, str | bytes):
        return len(value) + 1
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return 1
    if depth > MAX_DEPTH:
        raise RefusedError(f"its values are nested more than {MAX_DEPTH} deep")
    if id(value) not in known:
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_measure(each, depth + 1, known) for each in inside)
    if known[id(value)] > MAX_VALUES:
        raise RefusedError(f"it repeats its values more than {MAX_VALUES} times")
    return known[id(value)]
