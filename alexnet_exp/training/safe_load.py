"""Read files of tensors that others have made: what they claim is checked before anything is allocated.

`torch.load(weights_only=True)` runs no code, but believes sizes: a file of 10 KB may ask for terabytes, or for a tensor
that is longer than the bytes it brings. So the file's pickle is first read by `DryRun`, which makes no tensor and
knows the few names that a file of ours has, and the checksum of every record is compared.

What a file may be: a zip archive as torch writes it (records stored, not packed, so that nothing can grow), torch's
format of before version 1.6, or safetensors. An archive has one reading: zipfile, which checks it here, and torch's own
reader would take two directories in one file for different archives.
"""

from __future__ import annotations

import argparse
import io
import os
import struct
import zipfile
from typing import IO, Any

import torch
from torch import Tensor

from alexnet_exp.errors import UserError, missing_extra, unreadable
from alexnet_exp.training.dry_pickle import DryRun, RefusedError, measure

MAX_PICKLE = 1 << 26  # bytes; ours have some 100 KB, which grow by 200 for each parameter
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # torch's format of before version 1.6
_END, _END_64 = 22, 56 + 20  # bytes of a zip archive's end; of what large ones have ahead of it


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
        # Opened once: whatever takes the file's place in between is not what was checked.
        with open(path, "rb") as file:
            check_file(file)
            file.seek(0)
            # torchvision's training script keeps its command line, an argparse.Namespace, beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location=map_location, weights_only=True)
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
        raise UserError(f"{path} needs {missing_extra('safetensors', 'export')}") from error
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
    measure(content)


def _check_archive(file: IO[bytes], size: int) -> Any:
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}  # torch's reader does not tell A from a
        top = records[0].filename.split("/")[0]
        if len(names) != len(records) or not all(name.startswith(f"{top}/".lower()) for name in names):
            raise RefusedError("its records have names that torch does not give")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise RefusedError("its records are packed, and might be of any size once unpacked")
        if min(record.header_offset for record in records) or not all(map(_has_one_size, records)):
            raise RefusedError("its records can be read in two ways")
        if sum(record.file_size for record in records) > size:
            raise RefusedError("its records lie on top of each other")
        if damaged := archive.testzip():
            raise RefusedError(f"it is damaged ({damaged} does not have its checksum)")
        sizes = {r.filename.removeprefix(f"{top}/data/"): r.file_size for r in records}
        if archive.getinfo(f"{top}/data.pkl").file_size > MAX_PICKLE:
            raise RefusedError(f"what it says about its tensors has more than {MAX_PICKLE} bytes")
        return DryRun(io.BytesIO(archive.read(f"{top}/data.pkl")), sizes).load()


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


def _check_old(file: IO[bytes], size: int) -> Any:
    """Check the format of before torch 1.6: four pickles, the keys of the storages, then their bytes."""
    text = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    if DryRun(text, {}).load() != _OLD_MAGIC:
        raise RefusedError("it is damaged, or no file of torch.save")
    for _ in ("version of the format", "machine"):
        DryRun(text, {}).load()
    reader = DryRun(text, None)
    content = reader.load()
    if sum(reader.claimed.values()) > size:
        raise RefusedError(f"its tensors claim {sum(reader.claimed.values())} bytes, and it has {size}")
    return content
