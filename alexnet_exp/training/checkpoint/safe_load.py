"""Read files of tensors that others have made: no code runs, and nothing takes more memory than the file has bytes.

`torch.load(weights_only=True)` refuses foreign names, and tensors and storages that are longer than their record. Left
to do, as of torch 2.11 to 2.15 (tests/training/checkpoint/hostile_files.py has a file for each):

- It compares no checksum. zipfile does; so an archive must have one reading, and not two directories in one file.
- It calls `bytearray`, `FloatTensor` and others that make memory from a number: a file of 1 KB takes as many GB as it
  says. `_NAMES` are those that a file of tensors needs.
- It unpacks records, and reads one record as often as the pickle asks.
- It leaves values as they are: nested too deep, repeated without end, a tensor of one value seen a billion times, a
  dictionary whose attributes hide its methods.
"""

from __future__ import annotations

import argparse
import os
import pickle
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from typing import IO, Any

import torch
from torch import Tensor, nn

from alexnet_exp.errors import UserError, unreadable
from alexnet_exp.training.checkpoint.portable import unpacked
from alexnet_exp.training.checkpoint.safetensors import parse

MAX_DEPTH = 50
MAX_VALUES = 1 << 24  # values and characters, an object counted as often as it is referred to
_NAMES = frozenset(
    ("argparse Namespace", "collections Counter", "collections OrderedDict", "torch._utils _rebuild_tensor_v2",
     "torch._utils _rebuild_parameter", *(f"torch {kind}Storage" for kind in (
         "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat",
         "ComplexDouble")))
)  # fmt: skip
_PLAIN = (type(None), bool, int, float, complex)
_END, _END_64 = 22, 56 + 20  # bytes of a zip archive's end; of what large ones have ahead of it


class RefusedError(Exception):
    """Say what is wrong with a file, as the end of a sentence."""


def load_safely(path: str | os.PathLike[str]) -> Any:
    """Read a file of tensors and plain values onto the CPU; runs no code, allocates no more than the file has bytes.

    Args:
        path: A file of `torch.save`, or one that ends in .safetensors.

    Raises:
        UserError: If the file cannot be read, is damaged, claims more than it holds, or holds something else.
    """
    try:
        if os.fspath(path).endswith(".safetensors"):
            content = _load_safetensors(path)
            _measure(content, 0, {})
            return content
        # Opened once: whatever takes the file's place in between is not what was checked.
        with open(path, "rb") as file:
            check_file(file)
            budget = _Budget(file.seek(0, os.SEEK_END))
            file.seek(0)
            # torchvision's training script keeps its command line, an argparse.Namespace, beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location=budget, weights_only=True)
        _measure(content, 0, {})
        return content
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _damaged(path, error) from error


def _damaged(path: str | os.PathLike[str], error: Exception) -> UserError:
    # torch's own text on a pickle advises to load it without this care.
    said = "" if isinstance(error, pickle.UnpicklingError) else (str(error).splitlines() or [""])[0][:200]
    # Of a byte that begins no pickle, Python says no more than its number.
    why = f" ({said})" if any(c.isalpha() for c in said) else ""
    return UserError(f"{path} cannot be read: it is damaged, or no file of tensors{why}.")


def _load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read()
    try:
        return unpacked(*parse(content))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"it is damaged, or no safetensors file ({error})") from error


# ---------------------------------------------------------------------------------------- the archive


def check_file(file: IO[bytes]) -> None:
    """Check a file of `torch.save` without making a tensor.

    Raises:
        RefusedError: It is damaged, has the format of before torch 1.6, or names what is no tensor or plain value.
        Exception: Whatever a damaged archive or pickle makes Python raise.
    """
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != b"PK\x03\x04":  # as torch tells them apart
        raise RefusedError(
            "it is no archive of torch.save; load a file that torch before 1.6 has written with torch.load, and save "
            "it again"
        )
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        pickled = records[0].filename.split("/")[0] + "/data.pkl"
        # torch's reader does not tell A from a, and takes either of two.
        named = [record for record in records if record.filename.lower() == pickled.lower()]
        if len(named) != 1:
            raise RefusedError(f"it has {len(named)} records {pickled}")
        if min(record.header_offset for record in records) or not all(map(_has_one_size, records)):
            raise RefusedError("its records can be read in two ways")
        if sum(record.file_size for record in records) > size:  # packed, or on top of each other
            raise RefusedError(f"its records claim more than the {size} bytes that it has")
        if damaged := archive.testzip():
            raise RefusedError(f"it is damaged ({damaged} does not have its checksum)")
        _check_names(archive.read(named[0]))


def _check_end(file: IO[bytes], size: int) -> None:
    """Refuse an archive whose directory does not lie right ahead of its end: zipfile looks there, torch where it says.

    Source: PKWARE's APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    file.seek(max(0, size - _END - _END_64))
    last = file.read()
    end, locator = last[-_END:], last[-_END - 20 : -_END]
    if end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise RefusedError("it is damaged, or something follows its end")
    begin, (length, offset) = size - _END, struct.unpack("<LL", end[12:20])
    if locator[:4] == b"PK\x06\x07":  # sizes and places have 64 bits
        begin, (length, offset) = size - _END - _END_64, struct.unpack("<QQ", last[40:56])
        if last[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != begin:
            raise RefusedError("it is damaged, or holds two archives")
    if offset + length != begin:
        raise RefusedError("it is damaged, or holds two archives")


def _has_one_size(record: zipfile.ZipInfo) -> bool:
    """Return whether a record gives its size in 64 bits once at most; of two, zipfile and torch could take another."""
    return not record.extra or struct.unpack("<HH", record.extra[:4]) == (1, len(record.extra) - 4)


# ---------------------------------------------------------------------------------------- what it holds


def _check_names(content: bytes) -> None:
    for code, argument, _ in pickletools.genops(content):
        if code.name == "PROTO" and argument != 2:
            raise RefusedError(f"its pickle has protocol {argument}, and torch.save writes 2")
        if code.name == "GLOBAL" and argument not in _NAMES:  # torch reads no other code that names something
            raise RefusedError(
                f"it names {str(argument).replace(' ', '.')}, and only tensors and plain values are let in"
            )


class _Budget:
    """Stops a file whose tensors take more bytes than it has; torch asks it of each storage where that should lie.

    Args:
        size: Of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = self.left = size

    def __call__(self, storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        self.left -= storage.nbytes()
        if self.left < 0:
            raise RefusedError(f"its tensors claim more than the {self.size} bytes that it has")
        return storage  # on the CPU


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values and characters there are, and how many containers lie in one another.

    Raises:
        RefusedError: Too many, or too deep (what contains itself has no end of depth), or a value of another kind.
    """
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
    kind = type(value)
    if kind in _PLAIN:
        return None
    if kind in (Tensor, nn.Parameter):
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise RefusedError(f"a tensor of shape {list(value.shape)} repeats the values that it has")
        return None
    if kind in (list, tuple, set):
        return list(value)
    attributes = [] if kind is dict else list(getattr(value, "__dict__", {}).items())
    if kind is argparse.Namespace:
        return [each for pair in attributes for each in pair]
    # A network's OrderedDict has its modules' versions; `items` would be called by whoever asks for them.
    if kind not in (dict, OrderedDict, Counter) or {name for name, _ in attributes} - {"_metadata"}:
        raise RefusedError(f"one of its values ({kind.__name__}) is no tensor or plain value")
    return [*value.keys(), *value.values(), *(each for _, each in attributes)]
