"""Files that claim to be checkpoints, made to run code, exhaust memory, or crash their reader."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.cli import main

TB10 = 10**13


class Calls:
    """A call that a pickle makes its reader execute."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes], packed: bool = False) -> Path:
    """Copy a torch.save file with each of its records changed."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def with_pickle(path: Path, data: bytes) -> Path:
    """Write a torch.save file whose pickle is `data`."""
    whole = write(path.with_suffix(".whole"), {"state_dict": {"a": torch.zeros(3)}, "config": {}})
    return rewrite(whole, path, lambda name, old: data if name.endswith("data.pkl") else old)


def lying(path: Path, values: int, shape: tuple[int, ...], strides: tuple[int, ...], **options: Any) -> Path:
    """Write a tensor that claims more than its bytes, which are 4 float32 values."""
    fake = {"state_dict": {"a": Claim(values, shape, strides)}, "config": {}}
    buffer = io.BytesIO()
    pickler = Naming(buffer, protocol=2)
    pickler.dump(fake)
    whole = write(path.with_suffix(".whole"), {"a": torch.zeros(4)}, **options)
    return rewrite(whole, path, lambda name, old: buffer.getvalue() if name.endswith("data.pkl") else old)


def built(path: Path, what: bytes, state: bytes) -> Path:
    """Write a pickle that sets attributes (`state`) of a named object."""
    return with_pickle(path, b"\x80\x02" + what + state + b"b.")


def with_attributes() -> OrderedDict[str, Any]:
    found: OrderedDict[str, Any] = OrderedDict(a=1)
    found.values = "text"  # type: ignore[method-assign,assignment]
    return found


def twice(path: Path, ahead: bytes | None = None, after: bytes = b"") -> Path:
    """Write two torch.save files, one after the other: torch reads the first, and zipfile the second."""
    one, two = (
        write(
            path.with_suffix(f".{value}"), {"state_dict": {"a": torch.full((3,), value)}, "config": {}}
        ).read_bytes()
        for value in (0.0, 1.0)
    )
    path.write_bytes((one if ahead is None else ahead) + two + after)
    return path


def with_two_sizes(path: Path) -> Path:
    """Write a file whose records give their size in 64 bits, twice each."""
    whole = write(path.with_suffix(".whole"), {"state_dict": {"a": torch.zeros(3)}, "config": {}})
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            record = zipfile.ZipInfo(name)
            record.extra = struct.pack("<HHQ", 1, 8, 10**13) * 2
            new.writestr(record, old.read(name))
    return path


class Claim:
    """A tensor in a pickle that claims any size."""

    def __init__(self, values: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.values, self.shape, self.strides = values, shape, strides

    def __reduce__(self) -> Any:
        arguments = Stored(self.values), 0, self.shape, self.strides, False, OrderedDict()
        return torch._utils._rebuild_tensor_v2, arguments


class Stored:
    """The storage of such a tensor."""

    def __init__(self, values: int, key: Any = "0") -> None:
        self.values, self.key = values, key


class Naming(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Pickles storages as torch does."""

    def persistent_id(self, value: Any) -> Any:
        return (
            ("storage", torch.FloatStorage, value.key, "cpu", value.values)
            if isinstance(value, Stored)
            else None
        )


def often(path: Path, key: Callable[[int], Any]) -> Path:
    """Write a pickle that reads one record of 4 KB a hundred times, with another key each time."""
    buffer = io.BytesIO()
    Naming(buffer, protocol=2).dump(
        {"state_dict": {str(i): Stored(1000, key(i)) for i in range(100)}, "config": {}}
    )
    whole = write(path.with_suffix(".whole"), {"a": torch.zeros(1000)})
    return rewrite(whole, path, lambda name, old: buffer.getvalue() if name.endswith("data.pkl") else old)


