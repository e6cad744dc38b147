from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import threads


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for n in (6, 15, 40):
        held = 0
        for _ in range(4000):
            low, high, sure = threads.interval(random.lognormal(size=n).tolist())
            held += low <= 1 <= high
        assert sure >= 0.95
        assert held / 4000 == pytest.approx(sure, abs=0.01)


@pytest.mark.parametrize(("n", "sure"), [(1, 0.0), (5, 0.9375)])
def test_of_few_values_the_interval_is_their_range(n: int, sure: float) -> None:
    values = [float(i) for i in range(n)]
    assert threads.interval(values) == (0.0, n - 1.0, sure)


def test_pairs_take_turns_and_differ_in_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def rate(name: str, changes: dict[str, str], seconds: float) -> float:
        asked.append((name, changes))
        return 200.0 if changes == {"X": "2"} else 100.0

    monkeypatch.setattr(threads, "rate", rate)
    out = tmp_path / "threads.json"
    typed = f"--before --after X=2 --runs digits --others 0 1 --pairs 3 --busy-pairs 2 --out {out}"
    assert threads.main(typed.split()) == 0
    assert [changes for _, changes in asked[:6]] == [{}, {"X": "2"}, {"X": "2"}, {}, {}, {"X": "2"}]
    rows = json.loads(out.read_text())["rows"]
    assert [(row["others"], len(row["pairs"])) for row in rows] == [(0, 3), (1, 2)]
    assert statistics.median(after / before for before, after in rows[0]["pairs"]) == 2
    assert "ratio 2.000" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_has_a_rate() -> None:
    assert threads.rate("digits", {"OMP_WAIT_POLICY": "passive"}, 2) > 0
