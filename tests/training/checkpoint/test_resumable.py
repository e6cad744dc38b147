"""A checkpoint that no run would write is a one-line error, or does no harm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.errors import UserError
from alexnet_exp.training.checkpoint.resume import resuming
from tests.training.small_runs import DROPOUT, checkpoint, resume, same, train_until

FULL = [
    *DROPOUT, "test=false", "trainer.max_epochs=2", "scheduler=cosine", "callbacks.early_stopping.enabled=true",
    "callbacks.ema.enabled=true", "callbacks.checkpoint.every_n_steps=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped within its second epoch, with a checkpoint of step 10; read-only."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    train_until(directory, 11, *FULL)
    return directory


def test_keys_missing_from_a_parameter_group_come_from_the_settings(stopped: Path, tmp_path: Path) -> None:
    for name in ("all", "some"):
        shutil.copytree(stopped, tmp_path / name)
    saved = checkpoint(stopped)
    group = saved["optimizer_states"][0]["param_groups"][0]
    del group["dampening"], group["maximize"]
    torch.save(saved, tmp_path / "some" / "checkpoints" / "last.ckpt")
    for name in ("all", "some"):
        resume(tmp_path / name)
    ends = [checkpoint(tmp_path / name) for name in ("all", "some")]
    assert all(end["global_step"] == 14 for end in ends)
    assert same(*[(end["state_dict"], end["optimizer_states"]) for end in ends])


MALFORMED: dict[str, dict[str, Any]] = {
    "sums": {"train_sums": "x"},
    "callbacks": {"callbacks": {"EMAWeightAveraging": {"x": 1}}},
    "averages": {"current_model_state": {"x": torch.zeros(1)}},
    "a count": {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 1, "completed": 1}}}}},
    "no groups": {"optimizer_states": [{"state": {}, "param_groups": []}]},
    "momentum": {"optimizer_states.momentum_buffer": torch.zeros(7)},
    "schedule": {"lr_schedulers": [{"x": 1}]},
    "steps of the schedule": {"lr_schedulers": [{"lr_lambdas": [], "last_epoch": "x"}], "run_length": None},
}


@pytest.mark.parametrize("part", MALFORMED)
def test_a_malformed_checkpoint_is_a_one_line_error(stopped: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved, changed = checkpoint(stopped), dict(MALFORMED[part])
    if (momentum := changed.pop("optimizer_states.momentum_buffer", None)) is not None:
        saved["optimizer_states"][0]["state"][0]["momentum_buffer"] = momentum
    torch.save(saved | changed, file)
    with pytest.raises(UserError) as caught:
        resume(tmp_path / "run")
    said = str(caught.value)
    assert str(file) in said and "\n" not in said
    assert said.startswith((f"{file} ", f"Cannot resume from {file}: ")) or part == "no groups"


def test_unrelated_errors_are_not_blamed_on_the_checkpoint() -> None:
    with pytest.raises(UserError, match=r"^There is no room\.$"), resuming("a.ckpt", lambda: False):
        raise UserError("There is no room.")
    with pytest.raises(RuntimeError, match="of the user's"), resuming("a.ckpt", lambda: False):
        raise RuntimeError("of the user's")
    with pytest.raises(KeyError), resuming("a.ckpt", lambda: True):
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).load_state_dict({})


def test_an_optimizer_error_on_restored_state_is_blamed_on_the_checkpoint() -> None:
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros(3)
    with (
        pytest.raises(UserError, match=r"^Cannot resume from a\.ckpt: RuntimeError: .*; set weights=a\.ckpt"),
        resuming("a.ckpt", lambda: False),
    ):
        optimizer.step()
