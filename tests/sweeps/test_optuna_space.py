"""Hydra's override grammar as a search space of Optuna."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from alexnet_exp.config.compose import compose
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.optuna.space import Space, check_values, read_space


def space(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("range(1,4)", IntDistribution(1, 3)),
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(sgd,adam)", CategoricalDistribution(["sgd", "adam"])),
        ("1,2,2", CategoricalDistribution(["1", "2"])),
        ("[relu,lrn],[relu]", CategoricalDistribution(["[relu,lrn]", "[relu]"])),
    ],
)
def test_values_become_a_distribution(values: str, distribution: BaseDistribution):
    assert space(f"setting={values}").distributions == {"setting": distribution}


def test_single_values_are_fixed_and_the_last_override_wins():
    found = space("model=a,b", "seed=1", "lr=1,2", "model=c")
    assert found.fixed == ["model=c", "seed=1"]
    assert list(found.distributions) == ["lr"]
    assert found.overrides({"lr": "2"}) == ["model=c", "seed=1", "lr=2"]


def test_a_number_is_read_back_exactly():
    (_, written) = space("seed=1", "lr=interval(0,1)").overrides({"lr": 0.1 + 0.2})
    assert float(written.removeprefix("lr=")) == 0.1 + 0.2


def test_examples_contain_every_choice_and_both_ends_of_an_interval():
    rows = space("model=a,b,c", "lr=interval(0.5,2)").examples()
    assert rows == [["model=a", "lr=0.5"], ["model=b", "lr=2.0"], ["model=c", "lr=2.0"]]


@pytest.mark.parametrize(
    ("overrides", "points"),
    [(["a=1,2,3", "b=range(0,4)"], 12), (["a=1,2", "b=interval(0,1)"], float("inf"))],
)
def test_points_are_counted(overrides: list[str], points: float):
    assert space(*overrides).points() == points


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=1", "nothing to search"),
        ("a=tag(log,choice(1,2))", "the tag log does not apply to choices"),
        ("a=tag(square,interval(1,2))", "unknown tag square"),
        ("a=tag(log,interval(0,1))", "invalid search space"),
        ("a=interval(2,1)", "invalid search space"),
        ("a=range(3,3)", "the range is empty"),
        (
            "data.url='s3://u:pw@host/a','s3://u:pw@host/b'",
            "data.url contains a password, which the study would record",
        ),
    ],
)
def test_an_invalid_search_space_is_rejected(override: str, message: str):
    with pytest.raises(UserError, match=message):
        space(override)


def check(*overrides: str) -> None:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    check_values(read_space(parsed), parsed, lambda typed: compose("train", typed))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.batch_size=interval(16,64)",
            r"integer >= 1: write 'data\.batch_size=int\(interval\(16,64\)\)'",
        ),
        (
            "data.batch_size=tag(log,interval(16,64))",
            r"write 'data\.batch_size=int\(tag\(log,interval\(16,64\)\)\)'",
        ),
        (
            "data.batch_size=int(interval(0,64))",
            r"would try 0: data\.batch_size must be an integer >= 1\.$",
        ),
        ("data.batch_size=16,32.5", "would try 32.5: data.batch_size must be an integer"),
        (
            "data.batch_size=range(16,64,0.5)",
            r"would try 16.0: data\.batch_size must be an integer >= 1\.$",
        ),
        ("optimizer.momentum=interval(0,1)", "would try 1.0: optimizer.momentum must be"),
        ("optimizer.lr=range(0,0.1,0.01)", "would try 0.0: optimizer.lr must be a positive number"),
        ("trainer.max_epochs=int(interval(-1,4))", "would try 0: trainer.max_epochs must be"),
        ("trainer.limit_train_batches=interval(1,64)", ": trainer.limit_train_batches must be"),
        ("augment.flip=true,maybe", "would try maybe: augment.flip must be true or false"),
        ("model.features.conv1.out_channels=interval(16,64)", r"write '.*=int\(interval\(16,64\)\)'"),
        (
            "model.features.conv1.out_channels=range(0,64,8)",
            "would try 0: invalid model.features.conv1.out_channels=0: expected",
        ),
        ("model.dropout=interval(0,2)", r"would try 2.0: invalid model\.dropout"),
    ],
)
def test_invalid_values_in_a_search_space_are_rejected_before_the_first_trial(override: str, message: str):
    with pytest.raises(UserError, match=message):
        check(override)


def test_valid_values_are_accepted():
    check(
        "data.batch_size=int(interval(16,64))",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "model.features.conv1.out_channels=int(tag(log,interval(16,64)))",
        "model.dropout=interval(0,0.9)",
        "optimizer=sgd,adam",
        "trainer.limit_train_batches=interval(0.1,1)",
        "augment.flip=true,alternating",
        "callbacks.ema.decay=interval(0.9,0.999)",
        "+callbacks.mine.size=interval(1,2)",
    )


def test_a_glob_expands_to_the_files_of_a_group():
    from tests.sweeps.searches import parsed

    found: Any = read_space(parsed("model=glob(alexnet_icpm*)")).distributions["model"]
    assert found.choices == ("alexnet_icpm", "alexnet_icpm_bn")
