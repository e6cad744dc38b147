"""A network that does no better than guessing is noticed, and one that learns is not."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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
Said = Callable[[], list[str]]


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
    assert "The run has ended" in said[0] and "more epochs" in said[0]
    assert result["at_chance"]["steps"] == 40  # of 42: the rate rises during two
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
    run(tmp_path / "whole", *STUCK, "trainer.log_every_n_steps=4")
    train_until(tmp_path / "cut", 17, *STUCK, "trainer.log_every_n_steps=4")
    resume(tmp_path / "cut")
    whole, cut = (checkpoint(tmp_path / name)["at_chance"] for name in ("whole", "cut"))
    assert whole == cut
    states = [checkpoint(tmp_path / name)["callbacks"]["ChanceLevel"] for name in ("whole", "cut")]
    assert states[0] == states[1]


def test_a_loss_below_guessing_ends_it_and_overfitting_does_not_begin_it() -> None:
    watch = ChanceLevel(torch.full((10,), 0.1, dtype=torch.float64))
    chance = math.log(10)
    watch._judge(5.0, chance, 50, 50)  # before it has learned, worse than guessing is no better
    assert watch.at_chance is not None and watch.steps == 50
    watch._judge(0.985 * chance, chance, 50, 100)
    assert watch.learned and watch.at_chance is None
    watch._judge(1.5 * chance, chance, 50, 150)
    assert watch.at_chance is None
    watch._judge(1.001 * chance, chance, 50, 200)  # the network has collapsed
    assert watch.at_chance is not None


# ---------------------------------------------------------------------------------------- curves


class Curve:
    """Drives the callback as a Trainer does, along a curve of losses instead of a network.

    Args:
        loss: Training loss of the batch of a step, counted from 1.
        classes: As often in train as in val.
        num_val: Validation images; 0 for none.
        warm_up: Steps in which the rate rises.
        total: Length of the run in steps, of which only a part may be driven.
        rank: Of two, if above 0.
    """

    def __init__(
        self, loss: Callable[[int], float], classes: int = 10, num_val: int = 500, warm_up: int = 0,
        total: float = 1000, rank: int = 0,
    ) -> None:  # fmt: skip
        labels = torch.arange(classes)
        val = torch.arange(num_val) % classes if num_val else None
        self.watch = ChanceLevel(guess(labels, classes), True, val, "a lower optimizer.lr")
        self.loss, self.batch = loss, SimpleNamespace(labels=labels, size=classes)
        self.at_epoch_end = True
        reached = SimpleNamespace(_num_ready_batches_reached=lambda: self.at_epoch_end)
        self.trainer = SimpleNamespace(
            world_size=1 + (rank > 0), is_global_zero=rank == 0, global_step=0, log_every_n_steps=10,
            estimated_stepping_batches=total, sanity_checking=False, num_val_batches=[num_val],
            state=SimpleNamespace(fn="fit"), fit_loop=SimpleNamespace(epoch_loop=reached), datamodule=None,
        )  # fmt: skip
        self.module = SimpleNamespace(device=torch.device("cpu"), warm_up_steps=warm_up, reported={})
        self._reset()
        self.watch.on_train_start(self.trainer, self.module)

    def _reset(self) -> None:
        self.module.train_meter = SimpleNamespace(loss=torch.zeros((), dtype=torch.float64), totals=[0, 0, 0])

    def drive(
        self, steps: int, every: int = 50, val: Callable[[int], tuple[float, float]] | None = None
    ) -> Curve:
        """Train for `steps` more steps in epochs of `every`, validated by `val`: step -> loss, top-1."""
        for step in range(self.trainer.global_step + 1, self.trainer.global_step + steps + 1):
            self.trainer.global_step = step
            self.module.train_meter.loss += self.loss(step) * self.batch.size
            self.module.train_meter.totals[2] += self.batch.size
            self.at_epoch_end = step % every == 0
            self.watch.on_train_batch_end(self.trainer, self.module, None, self.batch, 0)
            if self.at_epoch_end:
                if val is not None:
                    self.module.reported = dict(zip(("val/loss", "val/top1"), val(step), strict=True))
                    self.watch.on_validation_end(self.trainer, self.module)
                self.watch.on_train_epoch_end(self.trainer, self.module)
                self._reset()
        return self

    def end(self) -> Curve:
        self.watch.on_train_end(self.trainer, self.module)
        return self


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Return the function that returns what has been logged so far."""
    caplog.set_level(logging.INFO, "alexnet_exp")
    return lambda: caplog.messages


def falls_from(start: int, plateau: float, speed: float) -> Callable[[int], float]:
    """Return a loss that stays on a plateau until a step and then falls by `speed` a step, to a tenth of it."""
    return lambda step: plateau if step < start else max(plateau - speed * (step - start), plateau / 10)


def test_a_short_run_that_leaves_chance_late_is_not_warned(said: Said) -> None:
    # As resnet18 at 32 pixels: 150 steps, above the loss of guessing until step 92.
    curve = Curve(falls_from(92, 2.4, 0.01), total=150).drive(150, every=63).end()
    assert said() == [] and curve.watch.learned and curve.watch.at_chance is None