def old_format(path: Path, values: int) -> Path:
    """Write the format used before torch 1.6, with a tensor that claims `values` values."""
    write(path, {"state_dict": {"a": torch.zeros(4)}, "config": {}}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    start = data.index(b"cpu") + 3
    assert b"K\x04" in data[start : start + 8]
    number = data.index(b"K\x04", start)
    path.write_bytes(data[:number] + b"\x8a\x08" + struct.pack("<q", values) + data[number + 2 :])
    return path


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def laughing(times: int) -> list[Any]:
    found: list[Any] = ["ha"]
    for _ in range(times):
        found = [found] * 10
    return found


def ladder(steps: int) -> list[Any]:
    """Return a list of lists, each of which also contains the previous one."""
    found: list[Any] = [[]]
    for _ in range(steps):
        found.append([found[-1]])
    return found


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def plain(**config: Any) -> dict[str, Any]:
    return {"state_dict": {"a": torch.zeros(3)}, "config": config}


def canary(*_: Any) -> str:
    return "touch canary"


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "os.system": (
        lambda p: write(p, {"state_dict": Calls(os.system, canary()), "config": {}}),
        r"it refers to posix\.system",
    ),
    "builtins.eval": (lambda p: write(p, plain(a=Calls(eval, "open('canary', 'w')"))), r"to __builtin__\.eval"),
    "builtins.exec": (lambda p: write(p, plain(a=Calls(exec, "open('canary', 'w')"))), r"to __builtin__\.exec"),
    "builtins.open": (
        lambda p: write(p, plain(a=Calls(open, "canary", "w"))),
        "open, but only tensors and plain values are allowed",
    ),
    "builtins.getattr": (lambda p: write(p, plain(a=Calls(getattr, "os", "system"))), r"to __builtin__\.getattr"),
    "subprocess.Popen": (
        lambda p: write(p, plain(a=Calls(subprocess.Popen, ["touch", "canary"]))),
        "Popen, but only tensors and plain values",
    ),
    "partial of os.system": (
        lambda p: write(p, plain(a=Calls(functools.partial(os.system, canary())))),
        r"it refers to functools\.partial",
    ),
    "later protocol": (
        lambda p: write(p, plain(a=Calls(os.system, canary())), pickle_protocol=4),
        "its pickle has protocol 4",
    ),
    "type of a tensor": (
        lambda p: write(p, plain(a=Calls(torch._tensor._rebuild_from_type_v2, os.system, str, (canary(),), {}))),
        "_rebuild_from_type_v2",
    ),
    "a pickle, not torch's": (
        lambda p: (p.write_bytes(pickle.dumps(Calls(os.system, canary()))), p)[1],
        "it is not a torch.save archive",
    ),
    "old format with code": (
        lambda p: write(p, plain(a=Calls(os.system, canary())), _use_new_zipfile_serialization=False),
        "torch before 1.6",
    ),
    "10 TB of bytes": (lambda p: lying(p, TB10 // 4, (TB10 // 4,), (1,)), "cannot be read: it is damaged"),
    "a longer tensor than its bytes": (
        lambda p: lying(p, 4, (1000, 1000), (1000, 1)),
        "cannot be read: it is damaged",
    ),
    "one value seen 10 TB times": (lambda p: lying(p, 4, (TB10,), (0,)), "is larger than its storage"),
    "a tensor of negative size": (lambda p: lying(p, 4, (-4,), (1,)), "cannot be read: it is damaged"),
    "a size that is no number": (lambda p: lying(p, 4, ("x",), (1,)), "cannot be read: it is damaged"),  # type: ignore[arg-type]
    "old format of 10 TB": (lambda p: old_format(p, TB10 // 4), "torch before 1.6"),
    "one record a hundred times": (
        lambda p: often(p, lambda i: f"0\0{i}"),
        "its tensors claim more than",
    ),
    "4 GB from 1 KB": (
        lambda p: write(p, plain(a=Calls(bytearray, Calls(bytearray, 1 << 31)))),
        r"to __builtin__\.bytearray",
    ),
    "values repeated by a conversion": (
        lambda p: write(p, plain(a=Calls(
            torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.zeros(1), torch.float64, "cpu", False))),
        "it refers to torch._utils._rebuild_device_tensor_from_cpu_tensor",
    ),
    "10 TB of zeros": (lambda p: write(p, plain(a=Calls(bytearray, TB10))), "bytearray"),
    "10 TB by a class of torch": (lambda p: write(p, plain(a=Calls(torch.FloatTensor, TB10))), "FloatTensor"),
    "packed records": (
        lambda p: rewrite(
            write(p.with_suffix(".whole"), {"a": torch.zeros(10**6)}), p, lambda name, old: old, packed=True
        ),
        "its records claim more than",
    ),
    "deep lists": (
        lambda p: with_pickle(p, b"\x80\x02" + b"]" * 200_001 + b"a" * 200_000 + b"."),
        "nested more than",
    ),
    "deep lists, side by side": (lambda p: write(p, plain(a=ladder(500))), "nested more than"),
    "ten to the power of twelve": (lambda p: write(p, plain(a=laughing(12))), "repetitions included"),
    "a list in itself": (lambda p: write(p, plain(a=endless())), "nested more than"),
    "a string that says 10 TB": (
        lambda p: with_pickle(p, b"\x80\x04\x8d" + struct.pack("<Q", TB10) + b"short."),
        "cannot be read",
    ),
    "a memo at four billion": (
        lambda p: with_pickle(p, b"\x80\x02]r\xff\xff\xff\xff."),
        "is not a checkpoint of alexnet_exp",
    ),
    "attributes of argparse's class": (
        lambda p: built(p, b"cargparse\nNamespace\n", b"N}X\x06\0\0\0canary\x88s\x86"),
        "cannot be read",
    ),
    "attributes of a function": (
        lambda p: built(p, b"ctorch._utils\n_rebuild_tensor_v2\n", b"}X\x06\0\0\0canary\x88s"),
        "cannot be read: it is damaged",
    ),
    "defaults of a function": (
        lambda p: built(p, b"ccollections\nOrderedDict\n", b"N}X\x0c\0\0\0__defaults__)s\x86"),
        "cannot be read: it is damaged",
    ),
    "a storage whose items have no size": (
        lambda p: built(p, b"ctorch\nFloatStorage\n", b"}X\x0a\0\0\0item_bytesK\0s"),
        "cannot be read: it is damaged",
    ),
    "a dictionary with attributes": (
        lambda p: write(p, plain(a=with_attributes())),
        "is not a tensor or plain value",
    ),
    "a command line that repeats itself": (
        lambda p: write(p, plain(a=argparse.Namespace(a=laughing(12)))),
        "repetitions included",
    ),
    "two archives in one file": (lambda p: twice(p), "it is damaged, or holds two archives"),
    "data ahead of the archive": (
        lambda p: twice(p, b"PK\x03\x04" + bytes(1000)),
        "it is damaged, or holds two archives",
    ),
    "data after the archive": (lambda p: twice(p, b"", bytes(9)), "has trailing data"),
    "sizes given twice": (with_two_sizes, "its records are ambiguous"),
    "no pickle": (lambda p: with_pickle(p, b"\x00\x01\x02"), "cannot be read"),
    "no checkpoint": (lambda p: (p.write_bytes(random.Random(0).randbytes(10_000)), p)[1], "cannot be read"),
    "empty file": (lambda p: (p.write_bytes(b""), p)[1], "cannot be read"),
}  # fmt: skip

SAFETENSORS = {
    "a header of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "no header": struct.pack("<Q", 0),
    "an empty file": b"",
    "a tensor of 40 TB": struct.pack("<Q", 99)
    + json.dumps({"a": {"dtype": "F32", "shape": [TB10], "data_offsets": [0, 4 * TB10]}}).ljust(99).encode(),
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a verb that must fail with exit code 1 and one line, and return the line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.err.splitlines()[-1] == line
    assert "Traceback" not in said.out + said.err
    assert len(line) < 600
    return line
