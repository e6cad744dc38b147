"""torch's private names exist and behave as torch_internals.py expects."""

from __future__ import annotations

import inspect
import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from alexnet_exp import torch_internals
from alexnet_exp.data import workers


def pair() -> tuple[list[Tensor], list[Tensor]]:
    return [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])], [
        torch.tensor([5.0, 6.0]),
        torch.tensor([[7.0]]),
    ]


def test_foreach_operations_match_those_on_each_tensor() -> None:
    a, b = pair()
    torch.testing.assert_close(
        torch_internals.foreach_add(a, b, alpha=2.0), [x + 2.0 * y for x, y in zip(a, b, strict=True)]
    )
    for change, expected in (
        (lambda: torch_internals.foreach_add_(a, b, alpha=-0.5), lambda x, y: x - 0.5 * y),
        (lambda: torch_internals.foreach_mul_(a, 3.0), lambda x, y: 3.0 * x),
        (lambda: torch_internals.foreach_lerp_(a, b, 0.25), lambda x, y: x + 0.25 * (y - x)),
        (lambda: torch_internals.foreach_copy_(a, b), lambda x, y: y),
    ):
        wanted = [expected(x, y) for x, y in zip(a, b, strict=True)]
        change()
        torch.testing.assert_close(a, wanted)


def test_a_function_compiled_for_any_batch_is_compiled_once() -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda x: 2 * x, backend=counter)
    for size in (4, 4, 7, 9):
        x = torch.ones(size, 3)
        torch_internals.compile_for_any_batch(x)
        assert torch.equal(compiled(x), 2 * x)
    assert counter.frame_count == 1


def test_a_plateau_schedule_changes_only_its_known_state() -> None:
    scheduler = ReduceLROnPlateau(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), patience=1, cooldown=2)
    seen, before = set(), dict(vars(scheduler))
    for value in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        scheduler.step(value)
        seen |= {name for name, now in vars(scheduler).items() if before.get(name) is not now}
    assert scheduler.get_last_lr()[0] < 1.0
    assert seen == torch_internals.PLATEAU_STATE - {"optimizer"}


def test_set_rates_updates_the_schedule_its_state_and_the_optimizer() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    torch_internals.set_rates(scheduler, [0.25])
    assert scheduler.get_last_lr() == [0.25] == scheduler.state_dict()["_last_lr"]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_unscale_before_step_leaves_the_gradients_to_the_scaler() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0, fused=True)
    assert optimizer._step_supports_amp_scaling
    torch_internals.unscale_before_step(optimizer)
    assert not optimizer._step_supports_amp_scaling
    assert '"_step_supports_amp_scaling"' in inspect.getsource(GradScaler.step)


def test_the_ranks_of_a_group_share_a_store() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        before = store.num_keys()
        torch_internals.shared_store().set("key", "value")
        assert store.num_keys() == before + 1
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows forks no workers")
def test_workers_are_found_and_ended_immediately() -> None:
    loader: Any = DataLoader(
        range(4), num_workers=2, worker_init_fn=workers.ignore_signals, persistent_workers=True
    )  # type: ignore[arg-type]
    batches = workers.start(loader)
    next(batches)
    processes = torch_internals.worker_processes(batches)
    assert [process.is_alive() for process in processes] == [True, True]
    torch_internals.end_workers(loader)
    assert [process.is_alive() for process in processes] == [False, False]
    assert loader._iterator is None
    assert torch_internals.worker_processes(iter(DataLoader(range(4)))) == []  # type: ignore[arg-type]
    torch_internals.end_workers(loader)  # it has already ended