def test_a_network_that_predicts_well_before_its_loss_shows_it_is_not_at_chance(said: Said) -> None:
    # As alexnet_fast: the run ends after 23 steps, with a mean loss above guessing and a validation accuracy of 0.29.
    curve = (
        Curve(lambda step: 2.6 - 0.01 * step, total=150)
        .drive(23, every=23, val=lambda step: (2.4, 0.294))
        .end()
    )
    assert said() == [] and not curve.watch.learned and curve.watch.at_chance is None
    stuck = (
        Curve(lambda step: 2.6 - 0.01 * step, total=150)
        .drive(23, every=23, val=lambda step: (2.4, 0.11))
        .end()
    )
    assert stuck.watch.at_chance is not None


def test_a_short_run_at_chance_is_told_when_it_ends(said: Said) -> None:
    curve = Curve(lambda step: math.log(10), total=150).drive(150, every=30, val=lambda step: (2.303, 0.1))
    assert said() == []
    curve.end()
    assert len(said()) == 1 and said()[0].startswith("The run has ended, and for its last 150 steps")
    assert curve.watch.at_chance == {"loss": pytest.approx(math.log(10)), "guessing": pytest.approx(math.log(10)),
                                     "steps": 150}  # fmt: skip


def test_the_last_steps_of_a_run_count_although_they_are_few(said: Said) -> None:
    # Twenty steps at chance, then five in which it leaves, inside an epoch and without validation images.
    curve = Curve(falls_from(21, 2.31, 0.2), num_val=0, total=25).drive(25, every=100).end()
    assert said() == [] and curve.watch.learned


def test_a_long_run_at_chance_is_told_once_after_200_steps(said: Said) -> None:
    curve = Curve(lambda step: 2.32, total=1000).drive(190, val=lambda step: (2.32, 0.1))
    assert said() == []
    curve.drive(20)
    assert len(said()) == 1 and said()[0].startswith(
        "For 200 steps the loss has been no lower than that of guessing (2.32;"
    )
    curve.drive(500, val=lambda step: (2.32, 0.1)).end()
    assert len(said()) == 1


def test_the_mark_is_taken_back_when_the_network_leaves_chance(said: Said) -> None:
    curve = Curve(falls_from(400, 2.31, 0.001), total=1000).drive(400)
    assert curve.watch.at_chance is not None and len(said()) == 1
    curve.drive(600).end()
    assert curve.watch.learned and curve.watch.at_chance is None
    assert len(said()) == 2 and said()[1].startswith("The network has left chance at step 4")


def test_steps_of_the_warm_up_do_not_count(said: Said) -> None:
    curve = Curve(falls_from(650, 2.31, 0.001), total=2000, warm_up=500).drive(690)
    assert said() == [] and curve.watch.steps == 180
    curve.drive(200).end()
    assert said() == [] and curve.watch.learned


def test_an_accuracy_that_naming_the_largest_class_reaches_is_no_sign_of_learning(said: Said) -> None:
    curve = Curve(lambda step: 2.31)
    curve.watch._largest_share = 0.8  # four in five validation images are of one class
    curve.drive(300, val=lambda step: (2.31, 0.82)).end()
    assert len(said()) == 1 and not curve.watch.val_beats_guessing
    curve.drive(100, val=lambda step: (2.31, 0.86))
    assert curve.watch.val_beats_guessing and curve.watch.at_chance is None


def test_a_thousand_classes_get_one_percent_of_a_long_run(said: Said) -> None:
    # ImageNet, 90 epochs of 256: chance is ln 1000, and published starts may leave it after thousands of steps.
    chance, total = math.log(1000), 450_000
    late = Curve(falls_from(3000, chance, 0.001), classes=1000, total=total).drive(3500, every=5000)
    assert said() == [] and late.watch.learned
    stuck = Curve(lambda step: chance + 0.01, classes=1000, total=total).drive(4400, every=5000)
    assert said() == [] and stuck.watch.steps > 4000
    stuck.drive(150, every=5000)
    assert len(said()) == 1 and "guessing gives 6.908" in said()[0]
    # Five in a thousand of 50,000 are beyond doubt, although the loss is still that of guessing.
    stuck.trainer.num_val_batches, stuck.watch._num_val = [50_000], 50_000
    stuck.drive(450, every=5000, val=lambda step: (6.9, 0.005))
    assert stuck.watch.at_chance is None and said()[1].startswith("The network has left chance at step 5000")


def test_only_the_first_rank_judges_the_training_loss(said: Said) -> None:
    for rank in (0, 1):
        Curve(lambda step: 2.31, rank=rank).drive(300).end()
    assert len(said()) == 1


def test_a_checkpoint_from_before_the_accuracy_counted_is_still_read() -> None:
    state = ChanceLevel(None).state_dict()
    del state["val_beats_guessing"]
    watch = ChanceLevel(None)
    watch.load_state_dict(state)
    assert watch.val_beats_guessing is False


def test_a_sentence_needs_numbers() -> None:
    assert learned_nothing({}) is None
    assert learned_nothing({"at_chance": None}) is None
    assert learned_nothing({"at_chance": {"loss": "2", "guessing": 2.3, "steps": 3}}) is None
