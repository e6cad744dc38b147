"""A run resumed from a checkpoint that lacks a part of its state, or has another in its place: refused, or the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_exp.errors import UserError
from tests.fuzz.refusal import check_sentence
from tests.training.small_runs import checkpoint, resume, rows, run, same, train_until
from tests.training.test_resumable import STATE, WRONG, changed, places

# A failure is told with the whole checkpoint, which is long.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
SETTINGS = [
    "test=false", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1",
    "scheduler=cosine", "callbacks.ema.enabled=true", "callbacks.early_stopping.enabled=true",
    "callbacks.checkpoint.every_n_steps=2",
]  # fmt: skip
HOW = ("foreach", "fused", "capturable", "differentiable")  # the same up to rounding


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of three steps, and one that ended after two of them."""
    folder = tmp_path_factory.mktemp("states")
    run(folder / "whole", *SETTINGS)
    train_until(folder / "parts", 2, *SETTINGS)
    return folder / "whole", folder / "parts"


@settings(max_examples=settings.default.max_examples // 3)  # each is a training
@given(data=st.data())
def test_a_resumed_run_ends_as_it_should_or_is_refused(
    runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, parts = runs
    saved = checkpoint(parts)
    ways = [way for part in (*STATE, "loops") for way in places(saved[part], (part,)) if way[-1] not in HOW]
    way = data.draw(st.sampled_from(ways))
    new = data.draw(st.sampled_from(WRONG))
    here = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(parts, here)
    torch.save(changed(saved, way, new), here / "checkpoints" / "last.ckpt")
    try:
        resume(here)
    except UserError as error:
        check_sentence(error)
    else:
        assert_same_end(whole, here)


def assert_same_end(one: Path, other: Path) -> None:
    a, b = checkpoint(one), checkpoint(other)
    for key in ("state_dict", "current_model_state", "train_sums", "global_step"):
        assert same(a[key], b[key]), key
    moments: list[Any] = [found["optimizer_states"][0]["state"] for found in (a, b)]
    assert same(*moments)
    assert rows(one) == rows(other)
