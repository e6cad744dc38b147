"""An accelerator without one: tensors that say `meta:0` and hold numbers, and a process group that is for them alone.

What a real one refuses is refused here: arithmetic between its tensors and those in main memory. Collective operations
of the two ranks that this process plays at once are noted, with the device of what they are given; and so is every copy
to main memory, for which a program waits.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the backend `fake`)
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta", 0)  # a type that torch knows everywhere, and whose own tensors hold nothing
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED = ("aten::index", "aten::index_put_")  # a GPU takes indices from main memory


class Far(Tensor):
    """A tensor of the accelerator."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.near = near
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_far = any(isinstance(t, Far) for t in tensors)
    mixed = is_far and any(not isinstance(t, Far) and t.dim() for t in tensors)
    if mixed and func not in _COPIES and func._schema.name not in _INDEXED:
        raise RuntimeError(f"{func}: tensors in main memory and on the accelerator")
    given, named = tree_map_only(Far, lambda t: t.near, (args, kwargs))
    wanted = named.pop("device", None)
    found = func(*given, **named, **({} if wanted is None else {"device": "cpu"}))
    if is_far and (func is _aten._local_scalar_dense.default or _comes_near(func, args, wanted)):
        _note(_waits, "wait", DEVICE)
    goes_far = is_far if wanted is None else torch.device(wanted).type == DEVICE.type
    if func is _aten.copy_.default:
        goes_far = isinstance(args[0], Far)
    if goes_far:
        found = tree_map_only(Tensor, Far, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if goes_far == is_far else found


def _comes_near(func: Any, args: Any, wanted: Any) -> bool:
    if func is _aten.copy_.default:
        return not isinstance(args[0], Far)
    return func is _aten._to_copy.default and wanted is not None and torch.device(wanted).type == "cpu"


_make_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    made = _make_tensor(data, **options)  # it would not ask the mode
    return made if device is None else made.to(device)


@dataclass
class Call:
    """A collective operation: its name, where its tensors are, and each `file:function` it comes from."""

    name: str
    devices: set[str]
    callers: list[str]


_waits: list[Call] = []  # copies to main memory, as they come


def _note(calls: list[Call], name: str, *devices: Any) -> None:
    """Add a call, with the functions that it comes from."""
    frame, callers = sys._getframe(2), []
    while frame is not None:
        callers.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    calls.append(Call(name, set(map(str, devices)), callers))


def _broadcast_all(module: nn.Module) -> None:
    for tensor in chain(module.parameters(), module.buffers()):
        distributed.broadcast(tensor, 0)


class TwoRanks(DDPStrategy):
    """This process is the first of two ranks on the accelerator; the other has the same numbers."""

    def __init__(self) -> None:
        environment = LightningEnvironment()
        environment.set_world_size(2)
        super().__init__(Accelerator(), parallel_devices=[DEVICE], cluster_environment=environment)

    @property
    def num_processes(self) -> int:
        return 2

    def _configure_launcher(self) -> None:
        """Start no other rank: Lightning would run this command again, and kill this process when that one fails."""

    def setup_distributed(self) -> None:
        self.set_world_ranks()

    def determine_ddp_device_ids(self) -> None:
        return None

    def _setup_model(self, model: Any) -> Any:
        _broadcast_all(model)  # as DistributedDataParallel does; it gathers gradients too
        return model

    def _register_ddp_hooks(self) -> None:
        pass


class Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@contextlib.contextmanager
def two_ranks() -> Iterator[tuple[list[Call], list[Call]]]:
    """Let torch have the accelerator, and a process group of two that has no backend for main memory.

    Returns:
        The collective operations, and the copies to main memory, as they come.
    """
    calls: list[Call] = []
    _waits.clear()

    def note(name: str, *given: Any) -> None:
        _note(calls, name, *(t.device for t in tree_leaves(given) if isinstance(t, Tensor)))

    def all_reduce(tensor: Tensor, op: Any = distributed.ReduceOp.SUM, **options: Any) -> None:
        note("all_reduce", tensor)
        if op == distributed.ReduceOp.SUM:
            tensor.mul_(2)

    def all_gather(tensors: list[Tensor], tensor: Tensor, *options: Any, **more: Any) -> None:
        note("all_gather", tensors, tensor)
        for other in tensors:
            other.copy_(tensor)

    def all_gather_object(parts: list[Any], part: Any, *options: Any, **more: Any) -> None:
        note("all_gather_object")
        parts[:] = [part] * len(parts)

    def nothing(name: str) -> Any:
        return lambda *given, **options: note(name, given)

    patched = {"all_reduce": all_reduce, "all_gather": all_gather, "all_gather_object": all_gather_object}
    patched |= {name: nothing(name) for name in ("broadcast", "barrier", "broadcast_object_list")}
    distributed.init_process_group("cuda:fake", rank=0, world_size=2, store=distributed.HashStore())
    try:
        with (
            mock.patch.multiple(distributed, **patched),
            mock.patch("torch.tensor", _tensor),
            mock.patch("torch.accelerator.synchronize"),
            mock.patch("lightning.pytorch.strategies.ddp._sync_module_states", _broadcast_all),
            _Mode(),
        ):
            yield calls, _waits
    finally:
        distributed.destroy_process_group()
