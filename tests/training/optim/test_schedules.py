"""Every schedule against a list of rates worked out by hand: 4 epochs of 2 steps, starting at a rate of 0.8."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.training.optim.schedules import RunLength, build_schedule

EPOCHS, STEPS = 4, 2


def optimizer(rates: tuple[float, ...] = (0.8,)) -> SGD:
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in rates], momentum=0.9)


def rates_of(name: str, made: SGD | None = None, num_epochs: int = EPOCHS, **options: Any) -> list[float]:
    """Return the rate of each optimizer step of a run, as the trainer would step the schedule."""
    made = made or optimizer()
    settings = {**group("scheduler", name), **options}
    schedule = build_schedule(made, settings, RunLength(num_epochs * STEPS, STEPS))
    rates = []
    for _ in range(num_epochs):
        for _ in range(STEPS):
            rates.append(made.param_groups[-1]["lr"])
            made.step()
            if schedule and schedule["interval"] == "step":
                schedule["scheduler"].step()
        if schedule and schedule["interval"] == "epoch":
            schedule["scheduler"].step()
    return rates


def test_none_keeps_the_rate() -> None:
    assert rates_of("none") == [0.8] * 8


def test_step_multiplies_the_rate_every_n_epochs() -> None:
    expected = [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4]
    assert rates_of("step", every_epochs=2, gamma=0.5) == pytest.approx(expected)


def test_multistep_multiplies_the_rate_at_the_given_epochs() -> None:
    expected = [0.8, 0.8, 0.08, 0.08, 0.08, 0.08, 0.008, 0.008]
    assert rates_of("multistep", epochs=[1, 3], gamma=0.1) == pytest.approx(expected)


def test_cosine_warms_up_to_the_rate_and_falls_to_the_final_factor() -> None:
    # One epoch of warm-up: a third, two thirds, then the rate itself; six steps of half a cosine down to a tenth.
    half = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    expected = [0.8 / 3, 1.6 / 3, *(0.8 * (0.1 + 0.9 * h) for h in half)]
    assert rates_of("cosine", warmup_epochs=1, final_factor=0.1) == pytest.approx(expected)


def test_cosine_ends_at_the_final_factor() -> None:
    made = optimizer()
    rates_of("cosine", made, warmup_epochs=1, final_factor=0.25)
    assert made.param_groups[0]["lr"] == pytest.approx(0.2)


def test_cosine_without_warm_up_starts_at_the_rate() -> None:
    assert rates_of("cosine", warmup_epochs=0)[0] == pytest.approx(0.8)


def test_a_warm_up_takes_at_most_half_of_the_run() -> None:
    rates = rates_of("cosine", warmup_epochs=100)
    assert rates[:5] == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_onecycle_spans_exactly_the_steps_of_the_run() -> None:
    rates = rates_of("onecycle", num_epochs=5, pct_start=0.3, div_factor=4.0, final_div_factor=8.0)
    rise = [0.2 + 0.6 * 0.5 * (1 - math.cos(math.pi * k / 2)) for k in range(2)]
    fall = [0.025 + 0.775 * 0.5 * (1 + math.cos(math.pi * k / 7)) for k in range(8)]
    assert rates == pytest.approx([*rise, *fall])


@pytest.mark.parametrize(("pct_start", "steps"), [(0.3, 40), (0.25, 7), (0.1, 100)])
def test_onecycle_has_torch_s_rates(pct_start: float, steps: int) -> None:
    options = {"pct_start": pct_start, "div_factor": 10.0, "final_div_factor": 100.0}
    ours, theirs = optimizer(), optimizer()
    schedule = build_schedule(ours, {"name": "onecycle", **options}, RunLength(steps, 4))
    assert schedule is not None
    reference = OneCycleLR(theirs, 0.8, total_steps=steps, **options)
    for step in range(steps):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        assert ours.param_groups[0]["momentum"] == 0.9  # torch's cycles it, whatever the optimizer was told
        ours.step(), theirs.step()
        schedule["scheduler"].step()
        if step < steps - 1:
            reference.step()


@pytest.mark.parametrize(("pct_start", "steps"), [(0, 8), (1, 8), (0.25, 4), (1.0, 1), (0.5, 1), (0.0, 1)])
def test_onecycle_accepts_any_share_and_length(pct_start: float, steps: int) -> None:
    made = optimizer()
    options = {"pct_start": pct_start, "div_factor": 10.0, "final_div_factor": 100.0}
    schedule = build_schedule(made, {"name": "onecycle", **options}, RunLength(steps, 1))
    assert schedule is not None
    rates = []
    for _ in range(steps):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule["scheduler"].step()
    assert max(rates) == pytest.approx(0.8)
    assert all(0 < rate <= 0.8 + 1e-12 for rate in rates)


def test_poly_falls_linearly_to_zero() -> None:
    assert rates_of("poly") == pytest.approx([0.8 * (8 - k) / 8 for k in range(8)])
    assert rates_of("poly", power=2.0)[6] == pytest.approx(0.8 / 16)


def test_poly_warms_up_first() -> None:
    rates = rates_of("poly", power=2.0, warmup_epochs=1.0)
    warmup = rates.index(max(rates))
    left = len(rates) - warmup
    assert 0 < warmup <= len(rates) // 2
    assert rates[:warmup] == pytest.approx([0.8 * (k + 1) / (warmup + 1) for k in range(warmup)])
    assert rates[warmup:] == pytest.approx([0.8 * (1 - k / left) ** 2 for k in range(left)])


def test_dexp_falls_in_equal_stages() -> None:
    expected = [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
    assert rates_of("dexp", steps=4, factor=8.0) == pytest.approx(expected)


@pytest.mark.parametrize("option", [{"bias_factor": 10.0}, {"bias_steps": 2}])
def test_dexp_of_biases_needs_a_separate_bias_rate(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"scheduler.{next(iter(option))} needs a separate rate for biases"):
        rates_of("dexp", **option)


def test_table_changes_rates_at_the_epochs_it_names() -> None:
    changes = [{"epoch": 1, "lr": 0.3}, {"epoch": 3, "lr": 0.05}]
    assert rates_of("table", changes=changes) == pytest.approx([0.8, 0.8, 0.3, 0.3, 0.3, 0.3, 0.05, 0.05])


@pytest.mark.parametrize("name", ["step", "multistep", "cosine", "onecycle", "poly"])
def test_a_second_group_keeps_its_ratio_to_the_first(name: str) -> None:
    options = {"multistep": {"epochs": [1, 2]}, "step": {"every_epochs": 1}}.get(name, {})
    second = rates_of(name, optimizer((0.8, 1.6)), **options)
    assert second == pytest.approx([2 * rate for rate in rates_of(name, **options)])


def test_automatic_warm_up_outside_of_a_run_is_a_share_of_it() -> None:
    made = [
        build_schedule(
            optimizer((1.0,)), {**group("scheduler", "cosine"), "warmup_epochs": warmup}, RunLength(200, 20)
        )
        for warmup in ("auto", 0.5)
    ]
    first, second = (each["scheduler"].lr_lambdas[0] for each in made if each is not None)
    assert [first(step) for step in range(200)] == [second(step) for step in range(200)]
    assert first(0) < first(9) < first(10) == 1.0


def test_plateau_waits_for_its_patience() -> None:
    made = optimizer()
    settings = {**group("scheduler", "plateau"), "patience": 1, "factor": 0.5}
    schedule = build_schedule(made, settings, RunLength(8, 2))
    assert schedule is not None and schedule["monitor"] == "val/loss"
    rates = []
    for value in (1.0, 0.9, 0.95, 0.96, 0.97, 0.98):
        schedule["scheduler"].step(value)
        rates.append(made.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.2])


@pytest.mark.parametrize("name", ["cosine", "onecycle", "poly", "dexp"])
def test_a_schedule_over_the_run_needs_its_length(name: str) -> None:
    with pytest.raises(UserError, match=f"scheduler={name} needs the length of the run"):
        build_schedule(optimizer(), group("scheduler", name), RunLength(math.inf, 2))


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UserError, match=r"invalid scheduler\.name='sawtooth': expected none"):
        build_schedule(optimizer(), {"name": "sawtooth"}, RunLength(8, 2))
