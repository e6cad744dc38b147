"""Statistics over seeds, against a table of the t distribution and hand-computed values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.config.groups import ADDED
from alexnet_exp.runs.compare.groups import Comparison, group_runs, t_quantile
from alexnet_exp.tracking.run_reader import Run

# Two-sided 95 % quantiles as printed in statistical tables.
TABLE = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    4: 2.7764,
    5: 2.5706,
    9: 2.2622,
    10: 2.2281,
    29: 2.0452,
    120: 1.9799,
}


def run(seed: int, top1: float | None, status: str = "finished", **config: Any) -> Run:
    made = Run(Path(f"{config}-{seed}-{status}"), f"{seed}")
    made.config = {"seed": seed, **config}
    made.result = {"status": status, "metrics": {} if top1 is None else {"test/top1": top1}}
    made.rows = []
    return made


@pytest.mark.parametrize("freedom", TABLE)
def test_t_quantile_matches_published_tables(freedom: int):
    assert t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=5e-5)


def test_t_quantile_for_another_confidence():
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=5e-5)
    assert t_quantile(6, 0.9) == pytest.approx(1.9432, abs=5e-5)


def test_three_seeds_give_mean_sd_and_interval():
    (group,) = group_runs([run(0, 0.90), run(1, 0.92), run(2, 0.94)], "test/top1")
    assert (group.n, group.metric) == (3, "test/top1")
    assert group.mean == pytest.approx(0.92)
    assert group.sd == pytest.approx(0.02)
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert group.interval == pytest.approx((0.92 - half, 0.92 + half), abs=1e-6)


def test_one_seed_has_a_mean_but_no_interval():
    (group,) = group_runs([run(0, 0.9)], "test/top1")
    assert (group.mean, group.sd, group.interval) == (0.9, None, None)


def test_runs_that_did_not_finish_do_not_count():
    (group,) = group_runs([run(0, 0.9), run(1, 0.1, "failed"), run(2, None, "interrupted")], "test/top1")
    assert (len(group.runs), group.values) == (3, [0.9])


def test_a_repeated_seed_counts_once():
    twice = [run(0, 0.5), run(1, 0.9)]
    twice.append(run(0, 0.8))
    (group,) = group_runs(twice, "test/top1")
    assert sorted(group.values) == [0.8, 0.9]
    assert (group.n, group.seeds) == (2, 2)  # no seed is missing
    assert {run.result["metrics"]["test/top1"] for run in group.counted} == {0.8, 0.9}


def test_settings_that_do_not_affect_training_do_not_split_a_group():
    apart = {"paths.output_dir": "a", "logger.wandb.name": "x", "resume": None}
    other = {"paths.output_dir": "b", "logger.wandb.name": "y", "resume": "b"}
    assert len(group_runs([run(0, 0.9, **apart), run(1, 0.8, **other)], "test/top1")) == 1
    newer = {key: value for key, value in ADDED.items() if "." in key}
    assert "callbacks.checkpoint.keep_last" in newer
    assert len(group_runs([run(0, 0.9), run(1, 0.8, **newer)], "test/top1")) == 1
    parted = [run(0, 0.9, **{"optimizer.lr": 0.1}), run(1, 0.8, **{"optimizer.lr": 0.2})]
    assert len(group_runs(parted, "test/top1")) == 2


def test_the_best_group_comes_first_and_is_marked():
    runs = [
        run(s, v + s / 1000, **{"optimizer.lr": lr}) for lr, v in ((0.1, 0.7), (0.2, 0.9)) for s in (0, 1)
    ]
    comparison = Comparison(runs, "test/top1", ["optimizer.lr"])
    assert [g.runs[0].config["optimizer.lr"] for g in comparison.groups] == [0.2, 0.1]
    assert [comparison.is_best(g) for g in comparison.groups] == [True, False]
    assert comparison.best is not None and comparison.best.value == 0.901


def test_the_lowest_loss_is_the_best():
    runs = [run(0, None, a=1), run(0, None, a=2)]
    for each, loss in zip(runs, (0.5, 0.3), strict=True):
        each.result["metrics"]["test/loss"] = loss
    comparison = Comparison(runs, "test/loss", ["a"])
    assert comparison.best is not None and comparison.best.value == 0.3
    assert comparison.groups[0].mean == 0.3


def test_value_of_another_metric_is_best_only_without_the_requested_one():
    tested, not_tested = run(0, 0.6, a=1), run(0, None, a=2)
    not_tested.result["metrics"]["val/top1"] = 0.99
    both = Comparison([tested, not_tested], "test/top1", ["a"])
    assert both.best is not None and both.best == (0.6, "test/top1")
    assert both.stand_ins == 1
    alone = Comparison([not_tested], "test/top1", [])
    assert alone.best is not None and alone.best == (0.99, "val/top1")
