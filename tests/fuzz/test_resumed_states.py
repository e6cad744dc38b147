"""Runs resumed from a checkpoint with a part of its state missing or replaced: refused, or they finish."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_exp.errors import UserError
from tests.fuzz.refusal import check_sentence
from tests.training.small_runs import checkpoint, resume, train_until

# A failure is reported with the whole checkpoint, which is long.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
SETTINGS = [
    "test=false", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1",
    "scheduler=cosine", "callbacks.ema.enabled=true", "callbacks.early_stopping.enabled=true",
    "callbacks.checkpoint.every_n_steps=2",
]  # fmt: skip
STATE = ("pytorch-lightning_version", "epoch", "global_step", "optimizer_states", "lr_schedulers", "callbacks",
         "current_model_state", "averaging_state", "train_sums", "validated", "reported", "loops")  # fmt: skip
GONE = object()
WRONG = [GONE, None, [], {}, "x", -1]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that stopped after two."""
    folder = tmp_path_factory.mktemp("states") / "parts"
    train_until(folder, 2, *SETTINGS)
    return folder


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in nested dictionaries and lists."""
    yield way
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*way, key))


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Return a copy in which the value at a path is replaced or removed."""
    if not way:
        return new
    found = copy.copy(value)
    inner = changed(value[way[0]], way[1:], new)
    if inner is not GONE:
        found[way[0]] = inner
    else:
        del found[way[0]]
    return found


@settings(max_examples=settings.default.max_examples // 3)  # each is a training
@given(data=st.data())
def test_a_resumed_run_ends_or_is_refused_in_one_line(
    parts: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    saved = checkpoint(parts)
    way = data.draw(st.sampled_from([way for part in STATE for way in places(saved[part], (part,))]))
    new = data.draw(st.sampled_from(WRONG))
    here = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(parts, here)
    torch.save(changed(saved, way, new), here / "checkpoints" / "last.ckpt")
    try:
        resume(here)
    except UserError as error:
        check_sentence(error)
    else:
        assert all(value.isfinite().all() for value in checkpoint(here)["state_dict"].values())
