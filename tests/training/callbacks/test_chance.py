"""A network that does no better than guessing is noticed, and one that learns is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from alexnet_exp.tracking.run_reader import learned_nothing
from alexnet_exp.training.callbacks.chance import ChanceLevel, guess
from tests.training.small_runs import checkpoint, resume, run, train_until

# Weights that never move, and logits of zero: every image gets the same prediction.
STUCK = ["optimizer.lr=1.0e-12", "model.classifier.fc8.weight_std=0.0", "model.classifier.fc8.bias_init=0.0",
         "trainer.max_epochs=6", "test=false"]  # fmt: skip
SAID = "the network is not learning"


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 5.0, 0.5)])
def test_guessing_is_the_best_constant_prediction(weights, smoothing: float, balanced: bool) -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 1)
    drawn = torch.tensor([0, 1, 2]) if balanced else labels  # each class equally often
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(len(drawn)) if weights is None else torch.tensor(weights)[drawn]
    optimizer = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        each = functional.cross_entropy(
            logits.expand(len(drawn), 3), drawn, reduction="none", label_smoothing=smoothing
        )
        total = (each * scale).sum() / scale.sum()
        total.backward()
        return total

    for _ in range(5):
        optimizer.step(loss)
    found = guess(labels, 3, weights, smoothing, balanced)
    assert found.tolist() == pytest.approx(logits.detach().softmax(0).tolist(), abs=1e-4)


def test_a_network_that_stays_at_chance_is_said_once_and_recorded(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *STUCK)
    said = [line for line in (tmp_path / "run" / "train.log").read_text().splitlines() if SAID in line]
    assert len(said) == 1 and "optimizer.lr" in said[0] and "batch norm" in said[0]
    assert result["at_chance"]["steps"] == 42
    assert result["at_chance"]["loss"] == pytest.approx(math.log(10), rel=1e-5)
    assert checkpoint(tmp_path / "run")["at_chance"] == result["at_chance"]
    sentence = learned_nothing(result)
    assert sentence is not None and sentence in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["at_chance"] == result["at_chance"]


def test_a_network_that_learns_is_left_in_peace(tmp_path: Path) -> None:
    result = run(
        tmp_path / "run", "trainer.max_epochs=8", "optimizer=adam", "optimizer.lr=0.003", "test=false"
    )
    assert result["metrics"]["train/loss"] < 2.0
    assert SAID not in (tmp_path / "run" / "train.log").read_text()
    assert "at_chance" not in result and "at_chance" not in checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    "how",
    [
        ["augment=mixup"],
        ["label_smoothing=0.1"],
        ["class_weights=auto"],
        ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=11"],
        ["trainer.log_every_n_steps=3"],
        ["data.balanced=true"],
    ],
    ids=lambda how: how[0],
)
def test_chance_is_noticed_whatever_the_training_loss_is(how: list[str], tmp_path: Path) -> None:
    run(tmp_path / "run", *STUCK, *how)
    assert SAID in (tmp_path / "run" / "train.log").read_text()


def test_a_resumed_run_remembers_how_long_it_has_been_at_chance(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *STUCK, "trainer.log_every_n_steps=4")
    train_until(tmp_path / "cut", 17, *STUCK, "trainer.log_every_n_steps=4")
    resume(tmp_path / "cut")
    assert checkpoint(tmp_path / "cut")["at_chance"] == whole["at_chance"]
    states = [checkpoint(tmp_path / name)["callbacks"]["ChanceLevel"] for name in ("whole", "cut")]
    assert states[0] == states[1]


def test_a_loss_below_guessing_ends_it_and_overfitting_does_not_begin_it() -> None:
    watch = ChanceLevel(torch.full((10,), 0.1, dtype=torch.float64))
    chance = math.log(10)
    watch._judge(5.0, chance, 50)  # before it has learned, worse than guessing is no better
    assert watch.at_chance is not None and watch.steps == 50
    watch._judge(0.985 * chance, chance, 50)
    assert watch.learned and watch.at_chance is None
    watch._judge(1.5 * chance, chance, 50)
    assert watch.at_chance is None
    watch._judge(1.001 * chance, chance, 50)  # the network has collapsed
    assert watch.at_chance is not None


def test_a_sentence_needs_numbers() -> None:
    assert learned_nothing({}) is None
    assert learned_nothing({"at_chance": None}) is None
    assert learned_nothing({"at_chance": {"loss": "2", "guessing": 2.3, "steps": 3}}) is None
