"""The private names of Lightning that training/lightning_internals.py replaces: whether it still has and calls them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import lightning
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from alexnet_exp.training.lightning_internals import leave_signals_to_us

# What is replaced: by which way a trainer has it, its name, and the function of Lightning's that calls it.
REPLACED = [
    ("_signal_connector", "register_signal_handlers", Trainer._run),
    ("fit_loop.epoch_loop", "_broadcast_sigterm_tensor", _TrainingEpochLoop.advance),
]


def calls(function: Any) -> list[str]:
    """Return what a function calls, as written."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def found(trainer: Trainer, way: str) -> Any:
    owner: Any = trainer
    for name in way.split("."):
        owner = getattr(owner, name)
    return owner


@pytest.mark.parametrize(("way", "name", "caller"), REPLACED)
def test_lightning_still_calls_what_is_replaced(way: str, name: str, caller: Any) -> None:
    trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False)  # fmt: skip
    owner = found(trainer, way)
    assert callable(getattr(type(owner), name))
    assert any(call.startswith("self.") and call.endswith(f".{name}") for call in calls(caller))
    assert not inspect.signature(getattr(owner, name)).parameters
    leave_signals_to_us(trainer)
    assert name in vars(owner)  # in the place of the class's
    assert getattr(owner, name)() is None


def test_nothing_else_in_lightning_registers_handlers_or_broadcasts_sigterm() -> None:
    source = inspect.getsource(_TrainingEpochLoop)
    assert source.count("torch.distributed.broadcast(") == 1
    assert "torch.distributed.broadcast(" in inspect.getsource(_TrainingEpochLoop._broadcast_sigterm_tensor)
