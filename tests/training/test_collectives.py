"""What a run on several accelerators asks of its process group, and what it waits for; without one (far_device.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from rich.console import Console
from torch import distributed

from alexnet_exp.runs.train.fit import assemble, fit_to_data, prepare_data, train_and_test
from alexnet_exp.training.checkpoint.write import AtomicCheckpointIO
from tests.training.far_device import DEVICE, Call, Far, TwoRanks, two_ranks
from tests.training.small_runs import settings

EVERYTHING = [
    "data.train_subset=65", "trainer.max_epochs=2", "trainer.log_every_n_steps=2", "scheduler=plateau",
    "optimizer=sgd_paper", "model.features.conv1.then=[batch_norm,relu]", "test_weights=last",
    "callbacks.ema.enabled=true", "callbacks.early_stopping.enabled=true", "callbacks.checkpoint.every_n_steps=2",
    "callbacks.checkpoint.every_n_minutes=1",
]  # fmt: skip


def write_nothing(self: Any, checkpoint: Any, path: Path, **options: Any) -> None:
    """Create an empty file instead of the checkpoint: such tensors cannot be saved."""
    path.parent.mkdir(exist_ok=True)
    path.touch()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], list[Call]]:
    """The collective operations of a run from start to end (training, validation, checkpoints, test, pictures), and
    the copies to main memory."""
    run_dir = tmp_path_factory.mktemp("run")
    plain: Callable[..., Any] = lightning.Trainer
    with pytest.MonkeyPatch.context() as patch, two_ranks() as found:
        # Inference mode tensors have no version counter, which these tensors need.
        far = {"accelerator": "auto", "strategy": TwoRanks(), "inference_mode": False}
        patch.setattr(lightning, "Trainer", lambda **options: plain(**options | far))
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", write_nothing)
        # It waits for the other rank in the store, without a collective:
        # tests/training/checkpoint/test_data_identity.py.
        patch.setattr("alexnet_exp.training.classifier.check_ranks", lambda *given: None)
        config, typed = settings(*EVERYTHING)
        data = prepare_data(config)
        fit_to_data(config, data, typed)
        fit = assemble(config, data, run_dir, [], Console(quiet=True))
        assert fit.trainer.world_size == 2
        train_and_test(fit, None)
        fit.classifier.outcomes.gather()
    assert fit.trainer.global_step == 6
    assert {"train/top1", "val/loss", "test/top1"} <= fit.classifier.reported.keys()
    return found


@pytest.fixture
def calls(seen: tuple[list[Call], list[Call]]) -> list[Call]:
    return seen[0]


def test_the_process_group_of_these_tests_has_no_backend_for_main_memory() -> None:
    with (
        two_ranks(),
        pytest.raises(RuntimeError, match="No backend type associated with device type cpu"),
    ):
        distributed.reduce(torch.ones(1), 0)
    with two_ranks() as (found, waits):
        distributed.all_reduce(torch.ones(1))
        distributed.all_reduce(torch.ones(1, device=DEVICE))
        with pytest.raises(RuntimeError, match="main memory"):
            torch.ones(2) + Far(torch.ones(2))
        assert waits == []
        torch.ones(1, device=DEVICE).item()
        torch.ones(1, device=DEVICE).cpu()
        torch.ones(1).copy_(torch.ones(1, device=DEVICE))
        assert len(waits) == 3
    assert [call.devices for call in found] == [{"cpu"}, {str(DEVICE)}]


def test_no_collective_receives_a_cpu_tensor(calls: list[Call]) -> None:
    assert len(calls) > 20
    assert [call for call in calls if not call.devices <= {str(DEVICE)}] == []


def test_logging_a_metric_needs_no_collective(calls: list[Call]) -> None:
    of_lightning_s_results = ("result.py:", "logger_connector.py:")
    assert [call for call in calls if any(c.startswith(of_lightning_s_results) for c in call.callers)] == []


def test_only_steps_that_are_logged_or_saved_need_a_collective(calls: list[Call]) -> None:
    steps = [call for call in calls if "training_epoch_loop.py:advance" in call.callers]
    asked = {"step_log.py:_log", "callback.py:_save"}
    assert [call for call in steps if not asked & set(call.callers)] == []
    assert {caller for call in steps for caller in call.callers} >= asked


def test_only_a_step_that_is_logged_or_saved_waits_for_the_accelerator(
    seen: tuple[list[Call], list[Call]],
) -> None:
    waits = [call for call in seen[1] if "training_epoch_loop.py:advance" in call.callers]
    allowed = {"step_log.py:_log", "chance.py:_read_train", "callback.py:_save_inside_epoch"}
    assert [call for call in waits if not allowed & set(call.callers)] == []
    assert any("step_log.py:_log" in call.callers for call in waits)  # so waiting is noticed
