"""Read untrusted tensor files: no code runs, and no more memory is allocated than the file has bytes.

`torch.load(weights_only=True)` refuses foreign globals, and tensors and storages larger than their record. It leaves
open, as of torch 2.11 to 2.15 (tests/training/checkpoint/hostile_files.py has a file for each):

- Checksums are not compared. zipfile does that, but then both must read the same archive: one directory per file.
- `bytearray`, `FloatTensor` and others allocate memory from a number: a 1 KB file takes as many GB as it claims.
  `_NAMES` lists the only globals that a tensor file needs.
- Records are decompressed, and one record is read as often as the pickle asks for it.
- Values are not limited: deep nesting, exponential repetition, a stride-0 tensor with a billion elements, a dict whose
  attributes shadow its methods.
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
from alexnet_exp.training.checkpoint.portable import as_checkpoint, parse

# Several times what a run writes. Whatever walks a checkpoint recurses, and Python allows some 1,000 nested calls.
MAX_DEPTH = 50
MAX_VALUES = 1 << 24  # values and characters; an object counts once per reference
_NAMES = frozenset(
    ("argparse Namespace", "collections Counter", "collections OrderedDict", "torch._utils _rebuild_tensor_v2",
     "torch._utils _rebuild_parameter", *(f"torch {kind}Storage" for kind in (
         "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat",
         "ComplexDouble")))
)  # fmt: skip
_PLAIN = (type(None), bool, int, float, complex)
_END, _END_64 = 22, 56 + 20  # bytes of the end record of a zip archive; of the zip64 records before it


class RefusedError(Exception):
    """The message completes the sentence "FILE cannot be read: ..."."""


def load_safely(path: str | os.PathLike[str]) -> Any:
    """Load tensors and plain values onto the CPU without running code or allocating more bytes than the file has.

    Args:
        path: A `torch.save` file, or a .safetensors file.

    Raises:
        UserError: If the file cannot be read, is damaged, claims more than it holds, or holds other objects.
    """
    try:
        if os.fspath(path).endswith(".safetensors"):
            content = _load_safetensors(path)
            _measure(content, 0, {})
            return content
        # Opened once, so that the file cannot be replaced between check and load.
        with open(path, "rb") as file:
            check_file(file)
            budget = _Budget(file.seek(0, os.SEEK_END))
            file.seek(0)
            # torchvision's training script saves its arguments, an argparse.Namespace, beside the weights.
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
    # For a bad pickle torch's own message recommends weights_only=False: drop it.
    said = "" if isinstance(error, pickle.UnpicklingError) else (str(error).splitlines() or [""])[0][:200]
    # For an invalid opcode Python's message is only a number.
    why = f" ({said})" if any(c.isalpha() for c in said) else ""
    return UserError(f"{path} cannot be read: it is damaged, or not a tensor file{why}.")


def _load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read()
    try:
        return as_checkpoint(*parse(content))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"it is damaged, or not a safetensors file ({error})") from error


# ---------------------------------------------------------------------------------------- the archive


def check_file(file: IO[bytes]) -> None:
    """Check a `torch.save` file without creating a tensor.

    Raises:
        RefusedError: It is damaged, in the format of torch before 1.6, or holds more than tensors and plain values.
        Exception: Anything Python raises on a damaged archive or pickle.
    """
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != b"PK\x03\x04":  # the test torch itself uses
        raise RefusedError(
            "it is not a torch.save archive; convert a file from torch before 1.6 with torch.load and torch.save"
        )
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch.save puts its records into one folder; torch's reader, too, takes the name of that folder from the
        # first record.
        pickled = records[0].filename.split("/")[0] + "/data.pkl"
        # torch's reader ignores case, so it could pick another record than zipfile.
        named = [record for record in records if record.filename.lower() == pickled.lower()]
        if len(named) != 1:
            raise RefusedError(f"it has {len(named)} records named {pickled}")
        if min(record.header_offset for record in records) or not all(map(_has_one_size, records)):
            raise RefusedError("its records are ambiguous")
        if sum(record.file_size for record in records) > size:  # compressed or overlapping
            raise RefusedError(f"its records claim more than its {size} bytes")
        if damaged := archive.testzip():
            raise RefusedError(f"it is damaged (wrong checksum of {damaged})")
        _check_names(archive.read(named[0]))


def _check_end(file: IO[bytes], size: int) -> None:
    """Refuse an archive whose directory is not directly before its end record: zipfile looks there, torch at an offset.

    Source: PKWARE's APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    file.seek(max(0, size - _END - _END_64))
    last = file.read()
    end, locator = last[-_END:], last[-_END - 20 : -_END]
    if end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise RefusedError("it is damaged, or has trailing data")
    begin, (length, offset) = size - _END, struct.unpack("<LL", end[12:20])
    if locator[:4] == b"PK\x06\x07":  # zip64
        begin, (length, offset) = size - _END - _END_64, struct.unpack("<QQ", last[40:56])
        if last[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != begin:
            raise RefusedError("it is damaged, or holds two archives")
    if offset + length != begin:
        raise RefusedError("it is damaged, or holds two archives")


def _has_one_size(record: zipfile.ZipInfo) -> bool:
    """Return whether a record has at most one zip64 size; of two, zipfile and torch could take different ones."""
    return not record.extra or struct.unpack("<HH", record.extra[:4]) == (1, len(record.extra) - 4)


# ---------------------------------------------------------------------------------------- what it holds


def _check_names(content: bytes) -> None:
    for code, argument, _ in pickletools.genops(content):
        if code.name == "PROTO" and argument != 2:
            raise RefusedError(f"its pickle has protocol {argument}; torch.save writes 2")
        if code.name == "GLOBAL" and argument not in _NAMES:  # the only opcode with a name that torch accepts
            raise RefusedError(
                f"it refers to {str(argument).replace(' ', '.')}, but only tensors and plain values are allowed"
            )


class _Budget:
    """A map_location that refuses storages which add up to more bytes than the file has.

    Args:
        size: Of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = self.left = size

    def __call__(self, storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        # Called once per storage: torch keeps those it has loaded, so tensors that share one do not add up.
        self.left -= storage.nbytes()
        if self.left < 0:
            raise RefusedError(f"its tensors claim more than its {self.size} bytes")
        return storage  # on the CPU


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values and characters, and the nesting depth of containers.

    Raises:
        RefusedError: If there are too many, the nesting is too deep (or cyclic), or a value has another type.
    """
    if isinstance(value, str | bytes):
        return len(value) + 1, 0
    inside = _inside(value)
    if inside is None:
        return 1, 0
    count, height = known.get(id(value), (0, 0))
    # With its height, because a known value may be referenced from deeper down.
    if depth + height > MAX_DEPTH + 1 or depth > MAX_DEPTH:
        raise RefusedError(f"its values are nested more than {MAX_DEPTH} deep")
    if not count:
        for each in inside:
            values, levels = _measure(each, depth + 1, known)
            count, height = count + values, max(height, levels)
        count, height = known[id(value)] = count + 1, height + 1
    if count > MAX_VALUES:
        raise RefusedError(f"it has more than {MAX_VALUES} values, repetitions included")
    return count, height


def _inside(value: Any) -> list[Any] | None:
    """Return the items of a container; None for a leaf."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if kind in (Tensor, nn.Parameter):
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise RefusedError(f"a tensor of shape {list(value.shape)} is larger than its storage")
        return None
    if kind in (list, tuple, set):
        return list(value)
    attributes = [] if kind is dict else list(getattr(value, "__dict__", {}).items())
    if kind is argparse.Namespace:
        return [each for pair in attributes for each in pair]
    # A state dict carries `_metadata` (module versions). Any other attribute could shadow a method such as `items`.
    if kind not in (dict, OrderedDict, Counter) or {name for name, _ in attributes} - {"_metadata"}:
        raise RefusedError(f"one of its values ({kind.__name__}) is not a tensor or plain value")
    return [*value.keys(), *value.values(), *(each for _, each in attributes)]
