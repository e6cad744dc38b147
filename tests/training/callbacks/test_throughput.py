"""Images per second: per step on CPU; per interval, including its wait, on an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import run

from alexnet_exp.training.callbacks import step_log as throughput
from alexnet_exp.training.callbacks.step_log import Throughput


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that advances the clock, which is otherwise stopped."""
    now = [100.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def take(rate: Throughput, advance: Callable[[float], None], *seconds: float) -> None:
    for duration in seconds:
        advance(duration)
        rate.step(8)


def test_on_cpu_each_step_after_the_first_three_has_a_rate(advance: Callable[[float], None]) -> None:
    rate = Throughput()
    rate.go_on()
    take(rate, advance, 9, 9, 9, 1, 2)
    rate.pause()
    advance(50)  # validation
    rate.go_on()
    take(rate, advance, 4)
    rate.end_interval()
    assert rate.rates.tolist() == [8.0, 4.0, 2.0]
    assert (rate.median, rate.latest(2)) == (4.0, 3.0)


def test_on_an_accelerator_the_rate_includes_the_wait_for_the_device(
    advance: Callable[[float], None],
) -> None:
    rate = Throughput(wait=lambda: advance(5))
    rate.go_on()
    take(rate, advance, 9, 9, 9)
    take(rate, advance, 1, 2)
    rate.end_interval()
    advance(50)  # writing a row
    rate.go_on()
    take(rate, advance, 1)
    rate.pause()
    advance(50)  # validation
    rate.go_on()
    take(rate, advance, 1)
    rate.pause()
    advance(50)
    rate.end_interval()
    assert rate.rates.tolist() == [16 / (1 + 2 + 5), 16 / (1 + 5 + 1 + 5)]
    assert rate.latest(50) == 16 / 12


def test_a_run_shorter_than_an_interval_also_has_a_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(throughput, "waiting_for", lambda device: lambda: waits.append(1))
    result = run(tmp_path, "trainer.log_every_n_steps=6", "trainer.max_steps=5", "test=false")
    assert result["images_per_second"] > 0
    assert len(waits) < 8, "three to warm up, and once for whatever reads the device"
