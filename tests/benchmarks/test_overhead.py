"""`Trainer` alternates with a hand-written loop: equal steps, and neither disturbs the other's turns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import overhead
import pytest
from overhead import Turns, take_turns

from alexnet_exp.errors import UserError
from tests.runs.measured_runs import on_linux, photographs, subject, working


@on_linux
def test_trainers_workers_pause_in_the_turns_of_the_loop(tmp_path: Path) -> None:
    one = subject(tmp_path, *photographs(tmp_path))
    seen: list[list[bool]] = []
    times = take_turns(one.fit(), lambda steps: seen.append(working()), one)
    assert times["ours"]["n"] == 2
    assert len(seen) >= 4 and all(states and not any(states) for states in seen)
    assert not multiprocessing.active_children()


def test_the_context_of_a_turn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    @contextmanager
    def around() -> Iterator[None]:
        passes(100)
        yield
        passes(100)

    monkeypatch.setattr(overhead, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    turns = Turns(passes, steps=3, repeats=1, wait=lambda: None, around=around)
    assert turns._others_turn() == 3.0
    assert now[0] == 100 + 1 + 3 + 100


def test_both_sides_take_the_same_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def other(steps: int) -> None:
        asked.append(steps)
        now[0] += 0.02 * steps

    monkeypatch.setattr(overhead, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = subject(tmp_path, "data.batch_size=200")  # 1,262 images: 6 batches an epoch, so turns of 2 steps
    asked: list[int] = []
    fit = one.fit()
    times = take_turns(fit, other, one)
    assert asked == [1, 2] * (len(asked) // 2) and len(asked) >= 6  # the first turn warms up
    assert fit.trainer.global_step == sum(asked)
    assert times["theirs"]["median_seconds"] == pytest.approx(0.02)
    assert times["ours"]["n"] == times["theirs"]["n"] == 2


def test_an_epoch_too_short_for_turns_is_refused(tmp_path: Path) -> None:
    one = subject(tmp_path, "data.batch_size=1000")
    with pytest.raises(UserError, match="An epoch of 1 batches is too short"):
        take_turns(one.fit(), lambda steps: None, one)


def test_settings_that_end_a_run_do_not_end_its_turns(tmp_path: Path) -> None:
    limits = ("trainer.limit_train_batches=2", "trainer.fast_dev_run=true", "trainer.max_epochs=1")
    stopping = ("callbacks.early_stopping.enabled=true", "callbacks.early_stopping.patience=1")
    one = subject(tmp_path, "data.batch_size=200", *limits, *stopping)
    turns: list[int] = []

    def other(steps: int) -> None:
        turns.append(steps)
        assert len(turns) < 20, "an epoch is shorter than a turn: this would never end"

    assert take_turns(one.fit(), other, one)["ours"]["n"] == 2
