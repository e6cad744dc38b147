"""benchmarks/lrn.py, on very small maps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lrn
import pytest
import torch
from baseline import with_torch_lrn
from script import run
from torch import nn

from alexnet_exp import zoo
from alexnet_exp.models.layers import LocalResponseNorm

NARROW = {f"conv{i}": {"out_channels": 4} for i in range(1, 6)}
CPU = ["device=cpu", "lrn.compile=false", "repeats=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure small maps and narrow networks, in a folder of the test's own."""
    monkeypatch.setattr("alexnet_exp.runs.benchmark.timing._LEAST", math.inf)  # other tests run beside

    def narrow(name: str, **overrides: Any) -> nn.Module:
        heads = {"fc6": {"out_features": 8}, "fc7": {"out_features": 8}}
        return zoo.create_model(name, features=NARROW, classifier=heads, **overrides)

    monkeypatch.setattr(lrn, "MAPS", ((6, 5), (8, 3)))
    monkeypatch.setattr(lrn, "create_model", narrow)
    monkeypatch.chdir(tmp_path)


def test_lrn_writes_a_row_per_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*CPU, "lrn.batch_size=2", f"hydra.run.dir={tmp_path / 'run'}"]
    assert run(lrn.measure_lrn, lrn.SETTINGS, arguments) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["command"].startswith("python benchmarks/lrn.py device=cpu")
    assert (result["settings"]["repeats"], result["settings"]["lrn"]["batch_size"]) == (1, 2)
    rows = {(row["what"], row["case"]): row for row in result["rows"]}
    step = "training step, alexnet_lrn, batch 2, 32-true contiguous"
    alone = [
        (f"LRN alone (2, {c}, {s}, {s}), 32-true contiguous", case)
        for c, s in ((6, 5), (8, 3))
        for case in ("ours", "torch")
    ]
    assert list(rows) == [*alone, *((step, case) for case in ("without LRN", "with ours", "with torch's"))]
    for row in rows.values():
        assert row["median_seconds"] == row["least_seconds"] > 0
        assert (row["sd_seconds"], row["n"]) == (0.0, 1)
    for what, case in alone:
        slow = rows[what, "torch"]["median_seconds"]
        assert rows[what, case]["ratio"] == pytest.approx(slow / rows[what, case]["median_seconds"])
    base = rows[step, "without LRN"]["median_seconds"]
    assert rows[step, "with ours"]["ratio"] == pytest.approx(rows[step, "with ours"]["median_seconds"] / base)
    output = capsys.readouterr().out
    assert output.count("without LRN") == 2  # the case, and what the ratio is
    assert output.rstrip().endswith("result.json")


def test_lrn_is_timed_in_the_precision_and_layout_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: set[tuple[torch.dtype, bool]] = set()
    forward = LocalResponseNorm.forward

    def noting(self: LocalResponseNorm, x: torch.Tensor) -> torch.Tensor:
        seen.add((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return forward(self, x)

    asked: list[torch.device] = []
    monkeypatch.setattr(LocalResponseNorm, "forward", noting)
    monkeypatch.setattr(lrn, "use_fast_matmul", asked.append)
    monkeypatch.setattr(lrn, "missing_compiler", lambda device: "a C++ compiler (g++)")
    settings = ["trainer.precision=bf16-mixed", "channels_last=true", "lrn.batch_size=2", "lrn.compile=true"]
    assert run(lrn.measure_lrn, lrn.SETTINGS, [*CPU, *settings, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert seen == {(torch.bfloat16, True)}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert all(row["what"].endswith("bf16-mixed channels_last") for row in result["rows"])
    assert asked == [torch.device("cpu")]
    assert result["notes"][0] == "Compiled cases are skipped: they need a C++ compiler (g++)."
    assert any("fewer than five" in note for note in result["notes"])  # repeats=1


def test_memory_kept_for_the_backward_pass_is_relative_to_the_input() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert lrn._kept(nn.Identity(), x) == 0.0
    assert lrn._kept(nn.ReLU(), x) == 1.0  # its output
    assert lrn._kept(LocalResponseNorm(), x) == 1.0  # its input


def test_torchs_layer_normalises_each_tower_separately() -> None:
    towers = nn.Sequential(LocalResponseNorm(5, 1.0, groups=2))
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_torch_lrn(nn.Sequential(*towers))(x), towers(x))


@pytest.mark.parametrize(
    ("benchmark", "deterministic", "chosen"),
    [(None, False, True), (None, True, False), (False, False, False)],
)
def test_convolutions_are_chosen_as_in_a_run(
    monkeypatch: pytest.MonkeyPatch, benchmark: bool | None, deterministic: bool, chosen: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not chosen)
    trainer: Any = SimpleNamespace(benchmark=benchmark, deterministic=deterministic)
    lrn._as_a_run(trainer, "cpu")
    assert torch.backends.cudnn.benchmark is chosen


def test_the_compared_networks_differ_only_in_their_lrn() -> None:
    ours = lrn.create_model("alexnet_lrn", num_classes=10)
    theirs = with_torch_lrn(lrn.create_model("alexnet_lrn", num_classes=10))
    theirs.load_state_dict(ours.state_dict())
    norms = [module for module in theirs.modules() if isinstance(module, nn.LocalResponseNorm)]
    assert len(norms) == 2
    assert not any(isinstance(module, LocalResponseNorm) for module in theirs.modules())
    images = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_the_requested_number_of_threads_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert run(lrn.measure_lrn, lrn.SETTINGS, [*CPU, "lrn.batch_size=1", "threads=3"]) == 0
    assert asked == [3]
